//! COPY into Parquet files: all workers on one table, then on the next.
//!
//! Owns: the workers' loop, the memory that they share. Invariants: what is buffered stays below the limit (a single larger
//! row apart); a table's copy is handed over only when all its files are durable; a worker that fails ends the copy of its
//! table alone, the others go on with the other tables.

use super::job::{Copied, CopyJob, Sink};
use super::output::Output;
use super::plan::{Range, plan};
use super::prepare::{Prepared, in_the_way};
use super::work::{Part, Work};
use crate::batch::{CopyBatch, Transaction};
use crate::commit::FileNamer;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::observe::progress::Copying;
use crate::postgres::CopySession;
use crate::postgres::catalogue::Table;
use crate::postgres::sqlstate;
use crate::schema::HashKey;
use crate::store::Store;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Copies all jobs at the prepared point and hands each finished table over; the locks are held until the last, or until somebody has waited
/// for them for seconds: then what is not finished is given up.
/// `limit_bytes` is what all workers together may buffer.
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
    let at = Transaction { commit_lsn: prepared.point, commit_time_us: prepared.time_us, xid: None };
    let workers = std::mem::take(&mut prepared.workers);
    let sink = Sink { store, namer, hash_key, worker_bytes: limit_bytes / workers.len().max(1) };
    tokio::select! {
        biased;
        copied = copy_tables(workers, &prepared.tables, jobs, at, sink, done) => copied,
        waiting = in_the_way(&prepared.locker, &prepared.watcher) => Err(Error::retry(format!("{} waits for the locks of a copy: it is given up for now", waiting?))),
    }
    // `prepared` ends here, and the locks with it.
}

/// Copies all jobs with sessions that stand inside one snapshot, and hands each finished table over. `tables` are the
/// tables' shapes as they are for that snapshot; they stay as they are (locked) until this ends.
///
/// # Errors
/// The first one, once every table that can be copied has been, unless a person must act on it: then at once.
pub async fn copy_tables(
    mut sessions: Vec<CopySession>,
    tables: &[Table],
    jobs: Vec<CopyJob>,
    at: Transaction,
    sink: Sink,
    done: mpsc::Sender<Copied>,
) -> Result<()> {
    let workers = sessions.len();
    let planner = sessions.first_mut().ok_or_else(|| Error::bug("a copy without sessions"))?;
    let mut plans = Vec::with_capacity(jobs.len());
    for job in jobs {
        let table = tables.iter().find(|t| t.name == job.schema.table);
        let table = table.ok_or_else(|| Error::bug(format!("{}: a copy without the table's shape", job.schema.table)))?;
        let plan = plan(planner, table, &job, workers).await.map_err(|e| refused(e, &job))?;
        tracing::info!(table = %table.name, version = job.schema.version, snapshot = %at.commit_lsn, ranges = plan.ranges.len(), "copying");
        plans.push((job, plan));
    }
    // The largest first, so that no worker is left alone with it at the end.
    plans.sort_by_key(|(_, plan)| std::cmp::Reverse(plan.weight));
    let copying = Copying::begin(plans.iter().map(|(_, plan)| plan.weight).sum());
    let tables: Arc<[Work]> = plans
        .into_iter()
        .map(|(job, plan)| {
            let progress = copying.table(&job.schema.table, plan.weight);
            Work::new(job, plan, progress)
        })
        .collect();
    let leftovers = Leftovers { tables: Arc::clone(&tables), store: Arc::clone(&sink.store) };
    let mut running = tokio::task::JoinSet::<Result<()>>::new();
    for session in sessions {
        let (tables, sink, done) = (Arc::clone(&tables), sink.clone(), done.clone());
        running.spawn(async move { work(session, &tables, at, &sink, &done).await });
    }
    drop(done);
    let mut first = Ok(());
    while let Some(ended) = running.join_next().await {
        match ended.unwrap_or_else(|panic| Err(Error::bug("a copy worker panicked").with_source(panic))) {
            Ok(()) => {}
            Err(error) if error.is_retry() => first = first.and(Err(error)),
            Err(error) => {
                first = Err(error);
                break;
            }
        }
    }
    running.shutdown().await;
    delete(sink.store.as_ref(), leftovers.take()).await;
    first
}

