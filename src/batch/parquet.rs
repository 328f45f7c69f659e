//! Encoding sealed rows as Parquet.
//!
//! Owns: writer properties (zstd, data page v1, statistics, dictionaries where they pay) and footer metadata.
//! Invariant: the order of rows is kept. CPU-bound: called off the async threads.

use super::table::SealedTable;
use crate::error::{Error, Result};
use crate::lake::FileKind;
use crate::lsn::Lsn;
use crate::schema::version::TableSchema;
use crate::table_name::TableName;
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;
use std::collections::HashSet;

/// An encoded file that waits for its upload.
#[derive(Debug, Clone)]
pub struct EncodedFile {
    /// Table.
    pub table: TableName,
    /// Schema version.
    pub version: u32,
    /// UTC date of its folder.
    pub date: String,
    /// Commit LSN of its first row.
    pub first_lsn: Lsn,
    /// Rows in it.
    pub rows: u64,
    /// Where the rows came from.
    pub kind: FileKind,
    /// The file.
    pub body: Bytes,
}

/// Rows that are looked at to decide on a column's dictionary.
const SAMPLE: usize = 512;

/// Encodes sealed rows into one file.
pub fn encode(table: &SealedTable) -> Result<EncodedFile> {
    let broken = |e: parquet::errors::ParquetError| Error::bug(format!("{}: Parquet encoding failed", table.schema.table)).with_source(e);
    let mut writer =
        ArrowWriter::try_new_with_options(Vec::new(), table.rows.schema(), options(&table.schema, &table.rows, 1)).map_err(broken)?;
    writer.write(&table.rows).map_err(broken)?;
    let body = writer.into_inner().map_err(broken)?;
    Ok(EncodedFile {
        table: table.schema.table.clone(),
        version: table.schema.version,
        date: table.date.clone(),
        first_lsn: table.first_lsn,
        rows: table.rows.num_rows() as u64,
        kind: table.kind,
        body: body.into(),
    })
}

/// How every file of a version is written; `sample` says which columns' values repeat. `level` is zstd's: 1 is the fastest.
pub fn options(schema: &TableSchema, sample: &RecordBatch, level: i32) -> ArrowWriterOptions {
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by(concat!("huella ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(level).unwrap_or_default()))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_row_count(None)
        .set_key_value_metadata(Some(vec![
            KeyValue::new("huella.schema".to_owned(), schema.to_json()),
            KeyValue::new("huella.version".to_owned(), schema.version.to_string()),
        ]));
    for (index, field) in sample.schema_ref().fields().iter().enumerate() {
        if !dictionary_pays(sample, index) {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(vec![field.name().clone()]), false);
        }
    }
    ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true)
}

/// Whether values repeat: at most half of a sample's are distinct. A dictionary of unique values costs time and is thrown away.
fn dictionary_pays(rows: &RecordBatch, index: usize) -> bool {
    let array = rows.column(index);
    let step = (array.len() / SAMPLE).max(1);
    let at = (0..array.len()).step_by(step).filter(|i| array.is_valid(*i));
    match array.data_type() {
        DataType::Int64 => few(at.map(|i| array.as_primitive::<Int64Type>().value(i))),
        DataType::Date32 => few(at.map(|i| array.as_primitive::<Date32Type>().value(i))),
        DataType::Float64 => few(at.map(|i| array.as_primitive::<Float64Type>().value(i).to_bits())),
        DataType::Timestamp(TimeUnit::Microsecond, _) => few(at.map(|i| array.as_primitive::<TimestampMicrosecondType>().value(i))),
        DataType::Decimal128(..) => few(at.map(|i| array.as_primitive::<Decimal128Type>().value(i))),
        DataType::Utf8 => few(at.map(|i| array.as_string::<i32>().value(i))),
        DataType::Binary => few(at.map(|i| array.as_binary::<i32>().value(i))),
        _ => true,
    }
}

fn few<T: std::hash::Hash + Eq>(values: impl Iterator<Item = T>) -> bool {
    let mut count = 0usize;
    let distinct: HashSet<T> = values.inspect(|_| count += 1).collect();
    distinct.len() * 2 <= count || count < 16
}
