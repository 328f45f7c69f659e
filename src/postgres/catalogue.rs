//! The tables of the source as its catalogue describes them: columns, types, keys, partitions, rights.
//!
//! Owns: the queries and the shape they are read into, the rule for a table's key.
//! Does not own: types below domains (`column_type`), types of the lake, versions, what is refused (`check`). Invariants: no query locks a table; what
//! is returned for a table was read between two equal looks, so that shape and look belong together.

pub use super::column_type::BaseType;
pub use super::look::{Look, looks};

use super::column_type;
use super::look::{KEYS, TREE};
use super::rows::{SqlRow, UNREADABLE, rows};
use super::server;
use crate::error::{Error, Result};
use crate::table_name::TableName;
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

/// What kind of relation a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// A plain table.
    Ordinary,
    /// The root of a partition tree, whole or part of a larger one.
    Partitioned,
    /// A partition that holds rows itself.
    Leaf,
    /// A view, materialised view, foreign table, sequence, … (a foreign table that is a partition as well).
    Other,
}

/// What the server logs of a row's former state (`pg_class.relreplident`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of an index.
    Index,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Name.
    pub name: TableName,
    /// Kind.
    pub kind: TableKind,
    /// Replica identity, as set.
    pub identity: ReplicaIdentity,
    /// Columns that the server logs as a row's identity, in the index's order; empty under FULL and if there is no usable index.
    pub identity_columns: Vec<String>,
    /// A generated column in the identity that the stream leaves out. From 18 on, the server then refuses every UPDATE and DELETE of
    /// the published table (42P10), under FULL as well; before, the key of rows would be a part of itself.
    pub generated_identity: Option<String>,
    /// Live columns in table order.
    pub columns: Vec<Column>,
    /// The key in the lake: the identity's columns; under FULL and NOTHING the primary key. Empty: none. In the index's order.
    pub key: Vec<String>,
    /// Partitions that hold rows, of all levels, by oid.
    pub leaves: Vec<Leaf>,
    /// The partitioned tables that it is a partition of, of all levels, by oid.
    pub ancestors: Vec<u32>,
    /// A row level security policy filters what this role reads, of the table or of a leaf.
    pub row_security: bool,
    /// What else the catalog says of it, to be compared with another look.
    pub look: Look,
    /// Rows, as of the last VACUUM or ANALYZE, leaves together; -1: not known.
    pub rows_estimate: i64,
    /// Size with TOAST, without indexes, as of the last VACUUM or ANALYZE, leaves together; 0: not known.
    pub bytes: i64,
    /// Other tables inherit from it (not as partitions): `SELECT` without `ONLY` shows their rows too.
    pub inherits_children: bool,
    /// This role is its owner or a member of the owner.
    pub owned: bool,
    /// Logged in WAL (not unlogged, not temporary).
    pub permanent: bool,
    /// This role may use the schema.
    pub schema_usable: bool,
    /// This role has SELECT on the table as a whole, which `LOCK TABLE` needs; on columns: `Column::selectable`.
    pub selectable: bool,
}

/// A partition that holds rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Name.
    pub name: TableName,
    /// `Leaf`, or `Other` for a foreign table.
    pub kind: TableKind,
    /// Its own replica identity: it decides what is logged, the root's decides how it is announced.
    pub identity: ReplicaIdentity,
    /// As `Table::identity_columns`.
    pub identity_columns: Vec<String>,
    /// Logged in WAL.
    pub permanent: bool,
    /// This role may use its schema.
    pub schema_usable: bool,
    /// Columns that this role may not SELECT.
    pub unselectable: Vec<String>,
}

/// A live column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// `attnum`.
    pub attnum: i16,
    /// Name.
    pub name: String,
    /// Declared type.
    pub type_oid: u32,
    /// Declared type modifier; -1: none.
    pub typmod: i32,
    /// The type below all domains.
    pub base: BaseType,
    /// NOT NULL.
    pub not_null: bool,
    /// Rows from before the column was added take its value from the catalogue (`atthasmissing`).
    pub has_missing: bool,
    /// Computed from other columns, stored or virtual.
    pub generated: bool,
    /// An identity column.
    pub identity: bool,
    /// This role may SELECT it.
    pub selectable: bool,
}

impl Column {
    /// A column of which nothing but its type is known.
    pub fn of_type(name: &str, (type_oid, typmod): (u32, i32), base: BaseType) -> Self {
        Self {
            attnum: 0,
            name: name.to_owned(),
            type_oid,
            typmod,
            base,
            not_null: false,
            has_missing: false,
            generated: false,
            identity: false,
            selectable: true,
        }
    }
}

