//! Proposals, seen by the writer: finished copies of other processes that wait for the next commit.
//!
//! Owns: looking for them, turning one into what a commit takes in, removing what is settled or void. Invariants: one is under way at
//! a time, so that each is judged against a watermark that stands; an object is removed only after its copies are committed,
//! or when they never will be.

use crate::config::Mode;
use crate::lake::{PROPOSALS, Proposal, SnapshotMark, TableMark};
use crate::lsn::Lsn;
use crate::postgres::look::Look;
use crate::shapes::{Edit, TableEdit};
use crate::snapshot::Copied;
use crate::store::Store;
use std::sync::Arc;

/// A proposal and where it lies.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) path: String,
    pub(crate) proposal: Proposal,
}

/// Copies that become current in one commit.
#[derive(Debug)]
pub(crate) struct Together {
    pub(crate) files: Vec<crate::lake::DataFile>,
    pub(crate) marks: Vec<SnapshotMark>,
    pub(crate) edits: Vec<Edit>,
    /// The commit's `through` must be at least this.
    pub(crate) needs: Lsn,
    /// The proposal that they come from.
    pub(crate) proposal: Option<String>,
    /// The writer's own copy, which outlives a session that does not come to commit it; a proposal lies in the lake.
    pub(crate) own: Option<Copied>,
}

impl From<Copied> for Together {
    fn from(copied: Copied) -> Self {
        Together {
            own: Some(copied.clone()),
            needs: copied.mark.snapshot,
            marks: vec![copied.mark.clone()],
            edits: vec![current(&copied.mark, copied.oid, copied.look)],
            files: copied.files,
            proposal: None,
        }
    }
}

fn current(mark: &SnapshotMark, oid: u32, look: Box<Look>) -> Edit {
    let edit = TableEdit::Current { oid, version: mark.version, snapshot: mark.snapshot, look };
    Edit::Table { table: mark.table.clone(), edit }
}

impl From<Found> for Together {
    fn from(found: Found) -> Self {
        let needs = found.proposal.needs();
        let (mut files, mut marks, mut edits) = (Vec::new(), Vec::new(), Vec::new());
        for table in found.proposal.tables {
            let mark = SnapshotMark { table: table.table.clone(), version: table.version, snapshot: table.snapshot, rows: table.rows };
            edits.push(match table.mode {
                Mode::Stream => current(&mark, table.oid, Box::new(table.look)),
                Mode::Snapshot => Edit::Join {
                    table: table.table,
                    mark: Box::new(TableMark {
                        version: Some(table.version),
                        snapshot: Some(table.snapshot),
                        schemas: [(table.version, table.schema)].into(),
                        content: table.content,
                        ..TableMark::new(table.oid, Mode::Snapshot, table.look)
                    }),
                },
            });
            marks.push(mark);
            files.extend(table.files);
        }
        Together { files, marks, edits, needs, proposal: Some(found.path), own: None }
    }
}

/// The proposals there are, the oldest point first. A lake that does not answer is asked again at the next heartbeat.
pub(crate) async fn list(store: &dyn Store) -> Vec<Found> {
    let mut found = Vec::new();
    let metas = match store.list(PROPOSALS).await {
        Ok(metas) => metas,
        Err(error) => {
            tracing::debug!(error = %error, "the lake's proposals cannot be listed now");
            return found;
        }
    };
    for meta in metas {
        match store.get(&meta.path).await {
            Ok(Some(object)) => match Proposal::parse(&meta.path, &object.body) {
                Ok(proposal) => found.push(Found { path: meta.path, proposal }),
                Err(error) => tracing::warn!(error = %error, "a proposal cannot be read and is left alone"),
            },
            Ok(None) => {}
            Err(error) => tracing::debug!(path = meta.path, error = %error, "a proposal cannot be read now"),
        }
    }
    found
}

/// Removes a proposal in the background; one that stays is found settled at the next look.
pub(crate) fn remove(store: &Arc<dyn Store>, path: &str) {
    let (store, path) = (Arc::clone(store), path.to_owned());
    tokio::spawn(async move {
        if let Err(error) = store.delete(&path).await {
            tracing::debug!(path, error = %error, "a settled proposal could not be removed now");
        }
    });
}
