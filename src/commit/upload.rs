//! Putting objects that are created once: data files, manifests, schemas.
//!
//! Owns: unique names within an epoch, the comparison after a 412. Invariant: `Ok` means that the object is
//! there with exactly this content.

use super::persist;
use crate::batch::EncodedFile;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{DataFile, DataPath, FileKind, Watermark};
use crate::lsn::{CommitSeq, Epoch, Lsn};
use crate::store::{Store, StoreError, Upload};
use crate::table_name::TableName;
use crate::wait;
use bytes::{Bytes, BytesMut};
use std::sync::atomic::{AtomicU64, Ordering};

/// Gives data files of one epoch their names. Shared by the stream and the copies; a part number is never used twice.
#[derive(Debug)]
pub struct FileNamer {
    epoch: Epoch,
    seq: AtomicU64,
    part: AtomicU64,
}

impl FileNamer {
    /// Names for a newly claimed epoch.
    pub(super) fn new(epoch: Epoch) -> Self {
        Self { epoch, seq: AtomicU64::new(0), part: AtomicU64::new(0) }
    }

    /// Names for a process that holds no epoch: those of the epoch that stands, with part numbers from a random place far above those
    /// that its writer counts, so that the two never meet.
    pub fn outside(watermark: &Watermark) -> Self {
        let part = (super::random() >> 8) | (1 << 55);
        Self { epoch: watermark.epoch, seq: AtomicU64::new(watermark.seq.next().0), part: AtomicU64::new(part) }
    }

    /// Tells which commit is next (for people who read file names).
    pub(super) fn expect_seq(&self, seq: CommitSeq) {
        self.seq.store(seq.0, Ordering::Relaxed);
    }

    /// A name that this epoch has not used.
    pub fn name(&self, first: Lsn) -> DataPath {
        let part = self.part.fetch_add(1, Ordering::Relaxed);
        DataPath { lsn: first, seq: CommitSeq(self.seq.load(Ordering::Relaxed)), epoch: self.epoch, part }
    }
}

/// Puts a data file under a new name and returns its entry for the manifest.
pub async fn put_data(store: &dyn Store, namer: &FileNamer, file: EncodedFile) -> Result<DataFile> {
    let path = namer.name(file.first_lsn).path(&file.table, file.version, &file.date);
    put_once(store, &path, file.body.clone()).await?;
    let crc = crc32c::crc32c(&file.body);
    Ok(DataFile {
        path,
        table: file.table,
        version: file.version,
        rows: file.rows,
        bytes: file.body.len() as u64,
        crc32c: base64(crc),
        kind: file.kind,
    })
}

/// A data file that is handed over while it is made.
#[derive(Debug)]
pub struct GrowingObject {
    path: String,
    upload: Option<Box<dyn Upload>>,
    /// Parts that wait for the end, where the store takes objects whole only.
    held: BytesMut,
    bytes: u64,
    crc: u32,
}

impl GrowingObject {
    /// Begins a data file under a new name. `first`: commit LSN of its first row.
    pub async fn begin(store: &dyn Store, namer: &FileNamer, (table, version): (&TableName, u32), date: &str, first: Lsn) -> Result<Self> {
        let path = namer.name(first).path(table, version, date);
        let upload = persist("begin an upload", || store.put_new_in_parts(&path)).await?;
        Ok(Self { path, upload, held: BytesMut::new(), bytes: 0, crc: 0 })
    }

    /// Its name, which no other object ever has.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether all of it stays in memory until it is finished.
    pub fn is_held(&self) -> bool {
        self.upload.is_none()
    }

