//! What no list names any more is deleted, after a while.
//!
//! Owns: what may be deleted, and when. Does not own: the lists. Invariants: nothing is deleted that a live list, a published manifest or
//! a document under `state/` names, nor before it was seen unnamed twice, at least `grace` apart; of a writer's epoch that
//! may still commit nothing is ever touched; other objects than data files, manifests and checkpoints of ours are left alone.
//!
//! Why "seen unnamed": neither a replaced file's nor a published manifest's own time says when the last reader could have learnt of
//! the file, because they change at different moments. What one run finds named nowhere is noted; a later run deletes it.

use super::ledger::{Ledger, is_older};
use crate::commit::persist;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{CHECKPOINTS, COMPACTION, FORMAT, PUBLISHED, SWEEP, Sweep, commit_number, epoch_of, is_compacted, rfc3339};
use crate::lsn::CommitSeq;
use crate::store::{Meta, Store, StoreError};
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, HashSet};

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

/// Deletes what may be deleted now. `elsewhere` was read, then `ledger` has looked at the lake.
pub(super) async fn sweep(ledger: &Ledger, elsewhere: HashSet<String>, now: DateTime<Utc>) -> Result<Swept> {
    let Some(record) = &ledger.record else { return Ok(Swept::default()) };
    let store = ledger.store.as_ref();
    let mut swept = Swept::default();
    // Readers that are at work began with a checkpoint of the last `grace`, and walk down to it, never further. The very first one
    // has none before it: until it is that old, somebody may be walking to the beginning.
    let oldest = record.checkpoints.last().filter(|mark| is_older(&mark.time, ledger.grace, now)).map(|mark| mark.seq);
    if let Some(oldest) = oldest {
        swept.manifests = prune(store, oldest).await?;
    }
    let kept: HashSet<&str> = record.checkpoints.iter().map(|mark| mark.path.as_str()).collect();
    let aged = |meta: &Meta| is_older(&rfc3339(meta.modified_us), ledger.grace, now);
    let checkpoints = persist("list checkpoints", || store.list(CHECKPOINTS)).await?;
    delete(store, checkpoints.iter().filter(|meta| aged(meta) && !kept.contains(meta.path.as_str()))).await?;
    failpoint::hit("compact.after_prune");

    let there = persist("list data files", || store.list("tables/")).await?;
    let mut named = elsewhere;
    named.extend(ledger.live.iter().map(|live| live.file.path.clone()));
    let epoch = ledger.watermark.epoch;
    let ours = |path: &str| is_compacted(path) || epoch_of(path).is_some_and(|e| e < epoch);
    let unnamed = there.iter().filter(|meta| aged(meta) && ours(&meta.path) && !named.contains(&meta.path));
    let (before, generation) = match persist("read what is unnamed", || store.get(SWEEP)).await? {
        Some(object) => {
            let sweep = Sweep::parse(SWEEP, &object.body)
                .map_err(|e| Error::lake("the sweep's notes cannot be read; delete them").with_source(e))?;
            (sweep.unnamed, Some(object.generation))
        }
        None => (BTreeMap::new(), None),
    };
    let (due, noted): (Vec<&Meta>, Vec<&Meta>) =
        unnamed.partition(|meta| before.get(&meta.path).is_some_and(|since| is_older(since, ledger.grace, now)));
    let time = rfc3339(now.timestamp_micros());
    let notes = noted.iter().chain(&due).map(|meta| (meta.path.clone(), before.get(&meta.path).unwrap_or(&time).clone())).collect();
    if notes != before {
        let body = Sweep { format: FORMAT, unnamed: notes }.to_body();
        let answer = match generation {
            Some(generation) => store.replace_if(SWEEP, body, generation).await,
            None => store.put_new(SWEEP, body).await,
        };
        match answer {
            Ok(_) => {}
            Err(error @ StoreError::Refused { .. }) => return Err(error.into()),
            // Another process notes at the same time, or nothing was noted: it only takes longer then.
            Err(error) => tracing::debug!(error = %error, "the sweep's notes were not written"),
        }
    }
    failpoint::hit("compact.after_marks");
    swept.waiting = noted.len() as u64;
    swept.files = due.len() as u64;
    swept.bytes = due.iter().map(|meta| meta.bytes).sum();
    delete(store, due.into_iter()).await?;
    Ok(swept)
}

/// Deletes manifests below `oldest`, from the beginning on, so that whoever walks too far stops at once.
async fn prune(store: &dyn Store, oldest: CommitSeq) -> Result<u64> {
    let manifests = persist("list manifests", || store.list("commits/")).await?;
    let below: Vec<&Meta> = manifests.iter().filter(|meta| commit_number(&meta.path).is_some_and(|(seq, _)| seq < oldest)).collect();
    delete(store, below.iter().copied()).await?;
    Ok(below.len() as u64)
}

async fn delete<'a>(store: &dyn Store, objects: impl Iterator<Item = &'a Meta> + Send) -> Result<()> {
    let paths: Vec<&str> = objects.map(|meta| meta.path.as_str()).collect();
    futures_util::stream::iter(paths)
        .map(|path| async move {
            persist("delete", || store.delete(path)).await?;
            failpoint::hit("compact.after_delete");
            Ok::<_, Error>(())
        })
        .buffered(DELETES)
        .try_collect()
        .await
}

/// Data files that published manifests and other processes' documents name.
pub(super) async fn named_elsewhere(store: &dyn Store) -> Result<HashSet<String>> {
    let mut named = HashSet::new();
    let root = store.uri("");
    for meta in persist("list what is published", || store.list(PUBLISHED)).await? {
        if meta.path.ends_with(".manifest")
            && let Some(object) = persist("read a published manifest", || store.get(&meta.path)).await?
        {
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
