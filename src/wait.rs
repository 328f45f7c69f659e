//! Waits that say what they wait for, and end where a command has a limit.
//!
//! Owns: the words of a long wait, the limit of a command, the note of what went wrong last. Does not own: retries, what counts as
//! an answer. Invariants: no wait of the writer is silent for longer than [`TELL_EVERY`]; a command with a limit ends with what it
//! waited for and what to do.

use crate::error::{Error, Result};
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How often a wait is logged: a person who looks at a silent process learns within half a minute what it waits for.
pub const TELL_EVERY: Duration = Duration::from_secs(30);
/// How often [`while_it_moves`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest part of an error that is kept for the last word.
const TROUBLE_CHARS_MAX: usize = 600;

static LIMIT: OnceLock<Duration> = OnceLock::new();
static MOVED: AtomicU64 = AtomicU64::new(0);
static TROUBLE: Mutex<Option<String>> = Mutex::new(None);

/// Gives this process a limit: a connection or a lake that does not answer for so long is given up. Set once, at the start.
pub fn give_up_after(limit: Duration) {
    let _ = LIMIT.set(limit);
}

/// How long silence is borne; `None`: without end, as an always-on writer must.
pub fn limit() -> Option<Duration> {
    LIMIT.get().copied()
}

/// Notes that something was done for good: rows written, a file uploaded, an answer of a service that works for us.
pub fn moved() {
    MOVED.fetch_add(1, Ordering::Relaxed);
    TROUBLE.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// Notes what went wrong and is tried again: the last word if it never comes right.
pub fn trouble(text: impl Display) {
    let text = text.to_string().chars().take(TROUBLE_CHARS_MAX).collect();
    *TROUBLE.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
}

/// What went wrong last, if nothing has gone well since.
pub fn last_trouble() -> Option<String> {
    TROUBLE.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Does `work`, and logs every half minute that it is still waited for. `what` completes "waiting for …".
pub async fn told<T>(what: impl Display, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let mut tell = tokio::time::interval_at(begun + TELL_EVERY, TELL_EVERY);
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = tell.tick() => tracing::info!(waited_secs = begun.elapsed().as_secs(), "still waiting for {what}"),
        }
    }
}

/// Does `work` as long as it moves ([`moved`]): after `limit` without that it is given up, with what went wrong last.
///
/// # Errors
/// Those of `work`; `Kind::Retry` once it was given up.
pub async fn while_it_moves<T>(limit: Option<Duration>, doing: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(limit) = limit else { return work.await };
    let (mut seen, mut since) = (MOVED.load(Ordering::Relaxed), Instant::now());
    let mut look = tokio::time::interval(LOOK_EVERY.min(limit));
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = look.tick() => {
                let now = MOVED.load(Ordering::Relaxed);
                if now != seen {
                    (seen, since) = (now, Instant::now());
                } else if since.elapsed() >= limit {
                    return Err(given_up(limit, doing));
                }
            }
        }
    }
}

fn given_up(limit: Duration, doing: &str) -> Error {
    let last = last_trouble().unwrap_or_else(|| "nothing was refused; see the log for what it waited for".to_owned());
    let limit = humantime::format_duration(limit);
    Error::retry(format!(
        "{doing}: no progress within {limit} (--timeout), so it was given up; `huella check` tells what is in the way. Last: {last}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_does_not_move_is_given_up_and_work_that_ends_is_not() {
        let limit = Some(Duration::from_millis(20));
        let error = while_it_moves(limit, "run", std::future::pending::<Result<()>>()).await.unwrap_err();
        assert!(error.is_retry() && error.to_string().starts_with("run: no progress within 20ms (--timeout)"), "{error}");
        assert_eq!(while_it_moves(limit, "run", async { Ok(7) }).await.unwrap(), 7);
        assert_eq!(while_it_moves(None, "run", async { Ok(8) }).await.unwrap(), 8);
        assert_eq!(told("nothing", async { 9 }).await, 9);
    }
}
