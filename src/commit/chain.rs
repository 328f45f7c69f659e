//! Reading the lake back from the watermark.
//!
//! Owns: following `previous`, the checkpoint where that may end, the schemas of versions. Does not own: what a damage means (`damage`).
//! Invariants: what the watermark does not lead to is not in the lake; a checkpoint counts only if the watermark leads to its commit; a walk
//! ends, because a manifest is believed only under its own name and names the one before it.

use super::damage::{Broken, DAMAGE_FIX};
use super::persist;
use crate::error::{Error, Result};
use crate::lake::{
    CHECKPOINTS, COMPACTION, Checkpoint, CheckpointMark, Compaction, LiveFile, Manifest, Watermark, commit_number, commit_path,
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
    let record = Compaction::parse(COMPACTION, &object.body).map_err(|e| {
        let fix = "put an earlier generation of it back, or delete it and run `huella run --resnapshot`";
        Error::lake(format!("the record of compaction cannot be read; {fix}")).with_source(e)
    })?;
    Ok(Some((record, object.generation)))
}

/// What the watermark leads to.
#[derive(Debug, Default)]
pub struct History {
    /// Live files, in the order of their commits.
    pub files: Vec<LiveFile>,
    /// It begins with a reset that left a damaged history behind, at this time.
    pub left_behind: Option<String>,
}

/// The live files at `watermark`, in the order of their commits: of current versions, or of all.
pub async fn live(store: &dyn Store, watermark: &Watermark, all_versions: bool) -> Result<Vec<LiveFile>> {
    let mut files = history(store, watermark).await?.files;
    files.retain(|live| all_versions || live.is_current(watermark));
    Ok(files)
}

/// Everything that `watermark` leads to.
pub async fn history(store: &dyn Store, watermark: &Watermark) -> Result<History> {
    Ok(trace(store, watermark, usize::MAX).await?)
}

/// As [`history`], but at most about `manifests_max` of the newest manifests are read.
pub(super) async fn trace(store: &dyn Store, watermark: &Watermark, manifests_max: usize) -> Result<History, Broken> {
    let mut again = true;
    loop {
        let marks = compaction(store).await?.map(|(record, _)| record.checkpoints).unwrap_or_default();
        let Walk { mut added, mark, left_behind } = walk(store, watermark, &marks, manifests_max).await?;
        let mut history = History { files: Vec::new(), left_behind };
        if let Some(mark) = mark {
            match persist("read a checkpoint", || store.get(&mark.path)).await? {
                Some(object) => {
                    let checkpoint = Checkpoint::parse(&mark.path, &object.body).map_err(|e| Broken::Damaged(e.to_string()))?;
                    (history.files, history.left_behind) = (checkpoint.files, checkpoint.left_behind);
                }
                // Its time may have run out since the record was read.
                None if std::mem::take(&mut again) => continue,
                None => {
                    return Err(Broken::Damaged(format!("{} is missing, which {COMPACTION} names as the list of live files", mark.path)));
                }
            }
        }
        added.reverse();
        history.files.extend(added.into_iter().flatten());
        return Ok(history);
    }
}

/// The commits between a watermark and where the walk ended.
struct Walk<'a> {
    /// Files of each commit, the newest commit first.
    added: Vec<Vec<LiveFile>>,
    /// The checkpoint where it ended.
    mark: Option<&'a CheckpointMark>,
    /// It ended at a reset that left a damaged history behind.
    left_behind: Option<String>,
}

/// Walks down to the newest of `marks` that lies on the way.
async fn walk<'a>(store: &dyn Store, watermark: &Watermark, marks: &'a [CheckpointMark], manifests_max: usize) -> Result<Walk<'a>, Broken> {
    let mut walk = Walk { added: Vec::new(), mark: None, left_behind: None };
    let mut next = watermark.commit.clone();
    let mut ahead = 1;
    while let Some(path) = next
        && walk.added.len() < manifests_max
    {
        if let Some(mark) = marks.iter().find(|mark| mark.commit == path) {
            walk.mark = Some(mark);
            return Ok(walk);
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
            if !walk.added.is_empty() && marks.iter().any(|mark| mark.commit == path) {
                next = Some(path);
                break;
            }
            let manifest = manifest(store, &path, object, marks.is_empty()).await?;
            walk.added.push(LiveFile::added(&manifest).collect());
            if manifest.reset && manifest.previous.is_none() {
                walk.left_behind = Some(manifest.commit_time);
            }
            next = manifest.previous;
        }
        ahead = (ahead * 2).min(AHEAD_MAX);
    }
    Ok(walk)
}

/// The commits after `seen` that lead to `watermark`, the newest first.
pub async fn chain_since(store: &dyn Store, watermark: &Watermark, seen: CommitSeq) -> Result<Vec<Manifest>> {
    let mut commits = Vec::new();
    let mut next = watermark.commit.clone();
    while let Some(path) = next.filter(|path| commit_number(path).is_some_and(|(seq, _)| seq > seen)) {
        let object = persist("read a manifest", || store.get(&path)).await?;
        let manifest = manifest(store, &path, object, false).await?;
        next = manifest.previous.clone();
        commits.push(manifest);
    }
    Ok(commits)
}

/// The manifest in what was found at `path`. `unrecorded`: there is no record of compaction, which might be why it is missing.
async fn manifest(store: &dyn Store, path: &str, object: Option<Object>, unrecorded: bool) -> Result<Manifest, Broken> {
    let Some(object) = object else {
        let lost = unrecorded && !persist("list checkpoints", || store.list(CHECKPOINTS)).await?.is_empty();
        return Err(Broken::Damaged(match lost {
            true => format!(
                "{COMPACTION} is missing, though there are checkpoints that only it can name: the list of live files is lost with it"
            ),
            false => format!("{path} is missing, and the lake's history with it"),
        }));
    };
    Manifest::parse(path, &object.body).map_err(|e| Broken::Damaged(format!("a commit manifest cannot be read: {e}")))
}

/// A version's schema, as the watermark names it.
///
/// # Errors
/// `Kind::Lake` if the watermark does not know the version, or its document is gone or unreadable.
pub async fn schema(store: &dyn Store, watermark: &Watermark, table: &TableName, version: u32) -> Result<TableSchema> {
    let path = watermark.schema_path(table, version);
    let path =
        path.ok_or_else(|| Error::lake(format!("{table}: the watermark names no schema document of version {version}; {DAMAGE_FIX}")))?;
    let object = persist("read a table's schema", || store.get(&path)).await?;
    let object = object.ok_or_else(|| Error::lake(format!("{path} is missing: the lake is damaged there; {DAMAGE_FIX}")))?;
    TableSchema::parse(&path, &object.body)
}

/// `path`, and those that stand before it if the epoch is the same, down to `floor`.
fn guesses(path: &str, ahead: u64, floor: CommitSeq) -> Vec<String> {
    let Some((seq, epoch)) = commit_number(path) else { return vec![path.to_owned()] };
    let mut all = vec![path.to_owned()];
    all.extend((1..ahead).map_while(|back| seq.0.checked_sub(back).filter(|n| *n > floor.0).map(|n| commit_path(CommitSeq(n), epoch))));
    all
}
