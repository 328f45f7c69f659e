//! A table's fingerprint: one short text that changes whenever the table's shape, key or partitions change.
//!
//! Owns: what goes into it, and the one query that reads it for many tables. Does not own: what a change means (versions,
//! re-snapshots). Invariants: takes no lock on any table, so that a heartbeat never waits behind a DDL; equal
//! shapes of one relation give equal fingerprints on every server version and session.
//!
//! It has three parts, `shape.columns.file`. A leaf counts in the shape with its relation file: `TRUNCATE` of a leaf sends nothing
//! through a publication of its root, and only the file shows it. (Rewrites and a truncated root change it too; the copy that follows
//! is then needless and harmless.) For a plain table the file stands apart: `TRUNCATE` and `VACUUM FULL` make a new one and lose
//! nothing that is not sent, but `ALTER TABLE … TYPE … USING` and an added volatile default write other values into every row
//! without a message. Those alone also write rows of `pg_attribute` (the columns part): see [`rewritten`].
//! An index counts by its columns, not by its oid: `REINDEX CONCURRENTLY` makes a new index, and nothing that a reader sees changes.

use super::sql_error::failed;
use crate::error::Result;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row};

/// CTE `keys(relid, is_primary, is_identity, columns)`: the unique indexes that the server logs as a row's identity, and
/// primary keys. A deferrable key is none: its values may be twice in the table for a while. INCLUDE columns do not count.
pub(super) const KEYS: &str = "
keys AS (
  SELECT i.indrelid AS relid, i.indisprimary AS is_primary, i.indisreplident AS is_identity,
         ARRAY(SELECT a.attname::text
                 FROM pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k(attnum, ord)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                WHERE k.ord <= i.indnkeyatts ORDER BY k.ord) AS columns
    FROM pg_catalog.pg_index i
   WHERE i.indrelid IN (SELECT oid FROM wanted)
     AND (i.indisprimary OR i.indisreplident) AND i.indisvalid AND i.indimmediate
)";

/// Recursive CTE `tree(root, oid)`: the partitions, of all levels, below the partitioned tables in `$1`. (The functions
/// that list a partition tree lock it.) A partition whose concurrent detaching has begun counts as detached.
pub(super) const TREE: &str = "
tree AS (
  SELECT c.oid AS root, c.oid FROM pg_catalog.pg_class c WHERE c.oid = ANY($1) AND c.relkind = 'p'
  UNION ALL
  SELECT t.root, i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending
)";

/// The fingerprints of these relations, by oid; one query. Relations that do not exist are missing from the answer.
pub async fn fingerprints(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<BTreeMap<u32, String>> {
    let sql = format!(
        "WITH RECURSIVE {TREE},
         leaf AS (SELECT t.root, c.oid, c.relreplident, c.relfilenode FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid AND c.relkind <> 'p'),
         wanted AS (SELECT oid FROM leaf UNION SELECT pg_catalog.unnest($1)),
         {KEYS}
         SELECT c.oid,
                pg_catalog.json_build_array(
                  c.oid, c.relkind, c.relispartition, c.relreplident,
                  (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(k.is_primary, k.is_identity, k.columns)
                                              ORDER BY k.is_primary, k.is_identity, k.columns)
                     FROM keys k WHERE k.relid = c.oid),
                  (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(a.attnum, a.attname, a.atttypid, a.atttypmod,
                                                a.atthasmissing, a.attgenerated, a.attidentity) ORDER BY a.attnum)
                     FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
                  (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(l.oid, l.relreplident, l.relfilenode,
                            (SELECT pg_catalog.json_agg(k.columns ORDER BY k.columns) FROM keys k
                              WHERE k.relid = l.oid AND CASE l.relreplident WHEN 'd' THEN k.is_primary WHEN 'i' THEN k.is_identity END))
                          ORDER BY l.oid)
                     FROM leaf l WHERE l.root = c.oid))::text,
                (SELECT pg_catalog.string_agg(a.attnum::text || ':' || a.xmin::text, ',' ORDER BY a.attnum)
                   FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
                c.relfilenode
           FROM pg_catalog.pg_class c WHERE c.oid = ANY($1)"
    );
    let rows = client.query_typed(&sql, &[(&oids, Type::OID_ARRAY)]).await.map_err(|e| failed("reading the tables' fingerprints", e))?;
    let text = |row: &Row| {
        let columns: Option<&str> = row.get(2);
        format!("{}.{}.{:x}", digest(row.get(1)), &digest(columns.unwrap_or_default())[..16], row.get::<_, u32>(3))
    };
    Ok(rows.iter().map(|row| (row.get(0), text(row))).collect())
}

/// Whether two fingerprints are of one shape, whose rows no statement changed without a message.
pub fn same_rows(before: &str, now: &str) -> bool {
    same_shape(before, now) && !rewritten(before, now)
}

/// Whether two fingerprints are of one shape, whatever became of the rows.
pub fn same_shape(before: &str, now: &str) -> bool {
    parts(before)[0] == parts(now)[0]
}

/// Whether a statement between these two looks may have changed rows without a message: the table has another file, and a
/// column's catalogue row was written.
pub fn rewritten(before: &str, now: &str) -> bool {
    match (parts(before), parts(now)) {
        ([_, Some(columns_before), Some(file_before)], [_, Some(columns), Some(file)]) => columns_before != columns && file_before != file,
        _ => false,
    }
}

fn parts(fingerprint: &str) -> [Option<&str>; 3] {
    let mut parts = fingerprint.split('.');
    [parts.next(), parts.next(), parts.next()]
}

/// The first half of SHA-256, in hex.
fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_the_head_of_sha_256() {
        assert_eq!(digest(""), "e3b0c44298fc1c149afbf4c8996fb924");
    }

    #[test]
    fn only_a_new_file_together_with_written_columns_is_a_rewrite() {
        assert!(rewritten("s.c.1", "s.d.2"));
        assert!(rewritten("s.c.1", "t.d.2"), "whatever the shape");
        for (before, now) in [("s.c.1", "s.c.1"), ("s.c.1", "s.c.2"), ("s.c.1", "s.d.1"), ("s", "s.d.2"), ("", "s.d.2")] {
            assert!(!rewritten(before, now), "{before} {now}");
        }
        assert!(same_rows("s.c.1", "s.c.2") && same_rows("s.c.1", "s.d.1"));
        assert!(!same_rows("s.c.1", "t.c.1") && !same_rows("s.c.1", "s.d.2"));
    }
}
