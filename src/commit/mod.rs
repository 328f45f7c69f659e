//! The commit protocol: who may write, and how a batch becomes visible at once. PROTOCOL.md beside this file is its law.
//!
//! Owns: claiming the epoch, putting data files and manifests, replacing the watermark, reading back what
//! failed. Does not own: what is in a batch (`batch`), when to commit and when to ack (`replicate`).
//! Invariants: I1 nothing is acked that the watermark does not cover; I2 the chain of commits has no gap and no
//! overlap; I3 a committed manifest's files are all there; I4 a writer that lost the epoch changes nothing visible.

mod chain;
mod claim;
mod held;
mod standing;
mod swap;
mod upload;

pub use chain::{chain_since, compaction, live, schema};
pub use claim::{claim, create, random, writer_id};
pub use held::{Change, Held};
pub use standing::load;
pub use swap::{Swapped, swap};
pub use upload::{FileNamer, GrowingObject, put_changed, put_data, put_document, put_or_replace};

use crate::store::StoreError;
use backon::{ExponentialBuilder, Retryable};
use std::time::Duration;

/// First pause before a refused store request is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause: short enough that a lake which comes back is noticed at once by a person's measure.
const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// Repeats a store request until it is answered: trouble is waited out without end (the replication connection
/// is kept by its own task meanwhile), every other answer is returned.
pub async fn persist<T, F, Fut>(what: &str, operation: F) -> Result<T, StoreError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, StoreError>>,
{
    operation
        .retry(back_off())
        .when(|error| matches!(error, StoreError::Trouble { .. }))
        .notify(|error, pause| tracing::warn!(error = %error, pause_ms = pause.as_millis() as u64, "{what}: the lake did not answer as it should, trying again"))
        .await
}

/// The back-off of every store request.
pub(crate) fn back_off() -> ExponentialBuilder {
    ExponentialBuilder::default().with_jitter().with_min_delay(RETRY_FIRST).with_max_delay(RETRY_LONGEST).without_max_times()
}
