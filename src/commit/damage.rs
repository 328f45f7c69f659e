//! Whether the lake still has what its watermark says, before that is believed.
//!
//! Owns: the comparison of the live list with what is there, the words for a damage. Does not own: walking the chain (`chain`), the way out
//! (`run --resnapshot`, which begins a new history). Invariant: nothing is called damaged that a second look, after a compaction may have
//! moved on, finds whole.

use super::chain::trace;
use super::persist;
use super::standing::load;
use super::upload::base64;
use crate::error::{Error, Result};
use crate::lake::{LiveFile, TABLES, Watermark, commit_number};
use crate::lsn::Epoch;
use crate::store::{Meta, Store, StoreError};
use std::collections::HashMap;

/// Manifests that a claim looks at: `compact` keeps the way to a checkpoint shorter, and more would hold up a take-over.
pub const CLAIM_MANIFESTS_MAX: usize = 2048;

/// The way out of a damage.
pub const DAMAGE_FIX: &str = "put back what is lost (a bucket with object versioning has it), or run `huella run --resnapshot`: it copies every table and \
     begins a new history; files of the former one stay where they are, and are listed no more";

/// Why the way to the live files cannot be followed.
#[derive(Debug)]
pub(super) enum Broken {
    /// Something is missing or unreadable that must be there.
    Damaged(String),
    /// The store did not give it.
    Failed(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Broken::Failed(error)
    }
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Broken::Failed(error.into())
    }
}

impl From<Broken> for Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Damaged(what) => refusal(&what),
            Broken::Failed(error) => error,
        }
    }
}

/// The error for a damage.
pub fn refusal(what: &str) -> Error {
    Error::lake(format!("the lake is damaged: {what}; {DAMAGE_FIX}"))
}

/// What is damaged below `watermark`; `None` if nothing is. Looks at the newest `manifests_max` manifests at most, down to a checkpoint, and
/// at the files of current versions: those of former ones may have been removed on purpose.
///
/// # Errors
/// If the store does not give what is asked for.
pub async fn damage(store: &dyn Store, watermark: &Watermark, manifests_max: usize) -> Result<Option<String>> {
    if let Some(what) = put_back(store, watermark).await? {
        return Ok(Some(what));
    }
    let mut last = false;
    loop {
        let what = match trace(store, watermark, manifests_max).await {
            Ok(history) => {
                let wanted: Vec<&LiveFile> = history.files.iter().filter(|live| live.is_current(watermark)).collect();
                missing(store, &wanted).await?
            }
            Err(Broken::Damaged(what)) => Some(what),
            Err(Broken::Failed(error)) => return Err(error),
        };
        if what.is_none() || last {
            return Ok(what);
        }
        last = true;
    }
}

/// The first of `wanted` that is not there as its commit says. By name and length; by checksum where the store lists it.
///
/// # Errors
/// If the store does not list what there is.
pub async fn missing(store: &dyn Store, wanted: &[&LiveFile]) -> Result<Option<String>> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let there: HashMap<String, Meta> =
        persist("list data files", || store.list(TABLES)).await?.into_iter().map(|meta| (meta.path.clone(), meta)).collect();
    let flaw = |live: &&LiveFile| {
        let file = &live.file;
        match there.get(&file.path) {
            None => Some(format!("{} is missing, though commit {} names it", file.path, live.seq.0)),
            Some(meta) if meta.bytes != file.bytes => {
                Some(format!("{} has {} bytes, where commit {} says {}", file.path, meta.bytes, live.seq.0, file.bytes))
            }
            Some(meta) => {
                let other = meta.crc32c.map(base64).filter(|crc| *crc != file.crc32c);
                other.map(|crc| format!("{} has CRC-32C {crc}, where commit {} says {}", file.path, live.seq.0, file.crc32c))
            }
        }
    };
    let mut flaws = wanted.iter().filter_map(flaw);
    let Some(first) = flaws.next() else { return Ok(None) };
    Ok(Some(match flaws.count() {
        0 => first,
        more => format!("{first} (and {more} more files)"),
    }))
}

/// A commit that the watermark does not know has been built upon: an earlier watermark was put back. (One that nothing was built upon may
/// be an orphan; those of a history that was left behind have lower epochs.)
async fn put_back(store: &dyn Store, watermark: &Watermark) -> Result<Option<String>> {
    let next = watermark.seq.next().next();
    let prefix = format!("commits/{:020}-e", next.0);
    let found = persist("look for later commits", || store.list(&prefix)).await?;
    let later = found.iter().find(|meta| commit_number(&meta.path).is_some_and(|(_, epoch)| epoch >= watermark.epoch));
    let Some(later) = later else { return Ok(None) };
    // A writer may be at work, and have come so far since the watermark was read.
    let now = load(store).await?.map(|(now, _)| (now.seq, now.epoch));
    let stands = now == Some((watermark.seq, watermark.epoch));
    Ok(stands.then(|| {
        format!("watermark.json stands at commit {}, and {} is there: an earlier watermark.json was put back", watermark.seq.0, later.path)
    }))
}

/// The highest epoch that any commit's name carries: where an earlier watermark was put back it may be above the watermark's, and names
/// of one epoch are used once.
///
/// # Errors
/// If the store does not list what there is.
pub async fn epoch_used(store: &dyn Store) -> Result<Epoch> {
    let commits = persist("list commits", || store.list("commits/")).await?;
    Ok(commits.iter().filter_map(|meta| commit_number(&meta.path)).map(|(_, epoch)| epoch).max().unwrap_or(Epoch(0)))
}
