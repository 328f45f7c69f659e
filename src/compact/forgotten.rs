//! What `huella forget` left to be finished: DELETE rows that somebody still had to merge, and the time that the last old object is gone.
//!
//! Owns: the receipts after they were written, what counts as merged. Does not own: writing them (`forget`), deletion (`sweep`).
//! Invariants: a DELETE goes only once every reader that merges cuts has passed it; a receipt says that all is gone only when no object
//! of its table is left that is older than the replacement and that no list names.

use super::keys::{each_row, looked_at};
use super::ledger::{Ledger, is_older};
use super::removal::{Versions, take_out};
use super::rewrite::{Bits, Edit, Work};
use crate::commit::{self, persist};
use crate::error::{Error, Result};
use crate::lake::{FORGOTTEN, Forgotten, LiveFile, WaitingDelete, rfc3339, table_prefix};
use crate::lsn::Lsn;
use crate::store::{Generation, Store};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// The last Dataform run, as `dataform` writes it.
const DATAFORM: &str = "state/dataform.json";

/// How far two clocks are thought to lie apart at most.
const CLOCKS_APART: Duration = Duration::from_secs(300);

/// Rows below are merged by whoever merges published cuts: by the last Dataform run, as far as one is recorded; else by the time that
/// another cut has followed theirs. Where nothing is published nobody merges, and nothing waits.
pub(crate) async fn merged(store: &dyn Store) -> Result<Lsn> {
    let Some((cut, _)) = crate::publish::current(store).await? else { return Ok(Lsn(u64::MAX)) };
    let Some(object) = persist("read the last Dataform run", || store.get(DATAFORM)).await? else {
        return Ok(cut.former.first().copied().unwrap_or(Lsn::ZERO));
    };
    let merged = || {
        let run: serde_json::Value = serde_json::from_slice(&object.body).ok()?;
        let variable: serde_json::Value = serde_json::from_str(run["variable"].as_str()?).ok()?;
        (run["state"] == "SUCCEEDED").then(|| variable["through"].as_str()?.parse().ok().map(Lsn)).flatten()
    };
    // A run under way, or one that failed: the next one that succeeds says it.
    Ok(merged().unwrap_or(Lsn::ZERO))
}

/// The receipts that are not complete.
async fn open_receipts(store: &dyn Store) -> Result<Vec<(String, Forgotten, Generation)>> {
    let mut receipts = Vec::new();
    for meta in persist("list receipts", || store.list(FORGOTTEN)).await? {
        let Some(object) = persist("read a receipt", || store.get(&meta.path)).await? else { continue };
        let receipt = Forgotten::parse(&meta.path, &object.body).map_err(|e| Error::lake("a receipt cannot be read").with_source(e))?;
        if !receipt.is_complete() {
            receipts.push((meta.path, receipt, object.generation));
        }
    }
    Ok(receipts)
}

/// Another process may have written it meanwhile: then the next run goes on from there.
async fn rewrite_receipt(store: &dyn Store, path: &str, receipt: &Forgotten, generation: Generation) {
    if let Err(error) = store.replace_if(path, receipt.to_body(), generation).await {
        tracing::info!(error = %error, path, "a receipt was not brought up to date; the next compaction does it");
    }
}

/// Says in receipts whether what they are of came to count, where the process that wrote them did not live to. Before any checkpoint leaves the
/// record, for it is its mark there that says so; what has no mark and is too old to get one is deleted.
pub(super) async fn count(store: &dyn Store, grace: Duration, now: DateTime<Utc>) -> Result<()> {
    let receipts = open_receipts(store).await?;
    if receipts.iter().all(|(_, receipt, _)| receipt.replaced.is_some()) {
        return Ok(());
    }
    let record = commit::compaction(store).await?.map(|(record, _)| record.checkpoints).unwrap_or_default();
    for (path, mut receipt, generation) in receipts.into_iter().filter(|(_, receipt, _)| receipt.replaced.is_none()) {
        match record.iter().find(|mark| mark.receipt.as_ref() == Some(&path)) {
            Some(mark) => {
                let at = DateTime::parse_from_rfc3339(&mark.time).map_or(now, |time| time.to_utc());
                receipt.replaced_at(at, grace);
                rewrite_receipt(store, &path, &receipt, generation).await;
            }
            // What has not come to count within the grace never does.
            None if is_older(&receipt.begun, grace.saturating_mul(2), now) => {
                persist("delete a receipt of nothing", || store.delete(&path)).await?;
            }
            None => {}
        }
    }
    Ok(())
}

