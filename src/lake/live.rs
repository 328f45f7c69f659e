//! Which files a reader may read.
//!
//! Owns: the rule. Invariant: only files that a live commit names are live, less those that compaction replaced, plus their
//! replacements; and of a table only those of its current version (all versions on request).

use super::{DataFile, FileKind, Manifest, Watermark};
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
            let mark = manifest.snapshots.iter().find(|m| m.table == file.table && m.version == file.version);
            LiveFile {
                file: file.clone(),
                seq: manifest.seq,
                after: manifest.after,
                through: manifest.through,
                snapshot: mark.filter(|_| file.kind == FileKind::Snapshot).map(|m| m.snapshot),
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
