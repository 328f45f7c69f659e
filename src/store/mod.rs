//! The object store behind one small interface: a local directory, Google Cloud Storage, or either behind the fault injector.
//!
//! Owns: objects, generations, preconditions. Does not own: what the objects mean, retries of a whole
//! commit step (`commit`). Invariants: `put_new` never replaces, `replace_if` replaces only the generation
//! named; a write that returns `Ok` is durable; an error that may hide a success says so (`Trouble`).

use async_trait::async_trait;
use bytes::Bytes;
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
    /// Refused for good (403, 401, 404 of the bucket, read-only directory): a person must act.
    #[error("{path}: {message}")]
    Refused {
        /// Object asked for.
        path: String,
        /// What was said, and the mend where known.
        message: String,
    },
}

/// Objects below one root (`gs://bucket/prefix`, or a directory). Paths are relative, `/`-separated, without a leading slash.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Creates an object. `Precondition` if one of that path exists, whatever its content. The returned generation is the new object's.
    async fn put_new(&self, path: &str, body: Bytes) -> Result<Generation, StoreError>;
    /// Replaces the object of exactly this generation. `Precondition` if it has another or does not exist.
    async fn replace_if(&self, path: &str, body: Bytes, expected: Generation) -> Result<Generation, StoreError>;
    /// Reads an object; `None` if there is none.
    async fn get(&self, path: &str) -> Result<Option<Object>, StoreError>;
    /// An object's length, CRC-32C (always present) and generation; `None` if there is none.
    async fn head(&self, path: &str) -> Result<Option<Meta>, StoreError>;
    /// All objects whose path begins with `prefix`, in ascending order of path.
    async fn list(&self, prefix: &str) -> Result<Vec<Meta>, StoreError>;
    /// Deletes an object; deleting what is not there is no error.
    async fn delete(&self, path: &str) -> Result<(), StoreError>;
    /// How a reader names the object: an absolute path, or a `gs://` URI.
    fn uri(&self, path: &str) -> String;
    /// Least time between two writes of one object (GCS allows about one a second).
    fn min_replace_interval(&self) -> Duration;
}
