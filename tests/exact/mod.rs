//! Rows as the lake's files store them: bits of floats, unscaled decimals, `_exceptions` apart; no rule of the state.
//!
//! Owns: reading cells without making equal what only looks equal. Does not own: which files are live (`lake_reader`).

#![allow(dead_code)] // each test crate uses a part

use crate::lake_reader::{Lake, schema_of};
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cell {
    Null,
    /// Numbers in decimal, floats as hex of their bits, days and microseconds since 1970, bytes in hex, text as it is.
    Value(String),
    /// NULL in the column, this text in `_exceptions`.
    Exception(String),
}

#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) op: String,
    pub(crate) position: (i64, i64),
    /// By the source's names.
    pub(crate) cells: BTreeMap<String, Cell>,
    pub(crate) unchanged: Option<String>,
    pub(crate) old_key: Option<String>,
}

/// A table's rows in live files, TRUNCATE rows left out, by position.
pub(crate) fn rows(lake: &Lake, table: &str) -> Vec<Row> {
    let mut all = Vec::new();
    for path in lake.live(table) {
        let schema = schema_of(&path);
        let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&path).unwrap()).unwrap().build().unwrap();
        for batch in reader {
            read(&batch.unwrap(), &schema, &mut all);
        }
    }
    all.retain(|row| row.op != "TRUNCATE");
    all.sort_by_key(|row| row.position);
    all
}

fn read(batch: &RecordBatch, schema: &Value, all: &mut Vec<Row>) {
    let own = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
    let text = |name: &str, at: usize| Some(own(name).as_string::<i32>()).filter(|a| a.is_valid(at)).map(|a| a.value(at).to_owned());
    for at in 0..batch.num_rows() {
        let exceptions = text("_exceptions", at).map_or(Value::Null, |t| serde_json::from_str(&t).unwrap());
        let mut cells = BTreeMap::new();
        for column in schema["columns"].as_array().unwrap() {
            let lake = column["name"].as_str().unwrap();
            let value = batch.column_by_name(lake).filter(|a| a.is_valid(at)).map(|a| stored(a, at));
            let cell = match (value, exceptions.get(lake)) {
                (Some(value), None) => Cell::Value(value),
                (None, Some(exception)) => Cell::Exception(exception.as_str().unwrap().to_owned()),
                (None, None) => Cell::Null,
                (Some(value), Some(exception)) => panic!("{lake} has the value {value} and the exception {exception}"),
            };
            cells.insert(column["source"].as_str().unwrap().to_owned(), cell);
        }
        let number = |name: &str| own(name).as_primitive::<Int64Type>().value(at);
        all.push(Row {
            op: text("_op", at).unwrap(),
            position: (number("_commit_lsn"), number("_seq")),
            cells,
            unchanged: text("_unchanged", at),
            old_key: text("_old_key", at),
        });
    }
}

fn stored(array: &ArrayRef, at: usize) -> String {
    match array.data_type() {
        DataType::Boolean => if array.as_boolean().value(at) { "t" } else { "f" }.to_owned(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(at).to_string(),
        DataType::Float32 => format!("{:08x}", array.as_primitive::<Float32Type>().value(at).to_bits()),
        DataType::Float64 => format!("{:016x}", array.as_primitive::<Float64Type>().value(at).to_bits()),
        DataType::Decimal128(38, 9) => array.as_primitive::<Decimal128Type>().value(at).to_string(),
        DataType::Decimal256(76, 38) => array.as_primitive::<Decimal256Type>().value(at).to_string(),
        DataType::Utf8 => array.as_string::<i32>().value(at).to_owned(),
        DataType::Binary => array.as_binary::<i32>().value(at).iter().map(|b| format!("{b:02x}")).collect(),
        DataType::Date32 => array.as_primitive::<Date32Type>().value(at).to_string(),
        DataType::Timestamp(..) => array.as_primitive::<TimestampMicrosecondType>().value(at).to_string(),
        other => panic!("the contract has no {other}"),
    }
}
