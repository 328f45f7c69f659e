//! One table: its rows in the lake against its rows at the source.
//!
//! Owns: the passes, COPY of the source's rows. Does not own: the position (`point`), the rule of the state (`state`).
//! Invariant: memory is bounded, by looking at one partition of the keys after the other; each pass reads the files and
//! the source anew.

use super::canonical::push_source;
use super::cell::{Cell, push};
use super::changes::{self, Partition, Shape, Window};
use super::copy_text::{Lines, fields};
use super::report::Report;
use super::state::{Change, Op, State, reduce};
use crate::commit::persist;
use crate::error::{Error, Result};
use crate::lake::LiveFile;
use crate::lsn::Lsn;
use crate::postgres::catalogue::{Table, TableKind};
use crate::postgres::error::from_sql;
use crate::schema::HashKey;
use crate::schema::version::TableSchema;
use crate::store::Store;
use crate::table_name::quote_ident;
use futures_util::TryStreamExt;
use std::sync::Arc;
use tokio_postgres::Client;

/// Changes held at once; at some hundreds of bytes each this stays below half a GiB.
const ROWS_PER_PASS: u64 = 500_000;
/// Bytes of files (compressed, some five times smaller than in memory) whose changes are held at once.
const BYTES_PER_PASS: u64 = 64 << 20;

/// A table as both sides know it.
pub(super) struct Side<'a> {
    pub(super) store: &'a Arc<dyn Store>,
    /// The source, at the position.
    pub(super) client: &'a Client,
    pub(super) table: &'a Table,
    /// The publication's row filter: rows beside it are not the lake's business.
    pub(super) filter: Option<&'a str>,
    pub(super) schema: &'a TableSchema,
    pub(super) hash: Option<&'a HashKey>,
}

/// Compares one table. `files` are the live files of its version.
pub(super) async fn compare(side: &Side<'_>, files: &[LiveFile], snapshot: Option<Lsn>, point: Lsn, report: &mut Report) -> Result<()> {
    let shape = Arc::new(Shape::of(side.schema));
    let window = changes::window(snapshot, point);
    // What a copy has made void need not be read.
    let void = |live: &&LiveFile| snapshot.is_some_and(|copied| !live.reaches(copied));
    let files: Vec<&LiveFile> = files.iter().filter(|live| !void(live)).collect();
    let sum = |of: fn(&LiveFile) -> u64| files.iter().map(|live| of(live)).sum::<u64>();
    let passes = sum(|live| live.file.rows).div_ceil(ROWS_PER_PASS).max(sum(|live| live.file.bytes).div_ceil(BYTES_PER_PASS)).max(1);
    let mut partition = Partition::default();
    if passes > 1 && !shape.key.is_empty() {
        partition = links(side, &files, &shape, window).await?;
    }
    partition.of = passes;
    for number in 0..passes {
        partition.number = number;
        let shared = Arc::new(partition);
        let mut all = Vec::new();
        for live in &files {
            all.extend(read(side, live, &shape, window, &shared).await?);
        }
        let keyed = !shape.key.is_empty();
        let state = tokio::task::spawn_blocking(move || reduce(all, keyed)).await;
        let mut state = state.map_err(|e| Error::bug("reducing changes ended early").with_source(e))?;
        report.duplicates += std::mem::take(&mut state.duplicates);
        against_source(side, &shape, &shared, state, report).await?;
        partition = Arc::unwrap_or_clone(shared);
    }
    Ok(())
}

/// The changes of one file that belong to the partition.
async fn read(side: &Side<'_>, live: &LiveFile, shape: &Arc<Shape>, window: Window, partition: &Arc<Partition>) -> Result<Vec<Change>> {
    let path = live.file.path.as_str();
    let object = persist("read a data file", || side.store.get(path)).await?;
    let object = object.ok_or_else(|| Error::found(format!("{path} is missing, though a commit names it")))?;
    let (file, shape, partition) = (live.file.clone(), Arc::clone(shape), Arc::clone(partition));
    let work = move || {
        let mut all = Vec::new();
        changes::read(&file, object.body, &shape, window, &partition, |change| all.push(change)).map(|()| all)
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::bug("reading a data file ended early").with_source(e))?
}

