//! Which files a reader may read.
//!
//! Owns: the rule. Invariant: only files that a live commit names are live, less those that compaction replaced, plus their
//! replacements; and of a table only those of its current version (all versions on request).

use super::{DataFile, FileKind, Manifest, Watermark, first_lsn};
use crate::lsn::{CommitSeq, Lsn};
use serde::{Deserialize, Serialize};

/// `(_commit_lsn, _seq)` of a row.
pub type Position = (Lsn, i64);

/// Where a file's rows begin and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Position of its first row.
    pub first: Position,
    /// Position of its last row.
    pub last: Position,
}

/// A live file and the commit that brought it; a compacted one: the last of the commits that its rows are from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveFile {
    /// The file.
    pub file: DataFile,
    /// Commit number.
    pub seq: CommitSeq,
    /// Streamed rows lie at or above.
    pub after: Lsn,
    /// End position of that commit: streamed rows lie below.
    pub through: Lsn,
    /// Consistent point of the (newest) copy that rows are from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Lsn>,
    /// Known of compacted files only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
    /// Holds no row that a later one of its key, old as well, has made void.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub folded: bool,
}

impl LiveFile {
    /// The files that a commit added.
    pub fn added(manifest: &Manifest) -> impl Iterator<Item = Self> {
        manifest.files.iter().map(|file| {
            // Two copies of a table may become visible at once: each file's name begins with its own consistent point.
            let marks = || manifest.snapshots.iter().filter(|m| m.table == file.table && m.version == file.version).map(|m| m.snapshot);
            let own = first_lsn(&file.path).filter(|lsn| marks().any(|snapshot| snapshot == *lsn));
            LiveFile {
                file: file.clone(),
                seq: manifest.seq,
                after: manifest.after,
                through: manifest.through,
                snapshot: own.or_else(|| marks().max()).filter(|_| file.kind == FileKind::Snapshot),
                span: None,
                folded: false,
            }
        })
    }

    /// Whether it may hold rows at `lsn` or above.
    pub fn reaches(&self, lsn: Lsn) -> bool {
        match (self.span, self.file.kind) {
            (Some(span), _) => span.last.0 >= lsn,
            (None, FileKind::Stream) => self.through > lsn,
            // A catalogue's copy may lie above its commit.
            (None, FileKind::Snapshot) => self.snapshot.unwrap_or(self.through) >= lsn,
        }
    }

    /// No row lies below.
    pub fn lowest(&self) -> Lsn {
        match (self.span, self.file.kind) {
            (Some(span), _) => span.first.0,
            (None, FileKind::Stream) => self.after,
            (None, FileKind::Snapshot) => self.snapshot.unwrap_or(Lsn::ZERO),
        }
    }

    /// Whether it belongs to the version that readers use.
    pub fn is_current(&self, watermark: &Watermark) -> bool {
        watermark.tables.get(&self.file.table).is_some_and(|mark| mark.version == Some(self.file.version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::{DataPath, FORMAT, SnapshotMark};
    use crate::lsn::Epoch;
    use crate::table_name::TableName;

    #[test]
    fn of_two_copies_in_one_commit_each_file_has_its_own_point() {
        let table = TableName::new("public", "t");
        let file = |lsn: u64, part, kind| {
            let path = DataPath { lsn: Lsn(lsn), seq: CommitSeq(1), epoch: Epoch(1), part }.path(&table, 1, "2026-11-24");
            DataFile { path, table: table.clone(), version: 1, rows: 1, bytes: 1, crc32c: String::new(), kind }
        };
        let mark = |snapshot| SnapshotMark { table: table.clone(), version: 1, snapshot: Lsn(snapshot), rows: 1 };
        let manifest = Manifest {
            format: FORMAT,
            seq: CommitSeq(1),
            epoch: Epoch(1),
            previous: None,
            after: Lsn(0),
            through: Lsn(90),
            commit_time: String::new(),
            files: vec![file(50, 0, FileKind::Snapshot), file(70, 1, FileKind::Snapshot), file(80, 2, FileKind::Stream)],
            snapshots: vec![mark(50), mark(70)],
            proposals: Vec::new(),
            reset: false,
        };
        let live: Vec<LiveFile> = LiveFile::added(&manifest).collect();
        assert_eq!(live.iter().map(|live| live.snapshot).collect::<Vec<_>>(), [Some(Lsn(50)), Some(Lsn(70)), None]);
        assert_eq!(live.iter().map(|live| live.reaches(Lsn(70))).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(live.iter().map(LiveFile::lowest).collect::<Vec<_>>(), [Lsn(50), Lsn(70), Lsn(0)]);
        assert!(live[2].reaches(Lsn(89)) && !live[2].reaches(Lsn(90)), "through is an end position");
    }
}
