//! A version of a table: what one external table of a warehouse can read; and how a shape that arrives fits into it.
//!
//! Owns: the schema document, the layout from a RELATION message to lake columns, the rule which changes of shape stay
//! within a version. Does not own: noticing a change, numbering versions (`replicate`). Invariants: a column's
//! lake type never changes within a version; a column's name in the lake never changes; columns are only added at the end.

use super::hash::HashKey;
use super::names::LakeNames;
pub use super::privacy::Privacy;
use super::types::{Conversion, LakeType, PgType, conversion, precision_and_scale};
use crate::error::{Error, Result};
use crate::pgoutput::{Relation, ReplicaIdentity};
use crate::postgres::catalogue::{BaseType, Column, Table};
use crate::table_name::TableName;
use arrow_schema::{Field, Schema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The columns that every data file carries after the table's own.
pub const METADATA: [&str; 8] = ["_op", "_commit_lsn", "_seq", "_commit_ts", "_xid", "_unchanged", "_old_key", "_exceptions"];

/// A column of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaColumn {
    /// Name in the lake.
    pub name: String,
    /// Name at the source.
    pub source: String,
    /// `pg_attribute.attnum`.
    pub attnum: i16,
    /// Type at the source, as it was last seen.
    pub type_oid: u32,
    /// Type modifier at the source, as it was last seen.
    pub typmod: i32,
    /// Type's name at the source (domains by their base type).
    pub source_type: String,
    /// Type in the lake, fixed for the version.
    pub lake_type: LakeType,
    /// How text becomes a cell.
    pub conversion: Conversion,
    /// Stored as HMAC-SHA-256 of the text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hashed: bool,
    /// Dropped at the source: NULL in newer rows, absent in newer files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
}

/// A version of a table, as its schema document and the footers of its files hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// Table.
    pub table: TableName,
    /// Version number, from 1.
    pub version: u32,
    /// `pg_class.oid`.
    pub oid: u32,
    /// Columns in their order in the files, dropped ones included.
    pub columns: Vec<SchemaColumn>,
    /// Lake names of the key's columns; empty: no key, the state is a multiset.
    pub key: Vec<String>,
    /// `attnum` of columns that were kept out: one that is let in later has values in the rows there are, so that needs a new version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<i16>,
    /// Their names when that was last seen, by `attnum`: whose name is another now was renamed, whoever bears the old one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub excluded_names: BTreeMap<i16, String>,
    /// Mark of the key of its hashes (never the key); a version has one key from its first row to its last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_key: Option<String>,
}

/// How the columns of a tuple on the wire lie in a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// For each wire column the index of the schema's column; `None` for an excluded one.
    pub slots: Vec<Option<usize>>,
    /// Indices of wire columns that form the key, in wire order.
    pub key: Vec<usize>,
    /// Indices of live schema columns that the wire does not have.
    pub absent: Vec<usize>,
}

/// What a shape means for a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// It is the version's.
    Same(Layout),
    /// It stays within the version, which becomes `schema`. Whether rows that are there already need a copy is not told by a shape.
    Extends {
        /// The version with its new or dropped columns.
        schema: Box<TableSchema>,
        /// Layout in it.
        layout: Layout,
        /// What changed, for people.
        what: String,
    },
    /// It needs a new version.
    Breaks(String),
}

impl TableSchema {
    /// Begins a version with the catalogue's present shape.
    pub fn begin(table: &Table, version: u32, privacy: &Privacy) -> Self {
        let mut schema = TableSchema {
            table: table.name.clone(),
            version,
            oid: table.oid,
            columns: Vec::new(),
            key: Vec::new(),
            excluded: Vec::new(),
            excluded_names: BTreeMap::new(),
            hash_key: None,
        };
        for column in live(table) {
            if privacy.keeps_out_of(table, column) {
                schema.keep_out(column);
            } else {
                schema.push(column, privacy);
            }
        }
        schema.key = table.key.iter().filter_map(|name| schema.by_source(name)).map(|c| c.name.clone()).collect();
        schema
    }

    fn keep_out(&mut self, column: &Column) {
        if !self.excluded.contains(&column.attnum) {
            self.excluded.push(column.attnum);
        }
        self.excluded_names.insert(column.attnum, column.name.clone());
    }

