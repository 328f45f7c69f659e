//! A lake in a Google Cloud Storage bucket.
//!
//! Owns: reads and writes through Google's client, head, list and delete over the JSON API with the same credentials,
//! deadlines. Does not own: retries (the caller reads back and decides; Google's own are off, so that a lost reply is
//! seen as one), what an answer means (`gcs_error`).
//! Invariants: every write carries `ifGenerationMatch` and the content's CRC-32C, which the service verifies; every
//! read is checked against the CRC-32C that the service sends; every request ends within a deadline.
//!
//! `STORAGE_EMULATOR_HOST` (`http://host:port` or `host:port`) names an emulator: no credentials, no resumable uploads
//! (Google's client names the host without its port, which sends them astray).

use super::gcs_error::{self, Answer};
use super::gcs_upload::GcsUpload;
use super::{Generation, Meta, Object, Store, StoreError, Upload, check_path, check_prefix};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use google_cloud_auth::credentials::{Builder as CredentialsBuilder, CacheableResource, Credentials, anonymous};
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_storage::client::Storage;
use google_cloud_storage::read_resume_policy::NeverResume;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::HeaderMap;
use std::fmt;
use std::time::Duration;

/// Google's endpoint.
const ENDPOINT: &str = "https://storage.googleapis.com";
/// The emulators' customary variable.
const EMULATOR_VARIABLE: &str = "STORAGE_EMULATOR_HOST";
/// From this size on an upload is resumable. Below, one request does it; above, the service keeps what has arrived.
const RESUMABLE_BYTES_MIN: usize = 16 << 20;
/// A request without much content: Google's slowest answers come within seconds; after this the connection is dead.
const PATIENCE: Duration = Duration::from_secs(30);
/// What content adds to that: the slowest link worth waiting for.
pub(super) const SLOWEST_BYTES_PER_SEC: u64 = 256 << 10;
/// Connecting over a healthy network takes far less than a second.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(10);
/// The service allows about one write a second of one object.
const MIN_REPLACE_INTERVAL: Duration = Duration::from_secs(1);
/// The service's largest page.
const LIST_PAGE: &str = "1000";
const META_FIELDS: &str = "name,size,crc32c,generation,updated";
/// Everything but the unreserved characters, `/` too: an object's name is one segment of the URL.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How to reach the service.
#[derive(Debug, Clone)]
pub struct GcsSettings {
    /// An emulator's base URL; `None`: Google, with the environment's credentials.
    pub emulator: Option<String>,
    /// Smallest upload in bytes that is made resumable.
    pub resumable_bytes_min: usize,
    /// Longest wait for a request, besides what its content adds.
    pub patience: Duration,
}

impl GcsSettings {
    /// Google, or the emulator that `STORAGE_EMULATOR_HOST` names.
    pub fn from_env() -> Self {
        let host = std::env::var(EMULATOR_VARIABLE).unwrap_or_default();
        let emulator = emulator_url(&host);
        let resumable_bytes_min = if emulator.is_some() { usize::MAX } else { RESUMABLE_BYTES_MIN };
        Self { emulator, resumable_bytes_min, patience: PATIENCE }
    }
}

fn emulator_url(host: &str) -> Option<String> {
    let host = host.trim().trim_end_matches('/');
    match host {
        "" => None,
        _ if host.contains("://") => Some(host.to_owned()),
        _ => Some(format!("http://{host}")),
    }
}

/// Objects below a prefix of a bucket.
pub struct GcsStore {
    pub(super) bucket: String,
    /// Empty, or ends with `/`.
    prefix: String,
    pub(super) base: String,
    client: Storage,
    pub(super) http: reqwest::Client,
    credentials: Credentials,
    pub(super) patience: Duration,
    resumable_bytes_min: usize,
}

