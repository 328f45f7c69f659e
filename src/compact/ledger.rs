//! The record of compaction: which files took the place of which, by checkpoints of the list of live files.
//!
//! Owns: writing a checkpoint (create-only), making it count (compare-and-swap of the record), reading back. Does not own: what is
//! replaced. Invariants: a replacement counts whole or not at all, and only while all that it replaces is live; a checkpoint is
//! exact at its commit; the record names every checkpoint that a reader may still be at.

use crate::commit::{self, persist, put_document, random};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{COMPACTION, Checkpoint, CheckpointMark, Compaction, FORMAT, LiveFile, Watermark, checkpoint_path, rfc3339};
use crate::store::{Generation, Store, StoreError};
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
}

/// The record as this process knows it.
pub(super) struct Ledger {
    pub(super) store: Arc<dyn Store>,
    pub(super) grace: Duration,
    /// When the record was last written from here.
    written: Option<Instant>,
    /// Live files of all versions, as of the last look.
    pub(super) live: Vec<LiveFile>,
    /// The watermark of the last look.
    pub(super) watermark: Watermark,
    /// The record that stands.
    pub(super) record: Option<Compaction>,
}

impl Ledger {
    /// Looks at the lake.
    pub(super) async fn open(store: Arc<dyn Store>, grace: Duration) -> Result<Self> {
        let watermark = crate::files::begun(store.as_ref()).await?;
        let live = commit::live(store.as_ref(), &watermark, true).await?;
        Ok(Self { store, grace, written: None, live, watermark, record: None })
    }

    /// Makes replacements count, and brings the checkpoint up to the watermark. Returns how many replacements were void, because
    /// another process replaced the same files first; their new files are deleted.
    pub(super) async fn commit(&mut self, mut replacements: Vec<Replacement>) -> Result<usize> {
        let mut void = Vec::new();
        loop {
            let found = commit::compaction(self.store.as_ref()).await?;
            self.watermark = crate::files::begun(self.store.as_ref()).await?;
            self.live = commit::live(self.store.as_ref(), &self.watermark, true).await?;
            let (live, late) = replaced(&self.live, &mut replacements);
            void.extend(late);
            let Some(commit) = self.watermark.commit.clone() else { break };
            let (record, generation) = found.map_or((None, None), |(record, generation)| (Some(record), Some(generation)));
            let stands = record.as_ref().and_then(|record| record.checkpoints.first()).is_some_and(|mark| mark.commit == commit);
            if stands && replacements.is_empty() {
                self.record = record;
                break;
            }
            let time = rfc3339(chrono::Utc::now().timestamp_micros());
            let number = record.as_ref().map_or(0, |record| record.number) + 1;
            let checkpoint = Checkpoint { format: FORMAT, seq: self.watermark.seq, commit: commit.clone(), files: live };
            let path = checkpoint_path(checkpoint.seq, number, random());
            put_document(self.store.as_ref(), &path, checkpoint.to_body()).await?;
            failpoint::hit("compact.after_checkpoint");
            let mut marks = record.map(|record| record.checkpoints).unwrap_or_default();
            if let Some(before) = marks.first_mut() {
                before.superseded = Some(time.clone());
            }
            marks.insert(0, CheckpointMark { path, seq: checkpoint.seq, commit, time, superseded: None });
            let next = Compaction { format: FORMAT, number, checkpoints: marks };
            if self.write(&next, generation).await? {
                failpoint::hit("compact.after_record");
                self.live = checkpoint.files;
                self.record = Some(next);
                break;
            }
        }
        // The record has moved on without them: nothing can name their files any more.
        for path in void.iter().flat_map(|late: &Replacement| &late.new).map(|live| &live.file.path) {
            persist("delete a file that came too late", || self.store.delete(path)).await?;
        }
        Ok(void.len())
    }

    /// Takes checkpoints out of the record that were superseded `grace` ago or earlier.
    pub(super) async fn lapse(&mut self, now: chrono::DateTime<chrono::Utc>) -> Result<()> {
        loop {
            let Some((mut record, generation)) = commit::compaction(self.store.as_ref()).await? else { return Ok(()) };
            let before = record.checkpoints.len();
            record.checkpoints.retain(|mark| !mark.superseded.as_deref().is_some_and(|since| is_older(since, self.grace, now)));
            if record.checkpoints.len() < before {
                record.number += 1;
                if !self.write(&record, Some(generation)).await? {
                    continue;
                }
            }
            self.record = Some(record);
            return Ok(());
        }
    }

    /// Replaces the record of `generation`; `false` if it has moved on meanwhile.
    async fn write(&mut self, next: &Compaction, generation: Option<Generation>) -> Result<bool> {
        let body = next.to_body();
        loop {
            if let Some(at) = self.written {
                tokio::time::sleep_until(at + self.store.min_replace_interval()).await;
            }
            let answer = match generation {
                None => self.store.put_new(COMPACTION, body.clone()).await,
                Some(generation) => self.store.replace_if(COMPACTION, body.clone(), generation).await,
            };
            self.written = Some(Instant::now());
            match answer {
                Ok(_) => return Ok(true),
                Err(error @ StoreError::Refused { .. }) => return Err(error.into()),
                Err(error) => tracing::debug!(error = %error, "the record of compaction was not written plainly, reading it back"),
            }
            let found = persist("read the record of compaction back", || self.store.get(COMPACTION)).await?;
            match found {
                Some(object) if object.body == body => return Ok(true),
                Some(object) if Some(object.generation) == generation => {}
                None if generation.is_none() => {}
                Some(_) => return Ok(false),
                None => return Err(Error::lake(format!("{COMPACTION} is gone: restore it, compacted files are named nowhere else"))),
            }
        }
    }
}

/// The list with the replacements done, and those that cannot be done, taken out.
fn replaced(live: &[LiveFile], replacements: &mut Vec<Replacement>) -> (Vec<LiveFile>, Vec<Replacement>) {
    let there: HashSet<&str> = live.iter().map(|live| live.file.path.as_str()).collect();
    let late: Vec<Replacement> = replacements.extract_if(.., |r| !r.old.iter().all(|path| there.contains(path.as_str()))).collect();
    let gone: HashSet<&String> = replacements.iter().flat_map(|r| &r.old).collect();
    let mut files: Vec<LiveFile> = live.iter().filter(|live| !gone.contains(&live.file.path)).cloned().collect();
    files.extend(replacements.iter().flat_map(|r| r.new.iter().cloned()));
    files.sort_by_key(|live| live.seq); // stable
    (files, late)
}

/// Whether an RFC 3339 time lies `age` or more before `now`. A time that cannot be read is not old: nothing is deleted for it.
pub(super) fn is_older(time: &str, age: Duration, now: chrono::DateTime<chrono::Utc>) -> bool {
    let Ok(time) = chrono::DateTime::parse_from_rfc3339(time) else { return false };
    now.signed_duration_since(time).to_std().is_ok_and(|past| past >= age)
}
