//! A look: what the catalog says of a table at one moment, as far as it tells whether rows changed without a message.
//!
//! Owns: what goes into a look, the one query that reads it for many tables, and whether two of them differ in what old rows read as.
//! Does not own: where rows of a shape go (`schema::version`), what a difference is answered with (`shapes`). Invariants: takes no lock on
//! any table, so that a heartbeat never waits for a DDL; equal definitions of one relation give equal looks on every server version.
//!
//! What can change rows without a message, and the mark that it leaves:
//! - a column with a value for the rows there are (`ADD COLUMN … DEFAULT`, `DROP EXPRESSION`): the column itself (`atthasmissing`, of leaves where
//!   there are such; `attgenerated`);
//! - `ALTER … TYPE … USING`, an added volatile default: written rows of `pg_attribute` **and** another TOAST table, or where there is none another
//!   file. `TRUNCATE` and `VACUUM FULL` keep the TOAST table, write no row of `pg_attribute`, and lose nothing that is not sent;
//! - a partition attached, detached, created, dropped, truncated by itself: the list of leaves, each with its file and the `xmin` of its rows of
//!   `pg_inherits` (detached and attached again, it is another one). A leaf that was created as a partition has no rows from before;
//! - a label of an enum renamed, an attribute added to a composite type: what the column's types are made of. Labels stand in the order of
//!   their making, so that adding one extends the list;
//! - columns that came and went between two looks: `relnatts` counts them for ever;
//! - for tables that a publication does not list one by one (ALL TABLES, IN SCHEMA), which can leave it and come back: `SET SCHEMA` writes the
//!   row type's `pg_type`; `SET UNLOGGED` gives another TOAST table, and where there is none another file.
//!   GRANT, ANALYZE and CREATE INDEX write none of these.
//!
//! An index counts by its columns, not by its oid: `REINDEX CONCURRENTLY` makes a new index, and nothing that a reader sees changes.

use super::rows::{SqlRow, rows};
use super::sql_error::failed;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
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

/// Recursive CTE `tree(root, oid, above, link)`: the partitions, of all levels, below the partitioned tables in `$1`, and when they were attached:
/// `link` to the table above, `above` those further up. (The functions that list a partition tree lock it.) A partition whose concurrent
/// detaching has begun counts as detached.
pub(super) const TREE: &str = "
tree AS (
  SELECT c.oid AS root, c.oid, ''::text AS above, ''::text AS link FROM pg_catalog.pg_class c WHERE c.oid = ANY($1) AND c.relkind = 'p'
  UNION ALL
  SELECT t.root, i.inhrelid, t.above || ',' || t.link, i.xmin::text FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending
)";

/// Whether a leaf was created as a partition of the root, and so without rows: its row type is as old as its link, and a row of `pg_attribute`
/// is as its creation wrote it. ATTACH writes all of them again. (Below another partitioned table it may have come with that one, filled.)
const BORN: &str = "
l.above = ',' AND EXISTS (SELECT FROM pg_catalog.pg_type y JOIN pg_catalog.pg_attribute a ON a.attrelid = l.oid AND a.attnum > 0
         WHERE y.oid = l.reltype AND y.xmin::text = l.link AND a.xmin = y.xmin AND a.cmin = y.cmin)";

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

/// Leaves that are kept one by one: a look is written with every commit. Of more there is a digest of all, and any change of them means a copy.
const LEAVES_MAX: usize = 5_000;

/// What the catalog says of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Digest of oid, kind, replica identity, keys, and each column's definition.
    pub shape: String,
    /// `attnum` of the live columns, as ranges: `1-3,5`.
    pub columns: String,
    /// `pg_class.relnatts`: how many columns there have ever been.
    pub natts: i16,
    /// `attnum` of generated columns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generated: Vec<i16>,
    /// Digest of the `xmin` of the columns' rows in `pg_attribute`.
    pub written: String,
    /// `pg_class.relfilenode`; 0: none (partitioned).
    pub file: u32,
    /// `pg_class.reltoastrelid`; 0: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub toast: u32,
    /// `xmin` of the row type's `pg_type`.
    pub row_type: u32,
    /// What user-made types of columns are made of, by `attnum`: `attributes:labels`, as digests.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub types: BTreeMap<i16, String>,
    /// The partitions that hold rows.
    #[serde(default, skip_serializing_if = "Leaves::is_empty")]
    pub leaves: Leaves,
}

