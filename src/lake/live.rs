//! Which files a reader may read.
//!
//! Owns: the rule. Invariant: only files that a live commit names are live, and of a table only those of its
//! current version (all versions on request).

use super::{DataFile, Manifest, Watermark};
use crate::lsn::{CommitSeq, Lsn};

/// A live file and the commit that brought it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveFile {
    /// The file.
    pub file: DataFile,
    /// Commit number.
    pub seq: CommitSeq,
    /// End position of that commit.
    pub through: Lsn,
}

/// The live files of `chain` (oldest commit first), in the order of their commits.
pub fn live_files(watermark: &Watermark, chain: &[Manifest], all_versions: bool) -> Vec<LiveFile> {
    let current = |file: &DataFile| watermark.tables.get(&file.table).is_some_and(|t| t.version == Some(file.version));
    let mut live = Vec::new();
    for manifest in chain {
        for file in &manifest.files {
            if all_versions || current(file) {
                live.push(LiveFile { file: file.clone(), seq: manifest.seq, through: manifest.through });
            }
        }
    }
    live
}
