//! A table's fingerprint: one short text that changes whenever the table's shape, key or partitions change.
//!
//! Owns: what goes into it, and the one query that reads it for many tables. Does not own: what a change means (versions,
//! re-snapshots). Invariants: takes no lock on any table, so that a heartbeat never waits behind a DDL; equal
//! shapes of one relation give equal fingerprints on every server version and session.
//!
//! It has up to four parts, `shape.columns.file.types`. A leaf counts in the shape with its relation file: `TRUNCATE` of a leaf sends nothing
//! through a publication of its root, and only the file shows it. (Rewrites and a truncated root change it too; the copy that follows
//! is then needless and harmless.) A partitioned table has no file; all of its leaves, as they count in the shape, stand there again, so
//! that leaves that changed are seen when columns changed at the same time: see [`leaves_differ`]. A leaf that was detached and attached again
//! is the same one, with rows that changed meanwhile without a message: `xmin` of the rows of `pg_inherits` above it tells. For a plain table the file stands apart: `TRUNCATE` and `VACUUM FULL` make a new one and lose
//! nothing that is not sent, but `ALTER TABLE … TYPE … USING` and an added volatile default write other values into every row
//! without a message. Those alone also write rows of `pg_attribute` (the columns part): see [`rewritten`].
//! The types part says what the columns' types are made of, column by column: renaming an enum's label, or adding an attribute to a
//! composite type, changes the text of rows that are there, and touches no table. A label that is added changes no row: a column's
//! labels stand in the order of their making, so that the list before is the beginning of the list after.
//! An index counts by its columns, not by its oid: `REINDEX CONCURRENTLY` makes a new index, and nothing that a reader sees changes.

use super::rows::{SqlRow, rows};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

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

/// Recursive CTE `tree(root, oid, links)`: the partitions, of all levels, below the partitioned tables in `$1`, and when they were attached. (The functions
/// that list a partition tree lock it.) A partition whose concurrent detaching has begun counts as detached.
pub(super) const TREE: &str = "
tree AS (
  SELECT c.oid AS root, c.oid, ''::text AS links FROM pg_catalog.pg_class c WHERE c.oid = ANY($1) AND c.relkind = 'p'
  UNION ALL
  SELECT t.root, i.inhrelid, t.links || ',' || i.xmin::text FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending
)";

/// CTE `part(relid, attnum, labels, attributes)`: what the user-made types of a column are made of. Types of the system never change.
const TYPES: &str = "
made(relid, attnum, oid) AS (
  SELECT a.attrelid, a.attnum, a.atttypid FROM pg_catalog.pg_attribute a
   WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 16384
  UNION
  SELECT m.relid, m.attnum, u.oid FROM made m JOIN pg_catalog.pg_type t ON t.oid = m.oid
   CROSS JOIN LATERAL (SELECT t.typelem UNION ALL SELECT t.typbasetype
     UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
     UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid OR r.rngmultitypid = t.oid) AS u(oid)
   WHERE u.oid >= 16384
),
part AS (
  SELECT * FROM (
    SELECT m.relid, m.attnum,
           pg_catalog.json_agg(e.enumlabel::text ORDER BY e.oid) FILTER (WHERE e.oid IS NOT NULL) AS labels,
           pg_catalog.string_agg(DISTINCT t.typrelid || ':' || a.attnum || ':' || a.atttypid || ':' || a.atttypmod, ',') AS attributes
      FROM made m JOIN pg_catalog.pg_type t ON t.oid = m.oid
      LEFT JOIN pg_catalog.pg_enum e ON e.enumtypid = t.oid
      LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid AND t.typrelid <> 0 AND a.attnum > 0 AND NOT a.attisdropped
     GROUP BY m.relid, m.attnum) AS p
   WHERE p.labels IS NOT NULL OR p.attributes IS NOT NULL
)";

/// Labels of a column that are kept one by one; of more there is a digest of all, and an added one means a needless copy.
const LABELS_MAX: usize = 64;

/// Digits of the leaves' digest: more than any file's number has, and so told apart from one.
const LEAVES_LEN: usize = 16;

/// The fingerprints of these relations, by oid; one query. Relations that do not exist are missing from the answer.
pub async fn fingerprints(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<BTreeMap<u32, String>> {
    let sql = format!(
        "WITH RECURSIVE {TREE},
         {TYPES},
         leaf AS (SELECT t.root, t.links, c.oid, c.relreplident, c.relfilenode FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid AND c.relkind <> 'p'),
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
                  leaves.list)::text,
                (SELECT pg_catalog.string_agg(a.attnum::text || ':' || a.xmin::text, ',' ORDER BY a.attnum)
                   FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
                c.relfilenode,
                (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(p.attnum, p.labels, p.attributes) ORDER BY p.attnum)
                   FROM part p WHERE p.relid = c.oid)::text,
                leaves.list::text
           FROM pg_catalog.pg_class c
          CROSS JOIN LATERAL (
                SELECT pg_catalog.json_agg(pg_catalog.json_build_array(l.oid, l.links, l.relreplident, l.relfilenode,
                            (SELECT pg_catalog.json_agg(k.columns ORDER BY k.columns) FROM keys k
                              WHERE k.relid = l.oid AND CASE l.relreplident WHEN 'd' THEN k.is_primary WHEN 'i' THEN k.is_identity END))
                          ORDER BY l.oid) AS list
                  FROM leaf l WHERE l.root = c.oid) AS leaves
          WHERE c.oid = ANY($1)"
    );
    let rows = rows(client, "reading the tables' fingerprints", &sql, &[(&oids, Type::OID_ARRAY)]).await?;
    let text = |row: &SqlRow| -> Result<String> {
        let (shape, columns): (String, Option<String>) = (row.get(1)?, row.get(2)?);
        let types = row.get::<Option<String>>(4)?.as_deref().map(types_part).transpose()?;
        let types = types.map(|types| format!(".{types}")).unwrap_or_default();
        let file = match row.get::<Option<String>>(5)? {
            Some(leaves) => digest(&leaves)[..LEAVES_LEN].to_owned(),
            None => format!("{:x}", row.get::<u32>(3)?),
        };
        Ok(format!("{}.{}.{file}{types}", digest(&shape), &digest(&columns.unwrap_or_default())[..16]))
    };
    rows.iter().map(|row| Ok((row.get(0)?, text(row)?))).collect()
}

