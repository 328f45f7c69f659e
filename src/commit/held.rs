//! The lake as this writer holds it: its watermark, the generation to replace, and the way to the next one.
//!
//! Owns: the order manifest → watermark, the reading back. Invariant: after any error the visible lake is
//! either as before or as asked, and `Held` knows which, or the error says that it is over.

use super::standing::load;
use super::swap::{Swapped, swap};
use super::upload::{FileNamer, data_is_there, put_document};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{DataFile, FORMAT, Manifest, SnapshotMark, Tenure, WATERMARK, Watermark, commit_path, rfc3339};
use crate::lsn::Lsn;
use crate::store::{Generation, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bound for saying that we leave: a shutdown has ten seconds in all, and this is the least of what is to be done in them.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// What one commit does.
#[derive(Debug, Default)]
pub struct Change {
    /// End position.
    pub through: Lsn,
    /// Files, all of them there already.
    pub files: Vec<DataFile>,
    /// Tables whose copy becomes current.
    pub snapshots: Vec<SnapshotMark>,
    /// Proposals taken in.
    pub proposals: Vec<String>,
    /// Breaks the chain: its positions begin again at `through`.
    pub reset: bool,
    /// With `reset`: leaves a damaged history behind, so that nobody walks into it.
    pub leaves_history: bool,
}

/// The claim on a lake.
#[derive(Debug)]
pub struct Held {
    store: Arc<dyn Store>,
    watermark: Watermark,
    generation: Generation,
    written: Option<Instant>,
    namer: Arc<FileNamer>,
}

impl Held {
    pub(super) fn new(store: Arc<dyn Store>, watermark: Watermark, generation: Generation) -> Self {
        let namer = Arc::new(FileNamer::new(watermark.epoch));
        namer.expect_seq(watermark.seq.next());
        Self { store, watermark, generation, written: Some(Instant::now()), namer }
    }

    /// The watermark that stands.
    pub fn watermark(&self) -> &Watermark {
        &self.watermark
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Names for data files of this epoch.
    pub fn namer(&self) -> &Arc<FileNamer> {
        &self.namer
    }

    /// When the store allows the watermark to be written again.
    pub fn next_write(&self) -> Instant {
        self.written.map_or_else(Instant::now, |at| at + self.store.min_replace_interval())
    }

    /// Reads the watermark again after a pause in holding the slot: still ours, or fenced.
    pub async fn confirm(&mut self) -> Result<()> {
        let found = load(self.store.as_ref()).await?;
        match found {
            Some((found, generation)) if found == self.watermark => {
                self.generation = generation;
                Ok(())
            }
            Some((found, _)) => Err(self.not_ours(&found)),
            None => Err(gone()),
        }
    }

    /// Changes the watermark without a commit: nothing becomes visible by it but what `edit` says of slot and tables.
    pub async fn edit(&mut self, edit: impl FnOnce(&mut Watermark)) -> Result<()> {
        let mut next = self.watermark.clone();
        (next.commit_time, next.alive_at) = (rfc3339(chrono::Utc::now().timestamp_micros()), None);
        edit(&mut next);
        next.note_pending();
        tokio::time::sleep_until(self.next_write()).await;
        self.replace(next).await
    }

    /// Says that this writer is done with the lake, so that who comes next need not wonder. Best effort: whoever claims it meanwhile is right.
    pub async fn leave(&mut self) {
        match tokio::time::timeout(LEAVE_WITHIN, self.edit(|w| w.tenure = Tenure::Left)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = %error.full(), "the watermark does not say that this writer left"),
            Err(_) => tracing::debug!("the lake did not answer in time to say that this writer left"),
        }
    }

    /// Says that this writer lives although it has nothing to commit: nothing else changes.
    pub async fn show_life(&mut self) -> Result<()> {
        let next = Watermark { alive_at: Some(rfc3339(chrono::Utc::now().timestamp_micros())), ..self.watermark.clone() };
        tokio::time::sleep_until(self.next_write()).await;
        self.replace(next).await
    }

    /// Commits: manifest, then watermark with `edit` applied. The files are there already.
    pub async fn commit(&mut self, change: Change, edit: impl FnOnce(&mut Watermark)) -> Result<()> {
        data_is_there();
        let mut next = self.watermark.clone();
        next.seq = next.seq.next();
        let after = if change.reset { change.through } else { self.watermark.through.unwrap_or(change.through) };
        if change.through < after {
            return Err(Error::bug(format!("a commit through {} would go behind {after}", change.through)));
        }
        let now = rfc3339(chrono::Utc::now().timestamp_micros());
        let manifest = Manifest {
            format: FORMAT,
            seq: next.seq,
            epoch: next.epoch,
            previous: self.watermark.commit.clone().filter(|_| !change.leaves_history),
            after,
            through: change.through,
            commit_time: now.clone(),
            files: change.files,
            snapshots: change.snapshots,
            proposals: change.proposals,
            reset: change.reset,
        };
        let path = commit_path(next.seq, next.epoch);
        put_document(self.store.as_ref(), &path, manifest.to_body()).await?;
        failpoint::hit("commit.after_manifest");
        next.through = Some(change.through);
        next.commit = Some(path);
        (next.commit_time, next.alive_at) = (now, None);
        edit(&mut next);
        next.note_pending();
        tokio::time::sleep_until(self.next_write()).await;
        self.replace(next).await?;
        failpoint::hit("commit.after_cas");
        self.namer.expect_seq(self.watermark.seq.next());
        Ok(())
    }

    /// Replaces the watermark.
    async fn replace(&mut self, next: Watermark) -> Result<()> {
        let swapped = swap(self.store.as_ref(), WATERMARK, Some(self.generation), next.to_body()).await?;
        self.written = Some(Instant::now());
        match swapped {
            Swapped::Landed(generation) => {
                self.generation = generation;
                self.watermark = next;
                Ok(())
            }
            Swapped::Moved(object) => {
                let found = Watermark::parse(&object.body)
                    .map_err(|e| Error::lake("the watermark was overwritten by something else").with_source(e))?;
                Err(self.not_ours(&found))
            }
            Swapped::Gone => Err(gone()),
        }
    }

    fn not_ours(&self, found: &Watermark) -> Error {
        if found.epoch > self.watermark.epoch {
            Error::fenced(format!(
                "writer {} holds the lake with epoch {} (this one: {}); nothing of ours was lost, it goes on from the watermark",
                found.writer, found.epoch.0, self.watermark.epoch.0
            ))
        } else {
            Error::bug(format!("the watermark (epoch {}, commit {}) was changed without a claim", found.epoch.0, found.seq.0))
        }
    }
}

pub(super) fn gone() -> Error {
    Error::lake("watermark.json is gone: restore it, or begin a new lake with another lake.url")
}