    fn push(&mut self, column: &Column, privacy: &Privacy) {
        let hashed = privacy.hash.contains(&column.name);
        if hashed {
            self.hash_key = privacy.hash_key.clone();
        }
        let pg = PgType {
            oid: column.base.oid,
            typmod: column.base.typmod,
            name: column.base.name.clone(),
            element: column.base.element,
            element_typmod: column.base.element_typmod,
            delimiter: column.base.delimiter,
        };
        let conversion = conversion(&pg);
        let mut names = LakeNames::default();
        self.columns.iter().for_each(|c| names.reserve(&c.name));
        let name = names.assign(&column.name);
        self.columns.push(SchemaColumn {
            name,
            source: column.name.clone(),
            attnum: column.attnum,
            type_oid: column.type_oid,
            typmod: column.typmod,
            source_type: column.base.name.clone(),
            lake_type: if hashed { LakeType::String } else { conversion.lake_type() },
            conversion,
            hashed,
            dropped: false,
        });
    }

    /// Whether it keeps from the lake what `privacy` says, and nothing else; if not, a new version is needed.
    ///
    /// # Errors
    /// As [`TableSchema::guard`]: no answer is safe then.
    pub fn honours(&self, privacy: &Privacy, table: &Table) -> Result<bool> {
        self.guard(privacy, table)?;
        let let_in = |column: &Column| self.excluded.contains(&column.attnum) && !privacy.keeps_out_of(table, column);
        let as_asked = |c: &SchemaColumn| !self.reveals(c, privacy) && c.hashed == privacy.hash.contains(&c.source);
        Ok(!self.has_other_key(privacy) && !live(table).any(let_in) && self.columns.iter().filter(|c| !c.dropped).all(as_asked))
    }

    /// Refuses to go on from this version where private cells would come in under a new name, or hashes by a new key.
    ///
    /// # Errors
    /// `Kind::Config`.
    pub fn guard(&self, privacy: &Privacy, table: &Table) -> Result<()> {
        if let Some(name) = self.renamed_private(privacy, table) {
            return Err(Error::config(format!(
                "table {}: column {name} was excluded or hashed under a name that the table no longer has; nothing of it is written under the new one. \
                 Correct exclude or hash",
                table.name
            )));
        }
        self.guard_key(privacy)
    }

    /// The part of [`TableSchema::guard`] that concerns the key: refuses another one, unless that is what was asked for or nothing that the
    /// version hashes is to be hashed any more.
    ///
    /// # Errors
    /// `Kind::Config`.
    pub fn guard_key(&self, privacy: &Privacy) -> Result<()> {
        let still_hashed = self.columns.iter().any(|c| c.hashed && !c.dropped && privacy.hash.contains(&c.source));
        if still_hashed && !privacy.rehash { self.require_key(privacy.hash_key.as_deref()) } else { Ok(()) }
    }

    /// Refuses another key (given by its mark) than the one that the version's hashes are made with.
    ///
    /// # Errors
    /// `Kind::Config`.
    fn require_key(&self, mark: Option<&str>) -> Result<()> {
        if !self.hashes() || self.hash_key.as_deref() == mark {
            return Ok(());
        }
        let what = if mark.is_none() { "is not set, and" } else { "is another than the one that" };
        Err(Error::config(format!(
            "HUELLA_HASH_KEY {what} version {} of {} was begun with: equal values would no longer have equal hashes. Set the former key; or, to \
             change it, run `huella run --rehash` (snapshot tables: `huella snapshot --rehash`) once, which copies the tables that hash into new versions",
            self.version, self.table
        )))
    }