/// Whether two fingerprints are of one shape, whose rows no statement changed without a message.
pub fn same_rows(before: &str, now: &str) -> bool {
    same_shape(before, now) && !rewritten(before, now)
}

/// Whether two fingerprints are of one shape, whatever became of the rows.
pub fn same_shape(before: &str, now: &str) -> bool {
    parts(before)[0] == parts(now)[0]
}

/// Whether a statement between these two looks may have changed rows without a message: the table has another file and a
/// column's catalogue row was written, or a column's type is made of something else.
pub fn rewritten(before: &str, now: &str) -> bool {
    let anew = match (parts(before), parts(now)) {
        ([_, Some(columns_before), Some(file_before), _], [_, Some(columns), Some(file), _]) => {
            columns_before != columns && file_before != file
        }
        _ => false,
    };
    anew || retyped(parts(before)[3].unwrap_or_default(), parts(now)[3].unwrap_or_default())
}

/// Whether the partitions that hold rows are others, or were truncated, whatever else changed. Without leaves in either: no.
pub fn leaves_differ(before: &str, now: &str) -> bool {
    let leaves = |fingerprint| parts(fingerprint)[2].filter(|part| part.len() == LEAVES_LEN || *part == "0");
    leaves(before).zip(leaves(now)).is_some_and(|(before, now)| before != now)
}

/// Whether the types of a column that both have differ in more than labels at the end. It does not matter which of them is older.
fn retyped(one: &str, other: &str) -> bool {
    let columns =
        |part: &'_ str| part.split(',').filter_map(|column| column.split_once('=')).map(|(n, is)| (n.to_owned(), is.to_owned())).collect();
    let (one, other): (BTreeMap<String, String>, BTreeMap<String, String>) = (columns(one), columns(other));
    one.iter().any(|(number, is)| other.get(number).is_some_and(|was| !is.starts_with(was.as_str()) && !was.starts_with(is.as_str())))
}

/// `attnum=attributes:labels,…`, as digests; a label's is short and of one length.
fn types_part(json: &str) -> Result<String> {
    let unreadable = |e: serde_json::Error| Error::retry("the server's list of types is not the JSON that was asked for").with_source(e);
    let columns: Vec<(i16, Option<Vec<String>>, Option<String>)> = serde_json::from_str(json).map_err(unreadable)?;
    let one = |(number, labels, attributes): &(i16, Option<Vec<String>>, Option<String>)| {
        let labels = labels.as_deref().unwrap_or_default();
        let labels = match labels.len() {
            ..=LABELS_MAX => labels.iter().map(|label| digest(label)[..6].to_owned()).collect(),
            _ => format!("all{}", &digest(&labels.join("\0"))[..16]),
        };
        format!("{number}={}:{labels}", attributes.as_ref().map_or(String::new(), |list| digest(list)[..8].to_owned()))
    };
    Ok(columns.iter().map(one).collect::<Vec<_>>().join(","))
}

fn parts(fingerprint: &str) -> [Option<&str>; 4] {
    let mut parts = fingerprint.split('.');
    [parts.next(), parts.next(), parts.next(), parts.next()]
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
        assert!(rewritten("s.c.1.2=:aabb", "s.c.1.2=:aacc") && rewritten("s.c.1.3=ff:", "s.c.1.3=fe:"), "a label or an attribute changed");
        for now in ["s.c.1", "s.c.1.2=:aabb", "s.c.1.2=:aabbcc", "s.c.1.2=:aa,4=:dd", "s.c.1.4=:dd"] {
            assert!(!rewritten("s.c.1.2=:aabb", now) && !rewritten(now, "s.c.1.2=:aabb"), "{now}");
        }
        let (one, other) = ("s.c.0123456789abcdef", "t.d.fedcba9876543210");
        assert!(leaves_differ(one, other) && rewritten(one, other) && leaves_differ("s.c.0", one), "leaves");
        assert!(!leaves_differ(one, "t.d.0123456789abcdef") && !leaves_differ("s.c.1", "s.c.2") && !leaves_differ("", one));
        assert!(same_rows("s.c.1", "s.c.2") && same_rows("s.c.1", "s.d.1"));
        assert!(!same_rows("s.c.1", "t.c.1") && !same_rows("s.c.1", "s.d.2"));
    }
}
