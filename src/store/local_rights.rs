//! Who may read a lake in a directory: its owner alone, whatever the umask.
//!
//! Owns: modes of what is made, and the closing of what was left open before. Does not own: names and locks (`local`).
//! Invariant: a directory that holds other things than a lake, or belongs to somebody else, is never changed.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Files: their owner's.
pub(super) const FILE_MODE: u32 = 0o600;
/// Directories: their owner's.
const DIR_MODE: u32 = 0o700;
/// Set on directories such as /tmp.
const STICKY: u32 = 0o1000;

/// What stands at the top of a lake.
const OF_A_LAKE: [&str; 6] = [".tmp-huella", "watermark.json", "commits", "tables", "published", "state"];

/// Makes a directory that its owner alone may enter.
pub(super) fn make_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIR_MODE).create(dir)
}

/// Takes the rights of others from a directory of ours that has some. What lies in it is out of their reach then, whatever its own mode.
pub(super) fn close_to_others(dir: &Path) -> io::Result<()> {
    let about = fs::symlink_metadata(dir)?;
    // SAFETY: cannot fail, and touches nothing.
    let ours = about.uid() == unsafe { libc::geteuid() };
    let mode = about.mode() & 0o7777;
    if !about.is_dir() || !ours || mode & 0o077 == 0 || mode & STICKY != 0 {
        return Ok(());
    }
    tracing::info!(dir = %dir.display(), mode = %format!("{mode:04o}"), "others could read the lake: its directory is closed to them");
    fs::set_permissions(dir, Permissions::from_mode(mode & !0o077))
}

/// Whether a directory holds nothing but a lake's entries (none is fine).
pub(super) fn is_lakes_alone(dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        if !OF_A_LAKE.iter().any(|name| entry.as_ref().is_ok_and(|entry| entry.file_name() == *name)) {
            return Ok(false);
        }
    }
    Ok(true)
}
