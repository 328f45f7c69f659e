//! Encoding rows as Parquet, a file at once or a file that grows.
//!
//! Owns: writer properties (zstd, data page v1, statistics, dictionaries where they pay) and footer metadata.
//! Invariants: the order of rows is kept; one column is encoded at a time, because each one that is open holds a
//! compressor and its pages. CPU-bound: called off the async threads.

use super::table::SealedTable;
use crate::error::{Error, Result};
use crate::lake::FileKind;
use crate::lsn::Lsn;
use crate::schema::version::TableSchema;
use crate::table_name::TableName;
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowWriterOptions, compute_leaves};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;
use std::collections::HashSet;
use std::sync::Arc;

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

/// A value of this length has no statistics.
const HUGE_BYTES: u32 = 1 << 20;

/// Rows that are looked at to decide on a column's dictionary.
const SAMPLE: usize = 512;

/// zstd's level for rows that are written once: compaction takes a higher one.
const ZSTD_FASTEST: i32 = 1;

/// Encodes sealed rows into one file.
pub fn encode(table: &SealedTable) -> Result<EncodedFile> {
    let options = options(&table.schema, &table.rows, ZSTD_FASTEST);
    let body = by_column(&table.rows, options).map_err(|e| broken(&table.schema, e))?;
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

/// The file: one row group, written column by column.
fn by_column(rows: &RecordBatch, options: ArrowWriterOptions) -> Result<Vec<u8>, parquet::errors::ParquetError> {
    let writer = ArrowWriter::try_new_with_options(Vec::new(), rows.schema(), options)?;
    let (mut file, columns) = writer.into_serialized_writer()?;
    let columns = columns.create_column_writers(0)?;
    let mut group = file.next_row_group()?;
    // Every type of ours is flat: a field has one leaf.
    for ((mut column, field), array) in columns.into_iter().zip(rows.schema_ref().fields()).zip(rows.columns()) {
        for leaf in compute_leaves(field, array)? {
            column.write(&leaf)?;
        }
        column.close()?.append_to_row_group(&mut group)?;
    }
    group.close()?;
    file.into_inner()
}

/// A file that grows by batches of the same columns, and whose bytes are taken away row group by row group.
pub struct GrowingFile {
    schema: Arc<TableSchema>,
    writer: ArrowWriter<Vec<u8>>,
    row_group_bytes: usize,
    given_bytes: usize,
    rows: u64,
}

impl GrowingFile {
    /// An empty file; `sample` are rows like those to come. A row group is ended once it takes `row_group_bytes`.
    pub fn new(schema: &Arc<TableSchema>, sample: &RecordBatch, row_group_bytes: usize) -> Result<Self> {
        Ok(Self { schema: Arc::clone(schema), writer: writer(schema, sample)?, row_group_bytes, given_bytes: 0, rows: 0 })
    }

    /// Adds rows; the bytes that are finished by it, mostly none.
    pub fn write(&mut self, rows: &RecordBatch) -> Result<Bytes> {
        let schema = Arc::clone(&self.schema);
        let broken = |e| broken(&schema, e);
        self.writer.write(rows).map_err(broken)?;
        self.rows += rows.num_rows() as u64;
        if self.writer.memory_size() < self.row_group_bytes {
            return Ok(Bytes::new());
        }
        self.writer.flush().map_err(broken)?;
        let done = std::mem::take(self.writer.inner_mut());
        self.given_bytes += done.len();
        Ok(done.into())
    }

    /// Bytes so far, about.
    pub fn bytes(&self) -> usize {
        self.given_bytes + self.writer.in_progress_size()
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Ends the file with its last row group and footer.
    pub fn finish(self) -> Result<Bytes> {
        let schema = self.schema;
        self.writer.into_inner().map(Bytes::from).map_err(|e| broken(&schema, e))
    }
}

impl std::fmt::Debug for GrowingFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GrowingFile({}, {} rows, {} bytes)", self.schema.table, self.rows, self.bytes())
    }
}

fn broken(schema: &TableSchema, error: parquet::errors::ParquetError) -> Error {
    Error::bug(format!("{}: Parquet encoding failed", schema.table)).with_source(error)
}

fn writer(schema: &TableSchema, sample: &RecordBatch) -> Result<ArrowWriter<Vec<u8>>> {
    ArrowWriter::try_new_with_options(Vec::new(), sample.schema(), options(schema, sample, ZSTD_FASTEST)).map_err(|e| broken(schema, e))
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
        if has_huge(sample.column(index)) {
            properties = properties.set_column_statistics_enabled(ColumnPath::from(vec![field.name().clone()]), EnabledStatistics::None);
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

/// Whether a value is so long that a copy of the smallest and of the largest one, which statistics keep until the end, is better not made.
fn has_huge(array: &ArrayRef) -> bool {
    let longest = |offsets: &[i32]| offsets.windows(2).map(|w| w[1].abs_diff(w[0])).max().unwrap_or(0);
    let longest = match array.data_type() {
        DataType::Utf8 => longest(array.as_string::<i32>().value_offsets()),
        DataType::Binary => longest(array.as_binary::<i32>().value_offsets()),
        _ => 0,
    };
    longest >= HUGE_BYTES
}

fn few<T: std::hash::Hash + Eq>(values: impl Iterator<Item = T>) -> bool {
    let mut count = 0usize;
    let distinct: HashSet<T> = values.inspect(|_| count += 1).collect();
    distinct.len() * 2 <= count || count < 16
}
