//! A worker's files of one table: batches in, durable Parquet files out.
//!
//! Owns: encoding beside the worker (one batch is encoded and sent while the next one fills), when a file is full.
//! Invariants: the order of rows is kept; the TRUNCATE row stands before any other in the file that it is given to;
//! a file is listed only once it is durable.

use super::job::Sink;
use super::work::Made;
use crate::batch::{GrowingFile, TableBatch, Transaction};
use crate::commit::GrowingObject;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{DataFile, FileKind, date};
use crate::schema::version::TableSchema;
use arrow_array::RecordBatch;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// A file is ended once it is about this large: what query engines like to read.
const FILE_BYTES: usize = 128 << 20;

/// A file that is being written.
struct Open {
    file: GrowingFile,
    object: GrowingObject,
}

/// What all files of an output share.
struct Place {
    sink: Sink,
    schema: Arc<TableSchema>,
    at: Transaction,
    made: Arc<Made>,
}

type Step = (Option<Open>, Option<DataFile>);

/// The files of one worker and table.
pub(super) struct Output {
    place: Arc<Place>,
    /// The TRUNCATE row, until it is written.
    lead: Option<RecordBatch>,
    step: Option<JoinHandle<Result<Step>>>,
    open: Option<Open>,
    files: Vec<DataFile>,
}

impl Output {
    /// `made` learns the name of every file that is begun.
    pub(super) fn new(sink: Sink, schema: Arc<TableSchema>, at: Transaction, made: Arc<Made>) -> Self {
        Self { place: Arc::new(Place { sink, schema, at, made }), lead: None, step: None, open: None, files: Vec::new() }
    }

    /// The next rows are the table's first: the TRUNCATE row goes before them.
    pub(super) fn lead(&mut self) -> Result<()> {
        let Place { sink, schema, at, .. } = &*self.place;
        let layout = Arc::new(schema.copy_layout());
        let mut batch = TableBatch::new(Arc::clone(schema), layout, date(at.commit_time_us), FileKind::Snapshot, sink.hash_key.as_ref())?;
        batch.truncate(at, -1);
        batch.complete();
        let (row, _) = batch.seal()?;
        self.lead = Some(row.ok_or_else(|| Error::bug("a row that was just written is gone"))?.rows);
        Ok(())
    }

    /// Takes rows; waits until those before them are encoded and handed to the store.
    pub(super) async fn push(&mut self, rows: RecordBatch) -> Result<()> {
        self.settle().await?;
        let (place, open, lead) = (Arc::clone(&self.place), self.open.take(), self.lead.take());
        self.step = Some(tokio::spawn(async move { place.step(open, lead, rows).await }));
        Ok(())
    }

    /// Ends the last file; all files, the one with the TRUNCATE row first.
    pub(super) async fn finish(mut self) -> Result<Vec<DataFile>> {
        if let Some(lead) = self.lead.take() {
            self.push(lead).await?; // a table without rows
        }
        self.settle().await?;
        if let Some(open) = self.open.take() {
            self.files.push(self.place.end(open).await?);
        }
        Ok(std::mem::take(&mut self.files))
    }

    async fn settle(&mut self) -> Result<()> {
        if let Some(step) = self.step.take() {
            let (open, done) = step.await.map_err(|panic| Error::bug("writing a copy's file panicked").with_source(panic))??;
            self.open = open;
            self.files.extend(done);
        }
        Ok(())
    }
}

impl Place {
    async fn step(&self, open: Option<Open>, lead: Option<RecordBatch>, rows: RecordBatch) -> Result<Step> {
        let mut done = None;
        let mut open = match open {
            Some(open) if open.file.bytes() < self.full_at(&open) => open,
            other => {
                if let Some(full) = other {
                    done = Some(self.end(full).await?);
                }
                self.begin(&rows).await?
            }
        };
        for rows in lead.into_iter().chain([rows]) {
            let mut file = open.file;
            let (file, bytes) = blocking(move || file.write(&rows).map(|bytes| (file, bytes))).await?;
            open.file = file;
            open.object.write(bytes).await?;
        }
        Ok((Some(open), done))
    }

    fn full_at(&self, open: &Open) -> usize {
        if open.object.is_held() { self.sink.held_bytes() } else { FILE_BYTES }
    }

    async fn begin(&self, sample: &RecordBatch) -> Result<Open> {
        let (schema, at, sink) = (&self.schema, &self.at, &self.sink);
        let table = (&schema.table, schema.version);
        let object = GrowingObject::begin(sink.store.as_ref(), &sink.namer, table, &date(at.commit_time_us), at.commit_lsn).await?;
        self.made.note(object.path());
        Ok(Open { file: GrowingFile::new(schema, sample, sink.row_group_bytes())?, object })
    }

    async fn end(&self, open: Open) -> Result<DataFile> {
        let Open { file, mut object } = open;
        let rows = file.rows();
        object.write(blocking(move || file.finish()).await?).await?;
        let table = (&self.schema.table, self.schema.version);
        let file = object.finish(self.sink.store.as_ref(), table, rows, FileKind::Snapshot).await?;
        failpoint::hit("snapshot.after_first_file");
        Ok(file)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| Error::bug("encoding panicked").with_source(panic))?
}
