//! How long something took, by both clocks.
//!
//! Owns: nothing. Invariant: never less than what passed: the monotonic clock stands still while a machine sleeps, the other may be set back.

use std::time::{Duration, Instant, SystemTime};

/// Begun at some time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopwatch {
    begun: Instant,
    wall: SystemTime,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { begun: Instant::now(), wall: SystemTime::now() }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed().max(self.wall.elapsed().unwrap_or_default())
    }
}
