//! The commit protocol: who may write, and how a batch becomes visible at once. PROTOCOL.md beside this file is its law.
//!
//! Owns: claiming the epoch, putting data files and manifests, replacing the watermark, reading back what
//! failed. Does not own: what is in a batch (`batch`), when to commit and when to ack (`replicate`).
//! Invariants: I1 nothing is acked that the watermark does not cover; I2 the chain of commits has no gap and no
//! overlap; I3 a committed manifest's files are all there; I4 a writer that lost the epoch changes nothing visible.

mod chain;
mod claim;
mod damage;
mod held;
mod standing;
mod swap;
mod upload;

pub use chain::{History, chain_since, compaction, history, live, schema};
pub use claim::{claim, create, random, writer_id};
pub use damage::{CLAIM_MANIFESTS_MAX, DAMAGE_FIX, damage, epoch_used, missing, refusal};
pub use held::{Change, Held};
pub use standing::{load, load_any};
pub use swap::{Swapped, swap};
pub use upload::{FileNamer, GrowingObject, put_changed, put_data, put_document, put_or_replace};

use crate::store::StoreError;
use crate::wait;
use backon::{ExponentialBuilder, Retryable};
use std::time::Duration;

/// First pause before a refused store request is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause: short enough that a lake which comes back is noticed at once by a person's measure.
const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// Repeats a store request until it is answered: trouble is waited out without end (the replication connection
/// is kept by its own task meanwhile), or up to the limit that a command was given; every other answer is returned.
pub async fn persist<T, F, Fut>(what: &str, operation: F) -> Result<T, StoreError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, StoreError>>,
{
    let answered = operation.retry(back_off()).when(|error| matches!(error, StoreError::Trouble { .. })).notify(|error, pause| {
        wait::trouble(error);
        tracing::warn!(error = %error, pause_ms = pause.as_millis() as u64, "{what}: the lake did not answer as it should, trying again");
    });
    let told = wait::told(format!("the lake: {what}"), answered);
    match wait::limit() {
        None => told.await,
        Some(limit) => tokio::time::timeout(limit, told).await.unwrap_or_else(|_| Err(unanswered(what, limit))),
    }
}

fn unanswered(what: &str, limit: Duration) -> StoreError {
    let last = wait::last_trouble().map(|last| format!("; last: {last}")).unwrap_or_default();
    let limit = humantime::format_duration(limit);
    let message = format!("no usable answer within {limit} (--timeout): check network, lake.url and credentials, then try again{last}");
    StoreError::Trouble { path: format!("the lake ({what})"), message }
}

/// The back-off of every store request.
pub(crate) fn back_off() -> ExponentialBuilder {
    ExponentialBuilder::default().with_jitter().with_min_delay(RETRY_FIRST).with_max_delay(RETRY_LONGEST).without_max_times()
}
