//! Credentials that are refused once are no reason to end: a store that takes a 401 for trouble until it stays.
//!
//! Owns: since when requests were refused so without a success. Does not own: repeating them (`commit`).
//! Invariant: nobody behind it sees `Denied`: it is trouble, or refused for good.

use super::{Generation, Meta, Object, Store, StoreError, Upload};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Credentials that are refused for this long are wrong. A token that is being exchanged, or a permission on its way through the service,
/// is refused for seconds.
const DENIED_MAX: Duration = Duration::from_secs(120);
/// Refusals further apart than this do not belong together: a repeated request follows within its deadline and the longest pause.
const GAP_MAX: Duration = Duration::from_secs(90);

/// Refusals without a success between them.
#[derive(Debug, Clone, Copy)]
struct Row {
    since: Instant,
    last: Instant,
}

impl Row {
    /// `before`, and one refusal more.
    fn go_on(before: Option<Self>, now: Instant) -> Self {
        let since = before.filter(|row| now.duration_since(row.last) <= GAP_MAX).map_or(now, |row| row.since);
        Self { since, last: now }
    }

    /// What a refusal means that ends the row.
    fn means(self, path: String, message: String) -> StoreError {
        match self.last.duration_since(self.since) >= DENIED_MAX {
            true => StoreError::Refused { path, message },
            false => StoreError::Trouble { path, message },
        }
    }
}

/// A store that tolerates refused credentials for a while.
#[derive(Debug)]
pub(super) struct ToleratingStore {
    inner: Arc<dyn Store>,
    row: Mutex<Option<Row>>,
}

impl ToleratingStore {
    pub(super) fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, row: Mutex::default() }
    }

    fn judge<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        let mut row = self.row.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Err(StoreError::Denied { path, message }) => {
                let now = Row::go_on(*row, Instant::now());
                *row = Some(now);
                Err(now.means(path, message))
            }
            // Trouble says nothing of the credentials.
            Err(error @ StoreError::Trouble { .. }) => Err(error),
            answer => {
                *row = None;
                answer
            }
        }
    }
}

#[async_trait]
impl Store for ToleratingStore {
    async fn put_new(&self, path: &str, body: Bytes) -> Result<Generation, StoreError> {
        self.judge(self.inner.put_new(path, body).await)
    }

    async fn put_new_in_parts(&self, path: &str) -> Result<Option<Box<dyn Upload>>, StoreError> {
        self.judge(self.inner.put_new_in_parts(path).await)
    }

    async fn replace_if(&self, path: &str, body: Bytes, expected: Generation) -> Result<Generation, StoreError> {
        self.judge(self.inner.replace_if(path, body, expected).await)
    }

    async fn get(&self, path: &str) -> Result<Option<Object>, StoreError> {
        self.judge(self.inner.get(path).await)
    }

    async fn head(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        self.judge(self.inner.head(path).await)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Meta>, StoreError> {
        self.judge(self.inner.list(prefix).await)
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        self.judge(self.inner.delete(path).await)
    }

    fn uri(&self, path: &str) -> String {
        self.inner.uri(path)
    }

    fn min_replace_interval(&self) -> Duration {
        self.inner.min_replace_interval()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(row: Row) -> StoreError {
        row.means("a".into(), "HTTP 401".into())
    }

    #[test]
    fn credentials_are_refused_only_when_they_stay_refused() {
        let begun = Instant::now();
        let at = |row: Option<Row>, secs| Row::go_on(row, begun + Duration::from_secs(secs));
        let mut row = at(None, 0);
        for secs in (0..120).step_by(10) {
            row = at(Some(row), secs);
            assert!(matches!(denied(row), StoreError::Trouble { .. }), "{secs}");
        }
        row = at(Some(row), 120);
        assert!(matches!(denied(row), StoreError::Refused { .. }));
        row = at(Some(row), 500);
        assert!(matches!(denied(row), StoreError::Trouble { .. }), "nothing was asked meanwhile");
        assert!(matches!(denied(at(None, 510)), StoreError::Trouble { .. }), "a success was between");
    }
}
