//! Data files read back, checked, in the columns of their version.
//!
//! Owns: fetching ahead within a budget, length, CRC-32C and number of rows against the list, missing columns as NULL. Does not own: the
//! order of files (`plan`). Invariants: a file that is not the one the list names is never passed on; what is held is
//! bounded by the budget and one batch of rows.

use super::reduce;
use crate::commit::{self, persist};
use crate::error::{Error, Result};
use crate::lake::{DataFile, LiveFile, Position, Span};
use crate::lsn::Lsn;
use crate::schema::version::TableSchema;
use crate::store::{Object, Store};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, new_null_array};
use arrow_schema::{Schema, SchemaRef};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Rows decoded at once.
const BATCH_ROWS: usize = 4096;
/// Files that are asked for at once, as far as the budget allows.
const AHEAD: usize = 16;
/// The budget's unit.
const KIB: u64 = 1024;

/// A file's content, and its share of the budget.
pub(super) struct Fetched {
    pub(super) live: LiveFile,
    body: Bytes,
    _share: OwnedSemaphorePermit,
}

/// Fetches files ahead, in their order; a file larger than the budget waits until nothing else is held.
pub(super) fn fetch(store: Arc<dyn Store>, files: Vec<LiveFile>, budget: u64) -> mpsc::Receiver<Result<Fetched>> {
    let (sender, receiver) = mpsc::channel(1);
    let units = u32::try_from(budget / KIB).unwrap_or(u32::MAX >> 4).max(1);
    let shares = Arc::new(Semaphore::new(units as usize));
    tokio::spawn(async move {
        let mut bodies = futures_util::stream::iter(files)
            .map(|live| {
                let (store, shares) = (Arc::clone(&store), Arc::clone(&shares));
                async move {
                    let units = u32::try_from(live.file.bytes.div_ceil(KIB)).unwrap_or(u32::MAX).clamp(1, units);
                    let share = shares.acquire_many_owned(units).await.map_err(|e| Error::bug("the budget was closed").with_source(e))?;
                    let body = body(store.as_ref(), &live.file).await?;
                    Ok(Fetched { live, body, _share: share })
                }
            })
            .buffered(AHEAD);
        while let Some(fetched) = bodies.next().await {
            if sender.send(fetched).await.is_err() {
                break; // whoever asked has an error of its own
            }
        }
    });
    receiver
}

/// Why a file is not there: another compaction replaced it long ago, or the lake is damaged.
async fn gone(store: &dyn Store, file: &DataFile) -> Result<Error> {
    let watermark = crate::files::begun(store).await?;
    let live = commit::live(store, &watermark, true).await?;
    Ok(match live.iter().any(|live| live.file.path == file.path) {
        true => commit::refusal(&format!("{} is missing, though a commit names it", file.path)),
        false => Error::retry(format!("{} is gone: another compaction replaced it; start again", file.path)),
    })
}

async fn body(store: &dyn Store, file: &DataFile) -> Result<Bytes> {
    let object = persist("read a data file", || store.get(&file.path)).await?;
    crate::wait::moved();
    let Some(Object { body, .. }) = object else { return Err(gone(store, file).await?) };
    let crc32c = STANDARD.encode(crc32c::crc32c(&body).to_be_bytes());
    if (body.len() as u64, &crc32c) != (file.bytes, &file.crc32c) {
        return Err(Error::lake(format!(
            "{} has {} bytes with CRC-32C {crc32c}, where its commit says {} and {}: it is damaged and was left as it is; see `huella verify`",
            file.path,
            body.len(),
            file.bytes,
            file.crc32c
        )));
    }
    Ok(body)
}

/// A batch of rows with their positions.
pub(super) struct Rows {
    pub(super) rows: RecordBatch,
    lsn: Int64Array,
    seq: Int64Array,
}

impl Rows {
    fn of(rows: RecordBatch, path: &str) -> Result<Self> {
        let number = |name: &str| {
            let column = rows.column_by_name(name).and_then(|a| a.as_primitive_opt::<Int64Type>()).filter(|a| a.null_count() == 0);
            column.cloned().ok_or_else(|| Error::lake(format!("{path}: column {name} is missing, or has NULLs, or is no number")))
        };
        Ok(Self { lsn: number("_commit_lsn")?, seq: number("_seq")?, rows })
    }

    pub(super) fn len(&self) -> usize {
        self.rows.num_rows()
    }

