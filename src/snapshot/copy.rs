//! COPY into Parquet files, several tables at a time.
//!
//! Owns: the workers' loop, cutting a copy into files. Invariants: what is buffered by one worker stays below its
//! limit (a single larger row apart); a table's copy is handed over only when all its files are durable.

use super::prepare::Prepared;
use super::text::Line;
use crate::batch::{TableBatch, Transaction, encode};
use crate::commit::{FileNamer, put_data};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{DataFile, FileKind, SnapshotMark, date};
use crate::postgres::catalogue::TableKind;
use crate::postgres::error::screened;
use crate::schema::HashKey;
use crate::schema::version::{Layout, TableSchema};
use crate::store::Store;
use crate::table_name::quote_ident;
use futures_util::StreamExt;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio_postgres::Client;

/// A table to copy into a version.
#[derive(Debug, Clone)]
pub struct CopyJob {
    /// The version, whose live columns are selected.
    pub schema: Arc<TableSchema>,
    /// Catalogue fingerprint of the shape that is copied.
    pub fingerprint: String,
    /// Root of a partition tree: the leaves' rows belong to it.
    pub kind: TableKind,
    /// The publication's row filter.
    pub filter: Option<String>,
}

/// A finished copy of a table, its files durable.
#[derive(Debug, Clone)]
pub struct Copied {
    /// For the manifest.
    pub mark: SnapshotMark,
    /// `pg_class.oid` of what was copied.
    pub oid: u32,
    /// Catalogue fingerprint of what was copied.
    pub fingerprint: String,
    /// Its files.
    pub files: Vec<DataFile>,
}

/// Where a copy's files go.
#[derive(Debug, Clone)]
struct Sink {
    store: Arc<dyn Store>,
    namer: Arc<FileNamer>,
    hash_key: Option<HashKey>,
    limit_bytes: usize,
}

/// Copies all jobs at the prepared point and hands each finished table over; the locks are held until the last.
pub async fn copy_all(
    mut prepared: Prepared,
    jobs: Vec<CopyJob>,
    store: Arc<dyn Store>,
    namer: Arc<FileNamer>,
    hash_key: Option<HashKey>,
    limit_bytes: usize,
    done: mpsc::Sender<Copied>,
) -> Result<()> {
    prepared.release_slot().await;
    let sink = Sink { store, namer, hash_key, limit_bytes };
    let queue = Arc::new(Mutex::new(VecDeque::from(jobs)));
    let at = Transaction { commit_lsn: prepared.point, commit_time_us: prepared.time_us, xid: None };
    let mut workers = tokio::task::JoinSet::<Result<()>>::new();
    for client in std::mem::take(&mut prepared.workers) {
        let (queue, sink, done) = (Arc::clone(&queue), sink.clone(), done.clone());
        workers.spawn(async move {
            loop {
                let Some(job) = queue.lock().expect("nothing panics while the queue is locked").pop_front() else { return Ok(()) };
                let copied = copy_table(&client, &job, &at, &sink).await.map_err(|e| e.context(format!("copying {}", job.schema.table)))?;
                if done.send(copied).await.is_err() {
                    return Ok(());
                }
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended.map_err(|panic| Error::bug("a copy worker panicked").with_source(panic))??;
    }
    drop(prepared.locker);
    Ok(())
}

async fn copy_table(client: &Client, job: &CopyJob, at: &Transaction, sink: &Sink) -> Result<Copied> {
    let schema = &job.schema;
    let layout = Arc::new(schema.copy_layout());
    let width = layout.slots.len();
    let sql = format!("COPY ({}) TO STDOUT", select(job));
    tracing::info!(table = %schema.table, version = schema.version, snapshot = %at.commit_lsn, "copying");
    let stream = client.copy_out(&sql).await.map_err(refused)?;
    tokio::pin!(stream);
    let mut batch = open(schema, &layout, at, sink)?;
    batch.truncate(at, -1);
    let (mut files, mut rows, mut bytes) = (Vec::new(), 0u64, 0usize);
    let mut line = Line::default();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(refused)?;
        if bytes > 0 && bytes + chunk.len() >= sink.limit_bytes {
            let full = std::mem::replace(&mut batch, open(schema, &layout, at, sink)?);
            files.push(store(full, sink).await?);
            bytes = 0;
        }
        line.read(&chunk);
        batch.copied(at, if width == 0 { 0 } else { line.len() }, line.cells())?;
        bytes += chunk.len() + batch.row_bytes();
        rows += 1;
    }
    files.push(store(batch, sink).await?);
    failpoint::hit("snapshot.after_files");
    Ok(Copied {
        mark: SnapshotMark { table: schema.table.clone(), version: schema.version, snapshot: at.commit_lsn, rows },
        oid: schema.oid,
        fingerprint: job.fingerprint.clone(),
        files,
    })
}

/// The query whose rows a job copies.
pub(super) fn select(job: &CopyJob) -> String {
    let columns: Vec<String> = job.schema.columns.iter().filter(|c| !c.dropped).map(|c| quote_ident(&c.source)).collect();
    // A partitioned root's rows lie in its leaves; the children of plain inheritance are tables of their own.
    let only = if job.kind == TableKind::Partitioned { "" } else { "ONLY " };
    let filter = job.filter.as_ref().map(|f| format!(" WHERE ({f})")).unwrap_or_default();
    format!("SELECT {} FROM {only}{}{filter}", columns.join(", "), job.schema.table.sql())
}

fn open(schema: &Arc<TableSchema>, layout: &Arc<Layout>, at: &Transaction, sink: &Sink) -> Result<TableBatch> {
    TableBatch::new(Arc::clone(schema), Arc::clone(layout), date(at.commit_time_us), FileKind::Snapshot, sink.hash_key.as_ref())
}

async fn store(mut batch: TableBatch, sink: &Sink) -> Result<DataFile> {
    batch.complete();
    let (rows, _) = batch.seal()?;
    let rows = rows.ok_or_else(|| Error::bug("a copy's file without rows"))?;
    let file =
        tokio::task::spawn_blocking(move || encode(&rows)).await.map_err(|panic| Error::bug("encoding panicked").with_source(panic))??;
    let file = put_data(sink.store.as_ref(), &sink.namer, file).await?;
    failpoint::hit("snapshot.after_first_file");
    Ok(file)
}

/// A COPY that the server refuses for its rights will be refused again; everything else may pass.
pub(super) fn refused(error: tokio_postgres::Error) -> Error {
    match error.code().map(|c| c.code()) {
        Some("42501") => Error::source_refused(
            "reading the table was refused (SELECT missing, or row level security applies to the role: give it SELECT and BYPASSRLS)",
        )
        .with_source(screened(error)),
        Some(code) if code.starts_with("22") => Error::source_refused(
            "a row makes the copy's query fail, most likely in the publication's row filter: correct that, the stream fails of it as well",
        )
        .with_source(screened(error)),
        _ => Error::retry("COPY was interrupted").with_source(screened(error)),
    }
}
