//! The one conditional write: replaces exactly what was seen, and believes only what is read back.
//!
//! Owns: the retry of the identical write, the reading back. Does not own: what a lost race means (the caller).
//! Invariant: `Landed` means that the body stands, or stood there when it was looked at; every other answer leaves open whether it ever did.

use super::{RETRY_LONGEST, back_off, persist};
use crate::error::Result;
use crate::failpoint;
use crate::store::{Generation, Object, Store, StoreError};
use crate::wait;
use bytes::Bytes;

/// What a conditional write came to.
#[derive(Debug)]
#[must_use]
pub enum Swapped {
    /// What was to be written stands, with this generation.
    Landed(Generation),
    /// Something else stands there. Ours never landed, or it did and was replaced since, by somebody who built on it: that its reply was
    /// lost is no sign of either. Only the content of what stands tells.
    Moved(Object),
    /// Nothing stands where something did.
    Gone,
}

/// Writes `body` in the place of the object of generation `expected` (`None`: where no object is). A write that is refused or unanswered
/// is read back; what did not land is tried again, identically, until the store says which.
///
/// # Errors
/// What the store refuses for good.
pub async fn swap(store: &dyn Store, path: &str, expected: Option<Generation>, body: Bytes) -> Result<Swapped> {
    let mut pauses = backon::BackoffBuilder::build(back_off());
    loop {
        let write = async {
            match expected {
                Some(expected) => store.replace_if(path, body.clone(), expected).await,
                None => store.put_new(path, body.clone()).await,
            }
        };
        let answer = wait::told(format!("the lake: write {path}"), write).await;
        match answer {
            Ok(generation) => {
                wait::moved();
                return Ok(Swapped::Landed(generation));
            }
            Err(error @ StoreError::Precondition { .. }) => {
                tracing::debug!(error = %error, "somebody wrote first, or a reply was lost; reading back")
            }
            Err(error @ StoreError::Trouble { .. }) => {
                wait::trouble(&error);
                tracing::warn!(error = %error, "a write failed or its reply was lost, reading it back")
            }
            Err(error) => return Err(error.into()),
        }
        failpoint::hit("swap.unanswered");
        match persist("read back what was written", || store.get(path)).await? {
            Some(found) if found.body == body => {
                wait::moved();
                return Ok(Swapped::Landed(found.generation));
            }
            Some(found) if Some(found.generation) == expected => {}
            Some(found) => return Ok(Swapped::Moved(found)),
            None if expected.is_none() => {}
            None => return Ok(Swapped::Gone),
        }
        let pause = pauses.next().unwrap_or(RETRY_LONGEST);
        tokio::time::sleep(pause.max(store.min_replace_interval())).await;
    }
}
