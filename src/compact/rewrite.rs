//! Many files into few: merged in the order of their rows, encoded as large files.
//!
//! Owns: the merge, row groups, the names and sizes of new files. Does not own: what is rewritten (`plan`), when it counts (`ledger`).
//! Invariants: every row goes over, in the order of `(_commit_lsn, _seq)` (equal ones, which only copies have, in the order of their
//! files), but for those that an edit leaves out; the order is checked row by row, not assumed; memory is one encoded file,
//! the fetched ones within their budget, and one batch for each run.

use super::input::{self, Fetched, Reader, Rows, fetch};
use super::plan::{Group, runs, unplaced};
use crate::batch::options;
use crate::commit::put_document;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{DataFile, FileKind, LiveFile, Position, Span, compacted_path};
use crate::schema::version::TableSchema;
use crate::store::Store;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parquet::arrow::ArrowWriter;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Compressed bytes that are fetched ahead, all runs together.
const FETCH_BUDGET: u64 = 32 << 20;
/// Encoded bytes of a row group: BigQuery wants 16 MiB at least, uncompressed.
const ROW_GROUP_BYTES: u64 = 32 << 20;
/// Row groups of a file, at least, where the target is small.
const ROW_GROUPS: u64 = 4;
/// zstd level: these files are kept, so more time is worth the bytes.
const ZSTD: i32 = 3;

/// One bit a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    /// The bits of the first `rows` rows.
    pub(crate) fn first(rows: u64) -> Self {
        let mut bits = Self(vec![u64::MAX; (rows / 64) as usize]);
        bits.0.push((1 << (rows % 64)) - 1);
        bits
    }

    pub(crate) fn set(&mut self, at: usize) {
        if self.0.len() <= at / 64 {
            self.0.resize(at / 64 + 1, 0);
        }
        self.0[at / 64] |= 1 << (at % 64);
    }

    pub(crate) fn clear(&mut self, at: usize) {
        if let Some(word) = self.0.get_mut(at / 64) {
            *word &= !(1 << (at % 64));
        }
    }

    pub(super) fn has(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// What becomes of a file's rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    /// These stay, all others go.
    pub(crate) keep: Bits,
    /// Of these, which are DELETEs, only the key stays.
    pub(crate) reduce: Bits,
}

impl Edit {
    /// Whether a file of `rows` rows is the same afterwards.
    pub(super) fn changes_nothing(&self, rows: u64) -> bool {
        self.reduce.count() == 0 && self.keep.count() == rows
    }
}

/// Edits by path, a file without one loses all its rows; `None`: every row stays as it is.
pub(super) type Edits = Option<Arc<HashMap<String, Edit>>>;

/// What does not change from group to group.
#[derive(Clone)]
pub(super) struct Work {
    pub(super) store: Arc<dyn Store>,
    pub(super) file_size: u64,
    /// Names this process's files.
    pub(super) run: u64,
}

/// Writes the rows of a group anew; returns the new files, durable, that no list names yet.
pub(super) async fn rewrite(work: &Work, group: &Group, version: Arc<TableSchema>, edits: Edits, part: &mut u64) -> Result<Vec<LiveFile>> {
    let mut files = group.files.clone();
    let unplaced = unplaced(&files);
    let mut looked_at = fetch(Arc::clone(&work.store), unplaced.iter().map(|at| files[*at].clone()).collect(), FETCH_BUDGET);
    for at in unplaced {
        let fetched = looked_at.recv().await.ok_or_else(|| Error::bug("fetching ended early"))??;
        let version = Arc::clone(&version);
        files[at].span = blocking(move || input::span(fetched, &version)).await?;
    }
    let runs = runs(files);
    let budget = FETCH_BUDGET / runs.len().max(1) as u64;
    let all = Arc::new(version.arrow());
    let runs: Vec<Run> = runs
        .into_iter()
        .map(|run| Run {
            feed: fetch(Arc::clone(&work.store), run, budget),
            reader: None,
            rows: None,
            at: 0,
            row: 0,
            path: String::new(),
            last: None,
        })
        .collect();
    let output = Output {
        work: work.clone(),
        group: group.clone(),
        handle: Handle::current(),
        version,
        writer: None,
        rows: 0,
        span: None,
        part: *part,
        done: Vec::new(),
    };
    let group = group.clone();
    let output =
        blocking(move || merge(runs, output, &all, &edits).map_err(|e| e.context(format!("{} dt={}", group.table, group.day)))).await?;
    *part = output.part;
    Ok(output.done)
}

/// CPU-bound work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::bug("compaction ended early").with_source(e))?
}

/// Files that are read one after the other.
struct Run {
    feed: mpsc::Receiver<Result<Fetched>>,
    reader: Option<Reader>,
    rows: Option<Rows>,
    at: usize,
    /// Number of the row `at` in its file.
    row: usize,
    path: String,
    last: Option<Position>,
}

impl Run {
    /// Position of the next row; `None` at the end.
    fn head(&mut self, version: &TableSchema, all: &SchemaRef) -> Result<Option<Position>> {
        loop {
            if let Some(rows) = self.rows.as_ref().filter(|rows| self.at < rows.len()) {
                return Ok(Some(rows.position(self.at)));
            }
            (self.rows, self.at) = (None, 0);
            if let Some(reader) = self.reader.as_mut() {
                self.rows = reader.next()?;
                if self.rows.is_none() {
                    self.reader = None;
                }
                continue;
            }
            let Some(fetched) = self.feed.blocking_recv() else { return Ok(None) };
            let fetched = fetched?;
            self.path.clone_from(&fetched.live.file.path);
            self.row = 0;
            self.reader = Some(Reader::open(fetched, version, all)?);
        }
    }