/// Which keys became which.
async fn links(side: &Side<'_>, files: &[&LiveFile], shape: &Arc<Shape>, window: Window) -> Result<Partition> {
    let whole = Arc::new(Partition::default());
    let mut partition = Partition::default();
    for live in files {
        let mut deleted: Option<Change> = None;
        for change in read(side, live, shape, window, &whole).await? {
            match change.op {
                Op::Delete => deleted = Some(change),
                // The two rows of a change of key stand one behind the other.
                Op::Update if change.moved => {
                    if let Some(old) = deleted.take().filter(|old| old.position == (change.position.0, change.position.1 - 1)) {
                        partition.link(&change.key, &old.key);
                    }
                }
                _ => {}
            }
        }
    }
    Ok(partition)
}

/// Takes the source's rows away from the lake's; what is left on either side differs.
async fn against_source(side: &Side<'_>, shape: &Shape, partition: &Partition, mut state: State, report: &mut Report) -> Result<()> {
    let doing = format!("reading {}", side.table.name);
    let stream = side.client.copy_out(&select(side, shape)).await.map_err(|e| from_sql(e, &doing))?;
    let mut stream = std::pin::pin!(stream);
    let mut lines = Lines::default();
    while let Some(bytes) = stream.try_next().await.map_err(|e| from_sql(e, &doing))? {
        lines.add(&bytes);
        while let Some(line) = lines.next() {
            let row =
                source_row(&line, shape, side.hash).ok_or_else(|| Error::retry(format!("{doing}: a row has another number of columns")))?;
            let key = shape.key_of(&row);
            if !partition.has(&key) {
                continue;
            }
            if shape.key.is_empty() {
                *state.counts.entry(key).or_default() -= 1;
                report.equal += 1;
                continue;
            }
            match state.rows.remove(&key) {
                Some(lake) => report.compare(shape, &lake, &row),
                None => report.missing(shape, &row, 1),
            }
        }
    }
    if !lines.is_empty() {
        return Err(Error::retry(format!("{doing}: the last line is cut")));
    }
    for row in state.rows.values() {
        report.extra(shape, row, 1);
    }
    for (row, count) in state.counts.iter().filter(|(_, count)| **count != 0) {
        if *count > 0 {
            report.extra(shape, row, count.unsigned_abs());
        } else {
            report.missing(shape, row, count.unsigned_abs());
            report.equal = report.equal.saturating_sub(count.unsigned_abs());
        }
    }
    Ok(())
}

fn select(side: &Side<'_>, shape: &Shape) -> String {
    let table = side.table;
    let columns: Vec<String> = shape.columns.iter().map(|column| quote_ident(&column.source)).collect();
    // A partitioned table's rows are its leaves'; an ordinary table's children are tables of their own.
    let only = if table.kind == TableKind::Partitioned { "" } else { "ONLY " };
    let filter = side.filter.map(|filter| format!(" WHERE ({filter})")).unwrap_or_default();
    format!("COPY (SELECT {} FROM {only}{}{filter}) TO STDOUT", columns.join(", "), table.name.sql())
}

/// A line of COPY as the row that the lake should have.
pub(super) fn source_row(line: &[u8], shape: &Shape, hash: Option<&HashKey>) -> Option<Box<[u8]>> {
    let mut row = Vec::with_capacity(line.len() + 9 * shape.columns.len());
    let mut count = 0;
    fields(line, |at, field| {
        count += 1;
        match (shape.columns.get(at), field) {
            (Some(column), Some(raw)) => push_source(&mut row, &column.conversion, hash, raw),
            (Some(_), None) => push(&mut row, Cell::Null),
            (None, _) => {}
        }
    });
    let empty = shape.columns.is_empty() && line.is_empty();
    (empty || count == shape.columns.len()).then(|| row.into())
}