/// Partitions that hold rows, by oid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Leaves {
    kept: BTreeMap<u32, LeafMark>,
    /// Digest of all, where there are too many to keep.
    all: Option<String>,
}

/// A partition that holds rows.
#[derive(Debug, Clone)]
pub struct LeafMark {
    /// Digest of when it was attached, of its file, and of its identity.
    mark: String,
    /// It was created as a partition, or is empty, so that all of its rows were sent. Known of a look just taken; not kept.
    pub empty: bool,
}

impl PartialEq for LeafMark {
    fn eq(&self, other: &Self) -> bool {
        self.mark == other.mark
    }
}

impl Eq for LeafMark {}

impl Leaves {
    /// Those of a list that the catalog gave.
    fn of(kept: BTreeMap<u32, LeafMark>) -> Self {
        if kept.len() <= LEAVES_MAX {
            return Self { kept, all: None };
        }
        Self { all: Some(digest(&text(&kept))), kept: BTreeMap::new() }
    }

    /// Whether the table has none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.all.is_none()
    }

    /// Whether this leaf is among them; `None`: there are too many to know.
    pub fn has(&self, oid: u32) -> Option<bool> {
        self.all.is_none().then(|| self.kept.contains_key(&oid))
    }

    /// Leaves of a look just taken that `before` does not have, and that are not known to have come without rows.
    pub fn unproven<'a>(&'a self, before: &'a Leaves) -> impl Iterator<Item = u32> + 'a {
        self.kept.iter().filter(|(oid, leaf)| !leaf.empty && !before.kept.contains_key(oid)).map(|(oid, _)| *oid)
    }

    /// Says of a leaf that it holds no row.
    pub fn prove_empty(&mut self, oid: u32) {
        if let Some(leaf) = self.kept.get_mut(&oid) {
            leaf.empty = true;
        }
    }

    /// What became of rows without a message from these to `now`, if anything.
    fn changed(&self, now: &Leaves) -> Option<&'static str> {
        if self == now {
            return None;
        }
        if self.all.is_some() || now.all.is_some() {
            return Some("its partitions changed");
        }
        let same = |(oid, leaf): (&u32, &LeafMark)| now.kept.get(oid) == Some(leaf);
        if !self.kept.iter().all(same) {
            return Some("a partition was detached, dropped, attached again, truncated or rewritten");
        }
        let came_empty = |(oid, leaf): (&u32, &LeafMark)| self.kept.contains_key(oid) || leaf.empty;
        (!now.kept.iter().all(came_empty)).then_some("a partition was attached")
    }
}

fn text(leaves: &BTreeMap<u32, LeafMark>) -> String {
    leaves.iter().map(|(oid, leaf)| format!("{oid}:{}", leaf.mark)).collect::<Vec<_>>().join(",")
}

impl From<Leaves> for String {
    fn from(leaves: Leaves) -> Self {
        match leaves.all {
            Some(all) => format!("all:{all}"),
            None => text(&leaves.kept),
        }
    }
}

impl TryFrom<String> for Leaves {
    type Error = String;

    fn try_from(list: String) -> std::result::Result<Self, String> {
        if let Some(all) = list.strip_prefix("all:") {
            return Ok(Self { kept: BTreeMap::new(), all: Some(all.to_owned()) });
        }
        let one = |leaf: &str| {
            let (oid, mark) = leaf.split_once(':')?;
            Some((oid.parse().ok()?, LeafMark { mark: mark.to_owned(), empty: false }))
        };
        let kept = list.split(',').filter(|leaf| !leaf.is_empty()).map(|leaf| one(leaf).ok_or(format!("{leaf:?} is no partition")));
        Ok(Self { kept: kept.collect::<std::result::Result<_, _>>()?, all: None })
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Look {
    /// Whether this column is live.
    pub fn has(&self, attnum: i16) -> bool {
        self.columns.split(',').any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            first.parse().is_ok_and(|first: i16| first <= attnum) && last.parse().is_ok_and(|last: i16| attnum <= last)
        })
    }

    /// Whether columns came after `before` and are gone: rows in between may have had them, under any name.
    pub fn lost_columns_since(&self, before: &Look) -> bool {
        (before.natts.saturating_add(1)..=self.natts).any(|attnum| !self.has(attnum))
    }

