//! Copies in the background of the stream.
//!
//! Owns: one copy at a time, its pauses after a failure. Does not own: what is copied (`registry`).
//! Invariant: dropping it ends the copy; its files then belong to no commit.

use crate::commit::Held;
use crate::error::{Error, Result};
use crate::schema::HashKey;
use crate::snapshot::{Copied, CopyJob, Prepared, copy_all};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// First pause after a failed copy; doubles up to the longest.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(60);

/// What came of the copy.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Sessions stand at a consistent point.
    Prepared(Prepared),
    /// A table is done.
    Copied(Copied),
    /// All that was asked for is done.
    Finished,
    /// It failed; the tables are still pending.
    Failed(Error),
}

/// The background copy.
#[derive(Debug)]
pub(crate) struct Copier {
    task: Option<JoinHandle<Result<()>>>,
    preparing: Option<JoinHandle<Result<Prepared>>>,
    done: Option<mpsc::Receiver<Copied>>,
    pause: Duration,
    not_before: Instant,
}

impl Copier {
    pub(crate) fn new() -> Self {
        Self { task: None, preparing: None, done: None, pause: PAUSE_FIRST, not_before: Instant::now() }
    }

    /// Whether a copy is under way, or pauses.
    pub(crate) fn busy(&self) -> bool {
        self.task.is_some() || self.preparing.is_some()
    }

    /// When the next copy may begin.
    pub(crate) fn not_before(&self) -> Instant {
        self.not_before
    }

    /// Begins to prepare a copy.
    pub(crate) fn prepare(&mut self, preparing: impl Future<Output = Result<Prepared>> + Send + 'static) {
        self.preparing = Some(tokio::spawn(preparing));
    }

    /// Begins to copy.
    pub(crate) fn start(&mut self, prepared: Prepared, jobs: Vec<CopyJob>, held: &Lake, hash_key: Option<HashKey>, limit_bytes: usize) {
        let (sender, done) = mpsc::channel(1);
        let (store, namer) = (Arc::clone(&held.store), Arc::clone(&held.namer));
        self.task = Some(tokio::spawn(copy_all(prepared, jobs, store, namer, hash_key, limit_bytes, sender)));
        self.done = Some(done);
    }

    /// The next thing that comes of it; never ends while nothing is under way.
    pub(crate) async fn next(&mut self) -> Outcome {
        if let Some(preparing) = self.preparing.as_mut() {
            let ended = preparing.await;
            self.preparing = None;
            return match flatten(ended) {
                Ok(prepared) => Outcome::Prepared(prepared),
                Err(error) => self.failed(error),
            };
        }
        if let Some(done) = self.done.as_mut() {
            if let Some(copied) = done.recv().await {
                return Outcome::Copied(copied);
            }
            self.done = None;
        }
        let Some(task) = self.task.as_mut() else { return std::future::pending().await };
        let ended = task.await;
        self.task = None;
        match flatten(ended) {
            Ok(()) => {
                self.pause = PAUSE_FIRST;
                Outcome::Finished
            }
            Err(error) => self.failed(error),
        }
    }

    fn failed(&mut self, error: Error) -> Outcome {
        self.delay();
        Outcome::Failed(error)
    }

    /// Waits before the next attempt.
    pub(crate) fn delay(&mut self) {
        self.not_before = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_LONGEST);
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.task.iter().for_each(JoinHandle::abort);
        self.preparing.iter().for_each(JoinHandle::abort);
    }
}

fn flatten<T>(ended: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    ended.unwrap_or_else(|panic| Err(Error::bug("the copy panicked").with_source(panic)))
}

/// The parts of the held lake that copies need.
#[derive(Debug, Clone)]
pub(crate) struct Lake {
    store: Arc<dyn crate::store::Store>,
    namer: Arc<crate::commit::FileNamer>,
}

impl From<&Held> for Lake {
    fn from(held: &Held) -> Self {
        Self { store: Arc::clone(held.store()), namer: Arc::clone(held.namer()) }
    }
}
