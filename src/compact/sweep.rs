//! What no list names any more is deleted, after a while.
//!
//! Owns: what may be deleted, and when. Does not own: the lists. Invariants: nothing is deleted that a live list, a published manifest or
//! a document under `state/` names, nor before it was noted as unnamed by one run and found so by another, at least `grace` later; of
//! the epoch that may still commit only what was live once is touched; other objects than data files, manifests and
//! checkpoints of ours are left alone.
//!
//! Why notes: neither a replaced file's nor a published manifest's own time says when the last reader could have learnt of the file, because
//! they change at different moments. A note is only made of what can never be named again: what was live and is not, and
//! what is older than `grace` and of nobody who may still commit it.

use super::ledger::{Ledger, is_older};
use super::stopwatch::Stopwatch;
use crate::commit::{Swapped, persist, swap};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{
    CHECKPOINTS, COMPACTION, Checkpoint, CheckpointMark, FORMAT, SWEEP, Sweep, TABLES, commit_number, epoch_of, is_compacted, is_data,
    is_manifest, rfc3339, rowless_checksum,
};
use crate::lsn::CommitSeq;
use crate::store::{Meta, Store};
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Deletions at once.
const DELETES: usize = 16;

/// What was deleted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Swept {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) manifests: u64,
    /// Files that wait.
    pub(super) waiting: u64,
}

/// Deletes what may be deleted now.
pub(super) async fn sweep(ledger: &mut Ledger, now: DateTime<Utc>) -> Result<Swept> {
    let mut swept = Swept::default();
    let begun = Stopwatch::start();
    let store = Arc::clone(&ledger.store);
    let there = persist("list data files and what is published", || store.list(TABLES)).await?;
    // What others name is read before the list of live files: a copy that moves from the one to the other is then in one of them.
    let elsewhere = named_elsewhere(store.as_ref(), &there).await?;
    ledger.commit(Vec::new(), begun).await?;
    let live: HashSet<&str> = ledger.live.iter().map(|live| live.file.path.as_str()).collect();
    let dead = there
        .iter()
        .filter(|meta| is_data(&meta.path) && !live.contains(meta.path.as_str()) && !is_left_behind(ledger, meta))
        .map(|meta| (meta, elsewhere.contains(&meta.path)));
    let Some((mut due, waiting)) = note(ledger, dead.collect(), now).await? else { return Ok(swept) };
    failpoint::hit("compact.after_marks");
    // Only now, because the notes are made from former checkpoints too. While one is there, so are its files: it goes first.
    ledger.lapse(now, !due.is_empty()).await?;
    let Some(record) = &ledger.record else { return Ok(swept) };
    let named = named_by(store.as_ref(), &record.checkpoints).await?;
    due.retain(|meta| !named.contains(&meta.path));
    // Readers that are at work began with a checkpoint of the last `grace`, and walk down to it, never further. The very first one
    // has none before it: until it is that old, somebody may be walking to the beginning.
    let oldest =
        record.checkpoints.iter().min_by_key(|mark| mark.seq).filter(|mark| is_older(&mark.time, ledger.grace, now)).map(|mark| mark.seq);
    if let Some(oldest) = oldest {
        swept.manifests = prune(ledger, oldest).await?;
    }
    let kept: HashSet<&str> = record.checkpoints.iter().map(|mark| mark.path.as_str()).collect();
    let checkpoints = persist("list checkpoints", || store.list(CHECKPOINTS)).await?;
    let lapsed = checkpoints
        .iter()
        .filter(|meta| aged(meta, ledger.grace, now) && !kept.contains(meta.path.as_str()) && !is_left_behind(ledger, meta));
    delete(store.as_ref(), lapsed, &|| Ok(())).await?;
    failpoint::hit("compact.after_prune");
    swept.waiting = waiting;
    swept.files = due.len() as u64;
    swept.bytes = due.iter().map(|meta| meta.bytes).sum();
    let in_time = || match begun.elapsed() < ledger.grace {
        true => Ok(()),
        false => {
            Err(Error::retry("the sweep took longer than compact.grace, so what it found may be named by now: start again, or raise it"))
        }
    };
    delete(store.as_ref(), due.into_iter(), &in_time).await?;
    Ok(swept)
}

/// The files that these checkpoints name; one that is gone names none.
async fn named_by(store: &dyn Store, marks: &[CheckpointMark]) -> Result<HashSet<String>> {
    let mut named = HashSet::new();
    for mark in marks {
        if let Some(object) = persist("read a checkpoint", || store.get(&mark.path)).await? {
            let checkpoint =
                Checkpoint::parse(&mark.path, &object.body).map_err(|e| Error::lake("a checkpoint cannot be read").with_source(e))?;
            named.extend(checkpoint.files.into_iter().map(|live| live.file.path));
        }
    }
    Ok(named)
}

/// Whether an object is older than a reset that left a damaged history behind. Nobody can tell what it was, so it is kept for a person.
fn is_left_behind(ledger: &Ledger, meta: &Meta) -> bool {
    let reset = ledger.left_behind.as_deref().and_then(|time| DateTime::parse_from_rfc3339(time).ok());
    reset.is_some_and(|reset| meta.modified_us < reset.timestamp_micros())
}