/// Why a table's changes cannot be streamed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unstreamable {
    /// A view, foreign table, sequence, ….
    #[error("it is not a table")]
    NotATable,
    /// Its name, a column's or a partition's has bytes that are not UTF-8: statements of ours cannot name it.
    #[error("the name {0:?} is not UTF-8")]
    Unreadable(String),
    /// Unlogged or temporary: the table, or the partition named.
    #[error("{0} is unlogged or temporary: its changes are not in the WAL")]
    NotLogged(TableName),
    /// A partition is a foreign table.
    #[error("its partition {0} is a foreign table: its changes are not in the WAL")]
    ForeignPartition(TableName),
    /// REPLICA IDENTITY NOTHING.
    #[error("its replica identity is NOTHING")]
    IdentityNothing,
    /// Neither a primary key nor another identity.
    #[error("it has no primary key (a deferrable one does not count) and no other replica identity")]
    NoKey,
    /// A generated column belongs to the identity.
    #[error("generated column {0} belongs to its replica identity, and generated columns are not sent")]
    GeneratedIdentity(String),
    /// A leaf logs by its own identity and is announced under its root's: if they differ, old rows would be misread.
    #[error("its partition {0} has another replica identity than the root")]
    PartitionIdentity(TableName),
}

impl Table {
    /// Whether its changes can be streamed, and if not, why.
    pub fn streamable(&self) -> Result<(), Unstreamable> {
        if self.kind == TableKind::Other {
            return Err(Unstreamable::NotATable);
        }
        let leaves = self.leaves.iter().flat_map(|leaf| [&leaf.name.schema, &leaf.name.name]);
        let mut names = [&self.name.schema, &self.name.name].into_iter().chain(self.columns.iter().map(|c| &c.name)).chain(leaves);
        if let Some(name) = names.find(|name| name.contains(UNREADABLE)) {
            return Err(Unstreamable::Unreadable(name.clone()));
        }
        if !self.permanent {
            return Err(Unstreamable::NotLogged(self.name.clone()));
        }
        if let Some(leaf) = self.leaves.iter().find(|leaf| leaf.kind == TableKind::Other) {
            return Err(Unstreamable::ForeignPartition(leaf.name.clone()));
        }
        if let Some(leaf) = self.leaves.iter().find(|leaf| !leaf.permanent) {
            return Err(Unstreamable::NotLogged(leaf.name.clone()));
        }
        match self.identity {
            ReplicaIdentity::Nothing => return Err(Unstreamable::IdentityNothing),
            ReplicaIdentity::Default | ReplicaIdentity::Index if self.identity_columns.is_empty() => return Err(Unstreamable::NoKey),
            ReplicaIdentity::Full | ReplicaIdentity::Default | ReplicaIdentity::Index => {}
        }
        if let Some(column) = &self.generated_identity {
            return Err(Unstreamable::GeneratedIdentity(column.clone()));
        }
        match self.leaves.iter().find(|leaf| self.differs(leaf)) {
            Some(leaf) => Err(Unstreamable::PartitionIdentity(leaf.name.clone())),
            None => Ok(()),
        }
    }

    fn differs(&self, leaf: &Leaf) -> bool {
        let full = |identity| identity == ReplicaIdentity::Full;
        let set = |columns: &[String]| columns.iter().cloned().collect::<BTreeSet<_>>();
        full(leaf.identity) != full(self.identity)
            || leaf.identity == ReplicaIdentity::Nothing
            || set(&leaf.identity_columns) != set(&self.identity_columns)
    }
}

/// What the catalogue says of these tables, in their order; those that do not exist are missing from the answer.
pub async fn tables(client: &(impl GenericClient + Sync), names: &[TableName]) -> Result<Vec<Table>> {
    let tables = by_oid(client, &oids(client, names).await?).await?;
    let mut by_name: BTreeMap<_, _> = tables.into_iter().map(|table| (table.name.clone(), table)).collect();
    Ok(names.iter().filter_map(|name| by_name.remove(name)).collect())
}

async fn by_oid(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<Vec<Table>> {
    // A DDL between two queries would give one table's old columns the new look. Five: a DDL storm ends sooner.
    for _ in 0..5 {
        let before = looks(client, oids).await?;
        let read = read(client, oids, &before).await?;
        if looks(client, oids).await? == before {
            return Ok(read);
        }
    }
    Err(Error::retry("the tables' definitions keep changing while they are being read"))
}

/// Tables of a schema that can be streamed: plain and partitioned ones, no partitions, with a usable replica identity.
pub async fn tables_with_key(client: &(impl GenericClient + Sync), schema: &str) -> Result<Vec<TableName>> {
    let tables = tables_of(client, schema).await?;
    Ok(tables.into_iter().filter(|table| table.streamable().is_ok()).map(|table| table.name).collect())
}

/// All plain and partitioned tables of a schema, no partitions and no temporary ones, by name.
pub async fn tables_of(client: &(impl GenericClient + Sync), schema: &str) -> Result<Vec<Table>> {
    let sql = "SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT c.relispartition";
    let doing = format!("listing the tables of schema {schema:?}");
    // By their oids: a name that is not UTF-8 cannot be asked for.
    let oids: Vec<u32> = rows(client, doing, sql, &[(&schema, Type::TEXT)]).await?.iter().map(|row| row.get(0)).collect::<Result<_>>()?;
    let mut tables = by_oid(client, &oids).await?;
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tables)
}

