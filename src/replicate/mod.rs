//! The always-on replicator: from the first start over every reconnection to the last ack.
//!
//! Owns: supervision, take-over, the streaming session, versions of tables. Does not own: the protocol of a
//! commit (`commit`), copying (`snapshot`). Invariants: the slot is held before the lake is claimed; only a
//! committed position is acknowledged; what the source may have lost without a message is copied anew or refused.

mod announced;
mod copier;
mod establish;
mod membership;
mod offer;
mod pipeline;
mod proposals;
mod registry;
mod session;
mod source;
mod standby;
mod supervise;
mod takeover;
mod writer;

pub use offer::snapshot;
pub(crate) use source::privacy;
pub use supervise::{Mode, run};
