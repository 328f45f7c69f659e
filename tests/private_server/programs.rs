//! Where PostgreSQL's server programs are.

use std::path::PathBuf;

/// `HUELLA_PG_BIN`, else the newest PostgreSQL of the system, else the newest that `tests/setup.sh` brought. Without links:
/// the server's user may not be able to pass through the working copy.
pub(crate) fn bin_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("HUELLA_PG_BIN") {
        return PathBuf::from(dir).canonicalize().ok();
    }
    let newest = |folder: &str, prefix: &str, bin: &str| {
        let entries = std::fs::read_dir(folder).ok()?.flatten();
        let version = |name: &str| name.strip_prefix(prefix)?.parse::<u32>().ok();
        let found = entries.filter_map(|e| Some((version(e.file_name().to_str()?)?, e.path().join(bin))));
        Some(found.filter(|(_, dir)| dir.join("initdb").exists()).max()?.1)
    };
    let ours = || newest(concat!(env!("CARGO_MANIFEST_DIR"), "/.stack"), "pg", "native/bin");
    newest("/usr/lib/postgresql", "", "bin").or_else(ours)?.canonicalize().ok()
}
