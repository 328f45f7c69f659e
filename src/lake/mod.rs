//! Names and documents of the lake: paths, the watermark, commit manifests, checkpoints, the published cut. Pure: no I/O.
//!
//! Owns: the layout of the contract's section 5. Does not own: storing (`store`), the protocol (`commit`).
//! Invariants: a document that was written reads back equal; unknown fields of a newer minor writer are
//! ignored, another `format` is refused.

mod checkpoint;
mod cut;
mod forgotten;
mod live;
mod manifest;
mod path;
mod proposal;
mod watermark;

use path::first_lsn;

pub use checkpoint::{CHECKPOINTS, COMPACTION, Checkpoint, CheckpointMark, Compaction, SWEEP, Sweep, checkpoint_path};
pub use cut::{CUT, Cut, CutTable};
pub use forgotten::{FORGOTTEN, Forgotten, WaitingDelete};
pub use live::{LiveFile, Position, Span};
pub use manifest::{DataFile, FileKind, Manifest, SnapshotMark};
pub use path::{
    DataPath, TABLES, WATERMARK, commit_number, commit_path, compacted_path, day_of, epoch_of, escape, is_compacted, is_data, is_manifest,
    manifest_path, reference_path, rowless_checksum, rowless_path, schema_name, table_folder, table_prefix,
};
pub use proposal::{PROPOSALS, Proposal, ProposedTable};
pub use watermark::{
    CHANGES_KEPT, ListMark, Pending, PublicationMark, RetiredTable, SlotState, Source, TableChange, TableMark, Tenure, TransactionMark,
    WATERMARK_FORMAT, Watermark,
};

/// The layout's number in every document but the watermark.
pub const FORMAT: u32 = 1;

/// A document cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct Unreadable {
    /// Path of the document below the lake's root.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Microseconds since 1970-01-01 UTC as RFC 3339 with six digits and `Z`.
pub fn rfc3339(us: i64) -> String {
    match chrono::DateTime::from_timestamp_micros(us) {
        Some(time) => time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
        None => format!("{us}us"),
    }
}

/// The UTC date of an instant, `YYYY-MM-DD`.
pub fn date(us: i64) -> String {
    match chrono::DateTime::from_timestamp_micros(us) {
        Some(time) => time.date_naive().to_string(),
        None => "0001-01-01".to_owned(),
    }
}