    /// Gives the next rows up to `limit` (with it, or without) to `output`.
    fn give(&mut self, limit: Option<(Position, bool)>, output: &mut Output, edits: &Edits) -> Result<()> {
        let Some(rows) = &self.rows else { return Ok(()) };
        let before = |position: Position| limit.is_none_or(|(limit, with)| position < limit || with && position == limit);
        let mut end = self.at;
        while end < rows.len() && before(rows.position(end)) {
            let position = rows.position(end);
            if self.last.is_some_and(|last| last > position) {
                return Err(Error::bug(format!(
                    "{}: row {} at {position:?} stands behind {:?}: nothing was replaced",
                    self.path, self.row, self.last
                )));
            }
            self.last = Some(position);
            end += 1;
        }
        match edits.as_ref().map(|edits| edits.get(&self.path)) {
            None => output.write(rows, self.at, end)?,
            Some(None) => {}
            Some(Some(edit)) => {
                let fate = |at: usize| {
                    let row = self.row + at - self.at;
                    edit.keep.has(row).then(|| edit.reduce.has(row))
                };
                let mut from = self.at;
                while from < end {
                    let (first, alike) = (from, fate(from));
                    from = (first..end).find(|at| fate(*at) != alike).unwrap_or(end);
                    match alike {
                        None => {}
                        Some(false) => output.write(rows, first, from)?,
                        Some(true) => output.write(&rows.reduced(first, from, &output.version)?, 0, from - first)?,
                    }
                }
            }
        }
        self.row += end - self.at;
        self.at = end;
        Ok(())
    }
}

fn merge(mut runs: Vec<Run>, mut output: Output, all: &SchemaRef, edits: &Edits) -> Result<Output> {
    let version = Arc::clone(&output.version);
    loop {
        let mut heads = Vec::with_capacity(runs.len());
        for run in &mut runs {
            heads.push(run.head(&version, all)?);
        }
        let Some((first, _)) = heads.iter().enumerate().filter_map(|(at, head)| Some((at, (*head)?))).min_by_key(|(at, head)| (*head, *at))
        else {
            break;
        };
        // Equal positions: the run that stands first.
        let others = heads.iter().enumerate().filter(|(at, _)| *at != first).filter_map(|(at, head)| Some(((*head)?, at > first)));
        let limit = others.min_by_key(|(head, with)| (*head, *with));
        runs[first].give(limit, &mut output, edits)?;
    }
    output.close()?;
    Ok(output)
}

/// The file that is being written, and those that are done.
struct Output {
    work: Work,
    group: Group,
    handle: Handle,
    version: Arc<TableSchema>,
    writer: Option<ArrowWriter<Vec<u8>>>,
    rows: u64,
    span: Option<Span>,
    part: u64,
    done: Vec<LiveFile>,
}

impl Output {
    fn write(&mut self, rows: &Rows, from: usize, to: usize) -> Result<()> {
        if from == to {
            return Ok(());
        }
        let slice: RecordBatch = rows.rows.slice(from, to - from);
        let broken = |e: parquet::errors::ParquetError| Error::bug("Parquet encoding failed").with_source(e);
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let options = options(&self.version, &slice, ZSTD);
                none.insert(ArrowWriter::try_new_with_options(Vec::new(), slice.schema(), options).map_err(broken)?)
            }
        };
        writer.write(&slice).map_err(broken)?;
        self.rows += slice.num_rows() as u64;
        let (first, last) = (rows.position(from), rows.position(to - 1));
        self.span = Some(Span { first: self.span.map_or(first, |span| span.first), last });
        let size = self.work.file_size;
        if writer.in_progress_size() as u64 >= ROW_GROUP_BYTES.min(size / ROW_GROUPS) {
            writer.flush().map_err(broken)?;
        }
        if (writer.bytes_written() + writer.in_progress_size()) as u64 >= size {
            self.close()?;
        }
        Ok(())
    }

    /// Ends the file, if there is one, and stores it.
    fn close(&mut self) -> Result<()> {
        let (Some(writer), Some(span)) = (self.writer.take(), self.span.take()) else { return Ok(()) };
        let body = writer.into_inner().map_err(|e| Error::bug("Parquet encoding failed").with_source(e))?;
        let group = &self.group;
        let file = DataFile {
            path: compacted_path(&group.table, group.version, &group.day, span.first.0, self.work.run, self.part),
            table: group.table.clone(),
            version: group.version,
            rows: std::mem::take(&mut self.rows),
            bytes: body.len() as u64,
            crc32c: STANDARD.encode(crc32c::crc32c(&body).to_be_bytes()),
            kind: if group.files.iter().any(|live| live.file.kind == FileKind::Snapshot) { FileKind::Snapshot } else { FileKind::Stream },
        };
        self.part += 1;
        self.handle.block_on(put_document(self.work.store.as_ref(), &file.path, body.into()))?;
        failpoint::hit("compact.after_file");
        let newest = group.files.iter().max_by_key(|live| live.seq).ok_or_else(|| Error::bug("a group without files"))?;
        self.done.push(LiveFile {
            file,
            seq: newest.seq,
            after: group.files.iter().map(|live| live.after).min().unwrap_or(newest.after),
            through: newest.through,
            snapshot: group.files.iter().filter_map(|live| live.snapshot).max(),
            span: Some(span),
            folded: false,
        });
        Ok(())
    }
}
