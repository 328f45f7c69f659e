//! Changes to the watermark's table list that travel with the rows they belong to.
//!
//! Owns: what each change does to the watermark. Invariant: applied in order, at the commit of the piece that
//! they were sent with, so that a version is listed before or with its first rows.

use crate::commit::put_or_replace;
use crate::config::Mode;
use crate::error::Result;
use crate::lake::{CHANGES_KEPT, Pending, PublicationMark, SnapshotMark, TableChange, TableMark, Watermark, schema_path};
use crate::schema::version::TableSchema;
use crate::store::Store;
use crate::table_name::TableName;

/// One change.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    /// A version waits for its snapshot; the table is added if it is new.
    Pending { table: TableName, oid: u32, pending: Pending },
    /// The current version's shape changed compatibly.
    Fingerprint { table: TableName, fingerprint: String },
    /// What changed, for people.
    Changed { table: TableName, change: TableChange },
    /// A table stands as it is, without a snapshot (`initial = false`).
    Adopted { table: TableName, oid: u32, version: u32, fingerprint: String },
    /// The publication as it was looked at.
    Publication(PublicationMark),
    /// A table is no longer replicated; its files stay.
    Forget(TableName),
    /// A catalogue's copy became current.
    Catalogue { table: TableName, mark: TableMark },
    /// A copy of a streamed table became current.
    Current { mark: SnapshotMark, oid: u32, fingerprint: String },
}

impl Edit {
    /// Does it.
    pub(crate) fn apply(&self, watermark: &mut Watermark) {
        match self {
            Edit::Pending { table, oid, pending } => {
                let mark = watermark.tables.entry(table.clone()).or_insert_with(|| TableMark {
                    oid: *oid,
                    version: None,
                    snapshot: None,
                    fingerprint: pending.fingerprint.clone(),
                    mode: Mode::Stream,
                    pending: Vec::new(),
                    content: None,
                    changes: Vec::new(),
                });
                (mark.mode, mark.content) = (Mode::Stream, None); // it may have been a catalogue
                mark.pending.retain(|p| p.version != pending.version);
                mark.pending.push(pending.clone());
            }
            Edit::Fingerprint { table, fingerprint } => {
                if let Some(mark) = watermark.tables.get_mut(table) {
                    mark.fingerprint = fingerprint.clone();
                }
            }
            Edit::Changed { table, change } => {
                if let Some(mark) = watermark.tables.get_mut(table) {
                    mark.changes.push(change.clone());
                    let old = mark.changes.len().saturating_sub(CHANGES_KEPT);
                    mark.changes.drain(..old);
                }
            }
            Edit::Adopted { table, oid, version, fingerprint } => {
                let mark = TableMark {
                    oid: *oid,
                    mode: Mode::Stream,
                    version: Some(*version),
                    snapshot: None,
                    fingerprint: fingerprint.clone(),
                    pending: Vec::new(),
                    content: None,
                    changes: Vec::new(),
                };
                watermark.tables.insert(table.clone(), mark);
            }
            Edit::Publication(mark) => watermark.source.publication = Some(mark.clone()),
            Edit::Forget(table) => {
                watermark.tables.remove(table);
            }
            Edit::Catalogue { table, mark } => {
                let changes = watermark.tables.remove(table).map(|before| before.changes).unwrap_or_default();
                watermark.tables.insert(table.clone(), TableMark { changes, ..mark.clone() });
            }
            Edit::Current { mark: snapshot, oid, fingerprint } => {
                if let Some(mark) = watermark.tables.get_mut(&snapshot.table) {
                    mark.oid = *oid;
                    mark.version = Some(snapshot.version);
                    mark.snapshot = Some(snapshot.snapshot);
                    mark.fingerprint = fingerprint.clone();
                    // Older versions that were still waiting are superseded; newer ones go on waiting.
                    mark.pending.retain(|p| p.outlives(snapshot.version, fingerprint, snapshot.snapshot));
                }
            }
        }
    }
}

/// Stores a version's schema; the union grows, so the document is replaced when it differs.
pub(crate) async fn store_schema(store: &dyn Store, schema: &TableSchema) -> Result<()> {
    put_or_replace(store, &schema_path(&schema.table, schema.version), schema.to_json().into()).await
}
