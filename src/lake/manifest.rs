//! Commit manifests: what one commit added to the lake. Created once, never changed.
//!
//! Owns: their fields and their reading. Invariant: `previous` leads from the watermark's commit back to the
//! first; each `after` equals the previous `through`, but after a reset, which says so.

use super::{FORMAT, Unreadable};
use crate::lsn::{CommitSeq, Epoch, Lsn};
use crate::table_name::TableName;
use serde::{Deserialize, Serialize};

/// Where a file's rows came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Changes of the commit's range.
    Stream,
    /// Rows of a full copy, at its consistent point.
    Snapshot,
}

/// A Parquet file of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Path below the lake's root.
    pub path: String,
    /// Table.
    pub table: TableName,
    /// Schema version of all its rows.
    pub version: u32,
    /// Number of rows.
    pub rows: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// CRC-32C of the content, base64 of its big-endian bytes, as GCS writes it.
    pub crc32c: String,
    /// Where its rows came from.
    pub kind: FileKind,
}

/// A table whose copy became current with this commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMark {
    /// Table.
    pub table: TableName,
    /// Version that it belongs to.
    pub version: u32,
    /// Consistent point S.
    pub snapshot: Lsn,
    /// Rows copied.
    pub rows: u64,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout number, [`FORMAT`].
    pub format: u32,
    /// Number of this commit.
    pub seq: CommitSeq,
    /// The writer's epoch.
    pub epoch: Epoch,
    /// Path of the manifest before it; `None` for the first.
    pub previous: Option<String>,
    /// The range is `after <= commit LSN < through`.
    pub after: Lsn,
    /// End position of the range.
    pub through: Lsn,
    /// When it was written, RFC 3339, UTC.
    pub commit_time: String,
    /// Files that the commit adds.
    pub files: Vec<DataFile>,
    /// Tables whose copy becomes current.
    #[serde(default)]
    pub snapshots: Vec<SnapshotMark>,
    /// Paths of proposals of other processes that the commit takes in.
    #[serde(default)]
    pub proposals: Vec<String>,
    /// The chain of positions breaks here: another cluster, another timeline, or an earlier position.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
}

impl Manifest {
    /// Reads the document stored at `path`.
    pub fn parse(path: &str, body: &[u8]) -> Result<Self, Unreadable> {
        let bad = |reason: String| Unreadable { path: path.to_owned(), reason };
        let manifest: Self = serde_json::from_slice(body).map_err(|e| bad(e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(bad(format!("format {}; this program reads format {FORMAT}", manifest.format)));
        }
        Ok(manifest)
    }

    /// The document as it is stored.
    pub fn to_body(&self) -> bytes::Bytes {
        serde_json::to_vec(self).expect("a manifest has only text keys, so it is always JSON").into()
    }
}
