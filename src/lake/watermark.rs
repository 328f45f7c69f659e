//! `watermark.json`: the lake's truth, replaced by compare-and-swap at every commit.
//!
//! Owns: its fields and its reading. Invariant: `through` is an end position; everything below it is in the
//! lake, once, and nothing above it is visible.

use super::{Unreadable, WATERMARK, commit_number, table_prefix};
use crate::config::Mode;
use crate::lsn::{CommitSeq, Epoch, Lsn};
use crate::postgres::look::Look;
use crate::table_name::TableName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Whether the slot that belongs to the lake exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotState {
    /// A first start is under way; a slot of the recorded name belongs to it.
    Creating,
    /// The slot stands at or before `through`.
    Ready,
}

/// How long the writer of an epoch means to hold the lake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tenure {
    /// Until it is replaced: `huella run`.
    #[default]
    Stays,
    /// For one job: `run --until-caught-up`, `snapshot` where no writer runs.
    Passing,
    /// It has left, having committed all that it wanted to.
    Left,
}

impl Tenure {
    /// Whether the writer means to go on.
    pub fn stays(&self) -> bool {
        *self == Tenure::Stays
    }
}

/// The publication as it was when last looked at: any edit changes an `(oid, xmin)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationMark {
    /// `pubname`.
    pub name: String,
    /// `pg_publication.oid`.
    pub oid: u32,
    /// `pg_publication.xmin`.
    pub xmin: u32,
    /// `(oid, xmin)` of each table's `pg_publication_rel` row; none for tables published by schema or ALL TABLES.
    pub tables: BTreeMap<TableName, (u32, u32)>,
    /// `(oid, xmin)` of each `pg_publication_namespace` row.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub schemas: BTreeMap<String, (u32, u32)>,
    /// Column lists that stand for `exclude_at_source`. Beyond the contract's example, because without it a list of ours could not be
    /// told from one of the owner's once the option is taken back.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lists: BTreeMap<TableName, ListMark>,
}

/// A column list that keeps excluded columns at the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListMark {
    /// `(oid, xmin)` of the table's `pg_publication_rel` row.
    pub row: (u32, u32),
    /// What the configuration excluded when it was made.
    pub exclude: Vec<String>,
}

/// Which database the lake follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// IDENTIFY_SYSTEM's systemid, as text.
    pub system_identifier: String,
    /// Timeline that `through` lies on.
    pub timeline: u32,
    /// Database name.
    pub database: String,
    /// Replication slot.
    pub slot: String,
    /// Publication, once it has been looked at.
    pub publication: Option<PublicationMark>,
}

/// A transaction as its commit record has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionMark {
    /// LSN of the commit record.
    pub commit_lsn: Lsn,
    /// Transaction id.
    pub xid: u32,
    /// Commit time, RFC 3339, UTC.
    pub commit_time: String,
}

/// Layout number of the watermark. 2: shapes are committed with it.
pub const WATERMARK_FORMAT: u32 = 2;

/// The layout before schema documents were named by the watermark.
const UNNAMED_SCHEMAS: u32 = 1;

/// A copy that a table owes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The version that it is for; a version that has none yet is pending as a whole.
    pub version: u32,
    /// The copy must be taken at or after this position: rows changed without a message up to it. A copy that was under way already when
    /// that was noticed does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Lsn>,
    /// Why it began, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Pending {
    /// Whether it is still owed after a copy of `version` at `snapshot`.
    pub fn outlives(&self, version: u32, snapshot: Lsn) -> bool {
        self.version > version || (self.version == version && self.since.is_some_and(|since| snapshot < since))
    }
}

/// A change of a table's shape or rows that was noticed: for the person who wants to know at night what happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChange {
    /// When it was noticed, RFC 3339, UTC.
    pub at: String,
    /// Version that has it.
    pub version: u32,
    /// What it was, old and new.
    pub what: String,
}

/// Changes of a table that are kept: more are in the log, and the watermark is written at every commit.
pub const CHANGES_KEPT: usize = 5;