    /// The key of the version's hashes, if it is the one that it was begun with: whoever writes or compares hashes gets it here.
    ///
    /// # Errors
    /// As [`TableSchema::require_key`].
    pub fn hasher<'a>(&self, key: Option<&'a HashKey>) -> Result<&'a HashKey> {
        self.require_key(key.map(HashKey::mark).as_deref())?;
        key.ok_or_else(|| Error::config(format!("{}: a column is hashed, and HUELLA_HASH_KEY is not set", self.table)))
    }

    /// Whether a live column is hashed.
    pub fn hashes(&self) -> bool {
        self.columns.iter().any(|c| c.hashed && !c.dropped)
    }

    fn has_other_key(&self, privacy: &Privacy) -> bool {
        self.hashes() && self.hash_key != privacy.hash_key
    }

    /// A column that was kept out or hashed, and now has a name under which `privacy`, which still has the old one, does not know it; or,
    /// where `privacy` lists what is published, the name of a column that is.
    fn renamed_private<'a>(&self, privacy: &Privacy, table: &'a Table) -> Option<&'a str> {
        // Names that a column list at the source leaves out are not in `table`.
        let stale = privacy.exclude.iter().any(|name| column(table, name).is_none());
        let still_asked = |c: &Column| self.excluded_names.get(&c.attnum).is_some_and(|name| privacy.exclude.contains(name));
        let usurps = |c: &Column| privacy.include.is_some() && self.by_source(&c.name).is_some_and(|old| old.attnum != c.attnum);
        let was_out = |c: &Column| {
            let unknown = stale && !privacy.hash.contains(&c.name);
            self.excluded.contains(&c.attnum) && (unknown || still_asked(c) || usurps(c))
        };
        let was_hashed = |c: &Column| {
            let old = self.columns.iter().find(|old| old.hashed && !old.dropped && old.attnum == c.attnum);
            !privacy.hash.contains(&c.name) && old.is_some_and(|old| privacy.hash.contains(&old.source))
        };
        let mut let_in = live(table).filter(|c| !privacy.keeps_out_of(table, c));
        let_in.find(|c| was_out(c) || was_hashed(c)).map(|c| c.name.as_str())
    }

    /// Whether cells of the column would show what `privacy` keeps from the lake.
    fn reveals(&self, column: &SchemaColumn, privacy: &Privacy) -> bool {
        let in_key = self.key.contains(&column.name);
        privacy.keeps_out(&column.source, in_key) || (privacy.hash.contains(&column.source) && !column.hashed)
    }

    /// The live column of that name at the source.
    pub fn by_source(&self, source: &str) -> Option<&SchemaColumn> {
        self.columns.iter().find(|c| !c.dropped && c.source == source)
    }

    /// Indices of the key's columns, in the key's order.
    pub fn key_indices(&self) -> Vec<usize> {
        self.key.iter().filter_map(|k| self.columns.iter().position(|c| !c.dropped && c.name == *k)).collect()
    }

    /// How a RELATION message fits. `table` is the catalog's present view of it, where it has one: it may be ahead of the stream. `types`: what
    /// is below the declared types of columns that the catalog does not have any more.
    pub fn fit_relation(&self, relation: &Relation, table: Option<&Table>, privacy: &Privacy, types: &WireTypes) -> Fit {
        let wire: Vec<WireColumn<'_>> = relation
            .columns
            .iter()
            .map(|c| WireColumn {
                name: &c.name,
                type_oid: c.type_oid,
                typmod: c.typmod,
                catalogue: table.and_then(|t| column(t, &c.name)),
                bare: types.get(&(c.type_oid, c.typmod)),
                streamed: true,
                generated: table.is_some_and(|t| t.columns.iter().any(|known| known.generated && known.name == c.name)),
            })
            .collect();
        let key: Option<Vec<&str>> = match relation.identity {
            // FULL flags every column; the key is then the catalogue's business.
            ReplicaIdentity::Full => table.map(|t| t.key.iter().map(String::as_str).collect()),
            ReplicaIdentity::Default | ReplicaIdentity::Index => {
                Some(relation.columns.iter().filter(|c| c.key).map(|c| c.name.as_str()).collect())
            }
            ReplicaIdentity::Nothing => None,
        };
        self.fit(relation.id, &wire, key, table, privacy)
    }

    /// How the catalogue's present shape fits.
    pub fn fit_catalogue(&self, table: &Table, privacy: &Privacy) -> Fit {
        let wire: Vec<WireColumn<'_>> = live(table)
            .map(|c| WireColumn {
                name: &c.name,
                type_oid: c.type_oid,
                typmod: c.typmod,
                catalogue: Some(c),
                bare: None,
                streamed: false,
                generated: false,
            })
            .collect();
        self.fit(table.oid, &wire, Some(table.key.iter().map(String::as_str).collect()), None, privacy)
    }

    fn fit(&self, oid: u32, wire: &[WireColumn<'_>], key: Option<Vec<&str>>, table: Option<&Table>, privacy: &Privacy) -> Fit {
        if oid != self.oid {
            return Fit::Breaks(format!("the table was dropped and created again (oid {} became {oid})", self.oid));
        }
        if self.has_other_key(privacy) {
            return Fit::Breaks("its hashes were made with another key".to_owned());
        }
        let in_key = |name: &str| match &key {
            Some(key) => key.contains(&name),
            None => self.by_source(name).is_some_and(|known| self.key.contains(&known.name)),
        };
        let out = |c: &WireColumn<'_>| privacy.keeps_out(c.name, in_key(c.name));
        let mut next = self.clone();
        let mut what = Vec::new();
        let mut added = false;
        let kept_out = wire.iter().filter(|c| out(c)).filter_map(|c| c.catalogue);
        for column in kept_out.filter(|c| !self.excluded.contains(&c.attnum) && self.by_source(&c.name).is_none()) {
            next.keep_out(column);
            what.push(format!("column {} excluded", column.name));
        }
        // Renamed, and the configuration followed.
        let kept_out = wire.iter().filter(|c| out(c)).filter_map(|c| c.catalogue);
        let renamed = kept_out.filter(|c| self.excluded.contains(&c.attnum) && self.excluded_names.get(&c.attnum) != Some(&c.name));
        for column in renamed {
            next.keep_out(column);
            what.push(format!("column {} excluded", column.name));
        }
        for column in wire.iter().filter(|c| !c.generated && !out(c)) {
            let Some(index) = next.columns.iter().position(|c| !c.dropped && c.source == column.name) else {
                if self.late(column, privacy).is_some() {
                    continue;
                }
                match self.added(column, wire) {
                    Ok(found) => {
                        what.push(format!("column {} added: {}", column.name, column.shown()));
                        next.push(&found, privacy);
                        added = true;
                        continue;
                    }
                    Err(reason) => return Fit::Breaks(reason),
                }
            };
            let known = &mut next.columns[index];
            if known.attnum == 0 && !column.streamed {
                return Fit::Breaks(format!("column {} is another one than the stream brought before", column.name));
            }
            if let Some(found) = column.catalogue
                && found.attnum != known.attnum
                && known.attnum != 0
                && found.type_oid == column.type_oid
            {
                return Fit::Breaks(format!(
                    "column {} is another one now (dropped and added again, or names were exchanged)",
                    column.name
                ));
            }
            if (known.type_oid, known.typmod) != (column.type_oid, column.typmod) {
                let behind = column.catalogue.is_none_or(|found| (found.type_oid, found.typmod) != (column.type_oid, column.typmod));
                if behind && widens((column.type_oid, column.typmod), (known.type_oid, known.typmod), known) {
                    continue; // a widening that the catalogue showed already
                }
                let known_already = column.catalogue.is_some_and(|found| (found.type_oid, found.typmod) == (known.type_oid, known.typmod));
                if known_already {
                    return Fit::Breaks(format!("column {} came with the type it had before this version", column.name));
                }
                let became = format!("{} became {}", shown(&known.source_type, known.type_oid, known.typmod), column.shown());
                if !widens((known.type_oid, known.typmod), (column.type_oid, column.typmod), known) {
                    return Fit::Breaks(format!("column {} changed its type: {became}", column.name));
                }
                what.push(format!("column {} became wider: {became}", column.name));
                known.type_oid = column.type_oid;
                known.typmod = column.typmod;
                if !known.hashed
                    && let Some(found) = column.catalogue.filter(|f| f.type_oid == column.type_oid)
                {
                    known.source_type = found.base.name.clone();
                }
            }
        }
        for index in 0..next.columns.len() {
            let gone = &next.columns[index];
            let behind = table.is_some_and(|t| column(t, &gone.source).is_some_and(|c| c.attnum == gone.attnum));
            if !gone.dropped && !behind && !wire.iter().any(|c| c.name == gone.source) {
                if next.key.contains(&gone.name) {
                    return Fit::Breaks(format!("the key changed: its column {} was dropped", gone.source));
                }
                if gone.attnum == 0 && added {
                    // When the stream brought it, the catalog had it no longer: it may be the new one under its former name.
                    return Fit::Breaks(format!("column {} went while another one came: it may have been renamed", gone.source));
                }
                what.push(format!("column {} dropped", gone.source));
                next.columns[index].dropped = true;
            }
        }
        if let Some(key) = key {
            let named: Option<Vec<&str>> = key.iter().map(|k| next.by_source(k).map(|c| c.name.as_str())).collect();
            let mut now = named.unwrap_or_default();
            let mut before: Vec<&str> = next.key.iter().map(String::as_str).collect();
            now.sort_unstable();
            before.sort_unstable();
            if now != before {
                let list = |key: &[&str]| if key.is_empty() { "none".to_owned() } else { key.join(", ") };
                return Fit::Breaks(format!("the key changed: ({}) became ({})", list(&before), list(&now)));
            }
        }
        let layout = next
            .layout(wire.iter().map(|c| c.name), privacy, |name| wire.iter().find(|c| c.name == name).and_then(|c| next.late(c, privacy)));
        if next == *self { Fit::Same(layout) } else { Fit::Extends { schema: Box::new(next), layout, what: what.join(", ") } }
    }

    /// Whether a column that the version does not know may be added to it.
    fn added(&self, column: &WireColumn<'_>, wire: &[WireColumn<'_>]) -> Result<Column, String> {
        let name = column.name;
        let found = match (column.catalogue.filter(|f| f.type_oid == column.type_oid), column.bare) {
            (Some(found), _) => found.clone(),
            // Dropped, renamed or retyped since: of its number nothing is known.
            (None, Some(base)) => Column::of_type(name, (column.type_oid, column.typmod), base.clone()),
            (None, None) => return Err(format!("column {name} appeared and the catalog no longer knows it")),
        };
        let every_other = |known: &SchemaColumn| known.dropped || wire.iter().any(|c| c.name == known.source);
        if found.attnum == 0 && !self.columns.iter().all(every_other) {
            return Err(format!("column {name} appeared while another one went, and the catalog no longer knows it"));
        }
        if let Some(old) = self.columns.iter().find(|c| !c.dropped && c.attnum == found.attnum && c.attnum != 0) {
            return Err(format!("column {} was renamed to {name}", old.source));
        }
        let at_the_end = wire.iter().skip_while(|c| c.name != name).all(|c| self.by_source(c.name).is_none());
        if !at_the_end {
            return Err(format!("column {name} appeared before columns known already"));
        }
        if self.columns.iter().any(|c| c.dropped && c.source == name) {
            return Err(format!("column {name} was dropped earlier and added again"));
        }
        Ok(found)
    }

    /// A column that the catalogue showed as dropped already while the stream is still before that.
    fn late(&self, column: &WireColumn<'_>, privacy: &Privacy) -> Option<usize> {
        let fits = |c: &SchemaColumn| !c.hashed || self.hash_key == privacy.hash_key;
        let known = |c: &SchemaColumn| c.dropped && c.source == column.name && c.type_oid == column.type_oid && fits(c);
        self.columns.iter().rposition(known).filter(|_| column.catalogue.is_none())
    }

    /// The layout of tuples with these columns; the schema knows them all but for excluded ones. Rows that are older than a change of
    /// `privacy` still belong to a version of before; there the columns that it would reveal stay NULL.
    fn layout<'a>(&self, wire: impl Iterator<Item = &'a str>, privacy: &Privacy, late: impl Fn(&str) -> Option<usize>) -> Layout {
        let known = |name: &str| self.columns.iter().position(|c| !c.dropped && c.source == name).or_else(|| late(name));
        let slots: Vec<Option<usize>> = wire.map(|name| known(name).filter(|at| !self.reveals(&self.columns[*at], privacy))).collect();
        let keys = self.key_indices();
        Layout {
            key: (0..slots.len()).filter(|w| slots[*w].is_some_and(|s| keys.contains(&s))).collect(),
            absent: (0..self.columns.len()).filter(|i| !self.columns[*i].dropped && !slots.contains(&Some(*i))).collect(),
            slots,
        }
    }

    /// A layout for rows of another table of the name: what the version knows by name. Only for rows that a copy of this version, taken
    /// later, supersedes.
    pub fn superseded_layout(&self, relation: &Relation, privacy: &Privacy) -> Layout {
        self.layout(relation.columns.iter().map(|c| c.name.as_str()), privacy, |_| None)
    }

    /// The layout of a copy that selects the version's live columns in their order.
    pub fn copy_layout(&self) -> Layout {
        self.layout(self.columns.iter().filter(|c| !c.dropped).map(|c| c.source.as_str()), &Privacy::default(), |_| None)
    }

    /// The columns of a file that has them all, ours behind the table's; every one OPTIONAL.
    pub fn arrow(&self) -> Schema {
        let text = LakeType::String.arrow();
        let own = METADATA.map(|name| match name {
            "_commit_lsn" | "_seq" | "_xid" => Field::new(name, LakeType::Int64.arrow(), true),
            "_commit_ts" => Field::new(name, LakeType::Timestamp.arrow(), true),
            _ => Field::new(name, text.clone(), true),
        });
        Schema::new(self.columns.iter().map(|c| Field::new(&c.name, c.lake_type.arrow(), true)).chain(own).collect::<Vec<_>>())
    }

    /// Reads the document stored at `path`.
    ///
    /// # Errors
    /// If it is not one.
    pub fn parse(path: &str, body: &[u8]) -> Result<Self> {
        serde_json::from_slice(body).map_err(|e| Error::lake(format!("{path} cannot be read")).with_source(e))
    }

    /// The document as it is stored, and as footers carry it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a schema has only text keys, so it is always JSON")
    }
}