fn aged(meta: &Meta, grace: Duration, now: DateTime<Utc>) -> bool {
    is_older(&rfc3339(meta.modified_us), grace, now)
}

/// What stands in the notes of a file that was live, as long as something else names it.
const STILL_NAMED: &str = "";

/// Notes what is unnamed for good. `dead`: files that are not live, and whether something else names them. Returns what was noted long
/// enough ago, and how many wait; `None` if another process notes at the same time: then nothing is deleted by this one.
async fn note<'a>(ledger: &Ledger, dead: Vec<(&'a Meta, bool)>, now: DateTime<Utc>) -> Result<Option<(Vec<&'a Meta>, u64)>> {
    let store = ledger.store.as_ref();
    let (before, generation) = match persist("read what is unnamed", || store.get(SWEEP)).await? {
        Some(object) => {
            let sweep = Sweep::parse(SWEEP, &object.body)
                .map_err(|e| Error::lake("the sweep's notes cannot be read; delete them").with_source(e))?;
            (sweep.unnamed, Some(object.generation))
        }
        None => (BTreeMap::new(), None),
    };
    let once_live = named_by(store, ledger.record.as_ref().and_then(|record| record.checkpoints.get(1..)).unwrap_or_default()).await?;
    // Whoever had an older epoch is fenced; whoever compacted or published for so long has given up.
    let epoch = ledger.watermark.epoch;
    let nobodys = |path: &str| is_compacted(path) || rowless_checksum(path).is_some() || epoch_of(path).is_some_and(|e| e < epoch);
    let orphan = |meta: &Meta| aged(meta, ledger.grace, now) && nobodys(&meta.path);
    let time = rfc3339(now.timestamp_micros());
    let (mut notes, mut due) = (BTreeMap::new(), Vec::new());
    for (meta, named) in dead {
        let since = match before.get(&meta.path) {
            _ if named => STILL_NAMED,
            Some(since) if since != STILL_NAMED => since,
            _ => &time,
        };
        let noted = before.contains_key(&meta.path);
        if noted || once_live.contains(&meta.path) || (!named && orphan(meta)) {
            notes.insert(meta.path.clone(), since.to_owned());
        }
        if noted && is_older(since, ledger.grace, now) {
            due.push(meta);
        }
    }
    let waiting = (notes.len() - due.len()) as u64;
    if notes != before {
        let body = Sweep { format: FORMAT, unnamed: notes }.to_body();
        if !matches!(swap(store, SWEEP, generation, body).await?, Swapped::Landed(_)) {
            tracing::info!("another process notes what is unnamed, so nothing is deleted by this one");
            return Ok(None);
        }
    }
    Ok(Some((due, waiting)))
}

/// Deletes manifests below `oldest`, from the beginning on, so that whoever walks too far stops at once.
async fn prune(ledger: &Ledger, oldest: CommitSeq) -> Result<u64> {
    let store = ledger.store.as_ref();
    let manifests = persist("list manifests", || store.list("commits/")).await?;
    let below: Vec<&Meta> = manifests
        .iter()
        .filter(|meta| commit_number(&meta.path).is_some_and(|(seq, _)| seq < oldest) && !is_left_behind(ledger, meta))
        .collect();
    delete(store, below.iter().copied(), &|| Ok(())).await?;
    Ok(below.len() as u64)
}

/// Deletes objects, each if `may` still says so.
async fn delete<'a>(
    store: &dyn Store,
    objects: impl Iterator<Item = &'a Meta> + Send,
    may: &(dyn Fn() -> Result<()> + Sync),
) -> Result<()> {
    let paths: Vec<&str> = objects.map(|meta| meta.path.as_str()).collect();
    futures_util::stream::iter(paths)
        .map(|path| async move {
            may()?;
            persist("delete", || store.delete(path)).await?;
            crate::wait::moved();
            failpoint::hit("compact.after_delete");
            Ok::<_, Error>(())
        })
        .buffered(DELETES)
        .try_collect()
        .await
}

/// Data files that published manifests, of those `there`, and other processes' documents name.
async fn named_elsewhere(store: &dyn Store, there: &[Meta]) -> Result<HashSet<String>> {
    let mut named = HashSet::new();
    let root = store.uri("");
    for meta in there.iter().filter(|meta| is_manifest(&meta.path)) {
        if let Some(object) = persist("read a published manifest", || store.get(&meta.path)).await? {
            let text = String::from_utf8_lossy(&object.body);
            named
                .extend(text.lines().filter_map(|uri| uri.strip_prefix(root.as_str())).map(|path| path.trim_start_matches('/').to_owned()));
        }
    }
    // Copies of other processes wait here for the writer, named by documents that are not ours to understand.
    for meta in persist("list state", || store.list("state/")).await? {
        let own = meta.path == COMPACTION || meta.path == SWEEP || meta.path.starts_with(CHECKPOINTS);
        if !own && let Some(object) = persist("read a document of state", || store.get(&meta.path)).await? {
            let text = String::from_utf8_lossy(&object.body);
            named.extend(text.split('"').filter(|part| part.starts_with("tables/")).map(str::to_owned));
        }
    }
    Ok(named)
}
