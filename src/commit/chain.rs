//! Reading the lake back from the watermark.
//!
//! Owns: following `previous`, the checkpoint where that may end, the schemas of versions. Invariant: what the watermark does not lead to is not in the
//! lake; a checkpoint counts only if the watermark leads to its commit.

use super::persist;
use crate::error::{Error, Result};
use crate::lake::{
    COMPACTION, Checkpoint, CheckpointMark, Compaction, LiveFile, Manifest, Watermark, commit_number, commit_path, schema_path,
};
use crate::lsn::CommitSeq;
use crate::schema::version::TableSchema;
use crate::store::{Generation, Object, Store};
use crate::table_name::TableName;
use futures_util::{StreamExt, TryStreamExt};

/// Manifests that are asked for at once: a far store answers in tens of milliseconds, one after the other that adds up.
const AHEAD_MAX: u64 = 64;

/// The record of compaction; `None` if there was none yet.
pub async fn compaction(store: &dyn Store) -> Result<Option<(Compaction, Generation)>> {
    let Some(object) = persist("read the record of compaction", || store.get(COMPACTION)).await? else { return Ok(None) };
    let record =
        Compaction::parse(COMPACTION, &object.body).map_err(|e| Error::lake("the record of compaction cannot be read").with_source(e))?;
    Ok(Some((record, object.generation)))
}

/// The live files at `watermark`, in the order of their commits: of current versions, or of all.
pub async fn live(store: &dyn Store, watermark: &Watermark, all_versions: bool) -> Result<Vec<LiveFile>> {
    let mut again = true;
    loop {
        let marks = compaction(store).await?.map(|(record, _)| record.checkpoints).unwrap_or_default();
        let (mut added, mark) = walk(store, watermark, &marks).await?;
        let mut files = match mark {
            None => Vec::new(),
            Some(mark) => match persist("read a checkpoint", || store.get(&mark.path)).await? {
                Some(object) => Checkpoint::parse(&mark.path, &object.body).map_err(unreadable)?.files,
                // Its time may have run out since the record was read.
                None if std::mem::take(&mut again) => continue,
                None => return Err(Error::lake(format!("{} is missing: the list of live files is damaged", mark.path))),
            },
        };
        added.reverse();
        files.extend(added.into_iter().flatten());
        files.retain(|live| all_versions || live.is_current(watermark));
        return Ok(files);
    }
}

/// A version's schema.
pub async fn schema(store: &dyn Store, table: &TableName, version: u32) -> Result<TableSchema> {
    let path = schema_path(table, version);
    let object = persist("read a table's schema", || store.get(&path)).await?;
    let object = object.ok_or_else(|| Error::lake(format!("{path} is missing: the lake is damaged there")))?;
    TableSchema::parse(&path, &object.body)
}

fn unreadable(error: crate::lake::Unreadable) -> Error {
    Error::lake("the list of live files cannot be read").with_source(error)
}

/// The files of the commits that lead to `watermark`, the newest commit first, down to the newest of `marks` that lies on the way.
async fn walk<'a>(
    store: &dyn Store,
    watermark: &Watermark,
    marks: &'a [CheckpointMark],
) -> Result<(Vec<Vec<LiveFile>>, Option<&'a CheckpointMark>)> {
    let mut commits = Vec::new();
    let mut next = watermark.commit.clone();
    let mut ahead = 1;
    while let Some(path) = next {
        if let Some(mark) = marks.iter().find(|mark| mark.commit == path) {
            return Ok((commits, Some(mark)));
        }
        let floor = marks.iter().map(|mark| mark.seq).filter(|seq| *seq < watermark.seq).max().unwrap_or(CommitSeq(0));
        let bodies: Vec<(String, Option<Object>)> = futures_util::stream::iter(guesses(&path, ahead, floor))
            .map(|guess| async move { persist("read a manifest", || store.get(&guess)).await.map(|object| (guess, object)) })
            .buffered(AHEAD_MAX as usize)
            .try_collect()
            .await?;
        crate::wait::moved();
        next = Some(path);
        for (guess, object) in bodies {
            // An epoch ended between: what was guessed is not on the way.
            let Some(path) = next.take_if(|path| *path == guess) else { break };
            if !commits.is_empty() && marks.iter().any(|mark| mark.commit == path) {
                next = Some(path);
                break;
            }
            let object = object.ok_or_else(|| Error::lake(format!("{path} is missing: the lake's history is damaged there")))?;
            let manifest =
                Manifest::parse(&path, &object.body).map_err(|e| Error::lake("a commit manifest cannot be read").with_source(e))?;
            commits.push(LiveFile::added(&manifest).collect());
            next = manifest.previous;
        }
        ahead = (ahead * 2).min(AHEAD_MAX);
    }
    Ok((commits, None))
}

/// The commits after `seen` that lead to `watermark`, the newest first.
pub async fn chain_since(store: &dyn Store, watermark: &Watermark, seen: CommitSeq) -> Result<Vec<Manifest>> {
    let mut commits = Vec::new();
    let mut next = watermark.commit.clone();
    while let Some(path) = next {
        let manifest = read(store, &path).await?;
        if manifest.seq <= seen {
            break;
        }
        next = manifest.previous.clone();
        commits.push(manifest);
    }
    Ok(commits)
}

async fn read(store: &dyn Store, path: &str) -> Result<Manifest> {
    let object = persist("read a manifest", || store.get(path)).await?;
    let object = object.ok_or_else(|| Error::lake(format!("{path} is missing: the lake's history is damaged there")))?;
    Manifest::parse(path, &object.body).map_err(|e| Error::lake("a commit manifest cannot be read").with_source(e))
}

/// `path`, and those that stand before it if the epoch is the same, down to `floor`.
fn guesses(path: &str, ahead: u64, floor: CommitSeq) -> Vec<String> {
    let Some((seq, epoch)) = commit_number(path) else { return vec![path.to_owned()] };
    let mut all = vec![path.to_owned()];
    all.extend((1..ahead).map_while(|back| seq.0.checked_sub(back).filter(|n| *n > floor.0).map(|n| commit_path(CommitSeq(n), epoch))));
    all
}
