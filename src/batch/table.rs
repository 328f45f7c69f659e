//! The rows of one table version and day, column by column, filled straight from tuple bytes.
//!
//! Owns: the contract's row rule (which cells a row of each operation has, `_unchanged`, `_old_key`,
//! `_exceptions`). Does not own: ordinals and cutting (`batcher`). Invariant: all builders have the same length.

use crate::error::{Error, Result};
use crate::lake::FileKind;
use crate::lsn::Lsn;
use crate::pgoutput::{Cell, OldKind, OldTuple, Tuple};
use crate::schema::version::{Layout, METADATA, TableSchema};
use crate::schema::{ColumnBuilder, HashKey, LakeType, exception_text};
use arrow_array::builder::{Int64Builder, StringBuilder, TimestampMicrosecondBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{Field, Schema};
use std::sync::Arc;

/// What all rows of a transaction share.
#[derive(Debug, Clone, Copy)]
pub struct Transaction {
    /// LSN of the commit record; a snapshot: its consistent point.
    pub commit_lsn: Lsn,
    /// Commit time, microseconds since 1970-01-01 UTC.
    pub commit_time_us: i64,
    /// Transaction id; snapshot rows have none.
    pub xid: Option<u32>,
}

/// Rows that are no longer added to.
#[derive(Debug, Clone)]
pub struct SealedTable {
    /// Their version.
    pub schema: Arc<TableSchema>,
    /// UTC date of their commits.
    pub date: String,
    /// Commit LSN of the first row.
    pub first_lsn: Lsn,
    /// Where they came from.
    pub kind: FileKind,
    /// The rows.
    pub rows: RecordBatch,
}

/// The server sends an UPDATE that brings its row into the publication's row filter as an INSERT, but never the large values that did not
/// change.
const VALUE_LEFT_OUT: &str = "an UPDATE of a key brought a row into the publication's row filter, and its large values that did not change \
                              were not sent (REPLICA IDENTITY FULL would send them)";
/// Such a row is not written: nobody could say whose it is.
const KEY_LEFT_OUT: &str = "an UPDATE came without its row's key, which is stored out of line: PostgreSQL sends it from 14.2 on (until it is \
                            updated, REPLICA IDENTITY FULL would send it)";

/// Approximate bytes that the metadata columns take for a row.
const METADATA_ROW_BYTES: usize = 64;

/// Open builders of one table version and day.
#[derive(Debug)]
pub struct TableBatch {
    schema: Arc<TableSchema>,
    layout: Arc<Layout>,
    is_key: Arc<[bool]>,
    date: String,
    kind: FileKind,
    /// By index in the schema; `None` for dropped columns that the layout does not fill.
    columns: Vec<Option<ColumnBuilder>>,
    hash_key: Option<HashKey>,
    op: StringBuilder,
    commit_lsn: Int64Builder,
    seq: Int64Builder,
    commit_ts: TimestampMicrosecondBuilder,
    xid: Int64Builder,
    unchanged: StringBuilder,
    old_key: StringBuilder,
    exceptions: StringBuilder,
    row_bytes: usize,
    rows: usize,
    complete_rows: usize,
    first_lsn: Lsn,
    /// Why the last row that came without one of its values cannot be completed from anything known.
    torn: Option<&'static str>,
    // Scratch for one row's JSON, reused.
    unchanged_json: String,
    exceptions_json: String,
}

impl TableBatch {
    /// Empty builders for tuples of `layout`.
    pub fn new(schema: Arc<TableSchema>, layout: Arc<Layout>, date: String, kind: FileKind, hash_key: Option<&HashKey>) -> Result<Self> {
        let mut columns = Vec::with_capacity(schema.columns.len());
        let mut row_bytes = METADATA_ROW_BYTES;
        for (index, column) in schema.columns.iter().enumerate() {
            if column.dropped && !layout.slots.contains(&Some(index)) {
                columns.push(None);
                continue;
            }
            row_bytes += width(column.lake_type);
            columns.push(Some(if column.hashed {
                ColumnBuilder::hashed(schema.hasher(hash_key)?)
            } else {
                ColumnBuilder::new(&column.conversion)
            }));
        }
        Ok(Self {
            is_key: (0..layout.slots.len()).map(|w| layout.key.contains(&w)).collect(),
            schema,
            layout,
            date,
            kind,
            columns,
            hash_key: hash_key.cloned(),
            op: StringBuilder::with_capacity(0, 0),
            commit_lsn: Int64Builder::with_capacity(0),
            seq: Int64Builder::with_capacity(0),
            commit_ts: TimestampMicrosecondBuilder::with_capacity(0).with_timezone("UTC"),
            xid: Int64Builder::with_capacity(0),
            unchanged: StringBuilder::with_capacity(0, 0),
            old_key: StringBuilder::with_capacity(0, 0),
            exceptions: StringBuilder::with_capacity(0, 0),
            row_bytes,
            rows: 0,
            complete_rows: 0,
            first_lsn: Lsn::ZERO,
            torn: None,
            unchanged_json: String::new(),
            exceptions_json: String::new(),
        })
    }

    /// The day that its rows belong to.
    pub fn date(&self) -> &str {
        &self.date
    }

    /// Bytes that a row takes besides the text of its cells.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Rows in it.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// An inserted row.
    pub fn insert(&mut self, tx: &Transaction, seq: i64, new: Tuple<'_>) -> Result<()> {
        self.row("INSERT", tx, seq, new.len(), new.cells(), None)
    }

    /// An update; with an old tuple it owns the ordinals `seq` and `seq + 1` and is written at the second. A changed key
    /// (or no key at all) makes a DELETE row at the first.
    pub fn update(&mut self, tx: &Transaction, seq: i64, old: Option<OldTuple<'_>>, new: Tuple<'_>) -> Result<()> {
        let is_key = Arc::clone(&self.is_key);
        let Some(old) = old else {
            if new.cells().zip(is_key.iter()).any(|(cell, key)| *key && cell == Cell::Unchanged) {
                self.torn = Some(KEY_LEFT_OUT);
                return Ok(());
            }
            return self.row("UPDATE", tx, seq, new.len(), new.cells(), None);
        };
        if old.tuple.len() != new.len() {
            return Err(Error::retry(format!(
                "{}: an old tuple of {} columns beside a new one of {}",
                self.schema.table,
                old.tuple.len(),
                new.len()
            )));
        }
        // The new tuple leaves out what is stored out of line and did not change; the old one has it where it is real. That is
        // also why an old key comes with an UPDATE that leaves the key as it is.
        let real = move |key: &bool| *key || old.kind == OldKind::Full;
        let known = |((new, old), key)| if new == Cell::Unchanged && real(key) { old } else { new };
        let cells = || new.cells().zip(old.tuple.cells()).zip(is_key.iter()).map(known);
        let moved = cells().zip(old.tuple.cells()).zip(is_key.iter()).any(|((new, old), key)| *key && new != old);
        if !moved && !self.schema.key.is_empty() {
            return self.row("UPDATE", tx, seq + 1, new.len(), cells(), None);
        }
        self.delete(tx, seq, old)?;
        let old_key = moved.then(|| self.old_key_json(old.tuple));
        self.row("UPDATE", tx, seq + 1, new.len(), cells(), old_key.as_deref())
    }

    /// A deletion: the key's columns, or all under REPLICA IDENTITY FULL.
    pub fn delete(&mut self, tx: &Transaction, seq: i64, old: OldTuple<'_>) -> Result<()> {
        if old.kind == OldKind::Full {
            return self.row("DELETE", tx, seq, old.tuple.len(), old.tuple.cells(), None);
        }
        // Cells besides the key are placeholders, not NULLs of the row; a DELETE row has nothing there either way.
        let is_key = Arc::clone(&self.is_key);
        let cells = old.tuple.cells().zip(is_key.iter()).map(|(cell, key)| if *key { cell } else { Cell::Null });
        self.row("DELETE", tx, seq, old.tuple.len(), cells, None)
    }

    /// A row without cells: TRUNCATE.
    pub fn truncate(&mut self, tx: &Transaction, seq: i64) {
        for column in self.columns.iter_mut().flatten() {
            column.append_null();
        }
        self.finish_row("TRUNCATE", tx, seq, None);
    }

    fn row<'a>(
        &mut self,
        op: &'static str,
        tx: &Transaction,
        seq: i64,
        width: usize,
        cells: impl Iterator<Item = Cell<'a>>,
        old_key: Option<&str>,
    ) -> Result<()> {
        let layout = Arc::clone(&self.layout);
        if width != layout.slots.len() {
            return Err(Error::retry(format!(
                "{}: a tuple of {width} columns where RELATION named {}",
                self.schema.table,
                layout.slots.len()
            )));
        }
        for (cell, slot) in cells.zip(&layout.slots) {
            let Some(index) = *slot else { continue };
            let Some(column) = self.columns[index].as_mut() else { continue };
            match cell {
                Cell::Text(text) => {
                    if column.append_text(text).is_err() {
                        json_member(&mut self.exceptions_json, &self.schema.columns[index].name, &exception_text(text));
                    }
                }
                Cell::Null => column.append_null(),
                Cell::Unchanged => {
                    if op == "INSERT" {
                        self.torn = Some(VALUE_LEFT_OUT);
                    }
                    column.append_null();
                    json_element(&mut self.unchanged_json, &self.schema.columns[index].name);
                }
                Cell::Binary(_) => {
                    return Err(Error::retry(format!("{}: a binary cell where text was asked for", self.schema.table)));
                }
            }
        }
        for index in &layout.absent {
            if let Some(column) = self.columns[*index].as_mut() {
                column.append_null();
            }
        }
        self.finish_row(op, tx, seq, old_key);
        Ok(())
    }

    fn finish_row(&mut self, op: &'static str, tx: &Transaction, seq: i64, old_key: Option<&str>) {
        if self.rows == 0 {
            self.first_lsn = tx.commit_lsn;
        }
        self.op.append_value(op);
        self.commit_lsn.append_value(tx.commit_lsn.0 as i64);
        self.seq.append_value(seq);
        self.commit_ts.append_value(tx.commit_time_us);
        self.xid.append_option(tx.xid.map(i64::from));
        close(&mut self.unchanged, &mut self.unchanged_json, ']');
        self.old_key.append_option(old_key);
        close(&mut self.exceptions, &mut self.exceptions_json, '}');
        self.rows += 1;
    }

    fn old_key_json(&self, old: Tuple<'_>) -> String {
        let mut json = String::new();
        for ((cell, slot), key) in old.cells().zip(&self.layout.slots).zip(self.is_key.iter()) {
            let (true, Some(index)) = (*key, *slot) else { continue };
            let column = &self.schema.columns[index];
            json.push(if json.is_empty() { '{' } else { ',' });
            push_json_string(&mut json, &column.name);
            json.push(':');
            match (cell, self.hash_key.as_ref().filter(|_| column.hashed)) {
                (Cell::Text(text), Some(key)) => push_json_string(&mut json, &String::from_utf8_lossy(&key.hex(text))),
                (Cell::Text(text), None) => json.push_str(&key_value(column.lake_type, text)),
                _ => json.push_str("null"),
            }
        }
        if json.is_empty() { "{}".to_owned() } else { json + "}" }
    }

    /// Why, since this was last asked, a row could not be completed: only a copy of the table has what was not sent.
    pub fn take_torn(&mut self) -> Option<&'static str> {
        self.torn.take()
    }

    /// The transaction that was arriving is complete.
    pub fn complete(&mut self) {
        self.complete_rows = self.rows;
    }

    /// Ends the builders: the rows of complete transactions, and those of the one that is arriving.
    pub fn seal(mut self) -> Result<(Option<SealedTable>, Option<SealedTable>)> {
        let mut fields = Vec::new();
        let mut arrays: Vec<ArrayRef> = Vec::new();
        for (column, builder) in self.schema.columns.iter().zip(&mut self.columns) {
            if let Some(builder) = builder {
                fields.push(Field::new(&column.name, column.lake_type.arrow(), true));
                arrays.push(builder.finish());
            }
        }
        let metadata: [ArrayRef; 8] = [
            Arc::new(self.op.finish()),
            Arc::new(self.commit_lsn.finish()),
            Arc::new(self.seq.finish()),
            Arc::new(self.commit_ts.finish()),
            Arc::new(self.xid.finish()),
            Arc::new(self.unchanged.finish()),
            Arc::new(self.old_key.finish()),
            Arc::new(self.exceptions.finish()),
        ];
        for (name, array) in METADATA.iter().zip(metadata) {
            fields.push(Field::new(*name, array.data_type().clone(), true));
            arrays.push(array);
        }
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
            .map_err(|e| Error::bug(format!("{}: columns of unequal length or type", self.schema.table)).with_source(e))?;
        let part = |rows: RecordBatch| {
            (rows.num_rows() > 0).then(|| SealedTable {
                schema: Arc::clone(&self.schema),
                date: self.date.clone(),
                first_lsn: self.first_lsn,
                kind: self.kind,
                rows,
            })
        };
        let complete = part(rows.slice(0, self.complete_rows));
        let arriving = part(rows.slice(self.complete_rows, self.rows - self.complete_rows));
        Ok((complete, arriving))
    }
}

