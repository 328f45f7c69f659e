//! The record of compaction: which files took the place of which, by checkpoints of the list of live files.
//!
//! Owns: writing a checkpoint (create-only), making it count (compare-and-swap of the record), reading back. Does not own: what is
//! replaced, deletion: of data files that alone is the sweep's. Invariants: a replacement counts whole or not at all, only while all that
//! it replaces is live, and only while its files are younger than `grace`; a checkpoint is exact at its commit; the record names every
//! checkpoint that a reader may still be at.

use super::stopwatch::Stopwatch;
use crate::commit::{self, Swapped, put_document, random, swap};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{COMPACTION, Checkpoint, CheckpointMark, Compaction, FORMAT, LiveFile, Watermark, checkpoint_path, rfc3339};
use crate::store::{Generation, Store};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Files that take the place of others, at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Replacement {
    /// Paths of what is replaced.
    pub(super) old: HashSet<String>,
    /// What takes its place, durable.
    pub(super) new: Vec<LiveFile>,
    /// A document that says what it is, if one does.
    pub(super) receipt: Option<String>,
}

/// What a list of live files says of a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// All that it replaces is live: it can be done.
    Open,
    /// It is done: the reply to a write of ours was lost, and others have built on it since. Of one that leaves no file nobody can tell.
    Done,
    /// Another process replaced the same files. Ours may have counted for a while before that, and readers may be at them.
    Late,
}

impl Replacement {
    fn fate(&self, live: &HashSet<&str>) -> Fate {
        if self.old.iter().all(|path| live.contains(path.as_str())) {
            Fate::Open
        } else if !self.new.is_empty() && self.new.iter().all(|new| live.contains(new.file.path.as_str())) {
            Fate::Done
        } else {
            Fate::Late
        }
    }
}

/// The record as this process knows it.
pub(super) struct Ledger {
    pub(super) store: Arc<dyn Store>,
    pub(super) grace: Duration,
    /// When the record was last written from here.
    written: Option<Instant>,
    /// Live files of all versions, as of the last look.
    pub(super) live: Vec<LiveFile>,
    /// The chain begins with a reset that left a damaged history behind, at this time.
    pub(super) left_behind: Option<String>,
    /// The watermark of the last look.
    pub(super) watermark: Watermark,
    /// The record that stands.
    pub(super) record: Option<Compaction>,
}

impl Ledger {
    /// Looks at the lake.
    pub(super) async fn open(store: Arc<dyn Store>, grace: Duration) -> Result<Self> {
        let watermark = crate::files::begun(store.as_ref()).await?;
        let commit::History { files, left_behind } = commit::history(store.as_ref(), &watermark).await?;
        Ok(Self { store, grace, written: None, live: files, left_behind, watermark, record: None })
    }

