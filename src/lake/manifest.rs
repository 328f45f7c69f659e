//! Commit manifests: what one commit added to the lake. Created once, never changed.
//!
//! Owns: their fields and their reading. Invariant: `previous` leads from the watermark's commit back to the
//! first; each `after` equals the previous `through`, but after a reset, which says so.

use super::path::{is_data_of, is_plain_in};
use super::{FORMAT, PROPOSALS, Unreadable, commit_number};
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

impl DataFile {
    /// Refuses a path that is not one of its table and version.
    pub(super) fn check(&self) -> Result<(), String> {
        match is_data_of(&self.path, &self.table, self.version) {
            true => Ok(()),
            false => Err(format!("it names {:?} as a data file of {} v{}", self.path, self.table, self.version)),
        }
    }
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
    /// The chain of positions breaks here: another cluster, another timeline, or an earlier position. Without a `previous` the whole
    /// history does: what was before is damaged and left behind.
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
        manifest.check(path).map_err(bad)?;
        Ok(manifest)
    }

    /// Refuses what this program never writes: another commit under this name, a chain that does not fall, a path out of place.
    fn check(&self, path: &str) -> Result<(), String> {
        if commit_number(path) != Some((self.seq, self.epoch)) {
            return Err(format!("it holds commit {} of epoch {}, not the one that its name says", self.seq.0, self.epoch.0));
        }
        if let Some(previous) = &self.previous
            && !commit_number(previous).is_some_and(|(seq, epoch)| seq.next() == self.seq && epoch <= self.epoch)
        {
            return Err("the commit that it names as previous is not the one before it".to_owned());
        }
        self.files.iter().try_for_each(DataFile::check)?;
        match self.proposals.iter().all(|path| is_plain_in(path, PROPOSALS)) {
            true => Ok(()),
            false => Err("it names a proposal that is none".to_owned()),
        }
    }

    /// The document as it is stored.
    pub fn to_body(&self) -> bytes::Bytes {
        serde_json::to_vec(self).expect("a manifest has only text keys, so it is always JSON").into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::commit_path;

    fn manifest(previous: Option<&str>) -> Manifest {
        Manifest {
            format: FORMAT,
            seq: CommitSeq(7),
            epoch: Epoch(3),
            previous: previous.map(str::to_owned),
            after: Lsn(1),
            through: Lsn(2),
            commit_time: String::new(),
            files: Vec::new(),
            snapshots: Vec::new(),
            proposals: Vec::new(),
            reset: false,
        }
    }

    #[test]
    fn a_chain_that_does_not_fall_is_refused() {
        let path = commit_path(CommitSeq(7), Epoch(3));
        let read = |previous: &str| Manifest::parse(&path, &manifest(Some(previous)).to_body());
        assert!(read(&commit_path(CommitSeq(6), Epoch(3))).is_ok());
        for bad in [path.clone(), commit_path(CommitSeq(8), Epoch(3)), commit_path(CommitSeq(6), Epoch(4)), "../x".to_owned()] {
            assert!(read(&bad).is_err(), "{bad}");
        }
        assert!(Manifest::parse(&commit_path(CommitSeq(7), Epoch(4)), &manifest(None).to_body()).is_err(), "under another name");
        let mut other = manifest(None);
        other.proposals.push("/etc/passwd".to_owned());
        assert!(Manifest::parse(&path, &other.to_body()).is_err());
    }
}
