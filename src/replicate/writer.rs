//! What outlives a session: the claim, the running copy, what was learnt of the source.
//!
//! Owns: how the memory budget is shared. Does not own: what is done with it (`supervise`).

use super::announced::Announced;
use super::copier::Copier;
use super::source::Observed;
use crate::commit::Held;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lake::Tenure;
use crate::lsn::{Epoch, Lsn};
use crate::postgres::ConnectOptions;
use crate::schema::HashKey;
use crate::snapshot::{Copied, CopyJob, Prepared};
use crate::store::Store;
use crate::table_name::TableName;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio_postgres::Client;

/// With less than this a worker's row groups would be too small to read well.
const COPY_WORKER_BYTES_MIN: usize = 8 << 20;

/// What outlives a session.
pub(crate) struct Writer {
    pub(crate) config: Config,
    pub(crate) options: ConnectOptions,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) id: String,
    pub(crate) hash_key: Option<HashKey>,
    pub(crate) held: Option<Held>,
    pub(crate) copier: Copier,
    /// A copy that a first start has prepared.
    pub(crate) prepared: Option<(Prepared, Vec<CopyJob>)>,
    /// Finished copies that the last session did not live to commit, and the epoch of its claim.
    pub(crate) unsettled: Vec<(Epoch, Copied)>,
    /// How long it means to hold the lake.
    pub(crate) tenure: Tenure,
    /// Whoever holds the slot is ended at the first take-over.
    pub(crate) take_over: bool,
    /// The session that holds the turn of a first start, until the slot is held.
    pub(crate) turn: Option<Client>,
    /// The tables that are left out were named.
    pub(crate) told_left_out: bool,
    /// Where `--until-caught-up` ends.
    pub(crate) target: Option<Lsn>,
    pub(crate) announced: Announced,
    /// Configured tables that went from the source while this process ran.
    pub(crate) ended: BTreeSet<TableName>,
    /// New tables that could not be added to the publication, as they were told last.
    pub(crate) left_out: BTreeMap<TableName, String>,
}

impl Writer {
    /// What one side (stream or copy) may buffer before it cuts: the budget is shared by the piece being filled, the one
    /// waiting, the one being encoded and the one being uploaded, and by a copy's worker.
    pub(crate) fn piece_bytes(&self) -> usize {
        usize::try_from(self.config.batch.max_bytes.min(self.config.batch.memory / 6)).unwrap_or(usize::MAX)
    }

    /// What the stream's pieces may take from their cut to their upload.
    pub(crate) fn room_bytes(&self) -> usize {
        usize::try_from(self.config.batch.memory / 2).unwrap_or(usize::MAX)
    }

    /// What all workers of a copy together may buffer beside the stream: a third of the budget.
    pub(crate) fn copy_bytes(&self) -> usize {
        usize::try_from(self.config.batch.memory / 3).unwrap_or(usize::MAX)
    }

    /// Workers of a copy: as configured, but no more than the budget has room for.
    pub(crate) fn copy_workers(&self) -> usize {
        self.config.snapshot.workers.min(self.copy_bytes() / COPY_WORKER_BYTES_MIN).max(1)
    }

    /// After a fencing: what was learnt or made under the claim is of no use, and its files belong to no commit.
    pub(crate) fn forget_claim(&mut self) {
        (self.held, self.prepared, self.copier) = (None, None, Copier::new());
        self.unsettled.clear();
    }

    /// Says once of each new table that it cannot be replicated, and why.
    pub(crate) fn tell_left_out(&mut self, observed: &Observed) {
        for (table, reason) in observed.left_out.iter().filter(|(table, reason)| self.left_out.get(*table) != Some(reason)) {
            tracing::warn!(table = %table, reason, "a new table cannot be added to the publication now and is left out");
        }
        self.left_out = observed.left_out.clone();
    }

    /// The claim, which there must be by now.
    pub(crate) fn take_held(&mut self) -> Result<Held> {
        self.held.take().ok_or_else(|| Error::bug("a session without a claim"))
    }
}