/// What is below declared types and their modifiers.
pub type WireTypes = BTreeMap<(u32, i32), BaseType>;

/// A column of a RELATION message, or of the catalog.
struct WireColumn<'a> {
    name: &'a str,
    type_oid: u32,
    typmod: i32,
    catalogue: Option<&'a Column>,
    /// Of a column on the wire: the type below its declared one.
    bare: Option<&'a BaseType>,
    /// Of a RELATION message.
    streamed: bool,
    /// Published all the same (18 and later): left out.
    generated: bool,
}

impl WireColumn<'_> {
    /// Its type, for people.
    fn shown(&self) -> String {
        match self.catalogue.filter(|found| found.type_oid == self.type_oid) {
            Some(found) => shown(&found.base.name, found.base.oid, found.base.typmod),
            None => well_known(self.type_oid).map_or(format!("type {}", self.type_oid), |name| shown(name, self.type_oid, self.typmod)),
        }
    }
}

/// A type with its length or precision, for people.
fn shown(name: &str, oid: u32, typmod: i32) -> String {
    match (oid, precision_and_scale(typmod)) {
        (NUMERIC, Some((precision, scale))) => format!("{name}({precision},{scale})"),
        (VARCHAR | BPCHAR, _) if typmod >= 4 => format!("{name}({})", typmod - 4),
        _ => name.to_owned(),
    }
}

