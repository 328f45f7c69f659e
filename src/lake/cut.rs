//! The published cut: what a warehouse reads, at one position of all tables.
//!
//! Owns: its fields, and where it lies. Does not own: the paths of what it names (`path`). Invariant: files first, then manifests, then the cut, so that whatever the cut
//! promises is in the manifests; these may hold more, which a reader leaves aside by `through`.

use super::{FORMAT, Unreadable};
use crate::lsn::Lsn;
use crate::table_name::TableName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The cut.
pub const CUT: &str = "published/cut.json";

/// A table in the cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutTable {
    /// Current version.
    pub version: u32,
    /// Consistent point of the version's latest copy; `None` if it has none.
    pub snapshot: Option<Lsn>,
    /// First `dt` that may have rows at `snapshot` or above (all rows, if there is no copy): where a rebuild begins to read.
    pub snapshot_dt: String,
    /// URI of its manifest.
    pub manifest: String,
    /// URI of the file without rows that has all its columns.
    #[serde(default)]
    pub schema: String,
    /// Tells one set of columns (names and types in the warehouse) from another: the version's, as it is published here.
    #[serde(default)]
    pub columns_fingerprint: String,
    /// `through` of a former cut → first `dt` that may have rows at it or above: where a merge that stands there begins to read.
    pub from_dt: BTreeMap<Lsn, String>,
}

/// `published/cut.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Layout number, [`FORMAT`].
    pub format: u32,
    /// Every transaction with `_commit_lsn` below is in the manifests.
    pub through: Lsn,
    /// The commit whose files these are.
    pub commit: String,
    /// When that was written, RFC 3339, UTC.
    pub commit_time: String,
    /// `through` of former cuts, the newest first.
    #[serde(default)]
    pub former: Vec<Lsn>,
    /// Tables that have a current version.
    pub tables: BTreeMap<TableName, CutTable>,
}

impl Cut {
    /// Reads the document.
    ///
    /// # Errors
    /// If it is not one, or of another layout.
    pub fn parse(body: &[u8]) -> Result<Self, Unreadable> {
        let bad = |reason: String| Unreadable { path: CUT.to_owned(), reason };
        let cut: Self = serde_json::from_slice(body).map_err(|e| bad(e.to_string()))?;
        if cut.format != FORMAT {
            return Err(bad(format!("format {}; this program reads format {FORMAT}", cut.format)));
        }
        Ok(cut)
    }

    /// The document as it is stored.
    pub fn to_body(&self) -> bytes::Bytes {
        serde_json::to_vec_pretty(self).expect("a cut has only text keys, so it is always JSON").into()
    }
}
