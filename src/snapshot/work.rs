//! A table that several workers copy together.
//!
//! Owns: its ranges that nobody has taken, its finished files. Invariants: a range is taken once; the table is handed
//! over by the worker that leaves it last, and only if none of its ranges failed.

use super::job::{Copied, CopyJob};
use super::plan::{Plan, Range};
use crate::lake::{DataFile, SnapshotMark};
use crate::lsn::Lsn;
use crate::observe::progress::TableProgress;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The table.
pub(super) struct Work {
    pub(super) job: CopyJob,
    pub(super) plan: Plan,
    pub(super) progress: TableProgress,
    /// Names of all files that were begun for it.
    pub(super) made: Arc<Made>,
    state: Mutex<State>,
}

/// Names of files.
#[derive(Debug, Default)]
pub(super) struct Made(Mutex<Vec<String>>);

impl Made {
    pub(super) fn note(&self, path: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
    }
}

#[derive(Default)]
struct State {
    ranges: VecDeque<Range>,
    /// Workers that copy it.
    active: usize,
    failed: bool,
    /// It was handed over, so that its files may be named from now on.
    handed_over: bool,
    files: Vec<DataFile>,
    rows: u64,
}

/// What one worker has copied of it.
pub(super) struct Part {
    pub(super) files: Vec<DataFile>,
    /// The first of the files has the TRUNCATE row.
    pub(super) leads: bool,
    pub(super) rows: u64,
}

impl Work {
    pub(super) fn new(job: CopyJob, mut plan: Plan, progress: TableProgress) -> Self {
        let ranges = std::mem::take(&mut plan.ranges);
        Self { job, plan, progress, made: Arc::default(), state: Mutex::new(State { ranges, ..State::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker begins to copy it, if there is anything left.
    pub(super) fn enter(&self) -> Option<Range> {
        let mut state = self.state();
        let range = state.ranges.pop_front()?;
        state.active += 1;
        Some(range)
    }

    /// The next range for a worker that copies it.
    pub(super) fn next(&self) -> Option<Range> {
        self.state().ranges.pop_front()
    }

    /// A worker has done what there was; the finished table, if it was the last one.
    pub(super) fn leave(&self, part: Part, snapshot: Lsn) -> Option<Copied> {
        let mut state = self.state();
        state.active -= 1;
        state.rows += part.rows;
        let at = if part.leads { 0 } else { state.files.len() };
        state.files.splice(at..at, part.files);
        if state.active > 0 || !state.ranges.is_empty() || state.failed {
            return None;
        }
        state.handed_over = true;
        let schema = &self.job.schema;
        Some(Copied {
            mark: SnapshotMark { table: schema.table.clone(), version: schema.version, snapshot, rows: state.rows },
            oid: schema.oid,
            look: Box::new(self.job.look.clone()),
            files: std::mem::take(&mut state.files),
        })
    }

    /// The files of a copy that came to nothing, once no worker is at it any more; none if it was handed over.
    pub(super) fn leftovers(&self) -> Vec<String> {
        if self.state().handed_over {
            return Vec::new();
        }
        std::mem::take(&mut *self.made.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A worker failed on it: nothing of it is handed over, and nobody goes on with it.
    pub(super) fn fail(&self) {
        let mut state = self.state();
        state.active -= 1;
        state.failed = true;
        state.ranges.clear();
    }
}