/// A table as the lake holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableMark {
    /// `pg_class.oid`.
    pub oid: u32,
    /// A catalogue stands at the time of its last copy, which is `snapshot`; its rows are never streamed.
    #[serde(default, skip_serializing_if = "Mode::is_stream")]
    pub mode: Mode,
    /// Version that readers use; `None` until the first snapshot is committed.
    pub version: Option<u32>,
    /// Consistent point of the current version's latest snapshot; `None` if it has none.
    pub snapshot: Option<Lsn>,
    /// Name of each version's schema document, in the version's folder; former versions too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub schemas: BTreeMap<u32, String>,
    /// The catalog as it was when it was last compared: once what is pending is copied, nothing that it shows is missing in the lake.
    #[serde(default)]
    pub reconciled: Look,
    /// Copies that are owed, by version; the same number as `version` means a new copy within the version. Only the newest is made: it
    /// supersedes those before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Pending>,
    /// Why it cannot be replicated at present, if so: its rows are left out until it can, and then it is copied again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aside: Option<String>,
    /// Digest of a catalogue's rows, whatever their order: an unchanged one is not written again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The last changes, the newest last; beyond the contract's example, for `status`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<TableChange>,
}

impl TableMark {
    /// A table of which nothing is in the lake.
    pub fn new(oid: u32, mode: Mode, reconciled: Look) -> Self {
        Self {
            oid,
            mode,
            version: None,
            snapshot: None,
            schemas: BTreeMap::new(),
            reconciled,
            pending: Vec::new(),
            aside: None,
            content: None,
            changes: Vec::new(),
        }
    }

    /// The newest version: the current one, or one that waits for its copy.
    pub fn newest(&self) -> Option<u32> {
        self.version.into_iter().chain(self.pending.iter().map(|p| p.version)).max()
    }
}

/// A table that is no longer replicated. Its files stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredTable {
    /// When that was noticed, RFC 3339, UTC.
    pub since: String,
    /// The version that was current.
    pub version: Option<u32>,
    /// As [`TableMark::schemas`].
    pub schemas: BTreeMap<u32, String>,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// Layout number, [`WATERMARK_FORMAT`].
    pub format: u32,
    /// Fencing number of the writer.
    pub epoch: Epoch,
    /// Who wrote it: host, pid and a random part.
    pub writer: String,
    /// How long it means to hold the lake. Beyond the contract's example, because a job that passes must not end an always-on writer for good.
    #[serde(default, skip_serializing_if = "Tenure::stays")]
    pub tenure: Tenure,
    /// Number of the last commit.
    pub seq: CommitSeq,
    /// End position: the lake holds exactly the transactions with commit LSN below it. `None` before the slot exists.
    #[serde(deserialize_with = "present")]
    pub through: Option<Lsn>,
    /// The last transaction below `through` that the stream brought, with rows of ours or without. Beyond the contract's example, because nothing else betrays a server
    /// that was restored to an earlier point, on the same timeline, and has gone on past `through` since: what it sends again differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transaction: Option<TransactionMark>,
    /// Progress of the first start.
    pub slot_state: SlotState,
    /// Path of the last commit's manifest; `None` before the first.
    #[serde(deserialize_with = "present")]
    pub commit: Option<String>,
    /// When it was written, RFC 3339, UTC.
    pub commit_time: String,
    /// When the writer last said that it lives while a long transaction arrives, which nothing of can be committed: RFC 3339, UTC. Beyond the
    /// contract's example, because a standby would take it for dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alive_at: Option<String>,
    /// The source.
    pub source: Source,
    /// All streamed tables, and the snapshot tables that were copied.
    pub tables: BTreeMap<TableName, TableMark>,
    /// Since when tables wait for a copy, RFC 3339, UTC. Beyond the contract's example, for `status`: one that waits for hours needs a person.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pending_since: BTreeMap<TableName, String>,
    /// Tables that were replicated once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub retired: BTreeMap<TableName, RetiredTable>,
}

/// A key that may be null but not absent: an absent one is a damaged one.
fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