/// The types of columns, below all domains, for a column's declared type and modifier. Types that vanished keep their oid.
pub async fn base_types(client: &(impl GenericClient + Sync), declared: &[(u32, i32)]) -> Result<Vec<BaseType>> {
    let types = column_type::read(client, &declared.iter().map(|(oid, _)| *oid).collect()).await?;
    Ok(declared.iter().map(|(oid, typmod)| column_type::base(&types, *oid, *typmod)).collect())
}

async fn oids(client: &(impl GenericClient + Sync), names: &[TableName]) -> Result<Vec<u32>> {
    let sql = "SELECT c.oid FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS w(schema, name)
                 JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
                 JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name";
    let schemas: Vec<_> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<_> = names.iter().map(|name| name.name.as_str()).collect();
    let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] = [(&schemas, Type::TEXT_ARRAY), (&tables, Type::TEXT_ARRAY)];
    rows(client, "looking the tables up", sql, &params).await?.iter().map(|row| row.get(0)).collect()
}

async fn read(client: &(impl GenericClient + Sync), oids: &[u32], looks: &BTreeMap<u32, Look>) -> Result<Vec<Table>> {
    let mut columns = columns(client, oids).await?;
    let full_needs_all = server::version(client).await? >= 180_000;
    let relations = relations(client, oids).await?;
    let mut tables = Vec::new();
    for (oid, look) in looks {
        // A relation that vanishes between the queries is missing from the second look.
        let Some(relation) = relations.get(oid) else { continue };
        let leaves = relations.values().filter(|leaf| leaf.root == Some(*oid)).collect();
        tables.push(table(relation, leaves, columns.remove(oid).unwrap_or_default(), look.clone(), full_needs_all));
    }
    Ok(tables)
}

/// One row of `pg_class` with what hangs on it.
struct Relation {
    /// The asked-for partitioned table that it is a leaf of.
    root: Option<u32>,
    leaf: Leaf,
    partition: bool,
    relkind: String,
    primary_key: Vec<String>,
    row_security: bool,
    rows: f64,
    pages_bytes: i64,
    inherits_children: bool,
    owned: bool,
    selectable: bool,
    ancestors: Vec<u32>,
}

fn table(relation: &Relation, leaves: Vec<&Relation>, columns: Vec<Column>, look: Look, full_needs_all: bool) -> Table {
    let own = &relation.leaf;
    let kind = match relation.relkind.as_str() {
        "r" if relation.partition => TableKind::Leaf,
        "r" => TableKind::Ordinary,
        "p" => TableKind::Partitioned,
        _ => TableKind::Other,
    };
    let with_rows = if kind == TableKind::Partitioned { leaves.clone() } else { vec![relation] };
    let identifies = |column: &&Column| match own.identity {
        ReplicaIdentity::Full => full_needs_all,
        _ => own.identity_columns.contains(&column.name),
    };
    let generated_identity = columns.iter().filter(|c| c.generated).find(identifies).map(|c| c.name.clone());
    let known: Vec<f64> = with_rows.iter().map(|r| r.rows).filter(|rows| *rows >= 0.0).collect();
    Table {
        oid: own.oid,
        name: own.name.clone(),
        kind,
        identity: own.identity,
        identity_columns: own.identity_columns.clone(),
        generated_identity,
        columns,
        key: match own.identity {
            ReplicaIdentity::Default | ReplicaIdentity::Index => own.identity_columns.clone(),
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => relation.primary_key.clone(),
        },
        row_security: relation.row_security || leaves.iter().any(|leaf| leaf.row_security),
        look,
        rows_estimate: if known.is_empty() { -1 } else { known.iter().sum::<f64>() as i64 },
        bytes: with_rows.iter().map(|r| r.pages_bytes).sum(),
        inherits_children: relation.inherits_children,
        owned: relation.owned,
        permanent: own.permanent,
        schema_usable: own.schema_usable,
        selectable: relation.selectable,
        leaves: leaves.into_iter().map(|leaf| leaf.leaf.clone()).collect(),
        ancestors: relation.ancestors.clone(),
    }
}