impl fmt::Debug for GcsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GcsStore")
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl GcsStore {
    /// Opens `gs://bucket/prefix` with the environment's settings. Nothing is asked of the service yet.
    ///
    /// # Errors
    /// `Refused` if there are no credentials.
    pub async fn open(bucket: &str, prefix: &str) -> Result<Self, StoreError> {
        Self::with(bucket, prefix, GcsSettings::from_env()).await
    }

    /// Opens `gs://bucket/prefix` with these settings.
    ///
    /// # Errors
    /// `Refused` if there are no credentials or the emulator's URL is none.
    pub async fn with(bucket: &str, prefix: &str, settings: GcsSettings) -> Result<Self, StoreError> {
        let uri = format!("gs://{bucket}/{prefix}");
        let refused =
            |doing: &str, error: &dyn std::error::Error| StoreError::refused(&uri, format!("{doing}: {}", gcs_error::chain(error)));
        // Google's crates and ours speak TLS with the same provider; a second installation changes nothing.
        let _ = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider().install_default();
        let credentials = match settings.emulator {
            Some(_) => anonymous::Builder::new().build(),
            None => CredentialsBuilder::default().build().map_err(|e| {
                StoreError::refused(&uri, format!("no Google credentials: {}; {}", gcs_error::chain(&e), gcs_error::MEND_CREDENTIALS))
            })?,
        };
        let base = settings.emulator.unwrap_or_else(|| ENDPOINT.to_owned());
        let client = Storage::builder()
            .with_endpoint(&base)
            .with_credentials(credentials.clone())
            .with_retry_policy(NeverRetry)
            .with_read_resume_policy(NeverResume)
            .with_resumable_upload_threshold(settings.resumable_bytes_min)
            .build()
            .await
            .map_err(|e| refused("preparing Google's client", &e))?;
        let http = reqwest::Client::builder()
            .http1_only()
            .connect_timeout(CONNECT_WAIT_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .user_agent(concat!("huella/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| refused("preparing the HTTP client", &e))?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{}/", prefix.trim_end_matches('/')) };
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix,
            base,
            client,
            http,
            credentials,
            patience: settings.patience,
            resumable_bytes_min: settings.resumable_bytes_min,
        })
    }

    pub(super) fn name(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }

    fn resource(&self) -> String {
        format!("projects/_/buckets/{}", self.bucket)
    }

    fn deadline(&self, bytes: u64) -> Duration {
        self.patience + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SEC)
    }

    async fn write(&self, path: &str, body: Bytes, if_generation: i64) -> Result<Generation, StoreError> {
        check_path(path)?;
        let deadline = self.deadline(body.len() as u64);
        let resumable = body.len() >= self.resumable_bytes_min;
        let crc = crc32c::crc32c(&body);
        let sent = self
            .client
            .write_object(self.resource(), self.name(path), body)
            .set_if_generation_match(if_generation)
            .with_known_crc32c(crc)
            .send_unbuffered();
        match tokio::time::timeout(deadline, sent).await {
            Ok(Ok(object)) => Ok(Generation(object.generation)),
            Ok(Err(error)) => match gcs_error::of_client(&error) {
                // Not the bucket is gone but the upload's session, with or without having made the object.
                Ok(answer) if resumable && answer.status == 404 && !answer.bucket_is_missing() => {
                    Err(StoreError::trouble(path, "HTTP 404: the upload's session is gone"))
                }
                _ => Err(self.client_error(path, &error)),
            },
            Err(_) => Err(StoreError::trouble(path, format!("no answer to the upload within {deadline:?}"))),
        }
    }

    async fn read(&self, path: &str) -> Result<Option<Object>, StoreError> {
        let opened = self.client.read_object(self.resource(), self.name(path)).send();
        let mut response = match tokio::time::timeout(self.patience, opened).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                return match gcs_error::of_client(&error) {
                    Ok(answer) if answer.status == 404 && !answer.bucket_is_missing() => Ok(None),
                    _ => Err(self.client_error(path, &error)),
                };
            }
            Err(_) => return Err(StoreError::trouble(path, format!("no answer within {:?}", self.patience))),
        };
        let about = response.object();
        if about.checksums.as_ref().and_then(|sums| sums.crc32c).is_none() {
            return Err(StoreError::trouble(path, "the service sent no CRC-32C, so the content cannot be verified"));
        }
        // The size is a server's word: memory follows what arrives.
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        let deadline = tokio::time::Instant::now() + self.deadline(u64::try_from(about.size).unwrap_or(0));
        loop {
            match tokio::time::timeout_at(deadline, response.next()).await {
                Ok(Some(Ok(chunk))) if first.is_empty() => first = chunk,
                Ok(Some(Ok(chunk))) => {
                    if rest.is_empty() {
                        rest.extend_from_slice(&first);
                    }
                    rest.extend_from_slice(&chunk);
                }
                Ok(Some(Err(error))) => return Err(self.client_error(path, &error)),
                Ok(None) => break, // only after length and checksum were found right
                Err(_) => return Err(StoreError::trouble(path, "the content stopped arriving")),
            }
        }
        let body = if rest.is_empty() { first } else { rest.freeze() };
        Ok(Some(Object { body, generation: Generation(about.generation) }))
    }

    fn client_error(&self, path: &str, error: &google_cloud_storage::Error) -> StoreError {
        match gcs_error::of_client(error) {
            Ok(answer) => answer.into_error(path, &self.bucket),
            Err(failure) => failure.into_error(path),
        }
    }

    fn object_url(&self, path: &str) -> String {
        let name = self.name(path);
        format!("{}/storage/v1/b/{}/o/{}", self.base, self.bucket, utf8_percent_encode(&name, SEGMENT))
    }

    /// One request to the JSON API: the body of a success, or the server's "no".
    async fn api(&self, path: &str, request: reqwest::RequestBuilder) -> Result<Result<Bytes, Answer>, StoreError> {
        let response = self.send(path, request).await?;
        let status = response.status();
        let body = response.bytes().await.map_err(|e| StoreError::trouble(path, gcs_error::chain(&e.without_url())))?;
        Ok(if status.is_success() { Ok(body) } else { Err(Answer::new(status.as_u16(), &body)) })
    }

    /// Sends a request with an access token.
    pub(super) async fn send(&self, path: &str, request: reqwest::RequestBuilder) -> Result<reqwest::Response, StoreError> {
        let headers = tokio::time::timeout(self.patience, self.credentials.headers(Default::default()))
            .await
            .map_err(|_| StoreError::trouble(path, format!("no access token within {:?}", self.patience)))?;
        let headers = match headers {
            Ok(CacheableResource::New { data, .. }) => data,
            Ok(CacheableResource::NotModified) => HeaderMap::new(), // only answers a request that names a tag
            Err(error) => return Err(gcs_error::of_credentials(&error).into_error(path)),
        };
        let sent = request.headers(headers).timeout(self.patience).send().await;
        sent.map_err(|e| StoreError::trouble(path, gcs_error::chain(&e.without_url())))
    }

    fn meta(&self, listed: Listed, asked: &str) -> Result<Meta, StoreError> {
        let odd = |what: &str| StoreError::trouble(asked, format!("the service's answer has no usable {what}"));
        let path = listed.name.strip_prefix(&self.prefix).ok_or_else(|| odd("name"))?.to_owned();
        let updated = chrono::DateTime::parse_from_rfc3339(&listed.updated).map_err(|_| odd("time"))?;
        Ok(Meta {
            bytes: listed.size.parse().map_err(|_| odd("size"))?,
            generation: Generation(listed.generation.parse().map_err(|_| odd("generation"))?),
            crc32c: listed.crc32c.as_deref().map(|text| crc_from_base64(text).ok_or_else(|| odd("crc32c"))).transpose()?,
            modified_us: updated.timestamp_micros(),
            path,
        })
    }
}

