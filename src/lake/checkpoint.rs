//! The list of live files as a document, so that a long chain of commits need not be walked; and the record that names it.
//!
//! Owns: their fields and their reading. Does not own: when they are written (`compact`) and followed (`commit`).
//! Invariants: a checkpoint is exact at its commit: what the chain up to there added, less what compaction replaced, plus the
//! replacements; while a checkpoint's object is there, so are all files that it names.

use super::path::is_plain_in;
use super::{FORMAT, LiveFile, Unreadable, commit_number};
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
    /// The receipt of what it was made for: that it stands here says that it counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
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
    /// The chain begins with a reset that left a damaged history behind, at this time (RFC 3339, UTC). Objects from before are not
    /// known, and kept for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_behind: Option<String>,
}

impl Compaction {
    fn check(&self) -> Result<(), String> {
        let right = |mark: &CheckpointMark| {
            is_plain_in(&mark.path, CHECKPOINTS) && commit_number(&mark.commit).is_some_and(|(seq, _)| seq == mark.seq)
        };
        match self.checkpoints.iter().find(|mark| !right(mark)) {
            None => Ok(()),
            Some(mark) => Err(format!("it names {:?} for {:?} as a checkpoint", mark.path, mark.commit)),
        }
    }
}

impl Checkpoint {
    fn check(&self) -> Result<(), String> {
        if commit_number(&self.commit).is_none_or(|(seq, _)| seq != self.seq) {
            return Err(format!("it says {:?} of commit {}", self.commit, self.seq.0));
        }
        self.files.iter().try_for_each(|live| live.file.check())
    }
}

impl Sweep {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
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
                document.check().map_err(bad)?;
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
    use crate::lake::commit_path;
    use crate::lsn::Epoch;

    #[test]
    fn documents_read_back_and_garbage_is_refused() {
        let (path, commit) = (checkpoint_path(CommitSeq(7), 1, 2), commit_path(CommitSeq(7), Epoch(1)));
        let mark = CheckpointMark { path, seq: CommitSeq(7), commit: commit.clone(), time: "t".into(), superseded: None, receipt: None };
        let record = Compaction { format: FORMAT, number: 3, checkpoints: vec![mark] };
        assert_eq!(Compaction::parse("r", &record.to_body()).expect("valid"), record);
        let checkpoint = Checkpoint { format: FORMAT, seq: CommitSeq(7), commit, files: Vec::new(), left_behind: None };
        assert_eq!(Checkpoint::parse("c", &checkpoint.to_body()).expect("valid"), checkpoint);
        let mut elsewhere = record.clone();
        elsewhere.checkpoints[0].path = "state/checkpoints/../../x.json".to_owned();
        assert!(Compaction::parse("r", &elsewhere.to_body()).is_err());
        for body in ["", "{}", "[]", r#"{"format": 2, "unnamed": {}}"#] {
            assert!(Sweep::parse("s", body.as_bytes()).is_err(), "{body}");
        }
    }
}