    /// Adds bytes at its end.
    pub async fn write(&mut self, part: Bytes) -> Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        wait::moved();
        self.bytes += part.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, &part);
        match self.upload.as_mut() {
            Some(upload) => upload.write(part).await.map_err(Error::from),
            None => {
                self.held.extend_from_slice(&part);
                Ok(())
            }
        }
    }

    /// Makes it durable, and returns its entry for the manifest.
    pub async fn finish(self, store: &dyn Store, (table, version): (&TableName, u32), rows: u64, kind: FileKind) -> Result<DataFile> {
        let Self { path, upload, held, bytes, crc } = self;
        match upload {
            None => put_once(store, &path, held.freeze()).await?,
            Some(upload) => match upload.finish(crc).await {
                Ok(_) => {}
                Err(error @ StoreError::Refused { .. }) => return Err(error.into()),
                Err(error) => read_back(store, &path, bytes, crc, error).await?,
            },
        }
        Ok(DataFile { path, table: table.clone(), version, rows, bytes, crc32c: base64(crc), kind })
    }
}

/// After an upload in parts whose end is not known, or that met an object of its name. It cannot be sent again, so what
/// did not arrive is made anew by the caller, under another name.
async fn read_back(store: &dyn Store, path: &str, bytes: u64, crc: u32, why: StoreError) -> Result<()> {
    match persist("read back", || store.head(path)).await? {
        Some(meta) if meta.bytes == bytes && meta.crc32c == Some(crc) => Ok(()),
        Some(meta) if matches!(why, StoreError::Precondition { .. }) => Err(exists_otherwise(path, meta.bytes, bytes)),
        _ => Err(Error::retry(format!("{path} did not arrive as it was sent")).with_source(why)),
    }
}

fn exists_otherwise(path: &str, found_bytes: u64, bytes: u64) -> Error {
    Error::bug(format!(
        "{path} exists with other content ({found_bytes} bytes where {bytes} were written): its name belongs to this writer alone"
    ))
}

/// Puts a document that is created once (a manifest, a schema).
pub async fn put_document(store: &dyn Store, path: &str, body: Bytes) -> Result<()> {
    put_once(store, path, body).await
}

/// Creates an object; a 412 may be our own earlier success whose reply was lost, so length and CRC-32C decide.
async fn put_once(store: &dyn Store, path: &str, body: Bytes) -> Result<()> {
    match persist("put", || store.put_new(path, body.clone())).await {
        Ok(_) => {
            wait::moved();
            Ok(())
        }
        Err(StoreError::Precondition { .. }) => {
            let found = persist("read back", || store.head(path)).await?;
            match found {
                Some(meta) if meta.bytes == body.len() as u64 && meta.crc32c == Some(crc32c::crc32c(&body)) => Ok(()),
                Some(meta) => Err(exists_otherwise(path, meta.bytes, body.len() as u64)),
                None => {
                    Err(Error::lake(format!("{path} was refused as existing and is not there: does something delete objects of the lake?")))
                }
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// GCS's text form of a CRC-32C.
pub(super) fn base64(crc: u32) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(crc.to_be_bytes())
}

/// Passed once the data files of a commit are all there.
pub(super) fn data_is_there() {
    failpoint::hit("commit.after_data");
}

/// Puts a document that is derived from the lake, replacing an older one.
pub async fn put_or_replace(store: &dyn Store, path: &str, body: Bytes) -> Result<()> {
    put_changed(store, path, body).await.map(|_| ())
}

/// As [`put_or_replace`]; says whether anything was written.
pub async fn put_changed(store: &dyn Store, path: &str, body: Bytes) -> Result<bool> {
    let (mut written, mut pauses) = (false, backon::BackoffBuilder::build(super::back_off()));
    loop {
        let answer = match persist("read", || store.get(path)).await? {
            Some(found) if found.body == body => return Ok(written),
            Some(found) => store.replace_if(path, body.clone(), found.generation).await,
            None => store.put_new(path, body.clone()).await,
        };
        written = true;
        match answer {
            Ok(_) => {
                wait::moved();
                return Ok(true);
            }
            Err(error @ StoreError::Refused { .. }) => return Err(error.into()),
            // Whatever happened, the next look tells.
            Err(error) => {
                wait::trouble(&error);
                tracing::warn!(path, error = %error, "replacing a document failed or its reply was lost, reading it back");
                tokio::time::sleep(pauses.next().unwrap_or(super::RETRY_LONGEST)).await;
            }
        }
    }
}
