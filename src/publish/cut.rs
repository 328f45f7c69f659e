//! What a cut says: positions, and the first days that a merge needs.
//!
//! Owns: `snapshot_dt`, `from_dt`, the list of former cuts, the reference schema. Pure but for URIs.
//! Invariant: a day that is named lies at or before every day with a row that is asked for; too early only costs a scan.

use crate::batch::options;
use crate::error::{Error, Result};
use crate::lake::{Cut, CutTable, FORMAT, LiveFile, Watermark, day_of, manifest_path, reference_path};
use crate::lsn::Lsn;
use crate::schema::version::TableSchema;
use crate::store::Store;
use crate::table_name::TableName;
use arrow_array::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Former cuts that `from_dt` is kept for: with one a day, a merge may stay away for two weeks before it has to read more.
const FORMER_MAX: usize = 14;

/// zstd level of a file without rows: any.
const ZSTD: i32 = 1;

/// The cut at `watermark`; equal to `former` if nothing moved. `fingerprints`: of the columns of every table's current version.
pub(super) fn cut(
    store: &dyn Store,
    watermark: &Watermark,
    through: Lsn,
    live: &[LiveFile],
    fingerprints: &BTreeMap<TableName, String>,
    former: Option<&Cut>,
) -> Result<Cut> {
    let commit = watermark.commit.clone().ok_or_else(|| Error::bug("a cut without a commit"))?;
    let mut positions: Vec<Lsn> = former.map(|cut| cut.former.clone()).unwrap_or_default();
    if let Some(former) = former.filter(|former| former.through != through) {
        positions.insert(0, former.through);
    }
    positions.retain(|position| *position <= through);
    positions.dedup();
    positions.truncate(FORMER_MAX);
    let today = watermark.commit_time.get(..10).unwrap_or("0001-01-01");
    let mut tables = BTreeMap::new();
    for (name, mark) in &watermark.tables {
        let Some(version) = mark.version else { continue };
        let files: Vec<&LiveFile> = live.iter().filter(|live| live.file.table == *name && live.file.version == version).collect();
        let first_day = |from: Option<Lsn>| {
            let reaching = files.iter().filter(|live| from.is_none_or(|from| live.reaches(from)));
            // No such row: nothing before the day of the cut is needed.
            reaching.filter_map(|live| day_of(&live.file.path)).min().unwrap_or(today).to_owned()
        };
        tables.insert(
            name.clone(),
            CutTable {
                version,
                snapshot: mark.snapshot,
                snapshot_dt: first_day(mark.snapshot),
                manifest: store.uri(&manifest_path(name, version)),
                schema: store.uri(&reference_path(name, version)),
                columns_fingerprint: fingerprints.get(name).cloned().ok_or_else(|| Error::bug("a table without its columns"))?,
                from_dt: positions.iter().map(|position| (*position, first_day(Some(*position)))).collect(),
            },
        );
    }
    Ok(Cut { format: FORMAT, through, commit, commit_time: watermark.commit_time.clone(), former: positions, tables })
}

/// A Parquet file without rows that has all columns of a version.
pub(super) fn reference(schema: &TableSchema) -> Result<Bytes> {
    let broken = |e: parquet::errors::ParquetError| Error::bug(format!("{}: Parquet encoding failed", schema.table)).with_source(e);
    let columns = Arc::new(schema.arrow());
    let options = options(schema, &RecordBatch::new_empty(Arc::clone(&columns)), ZSTD);
    let writer = ArrowWriter::try_new_with_options(Vec::new(), columns, options).map_err(broken)?;
    writer.into_inner().map(Bytes::from).map_err(broken)
}
