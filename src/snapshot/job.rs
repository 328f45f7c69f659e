//! What a copy is asked for, and what it leaves: passed from room to room.
//!
//! Owns: how a worker's memory is shared. Does not own: copying.

use crate::commit::FileNamer;
use crate::lake::{DataFile, SnapshotMark};
use crate::postgres::catalogue::{Table, TableKind};
use crate::postgres::look::Look;
use crate::schema::HashKey;
use crate::schema::version::TableSchema;
use crate::store::Store;
use std::sync::Arc;

/// A table to copy into a version.
#[derive(Debug, Clone)]
pub struct CopyJob {
    /// The version, whose live columns are selected.
    pub schema: Arc<TableSchema>,
    /// The catalog under the lock.
    pub look: Look,
    /// Root of a partition tree: the leaves' rows belong to it.
    pub kind: TableKind,
    /// The publication's row filter.
    pub filter: Option<String>,
}

impl CopyJob {
    /// A copy of `table`, as it is under the lock.
    pub fn new(schema: Arc<TableSchema>, table: &Table, filter: Option<String>) -> Self {
        let kind = if table.kind == TableKind::Partitioned { TableKind::Partitioned } else { TableKind::Ordinary };
        Self { schema, look: table.look.clone(), kind, filter }
    }
}

/// A finished copy of a table, its files durable.
#[derive(Debug, Clone)]
pub struct Copied {
    /// For the manifest.
    pub mark: SnapshotMark,
    /// `pg_class.oid` of what was copied.
    pub oid: u32,
    /// The catalog under the lock.
    pub look: Box<Look>,
    /// Its files.
    pub files: Vec<DataFile>,
}

/// Where a copy's files go, and what one worker may use for it.
#[derive(Debug, Clone)]
pub struct Sink {
    /// The lake.
    pub store: Arc<dyn Store>,
    /// Names of this epoch.
    pub namer: Arc<FileNamer>,
    /// For hashed columns.
    pub hash_key: Option<HashKey>,
    /// Bytes that one worker may buffer.
    pub worker_bytes: usize,
}

impl Sink {
    /// A batch: one fills while another one is encoded.
    pub(super) fn batch_bytes(&self) -> usize {
        self.worker_bytes / 8
    }

    /// A row group, encoded. It is there twice for a moment, when it is handed to the store.
    pub(super) fn row_group_bytes(&self) -> usize {
        self.worker_bytes / 4
    }

    /// A file, where it stays in memory until its end.
    pub(super) fn held_bytes(&self) -> usize {
        self.worker_bytes / 4
    }
}