/// Deletes the files of copies that came to nothing, also where the copy is dropped half-way: they are of the present epoch, so no sweep
/// takes them while this process lives, and a copy that fails again and again would fill the lake. Best effort: what stays is swept once
/// the epoch is over.
struct Leftovers {
    tables: Arc<[Work]>,
    store: Arc<dyn Store>,
}

impl Leftovers {
    fn take(&self) -> Vec<String> {
        self.tables.iter().flat_map(Work::leftovers).collect()
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let (paths, store) = (self.take(), Arc::clone(&self.store));
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !paths.is_empty()
        {
            runtime.spawn(async move { delete(store.as_ref(), paths).await });
        }
    }
}

async fn delete(store: &dyn Store, paths: Vec<String>) {
    for path in paths {
        if let Err(error) = store.delete(&path).await {
            tracing::debug!(path, error = %error, "a file of a copy that failed stays until its epoch is over");
        }
    }
}

/// One worker: helps with every table that has ranges left.
async fn work(mut session: CopySession, tables: &[Work], at: Transaction, sink: &Sink, done: &mpsc::Sender<Copied>) -> Result<()> {
    for table in tables {
        let Some(range) = table.enter() else { continue };
        match copy_part(&mut session, table, range, at, sink).await {
            Ok(part) => {
                if let Some(copied) = table.leave(part, at.commit_lsn) {
                    failpoint::hit("snapshot.after_files");
                    if done.send(copied).await.is_err() {
                        return Ok(()); // nobody wants it any more
                    }
                }
            }
            Err(error) => {
                table.fail();
                return Err(refused(error, &table.job));
            }
        }
    }
    Ok(())
}

/// Copies ranges of a table until none is left.
async fn copy_part(session: &mut CopySession, table: &Work, first: Range, at: Transaction, sink: &Sink) -> Result<Part> {
    let schema = &table.job.schema;
    let mut batch = CopyBatch::new(schema, &table.plan.columns, at, sink.hash_key.as_ref())?;
    let mut output = Output::new(sink.clone(), Arc::clone(schema), at, Arc::clone(&table.made));
    let (leads, mut rows) = (first.first, 0);
    if leads {
        output.lead()?;
    }
    let mut range = Some(first);
    while let Some(now) = range {
        session.begin_copy(&table.plan.sql(&now)).await?;
        while let Some(frames) = session.next().await? {
            let before = rows + batch.rows() as u64;
            for message in frames.iter() {
                if batch.rows() > 0 && batch.bytes() + message.len() >= sink.batch_bytes() {
                    rows += batch.rows() as u64;
                    output.push(batch.take()?).await?;
                }
                batch.message(message)?;
            }
            table.progress.add(rows + batch.rows() as u64 - before, frames.bytes() as u64);
        }
        table.progress.done(now.weight);
        failpoint::hit("snapshot.between_ranges");
        range = table.next();
    }
    if batch.rows() > 0 {
        rows += batch.rows() as u64;
        output.push(batch.take()?).await?;
    }
    Ok(Part { files: output.finish().await?, leads, rows })
}

/// What the server refuses for the role's rights it will refuse again; anything else may pass, or begins with another shape.
fn refused(error: Error, job: &CopyJob) -> Error {
    let table = &job.schema.table;
    match sqlstate(&error) {
        Some("42501") => Error::source_refused(format!(
            "copying {table} was refused: grant SELECT on it, and BYPASSRLS if it has row level security; `huella check` names what is missing"
        ))
        .with_source(error),
        Some(code) if code.starts_with("22") => Error::source_refused(format!(
            "a row of {table} makes the copy's query fail, most likely in the publication's row filter: correct that, the stream fails of it as well"
        ))
        .with_source(error),
        Some(_) => Error::retry(format!("copying {table}")).with_source(error),
        None => error.context(format!("copying {table}")),
    }
}