    pub(super) fn position(&self, at: usize) -> Position {
        (Lsn(self.lsn.value(at) as u64), self.seq.value(at))
    }

    /// Rows `from` to `to`, with nothing of them left but the key and their place.
    pub(super) fn reduced(&self, from: usize, to: usize, version: &TableSchema) -> Result<Self> {
        let rows = reduce::reduced(&self.rows.slice(from, to - from), version)?;
        Ok(Self { rows, lsn: self.lsn.slice(from, to - from), seq: self.seq.slice(from, to - from) })
    }

    /// Whether the row holds nothing but its key and its place.
    pub(super) fn is_reduced(&self, at: usize, version: &TableSchema) -> bool {
        reduce::is_reduced(&self.rows, at, version)
    }
}

/// The rows of one file, batch by batch.
pub(super) struct Reader {
    file: DataFile,
    reader: ParquetRecordBatchReader,
    schema: SchemaRef,
    /// For each column of the schema its place in the file.
    places: Vec<Option<usize>>,
    read: u64,
    _share: OwnedSemaphorePermit,
}

impl Reader {
    /// Opens a file; `wanted` are the columns to give, in their order.
    pub(super) fn open(fetched: Fetched, version: &TableSchema, wanted: &SchemaRef) -> Result<Self> {
        let Fetched { live, body, _share } = fetched;
        let path = live.file.path.clone();
        let unreadable = |e: parquet::errors::ParquetError| Error::lake(format!("{path} cannot be read as Parquet")).with_source(e);
        let builder = ParquetRecordBatchReaderBuilder::try_new(body).map_err(unreadable)?;
        let there = Arc::clone(builder.schema());
        let all = version.arrow();
        for field in there.fields() {
            let known = all
                .field_with_name(field.name())
                .map_err(|_| Error::lake(format!("{path}: column {} is not in its version's schema document", field.name())))?;
            if known.data_type() != field.data_type() {
                let what = format!("{path}: column {} is {} where {} belongs", field.name(), field.data_type(), known.data_type());
                return Err(Error::lake(what));
            }
        }
        let mask = ProjectionMask::columns(builder.parquet_schema(), wanted.fields().iter().map(|f| f.name().as_str()));
        let reader = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(unreadable)?;
        let given = arrow_array::RecordBatchReader::schema(&reader);
        let places = wanted.fields().iter().map(|field| given.index_of(field.name()).ok()).collect();
        Ok(Self { file: live.file, reader, schema: Arc::clone(wanted), places, read: 0, _share })
    }

    /// The next rows; `None` at the end, if they were as many as the list says.
    pub(super) fn next(&mut self) -> Result<Option<Rows>> {
        let path = &self.file.path;
        let Some(batch) = self.reader.next() else {
            if self.read != self.file.rows {
                return Err(Error::lake(format!("{path} has {} rows, where its commit says {}", self.read, self.file.rows)));
            }
            return Ok(None);
        };
        let batch = batch.map_err(|e| Error::lake(format!("{path} cannot be read as Parquet")).with_source(e))?;
        self.read += batch.num_rows() as u64;
        let columns: Vec<ArrayRef> = (self.places.iter().zip(self.schema.fields()))
            .map(|(place, field)| match place {
                Some(place) => Arc::clone(batch.column(*place)),
                None => new_null_array(field.data_type(), batch.num_rows()),
            })
            .collect();
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns);
        let rows = rows.map_err(|e| Error::bug(format!("{path}: columns of unequal length or type")).with_source(e))?;
        Rows::of(rows, path).map(Some)
    }
}

/// Only our own columns that give a row's place.
pub(super) fn position_columns() -> SchemaRef {
    let int64 = crate::schema::LakeType::Int64.arrow();
    Arc::new(Schema::new(["_commit_lsn", "_seq"].map(|name| arrow_schema::Field::new(name, int64.clone(), true)).to_vec()))
}

/// First and last position of a file's rows.
pub(super) fn span(fetched: Fetched, version: &TableSchema) -> Result<Option<Span>> {
    let mut reader = Reader::open(fetched, version, &position_columns())?;
    let mut span: Option<Span> = None;
    while let Some(rows) = reader.next()? {
        let Some(end) = rows.len().checked_sub(1) else { continue };
        let (first, last) = (rows.position(0), rows.position(end));
        span = Some(Span { first: span.map_or(first, |span| span.first), last });
    }
    Ok(span)
}