/// An object as the JSON API describes it; 64-bit numbers are text there.
#[derive(serde::Deserialize)]
pub(super) struct Listed {
    name: String,
    size: String,
    pub(super) generation: String,
    updated: String,
    pub(super) crc32c: Option<String>,
}

#[derive(serde::Deserialize)]
struct Page {
    #[serde(default)]
    items: Vec<Listed>,
    #[serde(rename = "nextPageToken")]
    next: Option<String>,
}

#[async_trait]
impl Store for GcsStore {
    async fn put_new(&self, path: &str, body: Bytes) -> Result<Generation, StoreError> {
        self.write(path, body, 0).await
    }

    async fn put_new_in_parts(&self, path: &str) -> Result<Option<Box<dyn Upload>>, StoreError> {
        check_path(path)?;
        if self.resumable_bytes_min == usize::MAX {
            return Ok(None); // an emulator that keeps no promise about such uploads
        }
        Ok(Some(Box::new(GcsUpload::begin(self, path).await?)))
    }

    async fn replace_if(&self, path: &str, body: Bytes, expected: Generation) -> Result<Generation, StoreError> {
        if expected.0 <= 0 {
            return Err(StoreError::precondition(path)); // 0 would mean "create" there
        }
        self.write(path, body, expected.0).await
    }

    async fn get(&self, path: &str) -> Result<Option<Object>, StoreError> {
        check_path(path)?;
        self.read(path).await
    }

