//! Which rows and columns of a table are copied, in which pieces.
//!
//! Owns: the COPY statements, the ctid ranges, which columns come in binary. Invariants: the ranges of a relation cover
//! all its rows once, the last one without an upper end; everything is read inside the snapshot and under the lock; a
//! column without an exact binary form comes as the text that its type's output function prints, as in the stream.

use super::job::CopyJob;
use crate::batch::CopyColumn;
use crate::error::{Error, Result};
use crate::postgres::CopySession;
use crate::postgres::catalogue::{Table, TableKind};
use crate::schema::{Conversion, Wire};
use crate::table_name::quote_ident;
use std::collections::{BTreeSet, VecDeque};

/// A table below this size (TOAST included) is one range: two files and two statements would cost more than they give.
const SPLIT_BYTES: u64 = 8 << 20;
/// A range is not smaller: the statement that fetches it would count.
const RANGE_BYTES_MIN: u64 = 2 << 20;
/// Nor larger: at the end the other workers wait for one range.
const RANGE_BYTES_MAX: u64 = 512 << 20;
/// Ranges for each worker, so that all end at about the same time.
const RANGES_PER_WORKER: u64 = 8;
/// Below this version a range of ctids is a scan of the whole table.
const TID_RANGE_SCAN_SINCE: u32 = 140_000;

/// A part of a table that one statement copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    /// FROM and WHERE.
    pub(super) source: String,
    /// Its share of the table's size.
    pub(super) weight: u64,
    /// The table's first: the TRUNCATE row goes before it.
    pub(super) first: bool,
}

/// What is to be copied of a table.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) columns: Vec<CopyColumn>,
    /// The select list.
    select: String,
    pub(super) ranges: VecDeque<Range>,
    /// Bytes, with TOAST.
    pub(super) weight: u64,
}

impl Plan {
    /// The statement that copies a range.
    pub(super) fn sql(&self, range: &Range) -> String {
        format!("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT binary)", self.select, range.source)
    }
}

/// Plans the copy of a table, whose shape was read under the lock, from a session inside the snapshot.
pub(super) async fn plan(session: &mut CopySession, table: &Table, job: &CopyJob, workers: usize) -> Result<Plan> {
    let (columns, select) = columns(table, job)?;
    let filter = job.filter.as_ref().map(|f| format!("({f})"));
    let parts = match table.kind {
        TableKind::Partitioned => leaves(session, table, job).await?,
        TableKind::Ordinary | TableKind::Leaf => Some(vec![(table.name.sql(), size(session, table).await?)]),
        TableKind::Other => None,
    };
    // What cannot be read piece by piece is read as one: a view, or leaves on which this role has no rights of its own.
    let Some(parts) = parts else {
        let filter = filter.map(|f| format!(" WHERE {f}")).unwrap_or_default();
        let weight = u64::try_from(table.bytes).unwrap_or(0);
        let whole = Range { source: format!("{}{filter}", table.name.sql()), weight, first: true };
        return Ok(Plan { columns, select, ranges: [whole].into(), weight });
    };
    let mut ranges = VecDeque::new();
    for (name, size) in &parts {
        let count = if session.server_version() < TID_RANGE_SCAN_SINCE { 1 } else { size.ranges(workers) };
        let step = size.pages.div_ceil(count).max(1);
        for n in 0..count {
            let mut conditions = Vec::new();
            if n > 0 {
                conditions.push(format!("ctid >= '({},0)'::pg_catalog.tid", n * step));
            }
            if n + 1 < count {
                conditions.push(format!("ctid < '({},0)'::pg_catalog.tid", (n + 1) * step));
            }
            conditions.extend(filter.clone());
            let place = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
            ranges.push_back(Range { source: format!("ONLY {name}{place}"), weight: size.bytes / count, first: ranges.is_empty() });
        }
    }
    if ranges.is_empty() {
        // Partitioned, without a partition.
        ranges.push_back(Range { source: table.name.sql(), weight: 0, first: true });
    }
    Ok(Plan { columns, select, ranges, weight: parts.iter().map(|(_, size)| size.bytes).sum() })
}

