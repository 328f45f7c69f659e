//! What a person sees of a running huella.
//!
//! Owns: logs, progress. Does not own: what is logged where. Invariant: nothing here can stop or slow the replication.

pub mod logs;
pub mod progress;
