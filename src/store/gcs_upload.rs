//! Objects that go to the bucket in parts: the JSON API's resumable uploads.
//!
//! Owns: the upload's session, which bytes have arrived, resuming after trouble. Does not own: what an answer means
//! (`gcs_error`). Invariants: the object becomes visible whole, and only if none of its name existed; what has not been
//! confirmed as arrived is kept; the service's CRC-32C of the whole is compared before the upload counts as done.

use super::gcs::{GcsStore, Listed, SLOWEST_BYTES_PER_SEC, crc_from_base64, parse};
use super::gcs_error::{self, Answer};
use super::{Generation, StoreError, Upload};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use std::time::Duration;

/// Bytes of a request; a multiple of 256 KiB, as the service demands of all but the last.
const PART_BYTES: usize = 4 << 20;
/// How often a part is sent before the upload is given up: with the pauses, about a minute.
const TRIES: u32 = 10;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// Permanent redirect: this service's word for "go on".
const INCOMPLETE: u16 = 308;

pub(super) struct GcsUpload {
    http: reqwest::Client,
    bucket: String,
    path: String,
    /// The session's URL; it carries its own authorisation.
    session: String,
    patience: Duration,
    /// Bytes that the service has.
    arrived: u64,
    /// Those behind.
    pending: BytesMut,
}

/// What the service says of the upload.
enum State {
    /// It has so many bytes.
    Has(u64),
    /// The object is there.
    Done(Listed),
    /// The session is gone, with or without having made the object.
    Gone,
}

impl GcsUpload {
    /// Opens a session for an object that must not exist.
    pub(super) async fn begin(store: &GcsStore, path: &str) -> Result<Self, StoreError> {
        let url = format!("{}/upload/storage/v1/b/{}/o", store.base, store.bucket);
        let name = store.name(path);
        let request = store
            .http
            .post(url)
            .query(&[("uploadType", "resumable"), ("ifGenerationMatch", "0"), ("name", name.as_str())])
            .header(CONTENT_TYPE, "application/json")
            .body("{}");
        let response = store.send(path, request).await?;
        let status = response.status();
        let session = response.headers().get(LOCATION).and_then(|url| url.to_str().ok()).map(str::to_owned);
        if !status.is_success() {
            let body = response.bytes().await.map_err(|e| lost(path, e))?;
            return Err(Answer::new(status.as_u16(), &body).into_error(path, &store.bucket));
        }
        let session = session.ok_or_else(|| StoreError::trouble(path, "the service opened an upload without a session"))?;
        let (http, bucket, patience) = (store.http.clone(), store.bucket.clone(), store.patience);
        Ok(Self { http, bucket, path: path.to_owned(), session, patience, arrived: 0, pending: BytesMut::new() })
    }

    /// Sends bytes until all of `pending` but less than a part has arrived; with `last`, all of it, and ends the upload.
    async fn send(&mut self, last: bool) -> Result<Option<Listed>, StoreError> {
        let (mut tries, mut pause, mut unsure) = (0, PAUSE_FIRST, false);
        while last || self.pending.len() >= PART_BYTES {
            let answer = if unsure { self.ask(last).await } else { self.put_part(last).await };
            match answer {
                Ok(State::Done(object)) => return Ok(Some(object)),
                Ok(State::Gone) => return Err(StoreError::trouble(&self.path, "the upload's session is gone")),
                Ok(State::Has(arrived)) => {
                    if self.settle(arrived)? {
                        (tries, pause) = (0, PAUSE_FIRST);
                    }
                    unsure = false;
                }
                Err(StoreError::Trouble { path, message }) => {
                    tries += 1;
                    if tries >= TRIES {
                        return Err(StoreError::Trouble { path, message });
                    }
                    tracing::warn!(path, reason = message, "a part of an upload did not arrive, trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_LONGEST);
                    unsure = true;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Forgets what has arrived; whether that was anything.
    fn settle(&mut self, arrived: u64) -> Result<bool, StoreError> {
        let new = arrived.checked_sub(self.arrived).and_then(|new| usize::try_from(new).ok()).filter(|new| *new <= self.pending.len());
        let new = new.ok_or_else(|| StoreError::trouble(&self.path, "the service has other bytes than were sent"))?;
        let _ = self.pending.split_to(new);
        self.arrived = arrived;
        Ok(new > 0)
    }

    async fn put_part(&self, last: bool) -> Result<State, StoreError> {
        let ends = last && self.pending.len() <= PART_BYTES;
        let part = Bytes::copy_from_slice(&self.pending[..self.pending.len().min(PART_BYTES)]);
        let (from, to) = (self.arrived, self.arrived + part.len() as u64);
        let total = if ends { to.to_string() } else { "*".to_owned() };
        let range = if part.is_empty() { format!("bytes */{total}") } else { format!("bytes {from}-{}/{total}", to - 1) };
        self.put(range, part).await
    }

    async fn ask(&self, last: bool) -> Result<State, StoreError> {
        let total = if last { (self.arrived + self.pending.len() as u64).to_string() } else { "*".to_owned() };
        self.put(format!("bytes */{total}"), Bytes::new()).await
    }

    async fn put(&self, range: String, part: Bytes) -> Result<State, StoreError> {
        let path = &self.path;
        let deadline = self.patience + Duration::from_secs(part.len() as u64 / SLOWEST_BYTES_PER_SEC);
        let request = self.http.put(&self.session).header(CONTENT_RANGE, range).timeout(deadline).body(part);
        let response = request.send().await.map_err(|e| lost(path, e))?;
        let status = response.status();
        if status.as_u16() == INCOMPLETE {
            // `bytes=0-41`; without it nothing has arrived.
            let Some(range) = response.headers().get(RANGE) else { return Ok(State::Has(0)) };
            let last = range.to_str().ok().and_then(|range| range.strip_prefix("bytes=0-")?.parse::<u64>().ok());
            return last
                .map(|at| State::Has(at + 1))
                .ok_or_else(|| StoreError::trouble(path, "an unreadable Range in the service's answer"));
        }
        let body = response.bytes().await.map_err(|e| lost(path, e))?;
        if status.is_success() {
            return parse(path, &body).map(State::Done);
        }
        let answer = Answer::new(status.as_u16(), &body);
        if matches!(answer.status, 404 | 410) && !answer.bucket_is_missing() {
            return Ok(State::Gone);
        }
        Err(answer.into_error(path, &self.bucket))
    }
}

fn lost(path: &str, error: reqwest::Error) -> StoreError {
    StoreError::trouble(path, gcs_error::chain(&error.without_url()))
}

#[async_trait]
impl Upload for GcsUpload {
    async fn write(&mut self, part: Bytes) -> Result<(), StoreError> {
        self.pending.extend_from_slice(&part);
        self.send(false).await.map(drop)
    }

    async fn finish(mut self: Box<Self>, crc32c: u32) -> Result<Generation, StoreError> {
        let object = self.send(true).await?.ok_or_else(|| StoreError::trouble(&self.path, "the upload did not end"))?;
        if object.crc32c.as_deref().and_then(crc_from_base64) != Some(crc32c) {
            return Err(StoreError::trouble(&self.path, "the content arrived damaged"));
        }
        object
            .generation
            .parse()
            .map(Generation)
            .map_err(|_| StoreError::trouble(&self.path, "the service's answer has no usable generation"))
    }
}

impl std::fmt::Debug for GcsUpload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GcsUpload({}, {} bytes arrived)", self.path, self.arrived)
    }
}
