//! Paths of the lake's objects.
//!
//! Owns: the escaping of names, the shape of every path. Invariant: two tables never share a folder, and a
//! data file's name is unique in its epoch by its part number alone.

use crate::lsn::{CommitSeq, Epoch, Lsn};
use crate::table_name::TableName;
use sha2::{Digest, Sha256};

/// The one object that is replaced at every commit.
pub const WATERMARK: &str = "watermark.json";
/// Folder of all tables.
pub const TABLES: &str = "tables/";
/// Names of what is published of a version, in its folder. The underscore makes readers that open a folder pass over them.
const MANIFEST: &str = "_published.manifest";
const REFERENCE: &str = "_published.schema.parquet";

/// A name in a path: bytes outside `[A-Za-z0-9_]` become `~XX`.
pub fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' {
            out.push(byte as char);
        } else {
            out.push_str(&format!("~{byte:02X}"));
        }
    }
    out
}

/// `commits/<seq>-e<epoch>.json`.
pub fn commit_path(seq: CommitSeq, epoch: Epoch) -> String {
    format!("commits/{:020}-e{:06}.json", seq.0, epoch.0)
}

/// Seq and epoch of a path that [`commit_path`] made.
pub fn commit_number(path: &str) -> Option<(CommitSeq, Epoch)> {
    let (seq, epoch) = path.strip_prefix("commits/")?.strip_suffix(".json")?.split_once("-e")?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    Some((CommitSeq(number(seq)?), Epoch(number(epoch)?)))
}

/// The UTC date of a data file's folder.
pub fn day_of(path: &str) -> Option<&str> {
    let (_, rest) = path.split_once("/dt=")?;
    rest.split_once('/').map(|(day, _)| day)
}

/// The LSN that a data file's name begins with: the first row's, or of a part of a transaction one before it.
pub(super) fn first_lsn(path: &str) -> Option<Lsn> {
    let name = path.rsplit_once('/')?.1;
    u64::from_str_radix(name.split_once('-')?.0, 16).ok().map(Lsn)
}

/// The epoch in a data file's name; `None` for other names.
pub fn epoch_of(path: &str) -> Option<Epoch> {
    let name = path.rsplit_once('/')?.1.strip_suffix(".parquet")?;
    let (_, epoch) = name.split_once("-e")?;
    epoch.split_once("-p")?.0.parse().ok().map(Epoch)
}

/// `<first commit lsn>-c<run>-p<part>.parquet` in the folder of `date`: a file that compaction made. `run` is random.
pub fn compacted_path(table: &TableName, version: u32, date: &str, first: Lsn, run: u64, part: u64) -> String {
    format!("{}/dt={date}/{:016X}-c{run:016x}-p{part:03}.parquet", table_prefix(table, version), first.0)
}

/// Whether a path is one that [`compacted_path`] made.
pub fn is_compacted(path: &str) -> bool {
    let name = path.rsplit_once('/').and_then(|(_, name)| name.strip_suffix(".parquet"));
    let run = name.and_then(|name| name.split_once("-c")).and_then(|(_, rest)| rest.split_once("-p"));
    run.is_some_and(|(run, _)| run.len() == 16 && run.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// `<checksum>-n<random>.parquet` in the folder of `date`: a file without rows, which a manifest names that would be empty. `checksum`: the
/// file's CRC-32C, so that the name tells its columns.
pub fn rowless_path(table: &TableName, version: u32, date: &str, checksum: u32, random: u64) -> String {
    format!("{}/dt={date}/{checksum:08X}-n{random:016x}.parquet", table_prefix(table, version))
}

/// The checksum in a path that [`rowless_path`] made; `None` for other paths.
pub fn rowless_checksum(path: &str) -> Option<u32> {
    let name = path.rsplit_once('/')?.1.strip_suffix(".parquet")?;
    let (checksum, random) = name.split_once("-n")?;
    let hex = |text: &str, digits| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    (hex(checksum, 8) && hex(random, 16)).then(|| u32::from_str_radix(checksum, 16).ok()).flatten()
}

/// Longest name of a folder: file systems end at 255 bytes.
const FOLDER_BYTES_MAX: usize = 240;

/// `tables/<schema>.<table>`. A name too long for a file system is cut, and told apart by a digest of the whole.
pub fn table_folder(table: &TableName) -> String {
    let mut name = format!("{}.{}", escape(&table.schema), escape(&table.name));
    if name.len() > FOLDER_BYTES_MAX {
        let digest: String = Sha256::digest(&name).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        name.truncate(FOLDER_BYTES_MAX - digest.len() - 2);
        // No escaped name has two of these in a row.
        name = format!("{name}~~{digest}");
    }
    format!("{TABLES}{name}")
}

/// `tables/<schema>.<table>/v<version>`.
pub fn table_prefix(table: &TableName, version: u32) -> String {
    format!("{}/v{version}", table_folder(table))
}

/// Whether a path that a document names can be a data file's of this version. What cannot be was not written by this program, and is not
/// followed or passed on: it may lead out of the lake.
pub(super) fn is_data_of(path: &str, table: &TableName, version: u32) -> bool {
    let below = path.strip_prefix(&table_prefix(table, version)).and_then(|rest| rest.strip_prefix("/dt="));
    let Some((day, name)) = below.and_then(|rest| rest.split_once('/')) else { return false };
    let plain = |text: &str, more: &[u8]| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b));
    plain(day, b"-+") && name.strip_suffix(".parquet").is_some_and(|name| plain(name, b"-"))
}

