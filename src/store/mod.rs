//! The object store behind one small interface: a local directory, Google Cloud Storage, or either behind the fault injector.
//!
//! Owns: objects, generations, preconditions. Does not own: what the objects mean, retries of a whole
//! commit step (`commit`). Invariants: `put_new` never replaces, `replace_if` replaces only the generation
//! named; a write that returns `Ok` is durable; an error that may hide a success says so (`Trouble`).

mod fault;
mod gcs;
mod gcs_error;
mod gcs_upload;
mod local;
mod local_file;
mod local_rights;
mod tolerating;

pub use fault::{FaultStore, Plan};
pub use gcs::{GcsSettings, GcsStore};
pub(crate) use gcs_error::MEND_CREDENTIALS;
pub use local::LocalStore;

use tolerating::ToleratingStore;

use crate::error::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// GCS's word for an object's version: changes at every write of the object. Opaque but for equality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Generation(pub i64);

/// An object with its content.
#[derive(Debug, Clone)]
pub struct Object {
    /// Content.
    pub body: Bytes,
    /// Generation that was read.
    pub generation: Generation,
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Path below the lake's root.
    pub path: String,
    /// Length in bytes.
    pub bytes: u64,
    /// CRC-32C (Castagnoli) of the content; `None` in listings of stores that would have to read the object.
    pub crc32c: Option<u32>,
    /// Present generation.
    pub generation: Generation,
    /// Last modification, microseconds since 1970-01-01 UTC.
    pub modified_us: i64,
}

/// What a store says when it does not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The precondition does not hold (HTTP 412): the object exists, or has another generation. May follow
    /// a success of this very write whose reply was lost: read back before believing it.
    #[error("{path}: precondition failed")]
    Precondition {
        /// Object asked for.
        path: String,
    },
    /// Passing trouble or lost reply (429, 5xx, timeout, I/O): the write may have happened, may happen later, or never. Retry.
    #[error("{path}: {message}")]
    Trouble {
        /// Object asked for.
        path: String,
        /// What was said.
        message: String,
    },
    /// The credentials are not accepted (401): passing, unless it stays so. [`open`]'s stores decide which, and say trouble or refused.
    #[error("{path}: {message}")]
    Denied {
        /// Object asked for.
        path: String,
        /// What was said, and the fix.
        message: String,
    },
    /// Refused for good (403, 404 of the bucket, read-only directory): a person must act.
    #[error("{path}: {message}")]
    Refused {
        /// Object asked for.
        path: String,
        /// What was said, and the mend where known.
        message: String,
    },
}

impl StoreError {
    fn precondition(path: &str) -> Self {
        Self::Precondition { path: shown(path) }
    }

    fn trouble(path: &str, message: impl Into<String>) -> Self {
        Self::Trouble { path: shown(path), message: message.into() }
    }

    fn refused(path: &str, message: impl Into<String>) -> Self {
        Self::Refused { path: shown(path), message: message.into() }
    }
}

/// A path for a message; that of the whole lake's listing is empty.
fn shown(path: &str) -> String {
    if path.is_empty() { "the lake's root".into() } else { path.into() }
}

/// For callers to whom a store's error means no more than its kind. A failed precondition says that somebody else wrote
/// an object: who can meet a rival handles it before, so here it is a fault of this program.
impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Precondition { .. } => Error::bug(message),
            StoreError::Trouble { .. } => Error::retry(message),
            StoreError::Refused { .. } | StoreError::Denied { .. } => Error::lake(message),
        }
    }
}

/// Objects below one root (`gs://bucket/prefix`, or a directory). Paths are relative, `/`-separated, without a leading slash.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Creates an object. `Precondition` if one of that path exists, whatever its content. The returned generation is the new object's.
    async fn put_new(&self, path: &str, body: Bytes) -> Result<Generation, StoreError>;
    /// Begins an object that is handed over in parts, as `put_new` otherwise. `None`: the store takes objects whole only.
    async fn put_new_in_parts(&self, path: &str) -> Result<Option<Box<dyn Upload>>, StoreError> {
        check_path(path)?;
        Ok(None)
    }
    /// Replaces the object of exactly this generation. `Precondition` if it has another or does not exist.
    async fn replace_if(&self, path: &str, body: Bytes, expected: Generation) -> Result<Generation, StoreError>;
    /// Reads an object; `None` if there is none.
    async fn get(&self, path: &str) -> Result<Option<Object>, StoreError>;
    /// An object's length, CRC-32C (always present) and generation; `None` if there is none.
    async fn head(&self, path: &str) -> Result<Option<Meta>, StoreError>;
    /// All objects whose path begins with `prefix` (not only at a `/`), in ascending order of path (its bytes).
    async fn list(&self, prefix: &str) -> Result<Vec<Meta>, StoreError>;
    /// Deletes an object; deleting what is not there is no error.
    async fn delete(&self, path: &str) -> Result<(), StoreError>;
    /// How a reader names the object: an absolute path, or a `gs://` URI.
    fn uri(&self, path: &str) -> String;
    /// Least time between two writes of one object (GCS allows about one a second).
    fn min_replace_interval(&self) -> Duration;
}