    async fn head(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        check_path(path)?;
        let request = self.http.get(self.object_url(path)).query(&[("fields", META_FIELDS)]);
        let body = match self.api(path, request).await? {
            Ok(body) => body,
            Err(answer) if answer.status == 404 && !answer.bucket_is_missing() => return Ok(None),
            Err(answer) => return Err(answer.into_error(path, &self.bucket)),
        };
        let meta = self.meta(parse(path, &body)?, path)?;
        match meta.crc32c {
            Some(_) => Ok(Some(meta)),
            None => Err(StoreError::trouble(path, "the service knows no CRC-32C of this object")),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Meta>, StoreError> {
        check_prefix(prefix)?;
        let url = format!("{}/storage/v1/b/{}/o", self.base, self.bucket);
        let fields = format!("nextPageToken,items({META_FIELDS})");
        let full_prefix = self.name(prefix);
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let mut request =
                self.http.get(&url).query(&[("prefix", full_prefix.as_str()), ("maxResults", LIST_PAGE), ("fields", &fields)]);
            if let Some(token) = &token {
                request = request.query(&[("pageToken", token)]);
            }
            let body = self.api(prefix, request).await?.map_err(|answer| answer.into_error(prefix, &self.bucket))?;
            let page: Page = parse(prefix, &body)?;
            for listed in page.items {
                // The console marks a folder by an empty object whose name ends so; no path of ours does.
                if !listed.name.ends_with('/') {
                    found.push(self.meta(listed, prefix)?);
                }
            }
            match page.next.filter(|next| !next.is_empty()) {
                Some(next) if token.as_ref() == Some(&next) => return Err(StoreError::trouble(prefix, "the listing does not advance")),
                Some(next) => token = Some(next),
                None => break,
            }
        }
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        check_path(path)?;
        match self.api(path, self.http.delete(self.object_url(path))).await? {
            Ok(_) => Ok(()),
            Err(answer) if answer.status == 404 && !answer.bucket_is_missing() => Ok(()),
            Err(answer) => Err(answer.into_error(path, &self.bucket)),
        }
    }

    fn uri(&self, path: &str) -> String {
        format!("gs://{}/{}", self.bucket, self.name(path))
    }

    fn min_replace_interval(&self) -> Duration {
        MIN_REPLACE_INTERVAL
    }
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(body).map_err(|e| StoreError::trouble(path, format!("the service's answer is not what its API promises: {e}")))
}

/// A CRC-32C as the JSON API writes it: base64 of four big-endian bytes, always eight characters.
pub(super) fn crc_from_base64(text: &str) -> Option<u32> {
    let digits = text.strip_suffix("==").filter(|digits| digits.len() == 6)?;
    let bits = digits.bytes().try_fold(0_u64, |bits, c| {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        Some(bits << 6 | u64::from(six))
    })?;
    u32::try_from(bits >> 4).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_read_from_base64() {
        assert_eq!(crc_from_base64("AAAAAA=="), Some(0));
        assert_eq!(crc_from_base64("SZYC0g=="), Some(1_234_567_890));
        assert_eq!(crc_from_base64("/////w=="), Some(u32::MAX));
        for bad in ["", "==", "AAAAAA", "AAAA AA=", "AAAAAAAA", "AAAA*A==", "ñAAAA=="] {
            assert_eq!(crc_from_base64(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_emulator_s_host_may_come_with_or_without_scheme() {
        assert_eq!(emulator_url(""), None);
        assert_eq!(emulator_url("127.0.0.1:4443").as_deref(), Some("http://127.0.0.1:4443"));
        assert_eq!(emulator_url("http://localhost:9/").as_deref(), Some("http://localhost:9"));
    }

    #[tokio::test]
    async fn names_are_one_escaped_segment_and_uris_are_plain() {
        let settings = GcsSettings { emulator: Some("http://h:1".into()), ..GcsSettings::from_env() };
        let store = GcsStore::with("bucket", "a b/", settings).await.unwrap();
        assert_eq!(
            store.object_url("t/x~20/dt=1 +%?#.parquet"),
            "http://h:1/storage/v1/b/bucket/o/a%20b%2Ft%2Fx~20%2Fdt%3D1%20%2B%25%3F%23.parquet"
        );
        assert_eq!(store.uri("t/x~20/dt=1.parquet"), "gs://bucket/a b/t/x~20/dt=1.parquet");
        assert_eq!(store.deadline(20 << 20), PATIENCE + Duration::from_secs(80));
    }
}
