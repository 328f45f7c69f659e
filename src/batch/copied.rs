//! Rows of a copy: from the bytes of a binary COPY into Arrow builders, column by column.
//!
//! Owns: reading a row's fields, the metadata columns of a copy, `_exceptions`. Does not own: the conversions
//! (`schema`), when a batch is full, files (`snapshot`). Invariants: nothing is allocated for a value that fits; all
//! builders have the same length; bytes that are no row are refused, never guessed at.

use super::table::{Transaction, close, json_member, width};
use crate::error::{Error, Result};
use crate::schema::version::{METADATA, TableSchema};
use crate::schema::{ColumnBuilder, HashKey, Wire, exception_text};
use arrow_array::builder::StringBuilder;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;

/// Begins every binary copy.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Flags and the length of the header's extension follow the signature.
const HEADER_BYTES: usize = SIGNATURE.len() + 8;
/// Field count of the row that ends a copy.
const END: i16 = -1;
/// Length of a field that is NULL.
const NULL: i32 = -1;

/// What a row of even a table without columns counts for: its share of the constant columns.
const CONSTANT_ROW_BYTES: usize = 48;

/// A column that a copy fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyColumn {
    /// Its index in the version's schema.
    pub index: usize,
    /// Its form; `None`: its text, made by the server.
    pub wire: Option<Wire>,
}

struct Column {
    builder: ColumnBuilder,
    wire: Wire,
    name: String,
}

/// Rows on their way into a file.
pub struct CopyBatch {
    table: Arc<TableSchema>,
    at: Transaction,
    columns: Vec<Column>,
    arrow: SchemaRef,
    exceptions: StringBuilder,
    exceptions_json: String,
    /// The metadata columns before `_exceptions`: the same for every row, so that all batches share them.
    constant: Vec<ArrayRef>,
    row_bytes: usize,
    rows: usize,
    bytes: usize,
}

impl CopyBatch {
    /// Empty builders for rows with these columns, in this order. `at`: the snapshot's point.
    pub fn new(table: &Arc<TableSchema>, columns: &[CopyColumn], at: Transaction, hash_key: Option<&HashKey>) -> Result<Self> {
        let mut built = Vec::with_capacity(columns.len());
        let mut fields = Vec::with_capacity(columns.len() + METADATA.len());
        let mut row_bytes = CONSTANT_ROW_BYTES;
        for fetched in columns {
            let column = table.columns.get(fetched.index).ok_or_else(|| Error::bug("a copied column that the schema lacks"))?;
            let builder =
                if column.hashed { ColumnBuilder::hashed(table.hasher(hash_key)?) } else { ColumnBuilder::new(&column.conversion) };
            row_bytes += width(column.lake_type);
            fields.push(Field::new(&column.name, column.lake_type.arrow(), true));
            built.push(Column { builder, wire: fetched.wire.unwrap_or(Wire::Text), name: column.name.clone() });
        }
        let instant = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let types =
            [DataType::Utf8, DataType::Int64, DataType::Int64, instant, DataType::Int64, DataType::Utf8, DataType::Utf8, DataType::Utf8];
        fields.extend(METADATA.iter().zip(types).map(|(name, data_type)| Field::new(*name, data_type, true)));
        Ok(Self {
            table: Arc::clone(table),
            at,
            columns: built,
            arrow: Arc::new(Schema::new(fields)),
            exceptions: StringBuilder::with_capacity(0, 0),
            exceptions_json: String::new(),
            constant: constant(&at, 0),
            row_bytes,
            rows: 0,
            bytes: 0,
        })
    }

    /// Rows in it.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that the rows take, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes in one message of the copy: the header, a row, the end, or several of them.
    pub fn message(&mut self, mut message: &[u8]) -> Result<()> {
        if let Some(rest) = message.strip_prefix(SIGNATURE) {
            let word = |at: usize| rest.get(at..).and_then(|r| r.first_chunk::<4>()).map(|b| u32::from_be_bytes(*b));
            let (flags, extension) = word(0).zip(word(4)).ok_or_else(|| self.broken("its header is truncated"))?;
            // The upper half are flags that a reader must know; bit 16 once meant oids.
            if flags >> 16 != 0 {
                return Err(self.broken("its header has unknown flags"));
            }
            message = message.get(HEADER_BYTES + extension as usize..).ok_or_else(|| self.broken("its header is truncated"))?;
        }
        while !message.is_empty() {
            let Some((count, fields)) = message.split_first_chunk::<2>() else { return Err(self.broken("a row is truncated")) };
            let count = i16::from_be_bytes(*count);
            if count == END {
                return if fields.is_empty() { Ok(()) } else { Err(self.broken("something follows its end")) };
            }
            if usize::try_from(count) != Ok(self.columns.len()) {
                return Err(self.broken("a row has another number of fields than was asked for"));
            }
            message = self.row(fields)?;
        }
        Ok(())
    }