/// An object on its way, invisible until it is finished. Dropped before, it leaves nothing that a reader sees.
#[async_trait]
pub trait Upload: Send + std::fmt::Debug {
    /// Adds bytes at its end. After an error the upload is of no use any more.
    async fn write(&mut self, part: Bytes) -> Result<(), StoreError>;
    /// Makes it visible and durable, if its content has this CRC-32C. `Precondition` if an object of that path exists;
    /// `Trouble` if it may be there or not.
    async fn finish(self: Box<Self>, crc32c: u32) -> Result<Generation, StoreError>;
}

/// Names that begin so are the stores' own (unfinished files, locks); no object's path may have such a component.
const RESERVED: &str = ".tmp-";

/// Longest object path below the root; GCS allows 1,024 bytes together with the prefix.
const PATH_BYTES_MAX: usize = 900;

/// Environment variable with a fault plan, read by [`open`] in debug builds. Grammar: [`Plan::parse`].
pub const FAULTS_VARIABLE: &str = "HUELLA_FAULTS";

/// Opens the store that a lake's URL names: `gs://bucket/prefix`, `file:///absolute`, `/absolute`, or a relative
/// directory that begins with `.`.
///
/// # Errors
/// `Kind::Config` for any other URL; `Kind::Lake` if the directory or the credentials are unusable. GCS is not asked yet.
pub async fn open(url: &str) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(ToleratingStore::new(open_plain(url).await?)))
}

async fn open_plain(url: &str) -> Result<Arc<dyn Store>> {
    let store: Arc<dyn Store> = match Location::parse(url)? {
        Location::Gcs { bucket, prefix } => Arc::new(GcsStore::open(&bucket, &prefix).await?),
        Location::Local(root) => {
            let opened = tokio::task::spawn_blocking(move || LocalStore::open(root)).await;
            Arc::new(opened.map_err(|e| Error::bug("opening the lake's directory panicked").with_source(e))??)
        }
    };
    behind_faults(store, std::env::var_os(FAULTS_VARIABLE))
}

fn behind_faults(store: Arc<dyn Store>, plan: Option<OsString>) -> Result<Arc<dyn Store>> {
    let Some(plan) = plan.filter(|text| !text.is_empty()) else { return Ok(store) };
    if !cfg!(debug_assertions) {
        tracing::warn!("{FAULTS_VARIABLE} is set but this build injects no faults; unset it");
        return Ok(store);
    }
    let plan = plan.into_string().map_err(|_| Error::config(format!("{FAULTS_VARIABLE}: not UTF-8")))?;
    let plan = Plan::parse(&plan).map_err(|e| e.context(FAULTS_VARIABLE))?;
    Ok(Arc::new(FaultStore::new(store, plan)))
}

/// Where a lake's URL points.
#[derive(Debug, PartialEq, Eq)]
enum Location {
    Gcs { bucket: String, prefix: String },
    Local(PathBuf),
}

impl Location {
    fn parse(url: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Error::config(format!(
                "lake.url {url:?}: {why}; give gs://BUCKET/PREFIX, file:///ABSOLUTE/PATH, /ABSOLUTE/PATH or ./RELATIVE/PATH"
            ))
        };
        if let Some(rest) = url.strip_prefix("gs://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
            if !(3..=222).contains(&bucket.len()) || !bucket.chars().all(legal) {
                return Err(refuse("not a bucket's name (3 to 222 of a-z, 0-9, '-', '_', '.')"));
            }
            let prefix = prefix.trim_end_matches('/');
            if !prefix.is_empty() && flaw(prefix).is_some() {
                return Err(refuse(flaw(prefix).expect("just found")));
            }
            return Ok(Location::Gcs { bucket: bucket.into(), prefix: prefix.into() });
        }
        if url.starts_with("file:") {
            let parsed = url::Url::parse(url).map_err(|_| refuse("not a URL"))?;
            if !url.starts_with("file:///") || parsed.query().is_some() || parsed.fragment().is_some() {
                return Err(refuse("a file URL has three slashes and no query"));
            }
            return Ok(Location::Local(parsed.to_file_path().map_err(|()| refuse("not a path"))?));
        }
        let relative = matches!(url, "." | "..") || url.starts_with("./") || url.starts_with("../");
        if (relative || url.starts_with('/')) && !url.contains('\0') {
            return Ok(Location::Local(PathBuf::from(url)));
        }
        Err(refuse("no such kind of lake"))
    }
}

