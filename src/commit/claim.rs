//! Becoming the writer: the first watermark, and the epoch.
//!
//! Owns: create-only first watermark, `epoch + 1` by compare-and-swap. Does not own: the slot, which is held
//! first (`replicate`). Invariant: two claims never get the same epoch.

use super::held::{Held, gone};
use super::standing::{load_any, parse_any};
use super::swap::{Swapped, swap};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{Tenure, WATERMARK, Watermark};
use crate::lsn::Epoch;
use crate::store::Store;
use std::sync::Arc;

/// A name for this writer: host, pid and a random part, so that a writer recognises its own watermark.
pub fn writer_id() -> String {
    let mut host = [0u8; 64];
    // SAFETY: the buffer is valid for its length; the last byte stays zero.
    unsafe { libc::gethostname(host.as_mut_ptr().cast(), host.len() - 1) };
    let end = host.iter().position(|b| *b == 0).unwrap_or(host.len());
    let name = String::from_utf8_lossy(&host[..end]).into_owned();
    format!("{}-{}-{:016x}", if name.is_empty() { "host" } else { &name }, std::process::id(), random())
}

/// A number that two processes do not share (the standard library's seed comes from the operating system).
pub fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), std::time::SystemTime::now())
}

/// Creates the lake's first watermark; `None` if another first start was quicker.
pub async fn create(store: Arc<dyn Store>, watermark: Watermark) -> Result<Option<Held>> {
    match swap(store.as_ref(), WATERMARK, None, watermark.to_body()).await? {
        Swapped::Landed(generation) => {
            failpoint::hit("start.after_create");
            Ok(Some(Held::new(store, watermark, generation)))
        }
        Swapped::Moved(_) | Swapped::Gone => Ok(None),
    }
}

/// Takes the lake over: writes `epoch + 1` with our name and tenure, and `edit` applied. `admit` judges each watermark
/// that is read (again) before it is replaced. A claim by somebody else meanwhile means that the slot is his: `Kind::Retry`.
pub async fn claim(
    store: Arc<dyn Store>,
    (writer, tenure): (&str, Tenure),
    admit: impl Fn(&Watermark) -> Result<()>,
    edit: impl Fn(&mut Watermark),
) -> Result<Held> {
    // Who goes on with a lake has read it by `load`, which refuses former layouts.
    let (mut found, mut generation) = load_any(store.as_ref()).await?.ok_or_else(gone)?;
    loop {
        admit(&found)?;
        let mut next = found;
        next.epoch = Epoch(next.epoch.0 + 1);
        (next.writer, next.tenure) = (writer.to_owned(), tenure);
        edit(&mut next);
        failpoint::hit("claim.before_cas");
        match swap(store.as_ref(), WATERMARK, Some(generation), next.to_body()).await? {
            Swapped::Landed(generation) => {
                failpoint::hit("claim.after_cas");
                return Ok(Held::new(store, next, generation));
            }
            // A claim of ours that landed and was built upon has a successor's epoch on top: the slot is his then as well.
            Swapped::Moved(object) => {
                (found, generation) = (parse_any(&object.body)?, object.generation);
                if found.epoch >= next.epoch {
                    return Err(Error::retry(format!(
                        "writer {} took the lake over with epoch {} while this one was about to: the slot is its own now",
                        found.writer, found.epoch.0
                    )));
                }
            }
            Swapped::Gone => return Err(gone()),
        }
    }
}
