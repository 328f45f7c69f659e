//! `huella verify`: the lake's state against the source at one position, cell by cell.
//!
//! Owns: the order of the work, the verdict. Does not own: the position (`point`), reading the lake (`changes`) and its
//! rule (`state`), the source's rows (`table`), texts (`report`).
//! Invariants: the lake's cells are rendered by code that `run` does not use; the source is only read; memory is bounded.

mod canonical;
mod cell;
mod changes;
mod copy_text;
pub(crate) mod point;
mod report;
mod state;
mod table;
#[cfg(test)]
mod tests;

use crate::commit;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::files::{begun, known};
use crate::lake::{LiveFile, TableMark, Watermark};
use crate::lsn::Lsn;
use crate::postgres::catalogue::Table;
use crate::schema::HashKey;
use crate::store::{self, Store};
use crate::table_name::TableName;
use report::Report;
use std::sync::Arc;
use table::Side;
use tokio::time::Instant;

/// Compares `tables` (none: all streamed ones) and prints what differs; cells of it only if `values`.
///
/// # Errors
/// `Kind::Found` if something differs; `Kind::Retry` if the lake does not come to the position of the comparison.
pub async fn run(config: &Config, tables: &[TableName], values: bool) -> Result<()> {
    let store = store::open(&config.lake.url).await?;
    let watermark = begun(store.as_ref()).await?;
    known(&watermark, tables)?;
    if watermark.through.is_none() {
        return Err(Error::lake("the lake's first start is not complete: `huella run` goes on with it"));
    }
    let names: Vec<TableName> =
        if tables.is_empty() { watermark.streamed().map(|(name, _)| name.clone()).collect() } else { tables.to_vec() };
    let (cut, watermark) = settled(config, store.as_ref(), &names).await?;
    let live = commit::live(store.as_ref(), &watermark, false).await?;
    let hash = config.hash_key.as_ref().map(|key| HashKey::new(key.expose().as_bytes()));
    let (mut different, mut compared, mut waiting) = (0, 0, Vec::new());
    for name in &names {
        let mut report = Report::new(values);
        match (watermark.tables.get(name), cut.tables.iter().find(|table| table.name == *name)) {
            // The writer follows at its next look, or has: that is no difference of what is replicated.
            (None, _) => {
                crate::stdout::line(&format!("{name}: passed over, it is no longer replicated"))?;
                continue;
            }
            (_, None) => {
                crate::stdout::line(&format!("{name}: passed over, it is gone at the source"))?;
                continue;
            }
            (Some(mark), Some(_)) if waits(mark) => {
                crate::stdout::line(&format!("{name}: not compared, it waits for its copy, which `huella run` makes"))?;
                waiting.push(name.to_string());
                continue;
            }
            (Some(mark), Some(table)) => {
                let files: Vec<LiveFile> = live.iter().filter(|live| live.file.table == *name).cloned().collect();
                if edited(&watermark, &cut, name) {
                    report.note(
                        "has another row filter or column list at the source, and no copy followed yet: `huella run` makes it".to_owned(),
                    );
                }
                let filter = cut.filters.get(&table.oid).map(String::as_str);
                let source =
                    Source { config, client: &cut.client, table, filter, point: cut.point, hash: hash.as_ref(), watermark: &watermark };
                match one(&store, &source, mark, &files, &mut report).await {
                    // A damaged file is a finding like any other; the tables behind it are compared all the same.
                    Err(error) if error.kind() == Kind::Found => report.note(error.full()),
                    other => other?,
                }
            }
        }
        compared += 1;
        different += usize::from(!report.is_equal());
        crate::stdout::lines(report.lines(name, cut.point))?;
    }
    if different > 0 {
        return Err(Error::found(format!("{different} of {compared} tables differ at {}", cut.point)));
    }
    if !waiting.is_empty() {
        let names = waiting.join(", ");
        return Err(Error::retry(format!(
            "{names} not compared: no copy was committed in time (`huella status` says why it waits); try again"
        )));
    }
    crate::stdout::line(&format!("source and lake are equal at {}", cut.point))
}