async fn relations(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<BTreeMap<u32, Relation>> {
    let sql = format!(
        "WITH RECURSIVE {TREE},
         wanted AS (SELECT oid FROM tree UNION SELECT pg_catalog.unnest($1)),
         {KEYS}
         SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relispartition, c.relpersistence = 'p',
                c.relreplident::text,
                COALESCE((SELECT k.columns FROM keys k WHERE k.relid = c.oid AND k.is_primary), '{{}}'),
                COALESCE((SELECT k.columns FROM keys k WHERE k.relid = c.oid AND k.is_identity), '{{}}'),
                COALESCE(pg_catalog.row_security_active(c.oid), false),
                pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
                COALESCE(pg_catalog.has_table_privilege(c.oid, 'SELECT'), false),
                pg_catalog.pg_has_role(c.relowner, 'USAGE'),
                c.reltuples::pg_catalog.float8,
                (c.relpages + COALESCE(t.relpages, 0))::pg_catalog.int8 * pg_catalog.current_setting('block_size')::pg_catalog.int8,
                c.relkind <> 'p' AND EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid),
                ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                         AND NOT COALESCE(pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT'), false)
                       ORDER BY a.attnum),
                (SELECT t.root FROM tree t WHERE t.oid = c.oid AND t.root <> c.oid AND c.relkind <> 'p' LIMIT 1),
                ARRAY(WITH RECURSIVE up AS (
                        SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid AND c.relispartition
                        UNION ALL
                        SELECT i.inhparent FROM up JOIN pg_catalog.pg_inherits i ON i.inhrelid = up.inhparent)
                      SELECT up.inhparent FROM up)
           FROM wanted w JOIN pg_catalog.pg_class c ON c.oid = w.oid
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
           LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid"
    );
    let rows = rows(client, "reading the tables", &sql, &[(&oids, Type::OID_ARRAY)]).await?;
    rows.iter().map(|row| Ok((row.get(0)?, relation(row)?))).collect()
}

fn relation(row: &SqlRow) -> Result<Relation> {
    let relkind: String = row.get(3)?;
    let primary_key: Vec<String> = row.get(7)?;
    let identity = match row.get::<String>(6)?.as_str() {
        "d" => ReplicaIdentity::Default,
        "n" => ReplicaIdentity::Nothing,
        "f" => ReplicaIdentity::Full,
        "i" => ReplicaIdentity::Index,
        other => return Err(Error::retry(format!("the server gave an unknown replica identity {other:?}"))),
    };
    Ok(Relation {
        root: row.get(17)?,
        leaf: Leaf {
            oid: row.get(0)?,
            name: TableName::new(row.get::<String>(1)?, row.get::<String>(2)?),
            kind: if relkind == "r" { TableKind::Leaf } else { TableKind::Other },
            identity,
            identity_columns: match identity {
                ReplicaIdentity::Default => primary_key.clone(),
                ReplicaIdentity::Index => row.get(8)?,
                ReplicaIdentity::Full | ReplicaIdentity::Nothing => Vec::new(),
            },
            permanent: row.get(5)?,
            schema_usable: row.get(10)?,
            unselectable: row.get(16)?,
        },
        partition: row.get(4)?,
        relkind,
        primary_key,
        row_security: row.get(9)?,
        rows: row.get(13)?,
        pages_bytes: row.get(14)?,
        inherits_children: row.get(15)?,
        owned: row.get(12)?,
        selectable: row.get(11)?,
        ancestors: row.get(18)?,
    })
}

/// Tables whose columns are read by one query: an answer has its limit (`limits`).
const TABLES_AT_ONCE: usize = 150;

async fn columns(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<BTreeMap<u32, Vec<Column>>> {
    let sql = "SELECT a.attrelid, a.attnum, a.attname::text, a.atttypid, a.atttypmod, a.attnotnull, a.atthasmissing,
                      a.attgenerated::text <> '', a.attidentity::text <> '',
                      COALESCE(pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT'), false)
                 FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum";
    let mut rows = Vec::new();
    for some in oids.chunks(TABLES_AT_ONCE) {
        rows.extend(super::rows::rows(client, "reading the tables' columns", sql, &[(&some, Type::OID_ARRAY)]).await?);
    }
    let declared: BTreeSet<u32> = rows.iter().map(|row| row.get(3)).collect::<Result<_>>()?;
    let types = column_type::read(client, &declared).await?;
    let mut columns = BTreeMap::<u32, Vec<Column>>::new();
    for row in &rows {
        let (type_oid, typmod) = (row.get(3)?, row.get(4)?);
        columns.entry(row.get(0)?).or_default().push(Column {
            attnum: row.get(1)?,
            name: row.get(2)?,
            type_oid,
            typmod,
            base: column_type::base(&types, type_oid, typmod),
            not_null: row.get(5)?,
            has_missing: row.get(6)?,
            generated: row.get(7)?,
            identity: row.get(8)?,
            selectable: row.get(9)?,
        });
    }
    Ok(columns)
}
