//! `huella publish`: one cut of all tables at one watermark, for BigQuery.
//!
//! Owns: the order of writing, what is left as it is. Does not own: the contents (`cut`), the columns' names for their types (`columns`).
//! Invariants: a manifest names only files that are there, at least one, and keeps them there (`compact` deletes nothing that one names); manifests
//! are written before the cut and never go back behind it: every write is conditional on what stood there before the
//! lake was looked at, so of two publications at once one gives way; an unchanged lake writes nothing.

mod columns;
mod cut;
mod rowless;

pub use columns::{bigquery_types, columns_fingerprint};

use crate::commit::{self, Swapped, persist, put_changed, swap};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{CUT, Cut, LiveFile, TABLES, Watermark, is_manifest, manifest_path, reference_path};
use crate::store::{Generation, Store};
use crate::table_name::TableName;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// The published cut, if there is one.
///
/// # Errors
/// `Kind::Lake` if it cannot be read.
pub async fn current(store: &dyn Store) -> Result<Option<(Cut, Generation)>> {
    let Some(object) = persist("read the published cut", || store.get(CUT)).await? else { return Ok(None) };
    let cut = Cut::parse(&object.body)
        .map_err(|e| Error::lake("the published cut cannot be read; delete it, and publish again").with_source(e))?;
    Ok(Some((cut, object.generation)))
}

/// Publishes the lake as it stands.
///
/// # Errors
/// `Kind::Lake` if there is no lake; `Kind::Retry` if another publication was under way.
pub async fn run(config: &Config) -> Result<()> {
    let store = crate::store::open(&config.lake.url).await?;
    let store = store.as_ref();
    let begun = Instant::now();
    // What stands there, before the lake is looked at: see the head of this file.
    let former = current(store).await?;
    let mut there: BTreeMap<String, Generation> = BTreeMap::new();
    for meta in persist("list what is published", || store.list(TABLES)).await? {
        if is_manifest(&meta.path) {
            there.insert(meta.path, meta.generation);
        }
    }
    let watermark = crate::files::begun(store).await?;
    let (Some(through), Some(_)) = (watermark.through, &watermark.commit) else {
        return Err(Error::lake("the lake has no commit yet: `huella run` makes the first"));
    };
    if let Some((former, _)) = &former
        && former.through > through
    {
        tracing::warn!(former = %former.through, %through, "the lake's positions began anew (another cluster, or an earlier position)");
    }
    let live = commit::live(store, &watermark, true).await?;
    let of_current: Vec<&LiveFile> = live.iter().filter(|live| live.is_current(&watermark)).collect();
    if let Some(what) = commit::missing(store, &of_current).await? {
        return Err(commit::refusal(&what));
    }
    let mut written = 0;
    let mut fingerprints = BTreeMap::new();
    for (table, version) in tables(&watermark) {
        let schema = commit::schema(store, &watermark, table, version).await?;
        fingerprints.insert(table.clone(), columns_fingerprint(&schema));
        written += u64::from(put_changed(store, &reference_path(table, version), cut::reference(&schema)?).await?);
        failpoint::hit("publish.after_schema");
    }
    let mut manifests = manifests(store, &watermark, &live, &there);
    written += fill(store, &watermark, &mut manifests).await?;
    for (path, text) in manifests {
        // Files that are replaced now outlive this by `grace`; a list older than that must not be published any more.
        if begun.elapsed() * 2 >= config.compact.grace {
            return Err(Error::retry("publishing took too long, so files may have been replaced meanwhile: start again"));
        }
        written += u64::from(put(store, &path, text.into(), there.get(&path).copied()).await?);
        failpoint::hit("publish.after_manifest");
    }
    let next = cut::cut(store, &watermark, through, &live, &fingerprints, former.as_ref().map(|(cut, _)| cut))?;
    if former.as_ref().is_none_or(|(former, _)| *former != next) {
        written += u64::from(put(store, CUT, next.to_body(), former.map(|(_, generation)| generation)).await?);
        failpoint::hit("publish.after_cut");
    }
    let (files, bytes) =
        live.iter().filter(|live| live.is_current(&watermark)).fold((0u64, 0u64), |(n, b), live| (n + 1, b + live.file.bytes));
    tracing::info!(through = %next.through, tables = next.tables.len(), files, bytes, written, "published");
    Ok(())
}

/// Tables with their current versions.
fn tables(watermark: &Watermark) -> impl Iterator<Item = (&TableName, u32)> {
    watermark.tables.iter().filter_map(|(name, mark)| Some((name, mark.version?)))
}

/// The manifests of current versions; and those of former ones that were published once, whose files compaction may have replaced.
fn manifests(
    store: &dyn Store,
    watermark: &Watermark,
    live: &[LiveFile],
    there: &BTreeMap<String, Generation>,
) -> BTreeMap<String, String> {
    let mut wanted: BTreeSet<String> = tables(watermark).map(|(table, version)| manifest_path(table, version)).collect();
    wanted.extend(there.keys().cloned());
    let mut lines: BTreeMap<String, String> = wanted.into_iter().map(|path| (path, String::new())).collect();
    for live in live {
        if let Some(text) = lines.get_mut(&manifest_path(&live.file.table, live.file.version)) {
            text.push_str(&store.uri(&live.file.path));
            text.push('\n');
        }
    }
    lines
}

/// Lets manifests that would be empty name a file without rows; returns how many such files were written.
async fn fill(store: &dyn Store, watermark: &Watermark, manifests: &mut BTreeMap<String, String>) -> Result<u64> {
    let day = watermark.commit_time.get(..10).unwrap_or("0001-01-01");
    let mut written = 0;
    for (table, current) in tables(watermark) {
        for version in 1..=current {
            let path = manifest_path(table, version);
            if let Some(text) = manifests.get_mut(&path).filter(|text| text.is_empty()) {
                let body = cut::reference(&commit::schema(store, watermark, table, version).await?)?;
                let (line, new) = rowless::line(store, &path, (table, version), body, day).await?;
                *text = line;
                written += u64::from(new);
            }
        }
    }
    // A table that the lake knows no more, and no file of it: what was published last stays.
    manifests.retain(|_, text| !text.is_empty());
    Ok(written)
}

/// Writes an object in the place of exactly the one that stood there at the beginning; `false` if its content is the same.
async fn put(store: &dyn Store, path: &str, body: Bytes, expected: Option<Generation>) -> Result<bool> {
    if let Some(expected) = expected
        && let Some(found) = persist("read what is published", || store.get(path)).await?
        && (found.generation, &found.body) == (expected, &body)
    {
        return Ok(false);
    }
    match swap(store, path, expected, body).await? {
        Swapped::Landed(_) => Ok(true),
        Swapped::Moved(_) | Swapped::Gone => Err(Error::retry(format!("{path} was published by another process meanwhile: start again"))),
    }
}