/// Takes out the DELETE rows that were left for readers who have passed them by now.
pub(super) async fn finish(ledger: &mut Ledger, work: &Work, part: &mut u64) -> Result<()> {
    let store = Arc::clone(&ledger.store);
    let receipts = open_receipts(store.as_ref()).await?;
    if receipts.iter().all(|(_, receipt, _)| receipt.waiting.is_empty()) {
        return Ok(());
    }
    let merged = merged(store.as_ref()).await?;
    for (path, mut receipt, generation) in receipts {
        let due: HashSet<WaitingDelete> = receipt.waiting.iter().copied().filter(|delete| delete.at.0 < merged).collect();
        if due.is_empty() || receipt.replaced.is_none() {
            continue;
        }
        let mut schemas = Versions::new();
        for version in due.iter().map(|delete| delete.version) {
            schemas.insert(version, Arc::new(commit::schema(store.as_ref(), &ledger.watermark, &receipt.table, version).await?));
        }
        let mut edits = HashMap::new();
        for (version, schema) in &schemas {
            let places: Vec<_> = due.iter().filter(|delete| delete.version == *version).map(|delete| delete.at).collect();
            let may_hold = |live: &&LiveFile| {
                let reached = |at: &(Lsn, i64)| live.lowest() <= at.0 && live.reaches(at.0);
                live.file.table == receipt.table && live.file.version == *version && places.iter().any(reached)
            };
            let files: Vec<LiveFile> = ledger.live.iter().filter(may_hold).cloned().collect();
            let wanted: HashSet<_> = places.iter().copied().collect();
            let found = each_row(&store, schema, &files, looked_at(schema, &[]), Vec::new(), move |found, file, number, row, at| {
                if wanted.contains(&row.position(at)) && row.op(at) == "DELETE" {
                    found.push((file as usize, number as usize));
                }
                Ok(())
            });
            for (file, row) in found.await? {
                let file = &files[file].file;
                let whole = || Edit { keep: Bits::first(file.rows), reduce: Bits::default() };
                edits.entry(file.path.clone()).or_insert_with(whole).keep.clear(row);
            }
        }
        if !edits.is_empty() && !take_out(ledger, work, part, &schemas, edits, None).await? {
            continue; // the next run finds them where they are then
        }
        receipt.waiting.retain(|delete| !due.contains(delete));
        receipt.replaced_at(Utc::now(), ledger.grace);
        rewrite_receipt(store.as_ref(), &path, &receipt, generation).await;
    }
    Ok(())
}

/// Says in each receipt whether the last object is gone that held its rows.
pub(super) async fn settle(ledger: &Ledger, now: DateTime<Utc>) -> Result<()> {
    let store = ledger.store.as_ref();
    let live: HashSet<&str> = ledger.live.iter().map(|live| live.file.path.as_str()).collect();
    let mut listed: BTreeMap<String, Vec<crate::store::Meta>> = BTreeMap::new();
    for (path, mut receipt, generation) in open_receipts(store).await? {
        let Some(replaced) = &receipt.replaced else { continue };
        // A compaction under way then may have written the rows to a file that never counted; it gives up after the grace. And the store's
        // clock may be another.
        let until = DateTime::parse_from_rfc3339(replaced)
            .map_or(i64::MAX, |time| (time + ledger.grace + ledger.grace.min(CLOCKS_APART)).timestamp_micros());
        let mut left = false;
        for version in &receipt.versions {
            let prefix = format!("{}/dt=", table_prefix(&receipt.table, *version));
            if !listed.contains_key(&prefix) {
                let objects = persist("list data files", || store.list(&prefix)).await?;
                listed.insert(prefix.clone(), objects);
            }
            left |= listed[&prefix].iter().any(|meta| !live.contains(meta.path.as_str()) && meta.modified_us <= until);
        }
        if !left && receipt.gone.is_none() && receipt.waiting.is_empty() {
            receipt.gone = Some(rfc3339(now.timestamp_micros()));
            rewrite_receipt(store, &path, &receipt, generation).await;
            tracing::info!(table = %receipt.table, receipt = path, "the last object that held forgotten rows is gone");
        }
    }
    Ok(())
}
