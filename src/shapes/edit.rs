//! Changes to the watermark's list of tables that travel with the rows they belong to.
//!
//! Owns: what each change does to the watermark. Invariant: applied in order, at the commit of the piece that they were sent with, so that a
//! version is listed before or with its first rows, and a debt with what it is owed for.

use crate::lake::{CHANGES_KEPT, Pending, PublicationMark, RetiredTable, TableChange, TableMark, Watermark};
use crate::lsn::Lsn;
use crate::postgres::look::Look;
use crate::schema::version::TableSchema;
use crate::table_name::TableName;
use std::sync::Arc;

/// One change.
#[derive(Debug, Clone)]
pub enum Edit {
    /// A table joins, or a snapshot table's copy became current. Documents and notes of before are kept.
    Join {
        /// Table.
        table: TableName,
        /// What is known of it.
        mark: Box<TableMark>,
    },
    /// Something of a table that is there.
    Table {
        /// Table.
        table: TableName,
        /// What.
        edit: TableEdit,
    },
    /// The publication as it was looked at.
    Publication(PublicationMark),
    /// A table is no longer replicated; its files stay.
    Retire {
        /// Table.
        table: TableName,
        /// When that was noticed, RFC 3339, UTC.
        at: String,
    },
}

/// A change of one table.
#[derive(Debug, Clone)]
pub enum TableEdit {
    /// A version has this schema, whose document is stored under this name before the edit is committed.
    Schema {
        /// Name in the version's folder.
        document: String,
        /// The schema.
        schema: Arc<TableSchema>,
    },
    /// A copy is owed.
    Owe(Pending),
    /// The catalog was compared.
    Reconciled(Box<Look>),
    /// A copy of a streamed table became current.
    Current {
        /// `pg_class.oid` of what was copied.
        oid: u32,
        /// Version that it belongs to.
        version: u32,
        /// Snapshot LSN.
        snapshot: Lsn,
        /// The catalog under the copy's lock.
        look: Box<Look>,
    },
    /// What changed, for people.
    Changed(TableChange),
    /// It cannot be replicated at present, or can again.
    Aside(Option<String>),
}

impl Edit {
    /// Does it.
    pub fn apply(&self, watermark: &mut Watermark) {
        match self {
            Edit::Join { table, mark } => {
                let mut mark = (**mark).clone();
                if let Some(retired) = watermark.retired.remove(table) {
                    keep(&mut mark, retired.schemas, Vec::new());
                }
                if let Some(before) = watermark.tables.remove(table) {
                    keep(&mut mark, before.schemas, before.changes);
                }
                watermark.tables.insert(table.clone(), mark);
            }
            Edit::Table { table, edit } => {
                if let Some(mark) = watermark.tables.get_mut(table) {
                    edit.apply(mark);
                }
            }
            Edit::Publication(mark) => watermark.source.publication = Some(mark.clone()),
            Edit::Retire { table, at } => {
                if let Some(mark) = watermark.tables.remove(table) {
                    let retired = RetiredTable { since: at.clone(), version: mark.version, schemas: mark.schemas };
                    watermark.retired.insert(table.clone(), retired);
                }
            }
        }
    }
}

/// What is known from before and not said otherwise.
fn keep(mark: &mut TableMark, schemas: std::collections::BTreeMap<u32, String>, changes: Vec<TableChange>) {
    for (version, document) in schemas {
        mark.schemas.entry(version).or_insert(document);
    }
    if mark.changes.is_empty() {
        mark.changes = changes;
    }
}

impl TableEdit {
    /// Does it.
    pub fn apply(&self, mark: &mut TableMark) {
        match self {
            TableEdit::Schema { document, schema } => {
                mark.schemas.insert(schema.version, document.clone());
            }
            TableEdit::Owe(pending) => {
                mark.pending.retain(|p| p.version != pending.version);
                mark.pending.push(pending.clone());
                mark.pending.sort_by_key(|p| p.version);
            }
            TableEdit::Reconciled(look) => mark.reconciled = (**look).clone(),
            TableEdit::Current { oid, version, snapshot, look } => {
                mark.oid = *oid;
                mark.version = Some(*version);
                mark.snapshot = Some(*snapshot);
                mark.reconciled = (**look).clone();
                // Older versions that were still waiting are superseded; newer ones go on waiting.
                mark.pending.retain(|p| p.outlives(*version, *snapshot));
            }
            TableEdit::Changed(change) => {
                mark.changes.push(change.clone());
                let old = mark.changes.len().saturating_sub(CHANGES_KEPT);
                mark.changes.drain(..old);
            }
            TableEdit::Aside(reason) => mark.aside = reason.clone(),
        }
    }
}
