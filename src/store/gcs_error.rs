//! What a failed request to Google Cloud Storage means: passing, lost precondition, or a person's affair.
//!
//! Owns: the table from HTTP status to [`StoreError`], for Google's client and our own requests alike.
//! Does not own: when a 404 only means "no such object" (`gcs`).
//! Invariant: nothing that may have been applied is called refused, but for what a person must mend anyway.

use super::StoreError;
use google_cloud_auth::errors::CredentialsError;
use std::error::Error as _;

/// Longest part of a server's answer that goes into a message.
const ANSWER_CHARS_MAX: usize = 300;

const MEND_RIGHTS: &str = "grant this service account roles/storage.objectUser (or roles/storage.objectAdmin) on the bucket: \
     gcloud storage buckets add-iam-policy-binding";
/// How to get credentials.
pub(crate) const MEND_CREDENTIALS: &str = "run `gcloud auth application-default login`; or set GOOGLE_APPLICATION_CREDENTIALS, or attach a service \
     account to what runs huella";

/// A server's "no", reduced to what decides.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) message: String,
}

impl Answer {
    /// From a response's body: Google's JSON error, or text.
    pub(super) fn new(status: u16, body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Outer {
            error: Inner,
        }
        #[derive(serde::Deserialize)]
        struct Inner {
            message: String,
            #[serde(default)]
            errors: Vec<Reason>,
        }
        #[derive(serde::Deserialize)]
        struct Reason {
            #[serde(default)]
            reason: String,
        }
        let message = match serde_json::from_slice::<Outer>(body) {
            Ok(Outer { error }) => match error.errors.first() {
                Some(first) if !first.reason.is_empty() => format!("{} ({})", error.message, first.reason),
                _ => error.message,
            },
            Err(_) => String::from_utf8_lossy(body).into_owned(),
        };
        Self { status, message: tidy(&message) }
    }

    /// Whether a 404 speaks of the bucket rather than of the object.
    pub(super) fn bucket_is_missing(&self) -> bool {
        self.status == 404 && self.message.to_ascii_lowercase().contains("bucket does not exist")
    }

    /// What the caller must do, on a request for `path` in `bucket`.
    pub(super) fn into_error(self, path: &str, bucket: &str) -> StoreError {
        let Self { status, message } = self;
        let said = if message.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}: {message}") };
        let rate_limited = status == 403 && message.to_ascii_lowercase().contains("ratelimitexceeded");
        let damaged = status == 400 && message.to_ascii_lowercase().contains("crc32c");
        match status {
            412 => StoreError::precondition(path),
            // 409, 410: a concurrent change, an expired upload session. 3xx: an upload that is not complete, or a stray redirect.
            408 | 409 | 410 | 425 | 429 | 500..=599 | 100..=399 => StoreError::trouble(path, said),
            _ if rate_limited => StoreError::trouble(path, said),
            // Bytes damaged on their way: sent again they may arrive whole.
            _ if damaged => StoreError::trouble(path, said),
            401 => StoreError::Denied {
                path: path.to_owned(),
                message: format!("{said}; the credentials are not accepted: {MEND_CREDENTIALS}"),
            },
            403 => StoreError::refused(path, format!("{said}; {MEND_RIGHTS} gs://{bucket} --member=… --role=roles/storage.objectUser")),
            404 => StoreError::refused(
                path,
                format!("{said}; bucket {bucket} does not exist: correct lake.url, or: gcloud storage buckets create gs://{bucket}"),
            ),
            _ => StoreError::refused(path, said),
        }
    }
}

/// A failure of Google's client: the server's answer if it gave one, else what went wrong before or after.
pub(super) fn of_client(error: &google_cloud_storage::Error) -> Result<Answer, ClientFailure> {
    if let Some(status) = error.http_status_code() {
        return Ok(match (error.http_payload(), error.status()) {
            (Some(body), _) => Answer::new(status, body),
            (None, Some(said)) => Answer { status, message: tidy(&said.message) },
            (None, None) => Answer { status, message: String::new() },
        });
    }
    if error.is_authentication()
        && let Some(cause) = error.source().and_then(|cause| cause.downcast_ref::<CredentialsError>())
    {
        return Err(of_credentials(cause));
    }
    Err(ClientFailure { passing: true, message: chain(error) })
}