/// Names of types that change most, for when the catalogue no longer has the column.
fn well_known(oid: u32) -> Option<&'static str> {
    Some(match oid {
        INT2 => "int2",
        INT4 => "int4",
        INT8 => "int8",
        FLOAT4 => "float4",
        FLOAT8 => "float8",
        NUMERIC => "numeric",
        VARCHAR => "varchar",
        BPCHAR => "bpchar",
        TEXT => "text",
        _ => return None,
    })
}

/// The columns that stream and copies carry: generated ones are left out of both.
fn live(table: &Table) -> impl Iterator<Item = &Column> {
    table.columns.iter().filter(|c| !c.generated)
}

fn column<'a>(table: &'a Table, name: &str) -> Option<&'a Column> {
    live(table).find(|c| c.name == name)
}

const INT2: u32 = 21;
const INT4: u32 = 23;
const INT8: u32 = 20;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const NUMERIC: u32 = 1700;
const BPCHAR: u32 = 1042;
const VARCHAR: u32 = 1043;
const TEXT: u32 = 25;

/// Whether a change of type keeps every value and the lake's type (contract, "Schema versions").
fn widens((old, old_mod): (u32, i32), (new, new_mod): (u32, i32), known: &SchemaColumn) -> bool {
    let wider_length = old_mod == new_mod || new_mod == -1 || (old_mod >= 0 && new_mod > old_mod);
    match (old, new) {
        (INT2, INT4 | INT8) | (INT4, INT8) => true,
        (FLOAT4, FLOAT8) => known.lake_type == LakeType::Double || known.hashed,
        (VARCHAR, VARCHAR | TEXT) => wider_length,
        (NUMERIC, NUMERIC) => {
            let of = |typmod| conversion(&PgType::scalar(NUMERIC, typmod, "numeric"));
            let grows = match (precision_and_scale(old_mod), precision_and_scale(new_mod)) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some((old, old_scale)), Some((new, new_scale))) => new_scale >= old_scale && new - new_scale >= old - old_scale,
            };
            grows && of(new_mod).lake_type() == of(old_mod).lake_type()
        }
        (a, b) => a == b && old_mod == new_mod,
    }
}
