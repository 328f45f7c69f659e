//! Reading a table's changes out of its data files.
//!
//! Owns: the check of a file against its manifest, the metadata columns, partitions of the key's hashes. Does not own:
//! what the changes amount to (`state`).
//! Invariants: a file that is not the one its manifest names is refused; a change belongs to exactly one partition, a
//! TRUNCATE to all.

use super::canonical::Column;
use super::cell::{Cell, key_of, push};
use super::state::{Change, Op};
use crate::error::{Error, Result};
use crate::lake::DataFile;
use crate::lsn::Lsn;
use crate::schema::version::TableSchema;
use crate::schema::{Conversion, LakeType};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, RecordBatch};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What is compared of a version.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// Live columns, in their order.
    pub(super) columns: Vec<ShapeColumn>,
    /// The key's columns among them; empty: no key.
    pub(super) key: Vec<usize>,
}

/// A live column.
#[derive(Debug, Clone)]
pub(super) struct ShapeColumn {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) lake_type: LakeType,
    /// `Hashed` for hashed columns.
    pub(super) conversion: Conversion,
}

impl Shape {
    pub(super) fn of(schema: &TableSchema) -> Self {
        let columns: Vec<ShapeColumn> = schema
            .columns
            .iter()
            .filter(|column| !column.dropped)
            .map(|column| ShapeColumn {
                name: column.name.clone(),
                source: column.source.clone(),
                lake_type: column.lake_type,
                conversion: if column.hashed { Conversion::Hashed } else { column.conversion },
            })
            .collect();
        let key = schema.key.iter().filter_map(|key| columns.iter().position(|column| column.name == *key)).collect();
        Self { columns, key }
    }

    /// What identifies a row: its key's cells, or all of it.
    pub(super) fn key_of(&self, row: &[u8]) -> Box<[u8]> {
        if self.key.is_empty() { row.into() } else { key_of(row, &self.key) }
    }
}

/// Positions that count: `from <= (_commit_lsn, _seq) <= to`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) from: (u64, i64),
    pub(super) to: (u64, i64),
}

/// Which part of the keys a pass looks at. Keys that a change of key joins lie in the same partition, because the row under
/// the new key may take cells from the row under the old one.
#[derive(Debug, Clone, Default)]
pub(super) struct Partition {
    pub(super) number: u64,
    /// How many there are; 0 means one.
    pub(super) of: u64,
    /// New key → old key, towards the first one.
    pub(super) links: HashMap<Box<[u8]>, Box<[u8]>>,
}

impl Partition {
    /// Joins two keys.
    pub(super) fn link(&mut self, new: &[u8], old: &[u8]) {
        let (new, old) = (self.root(new).to_vec(), self.root(old).to_vec());
        if new != old {
            self.links.insert(new.into(), old.into());
        }
    }

    fn root<'a>(&'a self, mut key: &'a [u8]) -> &'a [u8] {
        while let Some(next) = self.links.get(key) {
            key = next;
        }
        key
    }

