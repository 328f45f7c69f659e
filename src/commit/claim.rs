//! Becoming the writer: the first watermark, and the epoch.
//!
//! Owns: create-only first watermark, `epoch + 1` by compare-and-swap. Does not own: the slot, which is held
//! first (`replicate`). Invariant: two claims never get the same epoch.

use super::held::Held;
use super::persist;
use super::standing::load;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{WATERMARK, Watermark};
use crate::lsn::Epoch;
use crate::store::{Store, StoreError};
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
    let body = watermark.to_body();
    match persist("create the watermark", || store.put_new(WATERMARK, body.clone())).await {
        Ok(generation) => {
            failpoint::hit("start.after_create");
            Ok(Some(Held::new(store, watermark, generation)))
        }
        Err(StoreError::Precondition { .. }) => match load(store.as_ref()).await? {
            // Our own creation, whose reply was lost.
            Some((found, generation)) if found == watermark => Ok(Some(Held::new(store, found, generation))),
            _ => Ok(None),
        },
        Err(error) => Err(error.into()),
    }
}

/// Takes the lake over: writes `epoch + 1` with our name, and `edit` applied. `admit` judges each watermark
/// that is read (again) before it is replaced. A claim by somebody else meanwhile means that the slot is his: `Kind::Retry`.
pub async fn claim(
    store: Arc<dyn Store>,
    writer: &str,
    admit: impl Fn(&Watermark) -> Result<()>,
    edit: impl Fn(&mut Watermark),
) -> Result<Held> {
    let mut pauses = backon::BackoffBuilder::build(super::back_off());
    let mut tried: Option<Watermark> = None;
    loop {
        let Some((found, generation)) = load(store.as_ref()).await? else {
            return Err(Error::lake("watermark.json is gone: restore it, or begin a new lake with another lake.url"));
        };
        if let Some(tried) = &tried {
            // Ambiguous: only what stands there now counts. A late landing of this attempt makes the next one fail, and is found then.
            if found == *tried {
                return Ok(Held::new(store, found, generation));
            }
            if found.epoch >= tried.epoch {
                return Err(Error::retry(format!(
                    "writer {} took the lake over with epoch {} while this one was about to: the slot is its own now",
                    found.writer, found.epoch.0
                )));
            }
            tokio::time::sleep(pauses.next().unwrap_or(super::RETRY_LONGEST)).await;
        }
        admit(&found)?;
        let mut next = found;
        next.epoch = Epoch(next.epoch.0 + 1);
        next.writer = writer.to_owned();
        edit(&mut next);
        failpoint::hit("claim.before_cas");
        match store.replace_if(WATERMARK, next.to_body(), generation).await {
            Ok(generation) => {
                failpoint::hit("claim.after_cas");
                return Ok(Held::new(store, next, generation));
            }
            Err(error @ StoreError::Refused { .. }) => return Err(error.into()),
            Err(StoreError::Precondition { .. } | StoreError::Trouble { .. }) => tried = Some(next),
        }
    }
}