    /// A row's fields; gives what follows them.
    #[inline]
    fn row<'a>(&mut self, fields: &'a [u8]) -> Result<&'a [u8]> {
        let mut rest = fields;
        for column in &mut self.columns {
            let Some((length, after)) = rest.split_first_chunk::<4>() else { return Err(truncated(&self.table)) };
            let length = i32::from_be_bytes(*length);
            if length == NULL {
                column.builder.append_null();
                rest = after;
                continue;
            }
            let Some((raw, after)) = usize::try_from(length).ok().and_then(|n| after.split_at_checked(n)) else {
                return Err(truncated(&self.table));
            };
            rest = after;
            if column.builder.append_binary(column.wire, raw).is_err() {
                let text = if column.wire == Wire::Text { exception_text(raw) } else { column.wire.printed(raw) };
                json_member(&mut self.exceptions_json, &column.name, &text);
            }
        }
        if !self.exceptions_json.is_empty() {
            // Rows before the first exception have none: most batches never get here.
            while self.exceptions_len() < self.rows {
                self.exceptions.append_null();
            }
            close(&mut self.exceptions, &mut self.exceptions_json, '}');
        }
        self.rows += 1;
        self.bytes += fields.len() - rest.len() + self.row_bytes;
        Ok(rest)
    }

    fn exceptions_len(&self) -> usize {
        arrow_array::builder::ArrayBuilder::len(&self.exceptions)
    }

    fn broken(&self, why: &str) -> Error {
        Error::retry(format!("{}: the server's copy cannot be read: {why}", self.table.table))
    }

    /// Gives the rows away, and begins anew with none.
    pub fn take(&mut self) -> Result<RecordBatch> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let mut arrays: Vec<ArrayRef> = self.columns.iter_mut().map(|c| c.builder.finish()).collect();
        let exceptions: ArrayRef = if self.exceptions_len() == 0 {
            new_null_array(&DataType::Utf8, rows)
        } else {
            while self.exceptions_len() < rows {
                self.exceptions.append_null();
            }
            Arc::new(self.exceptions.finish())
        };
        if self.constant.iter().any(|array| array.len() < rows) {
            self.constant = constant(&self.at, rows);
        }
        arrays.extend(self.constant.iter().map(|array| array.slice(0, rows)));
        arrays.push(exceptions);
        RecordBatch::try_new(Arc::clone(&self.arrow), arrays)
            .map_err(|e| Error::bug(format!("{}: columns of unequal length or type", self.table.table)).with_source(e))
    }
}

fn constant(at: &Transaction, rows: usize) -> Vec<ArrayRef> {
    vec![
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n("SNAPSHOT", rows))),
        Arc::new(Int64Array::from_value(at.commit_lsn.0 as i64, rows)),
        Arc::new(Int64Array::from_value(0, rows)),
        Arc::new(TimestampMicrosecondArray::from_value(at.commit_time_us, rows).with_timezone("UTC")),
        match at.xid {
            Some(xid) => Arc::new(Int64Array::from_value(xid.into(), rows)),
            None => new_null_array(&DataType::Int64, rows),
        },
        new_null_array(&DataType::Utf8, rows),
        new_null_array(&DataType::Utf8, rows),
    ]
}

impl std::fmt::Debug for CopyBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CopyBatch({}, {} rows, {} bytes)", self.table.table, self.rows, self.bytes)
    }
}