/// The version's live columns in their order, and how each is selected.
fn columns(table: &Table, job: &CopyJob) -> Result<(Vec<CopyColumn>, String)> {
    let (mut columns, mut select) = (Vec::new(), Vec::new());
    for (index, column) in job.schema.columns.iter().enumerate().filter(|(_, c)| !c.dropped) {
        let found = table.columns.iter().find(|c| c.name == column.source);
        let found = found.ok_or_else(|| Error::retry(format!("{}: column {} is gone", table.name, column.source)))?;
        let conversion = if column.hashed { Conversion::Hashed } else { column.conversion };
        let wire = Wire::of(found.base.oid, conversion);
        let name = quote_ident(&column.source);
        select.push(match wire {
            Some(_) => name,
            // A cast to text is not always what the output function prints (inet, bpchar, bool); format() calls just that.
            None => format!("CASE WHEN pg_catalog.num_nulls({name}) = 0 THEN pg_catalog.format('%s', {name}) END"),
        });
        columns.push(CopyColumn { index, wire });
    }
    Ok((columns, select.join(", ")))
}

/// How large a relation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    /// Pages of the heap: what ctids count.
    pages: u64,
    /// Bytes, with TOAST.
    bytes: u64,
}

impl Size {
    /// Into how many ranges it is cut.
    fn ranges(&self, workers: usize) -> u64 {
        if self.bytes < SPLIT_BYTES {
            return 1;
        }
        let even = (workers as u64 * RANGES_PER_WORKER).min(self.bytes / RANGE_BYTES_MIN);
        even.max(self.bytes / RANGE_BYTES_MAX).clamp(1, self.pages.max(1))
    }
}

/// The relation's heap in pages, and all of it in bytes.
const SIZE: &str =
    "pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::pg_catalog.int8, pg_catalog.pg_table_size(c.oid)";

async fn size(session: &mut CopySession, table: &Table) -> Result<Size> {
    let doing = "reading a table's size";
    let rows = session.rows(&format!("SELECT {SIZE} FROM pg_catalog.pg_class c WHERE c.oid = {}", table.oid), doing).await?;
    rows.first().and_then(|row| number(row, 0)).ok_or_else(|| gone(table))
}

/// The leaves of a partitioned table as the snapshot shows them; `None` if they cannot be read one by one.
async fn leaves(session: &mut CopySession, table: &Table, job: &CopyJob) -> Result<Option<Vec<(String, Size)>>> {
    let sql = format!(
        "WITH RECURSIVE tree AS (
           SELECT {}::pg_catalog.oid AS oid
           UNION ALL SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid)
         SELECT c.oid, {SIZE} FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid WHERE c.relkind <> 'p'",
        table.oid
    );
    let rows = session.rows(&sql, "reading a table's partitions").await?;
    let oid = |row: &[Option<String>]| row.first().and_then(|cell| cell.as_ref()?.parse::<u32>().ok());
    let seen: BTreeSet<Option<u32>> = rows.iter().map(|row| oid(row)).collect();
    if seen != table.leaves.iter().map(|leaf| Some(leaf.oid)).collect() {
        return Err(Error::retry(format!("{}: its partitions changed between lock and snapshot", table.name)));
    }
    let needed = |name: &String| job.schema.columns.iter().any(|c| !c.dropped && c.source == *name);
    let readable = table.leaves.iter().all(|l| l.kind == TableKind::Leaf && l.schema_usable && !l.unselectable.iter().any(needed));
    // A filter may look at any column.
    if !readable || (job.filter.is_some() && table.leaves.iter().any(|l| !l.unselectable.is_empty())) {
        return Ok(None);
    }
    let mut leaves = Vec::with_capacity(rows.len());
    for row in &rows {
        let leaf = table.leaves.iter().find(|leaf| Some(leaf.oid) == oid(row)).ok_or_else(|| gone(table))?;
        leaves.push((leaf.name.sql(), number(row, 1).ok_or_else(|| gone(table))?));
    }
    Ok(Some(leaves))
}

fn number(row: &[Option<String>], at: usize) -> Option<Size> {
    let cell = |at: usize| row.get(at)?.as_ref()?.parse().ok();
    Some(Size { pages: cell(at)?, bytes: cell(at + 1)? })
}

fn gone(table: &Table) -> Error {
    Error::retry(format!("{}: it is gone, or a partition of it", table.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_relations_are_one_range_and_large_ones_enough_for_all() {
        let of = |mib: u64, workers| Size { pages: mib * 128, bytes: mib << 20 }.ranges(workers);
        assert_eq!((of(0, 2), of(7, 2)), (1, 1));
        assert_eq!(of(8, 2), 4, "not below the least size");
        assert_eq!(of(500, 2), 16);
        assert_eq!(of(100_000, 2), 195, "not above the largest size");
        assert_eq!(Size { pages: 3, bytes: 1 << 30 }.ranges(4), 3, "a page is not cut");
    }
}
