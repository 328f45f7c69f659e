//! One file of a lake in a directory: its time, its checksum, what its errors mean.
//!
//! Owns: stamping a generation, an unfinished file's end. Does not own: names and locks (`local`). Invariant: a generation that was
//! set is one that the file system keeps.

use super::{Generation, Meta, StoreError};
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Buffer for checksumming a file: large enough to amortise the call, small enough to stay in cache.
const READ_BUFFER_BYTES: usize = 256 << 10;

/// A file that nobody sees; removed when dropped, unless it was renamed.
pub(super) struct Temp {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) generation: i64,
}

impl Temp {
    /// Gives the file its generation: now, but later than `floor`.
    pub(super) fn stamp(&mut self, floor: i64) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX));
        let after = floor
            .checked_add(1)
            .ok_or_else(|| io::Error::other("the file it follows lies at the end of time; set its modification time anew"))?;
        self.generation = now.max(after);
        set_time(&self.file, self.generation)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // else the sweep finds it
    }
}

/// Sets a modification time and makes sure that the file system keeps all of it.
pub(super) fn set_time(file: &File, ns: i64) -> io::Result<()> {
    let since = Duration::from_nanos(u64::try_from(ns).map_err(|_| io::Error::other("a modification time before 1970"))?);
    file.set_modified(UNIX_EPOCH + since)?;
    if time_of(&file.metadata()?) == ns {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::Unsupported, "this file system keeps no nanoseconds in modification times"))
}

pub(super) fn time_of(about: &Metadata) -> i64 {
    use std::os::unix::fs::MetadataExt;
    about.mtime().saturating_mul(1_000_000_000).saturating_add(about.mtime_nsec())
}

pub(super) fn generation(about: &Metadata) -> Generation {
    Generation(time_of(about))
}

pub(super) fn meta(path: String, about: &Metadata) -> Meta {
    Meta { path, bytes: about.len(), crc32c: None, generation: generation(about), modified_us: time_of(about).div_euclid(1000) }
}

/// What is known of the object's file; `None` if there is no such file.
pub(super) fn stat(target: &Path) -> io::Result<Option<Metadata>> {
    match fs::metadata(target) {
        Ok(about) => Ok(about.is_file().then_some(about)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn checksum(file: &mut File) -> io::Result<u32> {
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut crc = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(crc),
            Ok(n) => crc = crc32c::crc32c_append(crc, &buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// No such object: also where a part of the path is a file.
pub(super) fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Sorts an operating system's error into passing trouble and what a person must mend.
pub(super) fn io_error(path: &str, doing: &str, e: &io::Error) -> StoreError {
    let mend = match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            return StoreError::trouble(path, format!("{doing}: {e}; free some space, writing then goes on by itself"));
        }
        ErrorKind::PermissionDenied => "give this user read and write rights on the lake's directory",
        ErrorKind::ReadOnlyFilesystem => "mount the lake's file system for writing",
        ErrorKind::NotADirectory => "a part of the path is a file",
        ErrorKind::IsADirectory => "a directory stands where the object should be",
        ErrorKind::InvalidFilename => "the name is too long for this file system",
        ErrorKind::CrossesDevices => "the lake's directory must lie on one file system",
        // A directory that cannot be flushed says EINVAL on some.
        ErrorKind::Unsupported | ErrorKind::InvalidInput => "put the lake on a local Linux file system (ext4, xfs, btrfs)",
        _ if e.raw_os_error() == Some(libc::EIO) => "the disk reports an error; check it",
        _ => return StoreError::trouble(path, format!("{doing}: {e}")),
    };
    StoreError::refused(path, format!("{doing}: {e}; {mend}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operating_system_s_error_says_whether_to_wait_or_to_mend() {
        let of = |code: i32| io_error("a/b", "writing", &io::Error::from_raw_os_error(code));
        for passing in [libc::ENOSPC, libc::EDQUOT, libc::EMFILE, libc::ENOMEM, libc::ETIMEDOUT] {
            assert!(matches!(of(passing), StoreError::Trouble { .. }), "{}", of(passing));
        }
        for person in [
            libc::EACCES,
            libc::EPERM,
            libc::EROFS,
            libc::ENAMETOOLONG,
            libc::ENOTDIR,
            libc::EXDEV,
            libc::EOPNOTSUPP,
            libc::EINVAL,
            libc::EIO,
        ] {
            assert!(matches!(of(person), StoreError::Refused { .. }), "{}", of(person));
        }
        assert!(of(libc::ENOSPC).to_string().contains("free some space"), "{}", of(libc::ENOSPC));
        assert!(of(libc::EROFS).to_string().starts_with("a/b: writing: "), "{}", of(libc::EROFS));
    }
}