    /// What became of rows without a message from this look to `now`, apart from columns that are new. `listed`: the publication names the table
    /// itself, so that it cannot leave it and come back unseen.
    pub fn rows_changed(&self, now: &Look, listed: bool) -> Option<&'static str> {
        if self.written != now.written && self.rewritten(now) {
            return Some("every row was written again");
        }
        if self.types.iter().any(|(attnum, was)| now.types.get(attnum).is_some_and(|is| !is.starts_with(was.as_str()))) {
            return Some("the type of a column is made of other labels or attributes");
        }
        if let Some(reason) = self.leaves.changed(&now.leaves) {
            return Some(reason);
        }
        if listed {
            return None;
        }
        if self.row_type != now.row_type {
            return Some("it was moved, renamed or given to another owner, and may have been out of the publication");
        }
        self.rewritten(now).then_some("it has another file, and may have been out of the WAL (unlogged)")
    }

    /// Whether an ALTER may have written the table again. It puts another TOAST table in its place; where there is none, only the file tells,
    /// which TRUNCATE and VACUUM FULL change too.
    fn rewritten(&self, now: &Look) -> bool {
        if self.toast != 0 && now.toast != 0 {
            return self.toast != now.toast;
        }
        self.file != now.file && self.file != 0 && now.file != 0
    }

    /// Whether both are of one definition whose rows no statement changed without a message, in whichever order they were taken.
    pub fn same_rows(&self, other: &Look, listed: bool) -> bool {
        self.shape == other.shape && self.rows_changed(other, listed).is_none() && other.rows_changed(self, listed).is_none()
    }
}

/// The looks at these relations, by oid; one query. Relations that do not exist are missing from the answer.
pub async fn looks(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<BTreeMap<u32, Look>> {
    let sql = format!(
        "WITH RECURSIVE {TREE},
         {TYPES},
         leaf AS (SELECT t.root, t.above, t.link, c.oid, c.relreplident, c.relfilenode, c.reltype
                    FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid AND c.relkind <> 'p'),
         wanted AS (SELECT oid FROM leaf UNION SELECT pg_catalog.unnest($1)),
         {KEYS}
         SELECT c.oid,
                pg_catalog.json_build_array(
                  c.oid, c.relkind, c.relispartition, c.relreplident, c.relpersistence,
                  (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(k.is_primary, k.is_identity, k.columns)
                                              ORDER BY k.is_primary, k.is_identity, k.columns)
                     FROM keys k WHERE k.relid = c.oid),
                  (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(a.attnum, a.attname, a.atttypid, a.atttypmod,
                                                a.atthasmissing, a.attgenerated, a.attidentity) ORDER BY a.attnum)
                     FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))::text,
                COALESCE((SELECT pg_catalog.string_agg(a.attnum::text || ':' || a.xmin::text, ',' ORDER BY a.attnum)
                   FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), ''),
                c.relfilenode, c.reltoastrelid, c.relnatts,
                COALESCE((SELECT y.xmin::text::pg_catalog.int8 FROM pg_catalog.pg_type y WHERE y.oid = c.reltype), 0),
                ARRAY(SELECT a.attnum FROM pg_catalog.pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
                ARRAY(SELECT a.attnum FROM pg_catalog.pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> '' ORDER BY a.attnum),
                (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(p.attnum, p.labels, p.attributes) ORDER BY p.attnum)
                   FROM part p WHERE p.relid = c.oid)::text,
                (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(l.oid::pg_catalog.int8, {BORN},
                            pg_catalog.json_build_array(l.above, l.link, l.relreplident, l.relfilenode,
                              (SELECT pg_catalog.json_agg(a.attnum ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
                                WHERE a.attrelid = l.oid AND a.atthasmissing AND NOT a.attisdropped),
                              (SELECT pg_catalog.json_agg(k.columns ORDER BY k.columns) FROM keys k
                                WHERE k.relid = l.oid AND CASE l.relreplident WHEN 'd' THEN k.is_primary WHEN 'i' THEN k.is_identity END))::text))
                   FROM leaf l WHERE l.root = c.oid)::text
           FROM pg_catalog.pg_class c
          WHERE c.oid = ANY($1)"
    );
    let rows = rows(client, "looking at the tables' definitions", &sql, &[(&oids, Type::OID_ARRAY)]).await?;
    rows.iter().map(|row| Ok((row.get(0)?, look(row)?))).collect()
}

