//! The list of live files as a document, so that a long chain of commits need not be walked; and the record that names it.
//!
//! Owns: their fields and their reading. Does not own: when they are written (`compact`) and followed (`commit`).
//! Invariants: a checkpoint is exact at its commit: what the chain up to there added, less what compaction replaced, plus the
//! replacements; while a checkpoint's object is there, so are all files that it names.

use super::{FORMAT, LiveFile, Unreadable};
use crate::lsn::CommitSeq;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The record, replaced by compare-and-swap; it says which checkpoint counts.
pub const COMPACTION: &str = "state/compaction.json";
/// Folder of the checkpoints.
pub const CHECKPOINTS: &str = "state/checkpoints/";
/// What no list names any more, and since when.
pub const SWEEP: &str = "state/sweep.json";

/// `state/checkpoints/<seq>-<number>-<random>.json`; `random` keeps two processes apart.
pub fn checkpoint_path(seq: CommitSeq, number: u64, random: u64) -> String {
    format!("{CHECKPOINTS}{:020}-{number:010}-{random:016x}.json", seq.0)
}

/// A checkpoint as the record names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMark {
    /// Its object.
    pub path: String,
    /// The commit up to which it is exact.
    pub seq: CommitSeq,
    /// That commit's manifest: the checkpoint counts only for a watermark that leads to it.
    pub commit: String,
    /// When it began to count, RFC 3339, UTC.
    pub time: String,
    /// When another took its place; `None`: it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded: Option<String>,
}

/// `state/compaction.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compaction {
    /// Layout number, [`FORMAT`].
    pub format: u32,
    /// Counts the replacements of this record.
    pub number: u64,
    /// The checkpoint that counts, then former ones that somebody may still be reading, the newest first.
    pub checkpoints: Vec<CheckpointMark>,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Layout number, [`FORMAT`].
    pub format: u32,
    /// The commit up to which it is exact.
    pub seq: CommitSeq,
    /// That commit's manifest.
    pub commit: String,
    /// Live files of all versions, in the order of their commits.
    pub files: Vec<LiveFile>,
}

/// `state/sweep.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    /// Layout number, [`FORMAT`].
    pub format: u32,
    /// Path → when it was first seen that no list names it, RFC 3339, UTC.
    pub unnamed: BTreeMap<String, String>,
}

macro_rules! document {
    ($($name:ident),*) => {
        $(impl $name {
            /// Reads the document stored at `path`.
            ///
            /// # Errors
            /// If it is not one, or of another layout.
            pub fn parse(path: &str, body: &[u8]) -> Result<Self, Unreadable> {
                let bad = |reason: String| Unreadable { path: path.to_owned(), reason };
                let document: Self = serde_json::from_slice(body).map_err(|e| bad(e.to_string()))?;
                if document.format != FORMAT {
                    return Err(bad(format!("format {}; this program reads format {FORMAT}", document.format)));
                }
                Ok(document)
            }

            /// The document as it is stored.
            pub fn to_body(&self) -> bytes::Bytes {
                serde_json::to_vec(self).expect("the document has only text keys, so it is always JSON").into()
            }
        })*
    };
}

document!(Compaction, Checkpoint, Sweep);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_read_back_and_garbage_is_refused() {
        let mark = CheckpointMark { path: "p".into(), seq: CommitSeq(7), commit: "c".into(), time: "t".into(), superseded: None };
        let record = Compaction { format: FORMAT, number: 3, checkpoints: vec![mark] };
        assert_eq!(Compaction::parse("r", &record.to_body()).expect("valid"), record);
        let checkpoint = Checkpoint { format: FORMAT, seq: CommitSeq(7), commit: "c".into(), files: Vec::new() };
        assert_eq!(Checkpoint::parse("c", &checkpoint.to_body()).expect("valid"), checkpoint);
        for body in ["", "{}", "[]", r#"{"format": 2, "unnamed": {}}"#] {
            assert!(Sweep::parse("s", body.as_bytes()).is_err(), "{body}");
        }
    }
}