/// A position, and the lake at it, with no copy of `names` under way: as long as a writer runs, these are waited for.
async fn settled(config: &Config, store: &dyn Store, names: &[TableName]) -> Result<(point::Cut, Watermark)> {
    let until = Instant::now() + point::patience(config);
    loop {
        let before = point::await_copies(config, store, names, until).await?;
        let cut = point::cut(config, &before, names).await?;
        let watermark = cut.reached(config, store).await?;
        let moved = |name: &&TableName| {
            let there = cut.tables.iter().find(|table| table.name == **name);
            watermark.tables.get(*name).zip(there).is_some_and(|(mark, table)| {
                mark.mode.is_stream() && (waits(mark) || mark.oid != table.oid || mark.snapshot.is_some_and(|copied| copied > cut.point))
            })
        };
        let Some(name) = names.iter().find(moved) else { return Ok((cut, watermark)) };
        if Instant::now() >= until || !cut.writer_runs(&watermark).await? {
            return Ok((cut, watermark));
        }
        tracing::info!(table = %name, "it is being copied again; the comparison waits for that and begins again");
        tokio::time::sleep(point::POLL).await;
    }
}

fn waits(mark: &TableMark) -> bool {
    mark.version.is_none() || !mark.pending.is_empty()
}

/// Whether the table's membership of the publication is not the one that the lake knows.
fn edited(watermark: &Watermark, cut: &point::Cut, name: &TableName) -> bool {
    let Some((known, now)) = watermark.source.publication.as_ref().zip(cut.publication.as_ref()) else { return false };
    known.tables.get(name).copied() != now.tables.get(name).map(|published| (published.oid, published.xmin))
}

/// A table at the source.
struct Source<'a> {
    config: &'a Config,
    client: &'a tokio_postgres::Client,
    table: &'a Table,
    /// The publication's row filter.
    filter: Option<&'a str>,
    point: Lsn,
    hash: Option<&'a HashKey>,
    watermark: &'a Watermark,
}

async fn one(store: &Arc<dyn Store>, source: &Source<'_>, mark: &TableMark, files: &[LiveFile], report: &mut Report) -> Result<()> {
    let name = &source.table.name;
    let Some(version) = mark.version else { return Err(Error::bug(format!("{name} was to be compared before its first copy"))) };
    if mark.snapshot.is_some_and(|copied| copied > source.point) {
        return Err(Error::retry(format!("{name} was copied anew during the comparison: run `huella verify` again")));
    }
    let schema = commit::schema(store.as_ref(), source.watermark, name, version).await?;
    if schema.oid != source.table.oid {
        report.note(format!("is another table at the source (oid {}) than in the lake (oid {})", source.table.oid, schema.oid));
        return Ok(());
    }
    let hidden = crate::replicate::privacy(source.config, name);
    let unseen = source.table.columns.iter().filter(|c| !c.generated && !hidden.keeps_out_of(source.table, c));
    let unseen = unseen.filter(|c| schema.by_source(&c.name).is_none());
    unseen.for_each(|column| report.note(format!("column {} of the source is not in the lake", column.name)));
    let gone = schema.columns.iter().filter(|c| !c.dropped && !source.table.columns.iter().any(|there| there.name == c.source));
    let gone: Vec<&str> = gone.map(|column| column.source.as_str()).collect();
    if !gone.is_empty() {
        report.note(format!("columns that the lake has are not at the source, so nothing was compared: {}", gone.join(", ")));
        return Ok(());
    }
    if schema.hashes() {
        schema.hasher(source.hash)?;
    }
    let side = Side { store, client: source.client, table: source.table, filter: source.filter, schema: &schema, hash: source.hash };
    table::compare(&side, files, mark.snapshot, source.point, report).await
}