fn look(row: &SqlRow) -> Result<Look> {
    let text = |at: usize| row.get::<String>(at);
    let list = |at: usize| row.get::<Option<String>>(at);
    Ok(Look {
        shape: digest(&text(1)?),
        written: digest(&text(2)?)[..16].to_owned(),
        file: row.get(3)?,
        toast: row.get(4)?,
        natts: row.get(5)?,
        row_type: u32::try_from(row.get::<i64>(6)?).unwrap_or(0),
        columns: ranges(&row.get::<Vec<i16>>(7)?),
        generated: row.get(8)?,
        types: list(9)?.as_deref().map(types).transpose()?.unwrap_or_default(),
        leaves: list(10)?.as_deref().map(leaves).transpose()?.unwrap_or_default(),
    })
}

/// Which of these relations have an empty file, so that they hold no row that a transaction before this call has written. Those that are
/// locked against reading are not waited for, and count as not empty.
pub async fn empty(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<Vec<u32>> {
    let mut empty = Vec::new();
    if oids.is_empty() {
        return Ok(empty);
    }
    client.batch_execute("SET lock_timeout = '200ms'").await.map_err(|e| failed("setting lock_timeout", e))?;
    for oid in oids {
        let sql = "SELECT pg_catalog.pg_relation_size($1) = 0 FROM pg_catalog.pg_class c
                    WHERE c.oid = $1 AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks k
                                                      WHERE k.relation = c.oid AND k.mode = 'AccessExclusiveLock'
                                                        AND k.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database()))";
        match rows(client, "reading the size of a new partition", sql, &[(oid, Type::OID)]).await {
            Ok(rows) if rows.first().is_some_and(|row| matches!(row.get(0), Ok(Some(true)))) => empty.push(*oid),
            Err(e) if super::error::sqlstate(&e).is_none() => return Err(e),
            Ok(_) | Err(_) => {} // locked, or gone already
        }
    }
    client.batch_execute("RESET lock_timeout").await.map_err(|e| failed("resetting lock_timeout", e))?;
    Ok(empty)
}

fn unreadable(e: serde_json::Error) -> Error {
    Error::retry("the server's list is not the JSON that was asked for").with_source(e)
}

/// A leaf as the query gives it: oid, whether it was created as a partition of the root, what its digest is made of.
type LeafRow = (i64, bool, String);

fn leaves(json: &str) -> Result<Leaves> {
    let list: Vec<LeafRow> = serde_json::from_str(json).map_err(unreadable)?;
    let mark = |(oid, born, parts): LeafRow| (oid as u32, LeafMark { mark: digest(&parts)[..12].to_owned(), empty: born });
    Ok(Leaves::of(list.into_iter().map(mark).collect()))
}

/// `attributes:labels` of each column, as digests; a label's is short and of one length.
fn types(json: &str) -> Result<BTreeMap<i16, String>> {
    let columns: Vec<(i16, Option<Vec<String>>, Option<String>)> = serde_json::from_str(json).map_err(unreadable)?;
    let one = |(number, labels, attributes): &(i16, Option<Vec<String>>, Option<String>)| {
        let labels = labels.as_deref().unwrap_or_default();
        let labels = match labels.len() {
            ..=LABELS_MAX => labels.iter().map(|label| digest(label)[..6].to_owned()).collect(),
            _ => format!("all{}", &digest(&labels.join("\0"))[..16]),
        };
        (*number, format!("{}:{labels}", attributes.as_ref().map_or(String::new(), |list| digest(list)[..8].to_owned())))
    };
    Ok(columns.iter().map(one).collect())
}