/// Whether a path lies directly in `folder` (which ends with `/`), with a plain name.
pub(super) fn is_plain_in(path: &str, folder: &str) -> bool {
    let name = path.strip_prefix(folder).and_then(|name| name.strip_suffix(".json"));
    name.is_some_and(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
}

/// `_schema-e<epoch>-<mark>.json`: a schema document's name in its version's folder. The leading underscore makes readers that open a folder
/// skip it. Created once: one epoch writes one content under a mark, so that no two writers meet.
pub fn schema_name(epoch: Epoch, mark: &str) -> String {
    format!("_schema-e{:06}-{mark}.json", epoch.0)
}

/// `tables/<schema>.<table>/v<version>/_published.manifest`: URIs, one a line. Below the version's folder, because BigQuery wants every URI
/// of an external table, its manifest's too, below the hive prefix.
pub fn manifest_path(table: &TableName, version: u32) -> String {
    format!("{}/{MANIFEST}", table_prefix(table, version))
}

/// `tables/<schema>.<table>/v<version>/_published.schema.parquet`: no rows, all columns.
pub fn reference_path(table: &TableName, version: u32) -> String {
    format!("{}/{REFERENCE}", table_prefix(table, version))
}

/// Whether a path is one that [`manifest_path`] made.
pub fn is_manifest(path: &str) -> bool {
    path.starts_with(TABLES) && path.rsplit_once('/').is_some_and(|(_, name)| name == MANIFEST)
}

/// Whether a path below [`TABLES`] is a data file's: in the folder of a day, with a name that does not begin with `_`.
pub fn is_data(path: &str) -> bool {
    path.starts_with(TABLES) && day_of(path).is_some_and(|_| path.rsplit_once('/').is_some_and(|(_, name)| !name.starts_with('_')))
}

/// What a data file's name says. `lsn` and `seq` are those at opening, for people; epoch and part make it unique.
#[derive(Debug, Clone, Copy)]
pub struct DataPath {
    /// Commit LSN of the file's first row.
    pub lsn: Lsn,
    /// The commit expected to name it.
    pub seq: CommitSeq,
    /// The writer's epoch.
    pub epoch: Epoch,
    /// Counts up for the whole epoch.
    pub part: u64,
}

impl DataPath {
    /// The full path in the folder of `date` (`YYYY-MM-DD`).
    pub fn path(&self, table: &TableName, version: u32, date: &str) -> String {
        let prefix = table_prefix(table, version);
        format!("{prefix}/dt={date}/{:016X}-s{:020}-e{:06}-p{:03}.parquet", self.lsn.0, self.seq.0, self.epoch.0, self.part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_escaped_each_for_itself() {
        let table = TableName::new("mi esquema", "año.\"x\"/..");
        assert_eq!(table_prefix(&table, 3), "tables/mi~20esquema.a~C3~B1o~2E~22x~22~2F~2E~2E/v3");
    }

    #[test]
    fn a_name_too_long_for_a_file_system_is_cut_and_stays_its_own() {
        let long = |last: &str| TableName::new("ñ".repeat(31).as_str(), format!("{}{last}", "ñ".repeat(30)).as_str());
        let (a, b) = (table_folder(&long("a")), table_folder(&long("b")));
        assert!(a != b && a.len() == TABLES.len() + FOLDER_BYTES_MAX && a.contains("~~"), "{a}");
        assert_eq!(a, table_folder(&long("a")));
        assert!(is_data_of(&rowless_path(&long("a"), 1, "2026-11-24", 1, 2), &long("a"), 1));
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_no_data_file_s() {
        let table = TableName::new("public", "t");
        let name = DataPath { lsn: Lsn(9), seq: CommitSeq(5), epoch: Epoch(7), part: 12 };
        for good in [name.path(&table, 2, "2026-11-24"), compacted_path(&table, 2, "2026-11-24", Lsn(9), 7, 0)] {
            assert!(is_data_of(&good, &table, 2) && !is_data_of(&good, &table, 1), "{good}");
        }
        for bad in [
            "/etc/passwd",
            "tables/public.t/v2/dt=2026-11-24/../../../x.parquet",
            "tables/public.t/v2/dt=2026-11-24/x\ngs:~~evil.parquet",
            "tables/public.t/v2/dt=2026-11-24/x/y.parquet",
            "tables/public.t/v2/dt=../x.parquet",
            "tables/public.t/v2/dt=2026-11-24/x.json",
            "tables/public.u/v2/dt=2026-11-24/x.parquet",
            "gs://evil/tables/public.t/v2/dt=2026-11-24/x.parquet",
        ] {
            assert!(!is_data_of(bad, &table, 2), "{bad}");
        }
        assert!(
            is_plain_in("state/proposals/00-1.json", "state/proposals/") && !is_plain_in("state/proposals/../x.json", "state/proposals/")
        );
    }

    #[test]
    fn names_tell_what_they_were_made_of() {
        let table = TableName::new("public", "a-c0-e7-p1");
        let streamed = DataPath { lsn: Lsn(9), seq: CommitSeq(5), epoch: Epoch(7), part: 12 }.path(&table, 2, "2026-11-24");
        assert_eq!((epoch_of(&streamed), day_of(&streamed), is_compacted(&streamed)), (Some(Epoch(7)), Some("2026-11-24"), false));
        let compacted = compacted_path(&table, 2, "2026-11-24", Lsn(9), 0xE5, 0);
        assert_eq!((epoch_of(&compacted), day_of(&compacted), is_compacted(&compacted)), (None, Some("2026-11-24"), true));
        let rowless = rowless_path(&table, 2, "2026-11-24", 0xC0FFEE, 9);
        assert_eq!((epoch_of(&rowless), day_of(&rowless), is_compacted(&rowless)), (None, Some("2026-11-24"), false));
        assert_eq!([&streamed, &compacted, &rowless].map(|path| rowless_checksum(path)), [None, None, Some(0xC0FFEE)]);
        assert_eq!(commit_number(&commit_path(CommitSeq(3), Epoch(1_000_000))), Some((CommitSeq(3), Epoch(1_000_000))));
        for other in ["commits/x-e1.json", "commits/1-e+1.json", "tables/a/v1/schema.json", ""] {
            assert!(commit_number(other).is_none() && epoch_of(other).is_none() && !is_compacted(other), "{other}");
            assert!(rowless_checksum(other).is_none(), "{other}");
        }
    }

    #[test]
    fn what_is_published_of_a_version_is_no_data_of_it() {
        let table = TableName::new("public", "donaciones");
        let (manifest, reference) = (manifest_path(&table, 2), reference_path(&table, 2));
        assert_eq!(manifest, "tables/public.donaciones/v2/_published.manifest");
        assert_eq!(reference, "tables/public.donaciones/v2/_published.schema.parquet");
        assert!(is_manifest(&manifest) && !is_manifest(&reference));
        for other in [&manifest, &reference, "tables/a.b/v1/dt=2026-11-24/_x.parquet", "tables/a.b/v1/_schema-1.json", "commits/dt=1/x"] {
            assert!(!is_data(other) && epoch_of(other).is_none() && !is_compacted(other) && rowless_checksum(other).is_none(), "{other}");
        }
        let streamed = DataPath { lsn: Lsn(9), seq: CommitSeq(5), epoch: Epoch(7), part: 12 }.path(&table, 2, "2026-11-24");
        assert!(is_data(&streamed) && is_data(&rowless_path(&table, 2, "2026-11-24", 1, 2)) && !is_manifest(&streamed));
    }

    #[test]
    fn paths_have_the_contracts_shape() {
        assert_eq!(commit_path(CommitSeq(1234), Epoch(7)), "commits/00000000000000001234-e000007.json");
        let path = DataPath { lsn: Lsn(0x16B3748), seq: CommitSeq(5), epoch: Epoch(7), part: 12 };
        assert_eq!(
            path.path(&TableName::new("public", "donaciones"), 2, "2026-11-24"),
            "tables/public.donaciones/v2/dt=2026-11-24/00000000016B3748-s00000000000000000005-e000007-p012.parquet"
        );
    }
}