    pub(super) fn has(&self, key: &[u8]) -> bool {
        if self.of <= 1 {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        self.root(key).hash(&mut hasher);
        hasher.finish() % self.of == self.number
    }
}

/// Checks a file against its manifest and hands each of its changes to `take`. CPU-bound: called off the async threads.
pub(super) fn read(
    file: &DataFile,
    body: Bytes,
    shape: &Shape,
    window: Window,
    partition: &Partition,
    mut take: impl FnMut(Change),
) -> Result<()> {
    let damaged = |what: String| Error::found(format!("{}: {what}", file.path));
    let crc32c = STANDARD.encode(crc32c::crc32c(&body).to_be_bytes());
    if (body.len() as u64, &crc32c) != (file.bytes, &file.crc32c) {
        return Err(damaged(format!(
            "{} bytes with CRC-32C {crc32c}, where the manifest says {} and {}",
            body.len(),
            file.bytes,
            file.crc32c
        )));
    }
    let unreadable = |error: parquet::errors::ParquetError| damaged("cannot be read as Parquet".to_owned()).with_source(error);
    let reader = ParquetRecordBatchReaderBuilder::try_new(body).map_err(unreadable)?.build().map_err(unreadable)?;
    let mut rows = 0;
    for batch in reader {
        let batch = batch.map_err(|error| damaged("cannot be read as Parquet".to_owned()).with_source(error))?;
        rows += batch.num_rows() as u64;
        changes(&batch, shape, window, partition, &mut take).map_err(|error| error.context(&file.path))?;
    }
    if rows != file.rows {
        return Err(damaged(format!("{rows} rows, where the manifest says {}", file.rows)));
    }
    Ok(())
}

/// Hands the changes of a batch that lie in the window and the partition to `take`, in their order.
pub(super) fn changes(
    batch: &RecordBatch,
    shape: &Shape,
    window: Window,
    partition: &Partition,
    take: &mut impl FnMut(Change),
) -> Result<()> {
    let metadata = Metadata::of(batch)?;
    let columns: Vec<Column<'_>> = shape
        .columns
        .iter()
        .map(|column| Column::new(&column.name, batch.column_by_name(&column.name), column.lake_type))
        .collect::<Result<_>>()?;
    let (mut row, mut scratch) = (Vec::new(), String::new());
    for at in 0..batch.num_rows() {
        let (position, op) = metadata.row(at)?;
        if position < window.from || position > window.to {
            continue;
        }
        if op == Op::Truncate {
            take(Change { position, op, key: Box::default(), row: Box::default(), moved: false });
            continue;
        }
        let unchanged: Vec<String> = metadata.json("_unchanged", metadata.unchanged, at)?.unwrap_or_default();
        let exceptions: HashMap<String, String> = metadata.json("_exceptions", metadata.exceptions, at)?.unwrap_or_default();
        row.clear();
        for (column, cells) in shape.columns.iter().zip(&columns) {
            match exceptions.get(&column.name) {
                Some(text) => push(&mut row, Cell::Exception(text.as_bytes())),
                None if unchanged.contains(&column.name) => push(&mut row, Cell::Unchanged),
                None => cells.push(at, &mut row, &mut scratch),
            }
        }
        let key = shape.key_of(&row);
        if partition.has(&key) {
            let needless = op == Op::Delete && !shape.key.is_empty();
            let row = if needless { Box::default() } else { row.as_slice().into() };
            take(Change { position, op, key, row, moved: metadata.old_key.is_valid(at) });
        }
    }
    Ok(())
}

/// Our own columns of a batch.
struct Metadata<'a> {
    op: &'a arrow_array::StringArray,
    commit_lsn: &'a arrow_array::Int64Array,
    seq: &'a arrow_array::Int64Array,
    unchanged: &'a arrow_array::StringArray,
    old_key: &'a arrow_array::StringArray,
    exceptions: &'a arrow_array::StringArray,
}

impl<'a> Metadata<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let lacks = |name: &str| Error::found(format!("column {name} is missing or of another type"));
        let text = |name: &str| batch.column_by_name(name).and_then(|a| a.as_string_opt::<i32>()).ok_or_else(|| lacks(name));
        let number = |name: &str| batch.column_by_name(name).and_then(|a| a.as_primitive_opt::<Int64Type>()).ok_or_else(|| lacks(name));
        Ok(Self {
            op: text("_op")?,
            commit_lsn: number("_commit_lsn")?,
            seq: number("_seq")?,
            unchanged: text("_unchanged")?,
            old_key: text("_old_key")?,
            exceptions: text("_exceptions")?,
        })
    }

    fn row(&self, at: usize) -> Result<((u64, i64), Op)> {
        if self.op.is_null(at) || self.commit_lsn.is_null(at) || self.seq.is_null(at) {
            return Err(Error::found(format!("row {at} has no operation or no position")));
        }
        let op = match self.op.value(at) {
            "INSERT" | "SNAPSHOT" => Op::Put,
            "UPDATE" => Op::Update,
            "DELETE" => Op::Delete,
            "TRUNCATE" => Op::Truncate,
            _ => return Err(Error::found(format!("row {at} has an operation that the contract does not know"))),
        };
        Ok(((self.commit_lsn.value(at) as u64, self.seq.value(at)), op))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str, column: &arrow_array::StringArray, at: usize) -> Result<Option<T>> {
        if column.is_null(at) {
            return Ok(None);
        }
        // The cause would show a piece of the cell.
        serde_json::from_str(column.value(at))
            .map(Some)
            .map_err(|_| Error::found(format!("{name} of row {at} is not the JSON it should be")))
    }
}

/// The window of a table's rows: from its copy, to the transactions before `point` (a copy made at `point` included).
pub(super) fn window(snapshot: Option<Lsn>, point: Lsn) -> Window {
    let from = snapshot.map_or((0, i64::MIN), |copied| (copied.0, -1));
    Window { from, to: (point.0, 0) }
}