/// Ascending numbers as ranges: `1-3,5`.
fn ranges(numbers: &[i16]) -> String {
    let mut ranges: Vec<(i16, i16)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let one = |(first, last): &(i16, i16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(one).collect::<Vec<_>>().join(",")
}

/// The first half of SHA-256, in hex.
fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(written: &str, file: u32) -> Look {
        Look { shape: "s".into(), columns: "1-3".into(), natts: 3, written: written.into(), file, row_type: 7, ..Look::default() }
    }

    fn leaf(mark: &str, empty: bool) -> LeafMark {
        LeafMark { mark: mark.into(), empty }
    }

    #[test]
    fn digest_is_the_head_of_sha_256() {
        assert_eq!(digest(""), "e3b0c44298fc1c149afbf4c8996fb924");
    }

    #[test]
    fn live_columns_are_kept_as_ranges() {
        assert_eq!((ranges(&[]), ranges(&[4]), ranges(&[1, 2, 3, 5, 7, 8])), (String::new(), "4".into(), "1-3,5,7-8".into()));
        let look = Look { columns: "1-3,5".into(), natts: 6, ..Look::default() };
        assert_eq!([0, 1, 3, 4, 5, 6].map(|n| look.has(n)), [false, true, true, false, true, false]);
        assert!(look.lost_columns_since(&Look { natts: 5, ..look.clone() }), "the sixth came and went");
        assert!(!Look { natts: 5, ..look.clone() }.lost_columns_since(&Look { natts: 4, ..look.clone() }));
        assert!(!Look::default().has(1));
    }

    #[test]
    fn only_a_new_file_together_with_written_columns_is_a_rewrite() {
        let before = look("c", 1);
        assert!(before.rows_changed(&look("d", 2), true).is_some());
        for harmless in [look("c", 1), look("c", 2), look("d", 1), look("d", 0)] {
            assert_eq!(before.rows_changed(&harmless, true), None);
        }
    }

    #[test]
    fn a_table_that_is_not_listed_leaves_marks_when_it_was_away() {
        let before = Look { toast: 9, ..look("c", 1) };
        assert!(before.rows_changed(&Look { row_type: 8, ..before.clone() }, false).is_some(), "SET SCHEMA there and back");
        assert!(before.rows_changed(&Look { toast: 10, file: 2, ..before.clone() }, false).is_some(), "SET UNLOGGED and LOGGED");
        assert_eq!(before.rows_changed(&Look { file: 2, ..before.clone() }, false), None, "VACUUM FULL, TRUNCATE");
        assert!(look("c", 1).rows_changed(&look("c", 2), false).is_some(), "without TOAST the file alone tells");
        assert_eq!(before.rows_changed(&Look { row_type: 8, toast: 10, ..before.clone() }, true), None);
    }

    #[test]
    fn a_label_added_is_harmless_and_one_renamed_is_not() {
        let of = |types: &[(i16, &str)]| Look { types: types.iter().map(|(n, t)| (*n, (*t).to_owned())).collect(), ..look("c", 1) };
        let before = of(&[(2, ":aabb")]);
        assert!(before.rows_changed(&of(&[(2, ":aacc")]), true).is_some() && before.rows_changed(&of(&[(2, "f:aabb")]), true).is_some());
        for harmless in [of(&[]), of(&[(2, ":aabb")]), of(&[(2, ":aabbcc")]), of(&[(4, ":dd")])] {
            assert_eq!(before.rows_changed(&harmless, true), None);
        }
        assert!(!before.same_rows(&of(&[(2, ":aacc")]), true) && of(&[(2, ":aabbcc")]).rows_changed(&before, true).is_some());
    }

    #[test]
    fn of_partitions_only_one_that_came_without_rows_is_harmless() {
        let of = |leaves: &[(u32, &str, bool)]| Look {
            leaves: Leaves::of(leaves.iter().map(|(oid, mark, empty)| (*oid, leaf(mark, *empty))).collect()),
            ..look("c", 0)
        };
        let before = of(&[(1, "a", false), (2, "b", false)]);
        assert_eq!(before.rows_changed(&of(&[(1, "a", true), (2, "b", false), (3, "c", true)]), true), None);
        for changed in [&[(1, "a", false)][..], &[(1, "a", false), (2, "x", false)], &[(1, "a", false), (2, "b", false), (3, "c", false)]] {
            assert!(before.rows_changed(&of(changed), true).is_some(), "{changed:?}");
        }
        let text = serde_json::to_string(&before).expect("json");
        let again: Look = serde_json::from_str(&text).expect("what was written");
        assert_eq!((again.rows_changed(&before, true), &again), (None, &before));
        let many = Leaves::of((0..6_000).map(|oid| (oid, leaf("m", true))).collect());
        assert_eq!((many.has(7), String::from(many.clone()).len()), (None, 36));
        assert!(many.changed(&before.leaves).is_some() && before.leaves.changed(&many).is_some() && many.changed(&many).is_none());
    }
}
