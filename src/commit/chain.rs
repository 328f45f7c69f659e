//! Reading the lake's commits back from the watermark.
//!
//! Owns: following `previous`. Invariant: what the watermark does not lead to is not in the lake.

use super::persist;
use crate::error::{Error, Result};
use crate::lake::{LiveFile, Manifest, Watermark, live_files};
use crate::lsn::CommitSeq;
use crate::store::Store;

/// All commits that lead to `watermark`, the oldest first.
pub async fn chain(store: &dyn Store, watermark: &Watermark) -> Result<Vec<Manifest>> {
    let mut commits = Vec::new();
    let mut next = watermark.commit.clone();
    while let Some(path) = next {
        let manifest = read(store, &path).await?;
        next = manifest.previous.clone();
        commits.push(manifest);
    }
    commits.reverse();
    Ok(commits)
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

/// The live files at `watermark`, in the order of their commits.
pub async fn live(store: &dyn Store, watermark: &Watermark, all_versions: bool) -> Result<Vec<LiveFile>> {
    Ok(live_files(watermark, &chain(store, watermark).await?, all_versions))
}