impl Watermark {
    /// Reads the document.
    pub fn parse(body: &[u8]) -> Result<Self, Unreadable> {
        let bad = |reason: String| Unreadable { path: WATERMARK.to_owned(), reason };
        let value: serde_json::Value = serde_json::from_slice(body).map_err(|e| bad(format!("not JSON: {e}")))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(n) if n == u64::from(WATERMARK_FORMAT) => {}
            Some(n) if n == u64::from(UNNAMED_SCHEMAS) => {
                return Err(bad(format!(
                    "format {n}, of a huella before the first release; this program reads format {WATERMARK_FORMAT}: begin a new lake, or run --resnapshot"
                )));
            }
            Some(n) => return Err(bad(format!("format {n}; this program reads format {WATERMARK_FORMAT}: use the huella that wrote it"))),
            None => return Err(bad("no \"format\": not a watermark of huella".to_owned())),
        }
        serde_json::from_value::<Self>(value).map_err(|e| bad(e.to_string()))?.agreeing()
    }

    /// Refuses one that does not agree with itself: it is damaged.
    fn agreeing(self) -> Result<Self, Unreadable> {
        let bad = |reason: String| Unreadable { path: WATERMARK.to_owned(), reason };
        let named = self.commit.as_deref().map(commit_number);
        let told = match named {
            None => self.seq == CommitSeq(0),
            Some(named) => named.is_some_and(|(seq, epoch)| seq == self.seq && epoch <= self.epoch),
        };
        if !told {
            return Err(bad(format!("it is at commit {}, and names {:?}", self.seq.0, self.commit)));
        }
        if self.slot_state == SlotState::Ready && self.through.is_none() {
            return Err(bad("it is ready, and has no position".to_owned()));
        }
        Ok(self)
    }

    /// Reads the document, of the former layout as well: for `run --resnapshot`, which begins a new version of every table.
    pub fn parse_any(body: &[u8]) -> Result<Self, Unreadable> {
        let bad = |reason: String| Unreadable { path: WATERMARK.to_owned(), reason };
        let value: serde_json::Value = serde_json::from_slice(body).map_err(|e| bad(format!("not JSON: {e}")))?;
        if value.get("format").and_then(serde_json::Value::as_u64) != Some(u64::from(UNNAMED_SCHEMAS)) {
            return Self::parse(body);
        }
        let mut watermark: Self = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
        watermark.format = WATERMARK_FORMAT;
        for mark in watermark.tables.values_mut() {
            mark.schemas = (1..=mark.newest().unwrap_or(0)).map(|version| (version, "schema.json".to_owned())).collect();
        }
        watermark.agreeing()
    }

    /// Path of a version's schema document; `None` if the lake has no such version.
    pub fn schema_path(&self, table: &TableName, version: u32) -> Option<String> {
        let of_table = self.tables.get(table).and_then(|mark| mark.schemas.get(&version));
        let name = of_table.or_else(|| self.retired.get(table).and_then(|retired| retired.schemas.get(&version)))?;
        Some(format!("{}/{name}", table_prefix(table, version)))
    }

    /// The document as it is stored.
    pub fn to_body(&self) -> bytes::Bytes {
        serde_json::to_vec(self).expect("a watermark has only text keys, so it is always JSON").into()
    }

    /// The streamed tables.
    pub fn streamed(&self) -> impl Iterator<Item = (&TableName, &TableMark)> {
        self.tables.iter().filter(|(_, mark)| mark.mode == Mode::Stream)
    }

    /// Brings `pending_since` up to `tables`, as of `commit_time`. Every write of the watermark does it, so no edit of a table has to.
    pub fn note_pending(&mut self) {
        let waits = |table: &TableName| self.tables.get(table).is_some_and(|mark| mark.version.is_none() || !mark.pending.is_empty());
        let waiting: Vec<TableName> = self.tables.keys().filter(|table| waits(table)).cloned().collect();
        self.pending_since.retain(|table, _| waiting.contains(table));
        for table in waiting {
            self.pending_since.entry(table).or_insert_with(|| self.commit_time.clone());
        }
    }

    /// `through`, or `0/0` before the slot exists.
    pub fn position(&self) -> Lsn {
        self.through.unwrap_or(Lsn::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_example_is_read_and_written_back() {
        let text = r#"{"format": 2, "epoch": 7, "writer": "host-pid-random", "seq": 1234, "through": "0/16B3748", "slot_state": "ready",
         "commit": "commits/00000000000000001234-e000007.json", "commit_time": "2026-11-24T03:22:10.123456Z",
         "source": {"system_identifier": "7435", "timeline": 1, "database": "postgres", "slot": "huella",
                    "publication": {"name": "huella", "oid": 16500, "xmin": 811, "tables": {"public.donaciones": [16501, 811]}}},
         "tables": {"public.donaciones": {"oid": 16402, "version": 2, "snapshot": "0/16A0000", "schemas": {"2": "_schema-a.json", "3": "_schema-b.json"},
                                          "reconciled": {"shape": "s", "columns": "1-3", "natts": 3, "written": "w", "file": 16402, "row_type": 811},
                                          "pending": [{"version": 3}]}}}"#;
        let read = Watermark::parse(text.as_bytes()).expect("the example is valid");
        assert_eq!(read.through, Some(Lsn(0x16B3748)));
        let table = TableName::new("public", "donaciones");
        assert_eq!(read.schema_path(&table, 3).as_deref(), Some("tables/public.donaciones/v3/_schema-b.json"));
        assert_eq!((read.schema_path(&table, 1), read.tables[&table].newest()), (None, Some(3)));
        let again = Watermark::parse(&read.to_body()).expect("what was written is valid");
        assert_eq!(read, again);
        let original: serde_json::Value = serde_json::from_str(text).expect("json");
        let written: serde_json::Value = serde_json::from_slice(&read.to_body()).expect("json");
        assert_eq!(original, written);
    }

    #[test]
    fn a_table_waits_since_the_write_that_first_had_it_waiting() {
        let text = r#"{"format": 2, "epoch": 1, "writer": "w", "seq": 0, "through": "0/1", "slot_state": "ready", "commit": null, "commit_time": "one",
            "source": {"system_identifier": "7", "timeline": 1, "database": "d", "slot": "s", "publication": null},
            "tables": {"public.a": {"oid": 1, "version": 1, "snapshot": null, "fingerprint": "f"}, "public.b": {"oid": 2, "version": null, "snapshot": null, "fingerprint": "f"}}}"#;
        let mut watermark = Watermark::parse(text.as_bytes()).expect("valid");
        let since = |w: &Watermark| w.pending_since.iter().map(|(table, at)| format!("{table} {at}")).collect::<Vec<_>>();
        watermark.note_pending();
        watermark.commit_time = "two".to_owned();
        let waiting = Pending { version: 2, since: None, reason: None };
        watermark.tables.get_mut(&TableName::new("public", "a")).expect("there").pending.push(waiting);
        watermark.note_pending();
        assert_eq!(since(&watermark), ["public.a two", "public.b one"]);
        watermark.tables.get_mut(&TableName::new("public", "b")).expect("there").version = Some(1);
        watermark.note_pending();
        assert_eq!(since(&watermark), ["public.a two"]);
    }

    #[test]
    fn a_watermark_without_a_position_is_no_watermark() {
        let text = r#"{"format": 2, "epoch": 7, "writer": "w", "seq": 2, "through": "0/16B3748", "slot_state": "ready",
         "commit": "commits/00000000000000000002-e000007.json", "commit_time": "t", "tables": {},
         "source": {"system_identifier": "7", "timeline": 1, "database": "d", "slot": "s", "publication": null}}"#;
        assert!(Watermark::parse(text.as_bytes()).is_ok());
        for (from, to) in [
            ("\"through\"", "\"thrOugh\""),
            ("\"commit\"", "\"cOmmit\""),
            ("\"0/16B3748\"", "null"),
            ("\"seq\": 2", "\"seq\": 3"),
            ("\"commits/00000000000000000002-e000007.json\"", "null"),
            ("\"epoch\": 7", "\"epoch\": 6"),
        ] {
            assert!(Watermark::parse(text.replacen(from, to, 1).as_bytes()).is_err(), "{from} → {to}");
        }
    }

    #[test]
    fn a_copy_that_began_before_the_request_does_not_settle_it() {
        let asked = Pending { version: 2, since: Some(Lsn(100)), reason: None };
        assert!(asked.outlives(2, Lsn(99)), "taken too early");
        assert!(asked.outlives(1, Lsn(100)), "an older version");
        assert!(!asked.outlives(2, Lsn(100)));
        assert!(!asked.outlives(3, Lsn(1)), "superseded by a newer version");
    }

    #[test]
    fn another_format_garbage_and_emptiness_are_refused() {
        for body in ["", "{", "[]", "{}", r#"{"format": 2}"#, r#"{"format": 1}"#, r#"{"format": 3}"#] {
            assert!(Watermark::parse(body.as_bytes()).is_err() && Watermark::parse_any(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_lake_of_the_former_layout_is_read_only_to_begin_new_versions() {
        let text = r#"{"format": 1, "epoch": 7, "writer": "w", "seq": 0, "through": "0/10", "slot_state": "ready", "commit": null, "commit_time": "",
         "source": {"system_identifier": "7435", "timeline": 1, "database": "postgres", "slot": "huella", "publication": null},
         "tables": {"public.t": {"oid": 16402, "version": 2, "snapshot": "0/8", "fingerprint": "f.a.1", "pending": [{"version": 3, "fingerprint": "g"}]}}}"#;
        let refused = Watermark::parse(text.as_bytes()).expect_err("format 1").to_string();
        assert!(refused.contains("begin a new lake, or run --resnapshot"), "{refused}");
        let read = Watermark::parse_any(text.as_bytes()).expect("readable");
        let mark = &read.tables[&TableName::new("public", "t")];
        assert_eq!((read.format, mark.newest(), mark.schemas.len()), (WATERMARK_FORMAT, Some(3), 3));
    }
}