/// Why this cannot be an object's path, the same on every store.
fn flaw(path: &str) -> Option<&'static str> {
    if path.len() > PATH_BYTES_MAX {
        return Some("the path is longer than 900 bytes");
    }
    if path.chars().any(char::is_control) {
        return Some("the path has a control character");
    }
    path.split('/').find_map(component_flaw)
}

fn component_flaw(component: &str) -> Option<&'static str> {
    match component {
        "" => Some("the path has an empty component"),
        "." | ".." => Some("the path has a component '.' or '..'"),
        c if c.starts_with(RESERVED) => Some("names that begin with .tmp- are reserved"),
        _ => None,
    }
}

/// Refuses what cannot be an object's path.
fn check_path(path: &str) -> Result<(), StoreError> {
    flaw(path).map_or(Ok(()), |why| Err(StoreError::refused(path, why)))
}

/// Refuses a listing's prefix that leaves the lake; its last component may be the beginning of any name.
fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    let (folder, rest) = prefix.rsplit_once('/').map_or((None, prefix), |(folder, rest)| (Some(folder), rest));
    if rest.chars().any(char::is_control) {
        return Err(StoreError::refused(prefix, "the prefix has a control character"));
    }
    folder.map_or(Ok(()), check_path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn urls_name_buckets_and_directories() {
        let gcs = |bucket: &str, prefix: &str| Location::Gcs { bucket: bucket.into(), prefix: prefix.into() };
        for (url, want) in [
            ("gs://bucket", gcs("bucket", "")),
            ("gs://bucket/", gcs("bucket", "")),
            ("gs://my-bucket.example.org/a/b c/", gcs("my-bucket.example.org", "a/b c")),
            ("file:///srv/the%20lake", Location::Local("/srv/the lake".into())),
            ("/srv/lake", Location::Local("/srv/lake".into())),
            ("./lake", Location::Local("./lake".into())),
            ("../lake", Location::Local("../lake".into())),
            (".", Location::Local(".".into())),
        ] {
            assert_eq!(Location::parse(url).unwrap(), want, "{url}");
        }
    }

    #[test]
    fn any_other_url_is_a_configuration_error() {
        for url in [
            "",
            "lake",
            "s3://bucket/x",
            "gs://",
            "gs:///x",
            "gs://Bucket/x",
            "gs://ab",
            "gs://bucket//x",
            "gs://bucket/a/../b",
            "gs://bucket/.tmp-x",
            "file:",
            "file://host/srv",
            "file://srv",
            "file:///srv?x=1",
            "https://storage.googleapis.com/bucket",
            "~/lake",
            "/a\0b",
        ] {
            assert_eq!(Location::parse(url).unwrap_err().kind(), Kind::Config, "{url}");
        }
    }

    #[test]
    fn paths_that_leave_the_lake_or_take_reserved_names_are_refused() {
        for path in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "a\0b", "a\nb", ".tmp-x", "a/.tmp-x/b", &"x".repeat(901)] {
            assert!(matches!(check_path(path), Err(StoreError::Refused { .. })), "{path:?}");
        }
        for path in ["a", "a/b", "tables/public.a~20b/v1/dt=2026-11-24/x.parquet", "..a", "a..", "a/...", "ñ/日本"] {
            assert!(check_path(path).is_ok(), "{path:?}");
        }
        for prefix in ["../", "a/../", "/", "/a", "a//", ".tmp-x/"] {
            assert!(check_prefix(prefix).is_err(), "{prefix:?}");
        }
        for prefix in ["", "a", "a/", "a/b", "a/dt=2026"] {
            assert!(check_prefix(prefix).is_ok(), "{prefix:?}");
        }
    }

    #[test]
    fn a_store_error_becomes_the_kind_that_says_what_to_do() {
        let kind = |e: StoreError| Error::from(e).kind();
        assert_eq!(kind(StoreError::precondition("a")), Kind::Bug);
        assert_eq!(kind(StoreError::trouble("a", "503")), Kind::Retry);
        assert_eq!(kind(StoreError::refused("a", "403")), Kind::Lake);
        assert_eq!(Error::from(StoreError::trouble("a/b", "HTTP 503")).to_string(), "a/b: HTTP 503");
    }

    #[tokio::test]
    async fn a_debug_build_injects_the_faults_it_is_told_and_refuses_nonsense() {
        let folder = tempfile::tempdir().unwrap();
        let store = || Arc::new(LocalStore::open(folder.path().to_owned()).unwrap());
        let list = async |plan: Option<&str>| behind_faults(store(), plan.map(OsString::from)).unwrap().list("").await;
        assert!(list(None).await.is_ok() && list(Some("")).await.is_ok());
        assert_eq!(list(Some("list=forbid")).await.is_err(), cfg!(debug_assertions));
        if cfg!(debug_assertions) {
            let error = behind_faults(store(), Some("list=sing".into())).unwrap_err();
            assert!(error.kind() == Kind::Config && error.to_string().starts_with("HUELLA_FAULTS: "), "{error}");
        }
    }
}
