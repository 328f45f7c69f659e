//! Receipts: what `huella forget` took out of the lake, and what of it is still to go.
//!
//! Owns: their fields, their reading. Invariant: no value is in a receipt, nor a digest of one: positions and counts only, so that it may
//! be kept for ever. It names no data file: who is named by a document of `state/` is kept.

use super::{FORMAT, Position, Unreadable, rfc3339};
use crate::lsn::Lsn;
use crate::table_name::TableName;
use serde::{Deserialize, Serialize};

/// Folder of the receipts.
pub const FORGOTTEN: &str = "state/forgotten/";

/// A DELETE that somebody who has merged a part of the past must still learn of: only its key is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WaitingDelete {
    /// Version that it belongs to.
    pub version: u32,
    /// Its place.
    pub at: Position,
}

/// `state/forgotten/<time>-<random>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Layout number, [`FORMAT`].
    pub format: u32,
    /// Table.
    pub table: TableName,
    /// Versions that rows were in.
    pub versions: Vec<u32>,
    /// Position of the source that had no such row any more, and that the lake had reached.
    pub through: Lsn,
    /// Files that were rewritten, or left out whole.
    pub files: u64,
    /// Rows that are gone from the live files.
    pub rows: u64,
    /// DELETE rows that keep their key until the published cut that covers them is merged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<WaitingDelete>,
    /// When it was written, before the rows were taken out, RFC 3339, UTC.
    pub begun: String,
    /// When the live files no longer had the rows (and later, those of `waiting`); `None`: it has not come to that. Whether it has, if its
    /// process did not live to say so, is told by the record of compaction, which names the receipt then.
    #[serde(default)]
    pub replaced: Option<String>,
    /// The last object that held the rows may be deleted from then on: by the first compaction after it.
    #[serde(default)]
    pub gone_after: Option<String>,
    /// When a compaction found the last such object gone.
    #[serde(default)]
    pub gone: Option<String>,
}

impl Forgotten {
    /// A new receipt's path; `random` keeps two of one moment apart.
    pub fn path(&self, random: u64) -> String {
        let time: String = self.begun.chars().filter(char::is_ascii_alphanumeric).collect();
        format!("{FORGOTTEN}{time}-{random:016x}.json")
    }

    /// Reads the document stored at `path`.
    ///
    /// # Errors
    /// If it is not one, or of another layout.
    pub fn parse(path: &str, body: &[u8]) -> Result<Self, Unreadable> {
        let bad = |reason: String| Unreadable { path: path.to_owned(), reason };
        let receipt: Self = serde_json::from_slice(body).map_err(|e| bad(e.to_string()))?;
        if receipt.format != FORMAT {
            return Err(bad(format!("format {}; this program reads format {FORMAT}", receipt.format)));
        }
        Ok(receipt)
    }

    /// The document as it is stored.
    pub fn to_body(&self) -> bytes::Bytes {
        serde_json::to_vec_pretty(self).expect("a receipt has only text keys, so it is always JSON").into()
    }

    /// The rows are in no live file since `at`.
    pub fn replaced_at(&mut self, at: chrono::DateTime<chrono::Utc>, grace: std::time::Duration) {
        let until = chrono::Duration::from_std(grace).ok().and_then(|grace| at.checked_add_signed(grace));
        self.replaced = Some(rfc3339(at.timestamp_micros()));
        self.gone_after = until.map(|until| rfc3339(until.timestamp_micros()));
    }

    /// Whether nothing is left to be done.
    pub fn is_complete(&self) -> bool {
        self.gone.is_some() && self.waiting.is_empty()
    }
}