/// A request that got no answer.
#[derive(Debug)]
pub(super) struct ClientFailure {
    passing: bool,
    message: String,
}

impl ClientFailure {
    pub(super) fn into_error(self, path: &str) -> StoreError {
        if self.passing { StoreError::trouble(path, self.message) } else { StoreError::refused(path, self.message) }
    }
}

/// No token: the metadata server is away for a moment, or there are no usable credentials at all.
pub(super) fn of_credentials(error: &CredentialsError) -> ClientFailure {
    let said = chain(error);
    match error.is_transient() {
        // Outside Google Cloud this is what missing credentials look like: a metadata server that does not answer.
        true => ClientFailure { passing: true, message: format!("getting an access token: {said}; if this stays: {MEND_CREDENTIALS}") },
        false => ClientFailure { passing: false, message: format!("getting an access token: {said}; {MEND_CREDENTIALS}") },
    }
}

/// An error with its causes, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let one = error.to_string();
        if !text.contains(&one) {
            text.push_str(": ");
            text.push_str(&one);
        }
        cause = error.source();
    }
    tidy(&text)
}

/// One line of bounded length.
fn tidy(text: &str) -> String {
    let one_line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(ANSWER_CHARS_MAX).collect();
    one_line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, body: &str) -> &'static str {
        match Answer::new(status, body.as_bytes()).into_error("p", "b") {
            StoreError::Precondition { .. } => "precondition",
            StoreError::Trouble { .. } => "trouble",
            StoreError::Refused { .. } => "refused",
            StoreError::Denied { .. } => "denied",
        }
    }

    #[test]
    fn a_status_decides_what_the_caller_must_do() {
        assert_eq!(kind(412, ""), "precondition");
        for passing in [308, 408, 409, 410, 429, 500, 502, 503, 504] {
            assert_eq!(kind(passing, ""), "trouble", "{passing}");
        }
        for person in [400, 403, 404, 405, 411, 413] {
            assert_eq!(kind(person, ""), "refused", "{person}");
        }
        assert_eq!(kind(401, ""), "denied", "once is no sign: whoever opened the store decides when it stays so");
        let limited = r#"{"error": {"code": 403, "message": "slow down", "errors": [{"reason": "userRateLimitExceeded"}]}}"#;
        assert_eq!(kind(403, limited), "trouble", "a rate limit comes as 403 too");
        assert_eq!(kind(400, "Provided CRC32C \"x\" doesn't match calculated CRC32C \"y\"."), "trouble");
    }

    #[test]
    fn refusals_name_the_mend() {
        let text = |status| Answer::new(status, b"no").into_error("p", "lake-bucket").to_string();
        assert!(text(403).contains("roles/storage.objectUser") && text(403).contains("gs://lake-bucket"), "{}", text(403));
        assert!(text(401).contains("GOOGLE_APPLICATION_CREDENTIALS"), "{}", text(401));
        assert!(text(404).contains("bucket lake-bucket does not exist"), "{}", text(404));
    }

    #[test]
    fn a_hostile_answer_becomes_one_bounded_line() {
        let answer = Answer::new(500, format!("<html>\n\x1b[31m{}", "x".repeat(10_000)).as_bytes());
        assert!(!answer.message.contains(char::is_control) && answer.message.chars().count() <= ANSWER_CHARS_MAX);
        assert_eq!(Answer::new(500, b"\xff\xfe").message, "\u{fffd}\u{fffd}");
        assert_eq!(Answer::new(500, b"").into_error("p", "b").to_string(), "p: HTTP 500");
    }

    #[test]
    fn only_a_404_about_the_bucket_is_about_the_bucket() {
        assert!(Answer::new(404, br#"{"error": {"code": 404, "message": "The specified bucket does not exist."}}"#).bucket_is_missing());
        assert!(!Answer::new(404, b"No such object: bucket/a").bucket_is_missing());
        assert!(!Answer::new(403, b"The specified bucket does not exist.").bucket_is_missing());
    }
}