    /// Makes replacements count, and brings the checkpoint up to the watermark. `since`: before the first of their files was made.
    /// Returns how many came too late, because another process replaced the same files first. Their files are left to the sweep: they
    /// may have been live in between.
    pub(super) async fn commit(&mut self, mut replacements: Vec<Replacement>, since: Stopwatch) -> Result<usize> {
        let mut late = 0;
        loop {
            let found = commit::compaction(self.store.as_ref()).await?;
            self.watermark = crate::files::begun(self.store.as_ref()).await?;
            let commit::History { files, left_behind } = commit::history(self.store.as_ref(), &self.watermark).await?;
            (self.live, self.left_behind) = (files, left_behind);
            // Only after the record was read: a sweep moves it before it deletes, so whoever finds it unmoved has been in time.
            if !replacements.is_empty() && since.elapsed() >= self.grace {
                return Err(Error::retry(
                    "compacting took longer than compact.grace, so its files may be swept meanwhile: start again, or raise it",
                ));
            }
            let there: HashSet<&str> = self.live.iter().map(|live| live.file.path.as_str()).collect();
            late += replacements.iter().filter(|replacement| replacement.fate(&there) == Fate::Late).count();
            replacements.retain(|replacement| replacement.fate(&there) == Fate::Open);
            let Some(commit) = self.watermark.commit.clone() else { break };
            let (record, generation) = found.map_or((None, None), |(record, generation)| (Some(record), Some(generation)));
            let stands = record.as_ref().and_then(|record| record.checkpoints.first()).is_some_and(|mark| mark.commit == commit);
            if stands && replacements.is_empty() {
                self.record = record;
                break;
            }
            let time = rfc3339(chrono::Utc::now().timestamp_micros());
            let number = record.as_ref().map_or(0, |record| record.number) + 1;
            let checkpoint = Checkpoint {
                format: FORMAT,
                seq: self.watermark.seq,
                commit: commit.clone(),
                files: replaced(&self.live, &replacements),
                left_behind: self.left_behind.clone(),
            };
            let path = checkpoint_path(checkpoint.seq, number, random());
            put_document(self.store.as_ref(), &path, checkpoint.to_body()).await?;
            failpoint::hit("compact.after_checkpoint");
            let mut marks = record.map(|record| record.checkpoints).unwrap_or_default();
            if let Some(before) = marks.first_mut() {
                before.superseded = Some(time.clone());
            }
            let receipt = replacements.iter().find_map(|replacement| replacement.receipt.clone());
            marks.insert(0, CheckpointMark { path, seq: checkpoint.seq, commit, time, superseded: None, receipt });
            let next = Compaction { format: FORMAT, number, checkpoints: marks };
            if self.write(&next, generation).await? {
                failpoint::hit("compact.after_record");
                self.live = checkpoint.files;
                self.record = Some(next);
                break;
            }
        }
        Ok(late)
    }

    /// Takes checkpoints out of the record that were superseded `grace` ago or earlier. `moves`: it is written again in any case, so that
    /// who looked at it before and stood still since must look again.
    pub(super) async fn lapse(&mut self, now: chrono::DateTime<chrono::Utc>, moves: bool) -> Result<()> {
        loop {
            let Some((mut record, generation)) = commit::compaction(self.store.as_ref()).await? else { return Ok(()) };
            let before = record.checkpoints.len();
            record.checkpoints.retain(|mark| !mark.superseded.as_deref().is_some_and(|since| is_older(since, self.grace, now)));
            if record.checkpoints.len() < before || moves {
                record.number += 1;
                if !self.write(&record, Some(generation)).await? {
                    continue;
                }
            }
            self.record = Some(record);
            return Ok(());
        }
    }

    /// Replaces the record of `generation`; `false` if another stands, which may or may not rest on this one.
    async fn write(&mut self, next: &Compaction, generation: Option<Generation>) -> Result<bool> {
        if let Some(at) = self.written {
            tokio::time::sleep_until(at + self.store.min_replace_interval()).await;
        }
        let swapped = swap(self.store.as_ref(), COMPACTION, generation, next.to_body()).await?;
        self.written = Some(Instant::now());
        match swapped {
            Swapped::Landed(_) => Ok(true),
            Swapped::Moved(_) => Ok(false),
            Swapped::Gone => Err(Error::lake(format!("{COMPACTION} is gone: restore it, compacted files are named nowhere else"))),
        }
    }
}

/// The list with the replacements done.
fn replaced(live: &[LiveFile], replacements: &[Replacement]) -> Vec<LiveFile> {
    let gone: HashSet<&String> = replacements.iter().flat_map(|r| &r.old).collect();
    let mut files: Vec<LiveFile> = live.iter().filter(|live| !gone.contains(&live.file.path)).cloned().collect();
    files.extend(replacements.iter().flat_map(|r| r.new.iter().cloned()));
    files.sort_by_key(|live| live.seq); // stable
    files
}

/// Whether an RFC 3339 time lies `age` or more before `now`. A time that cannot be read is not old: nothing is deleted for it.
pub(super) fn is_older(time: &str, age: Duration, now: chrono::DateTime<chrono::Utc>) -> bool {
    let Ok(time) = chrono::DateTime::parse_from_rfc3339(time) else { return false };
    now.signed_duration_since(time).to_std().is_ok_and(|past| past >= age)
}