fn truncated(table: &TableSchema) -> Error {
    Error::retry(format!("{}: the server's copy cannot be read: a row is truncated", table.table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::schema::version::SchemaColumn;
    use crate::schema::{Conversion, LakeType};
    use crate::table_name::TableName;
    use arrow_array::cast::AsArray;
    use arrow_array::cast::as_string_array;
    use arrow_array::types::{Date32Type, Int64Type};
    use proptest::prelude::*;

    fn column(name: &str, conversion: Conversion) -> SchemaColumn {
        SchemaColumn {
            name: name.into(),
            source: name.into(),
            attnum: 1,
            type_oid: 0,
            typmod: -1,
            source_type: String::new(),
            lake_type: conversion.lake_type(),
            conversion,
            hashed: false,
            dropped: false,
        }
    }

    fn batch() -> CopyBatch {
        let columns = vec![column("n", Conversion::Int64), column("d", Conversion::Date), column("t", Conversion::Text)];
        assert_eq!(columns[1].lake_type, LakeType::Date);
        let schema = TableSchema {
            table: TableName::new("public", "t"),
            version: 1,
            oid: 1,
            columns,
            key: vec![],
            excluded: Default::default(),
            excluded_names: Default::default(),
            hash_key: None,
        };
        let wires = [Some(Wire::Int), Some(Wire::Date), None];
        let columns: Vec<_> = wires.into_iter().enumerate().map(|(index, wire)| CopyColumn { index, wire }).collect();
        let at = Transaction { commit_lsn: Lsn(7), commit_time_us: 8, xid: None };
        CopyBatch::new(&Arc::new(schema), &columns, at, None).unwrap()
    }

    fn row(fields: &[Option<&[u8]>]) -> Vec<u8> {
        let mut row = (fields.len() as i16).to_be_bytes().to_vec();
        for field in fields {
            row.extend(field.map_or(-1, |f| f.len() as i32).to_be_bytes());
            row.extend(field.unwrap_or_default());
        }
        row
    }

    fn header() -> Vec<u8> {
        [SIGNATURE, &[0, 0, 0, 0, 0, 0, 0, 3, 9, 9, 9]].concat()
    }

    #[test]
    fn rows_become_columns_and_what_does_not_fit_is_kept_beside_its_row() {
        let mut batch = batch();
        let good = row(&[Some(&5i32.to_be_bytes()), Some(&0i32.to_be_bytes()), Some("añ".as_bytes())]);
        batch.message(&[header(), good.clone()].concat()).unwrap(); // as the server sends the first row
        batch.message(&row(&[None, Some(&i32::MAX.to_be_bytes()), Some(b"\xff")])).unwrap();
        batch.message(&[good.clone(), good].concat()).unwrap();
        batch.message(&(-1i16).to_be_bytes()).unwrap();
        assert_eq!(batch.rows(), 4);
        assert!(batch.bytes() > 4 * CONSTANT_ROW_BYTES);
        let rows = batch.take().unwrap();
        let own = |name: &str| rows.column_by_name(name).unwrap();
        assert_eq!(own("n").as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(5), None, Some(5), Some(5)]);
        assert_eq!(own("d").as_primitive::<Date32Type>().iter().collect::<Vec<_>>(), [Some(10_957), None, Some(10_957), Some(10_957)]);
        assert_eq!(
            as_string_array(own("_exceptions")).iter().collect::<Vec<_>>(),
            [None, Some(r#"{"d":"infinity","t":"\\xff"}"#), None, None]
        );
        assert_eq!(own("_seq").as_primitive::<Int64Type>().values()[..], [0; 4]);
        assert_eq!(as_string_array(own("_op")).value(3), "SNAPSHOT");
        assert!(batch.rows() == 0 && batch.bytes() == 0 && batch.take().unwrap().num_rows() == 0);
    }

    #[test]
    fn bytes_that_are_no_rows_are_refused() {
        let good = row(&[None, None, None]);
        let bad: Vec<Vec<u8>> = vec![
            row(&[None, None]),
            row(&[None, None, None, None]),
            good[..good.len() - 1].to_vec(),
            [good.clone(), vec![0]].concat(),
            vec![0],
            vec![0xFF, 0xFF, 0],
            vec![0, 3, 0, 0, 0, 9, 1],
            vec![0, 3, 0xFF, 0xFF, 0xFF, 0xFE],
            header()[..15].to_vec(),
            [SIGNATURE, &[0, 1, 0, 0, 0, 0, 0, 0]].concat(),
            [SIGNATURE, &[0, 0, 0, 0, 0, 0, 0, 9]].concat(),
        ];
        for bad in bad {
            assert!(batch().message(&bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(message: Vec<u8>, tail: Vec<u8>) {
            let _ = batch().message(&message);
            let _ = batch().message(&[header(), tail.clone()].concat());
            let _ = batch().message(&[vec![0, 3, 0, 0, 0, 4], tail].concat());
        }
    }
}