/// Bytes of a cell of fixed width, or of a text cell's offset.
pub(super) fn width(lake_type: LakeType) -> usize {
    match lake_type {
        LakeType::Boolean => 1,
        LakeType::Float | LakeType::Date | LakeType::String | LakeType::Binary => 4,
        LakeType::Int64 | LakeType::Double | LakeType::Timestamp | LakeType::DateTime => 8,
        LakeType::Decimal38_9 => 16,
        LakeType::Decimal76_38 => 32,
    }
}

/// A key's value as JSON: numbers and booleans as scalars, all else as a string of the source's text (as in arrays).
fn key_value(lake_type: LakeType, text: &[u8]) -> String {
    let mut json = String::new();
    let plain = exception_text(text);
    let number = matches!(lake_type, LakeType::Int64 | LakeType::Float | LakeType::Double | LakeType::Decimal38_9 | LakeType::Decimal76_38);
    match (lake_type, plain.as_str()) {
        (LakeType::Boolean, "t") => json.push_str("true"),
        (LakeType::Boolean, "f") => json.push_str("false"),
        (_, "NaN" | "Infinity" | "-Infinity") => push_json_string(&mut json, &plain),
        _ if number => json.push_str(&plain),
        _ => push_json_string(&mut json, &plain),
    }
    json
}

pub(super) fn json_member(json: &mut String, name: &str, value: &str) {
    json.push(if json.is_empty() { '{' } else { ',' });
    push_json_string(json, name);
    json.push(':');
    push_json_string(json, value);
}

fn json_element(json: &mut String, name: &str) {
    json.push(if json.is_empty() { '[' } else { ',' });
    push_json_string(json, name);
}

fn push_json_string(json: &mut String, text: &str) {
    json.push_str(&serde_json::to_string(text).expect("text is always JSON"));
}

pub(super) fn close(builder: &mut StringBuilder, json: &mut String, end: char) {
    if json.is_empty() {
        builder.append_null();
    } else {
        json.push(end);
        builder.append_value(&json);
        json.clear();
    }
}
