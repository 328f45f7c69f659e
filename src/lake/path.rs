//! Paths of the lake's objects.
//!
//! Owns: the escaping of names, the shape of every path. Invariant: two tables never share a folder, and a
//! data file's name is unique in its epoch by its part number alone.

use crate::lsn::{CommitSeq, Epoch, Lsn};
use crate::table_name::TableName;

/// The one object that is replaced at every commit.
pub const WATERMARK: &str = "watermark.json";

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

/// `tables/<schema>.<table>/v<version>`.
pub fn table_prefix(table: &TableName, version: u32) -> String {
    format!("tables/{}.{}/v{version}", escape(&table.schema), escape(&table.name))
}

/// `tables/<schema>.<table>/v<version>/schema.json`.
pub fn schema_path(table: &TableName, version: u32) -> String {
    format!("{}/schema.json", table_prefix(table, version))
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
    fn paths_have_the_contracts_shape() {
        assert_eq!(commit_path(CommitSeq(1234), Epoch(7)), "commits/00000000000000001234-e000007.json");
        let path = DataPath { lsn: Lsn(0x16B3748), seq: CommitSeq(5), epoch: Epoch(7), part: 12 };
        assert_eq!(
            path.path(&TableName::new("public", "donaciones"), 2, "2026-11-24"),
            "tables/public.donaciones/v2/dt=2026-11-24/00000000016B3748-s00000000000000000005-e000007-p012.parquet"
        );
    }
}
