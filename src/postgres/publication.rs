//! The publication: which tables it holds, with the marks that betray every edit, and the statements that make and change it.
//!
//! Owns: reading the publication's catalogue rows, CREATE/ALTER/DROP PUBLICATION. Does not own: what a change of its marks
//! means (`replicate`), what is refused (`check`). Invariants: reading locks no table (the view `pg_publication_tables` and
//! `pg_get_expr` do; only [`filters`] uses the latter); a statement that the role may not run is handed to the owner verbatim.

use super::catalogue::Table;
use super::rows::rows;
use super::server;
use super::sql_error::{failed, is};
use crate::error::{Error, Result};
use crate::table_name::{TableName, quote_ident};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio_postgres::GenericClient;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

/// Row filters and column lists came with this version.
const FILTERS_SINCE: i32 = 150_000;
/// How long a member's change may wait for the table's lock, which VACUUM and many ALTERs hold.
const LOCK_WAIT: &str = "10s";
/// How long all new members together are waited for at once: a stream that is not read holds WAL.
const LOCK_WAIT_SOME: Duration = Duration::from_secs(2);
/// How long each by itself, and after how long a wait for all no longer than the least.
const LOCK_WAIT_ONE: Duration = Duration::from_millis(500);
const LOCK_WAIT_ALL: Duration = Duration::from_secs(5);
const LOCK_WAIT_LEAST: Duration = Duration::from_millis(1);

/// A publication. `(oid, xmin)` of its row and of each membership row change with every edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// `pg_publication.oid`.
    pub oid: u32,
    /// `xmin` of the row.
    pub xmin: u32,
    /// This role owns it or is a member of the owner.
    pub owner_is_me: bool,
    /// FOR ALL TABLES.
    pub all_tables: bool,
    /// Publishes INSERT.
    pub insert: bool,
    /// Publishes UPDATE.
    pub update: bool,
    /// Publishes DELETE.
    pub delete: bool,
    /// Publishes TRUNCATE.
    pub truncate: bool,
    /// `publish_via_partition_root`.
    pub via_root: bool,
    /// Member tables: those listed, or those that ALL TABLES and TABLES IN SCHEMA bring.
    pub tables: BTreeMap<TableName, PublishedTable>,
    /// Member schemas (15+).
    pub schemas: BTreeMap<String, PublishedSchema>,
}

/// A member table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedTable {
    /// The table's oid.
    pub relid: u32,
    /// `pg_publication_rel.oid`; 0 if ALL TABLES or a schema brings it.
    pub oid: u32,
    /// `xmin` of that row; 0 if there is none.
    pub xmin: u32,
    /// The column list (15+), in table order.
    pub columns: Option<Vec<String>>,
    /// It has a row filter (15+) that counts: beside a membership of the table's schema the server ignores it.
    pub row_filter: bool,
    /// The columns that the filter looks at, in table order.
    pub filter_columns: Vec<String>,
}

/// A member schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedSchema {
    /// `pg_publication_namespace.oid`.
    pub oid: u32,
    /// `xmin` of that row.
    pub xmin: u32,
}

/// A table to be published, whole or by a list of columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Table.
    pub table: TableName,
    /// Only these columns (15+).
    pub columns: Option<Vec<String>>,
}

impl From<TableName> for Member {
    fn from(table: TableName) -> Self {
        Member { table, columns: None }
    }
}

impl Member {
    /// `ONLY`: of a table with heirs the table alone. Partitions come with their root all the same.
    fn sql(&self) -> String {
        let columns = self.columns.as_ref().map(|columns| columns.iter().map(|c| quote_ident(c)).collect::<Vec<_>>().join(", "));
        format!("ONLY {}{}", self.table.sql(), columns.map(|list| format!(" ({list})")).unwrap_or_default())
    }
}

impl Publication {
    /// The member under whose name the table's rows are sent instead of its own, if there is one: with the root option the topmost
    /// partitioned table above it that is a member.
    pub fn sent_under(&self, table: &Table) -> Option<&TableName> {
        let above = |published: &PublishedTable| table.ancestors.contains(&published.relid);
        self.tables.iter().find(|(_, published)| self.via_root && above(published)).map(|(name, _)| name)
    }
}

/// The statement that makes the publication.
pub fn create_sql(name: &str, members: &[Member]) -> String {
    let tables = if members.is_empty() { String::new() } else { format!(" FOR TABLE {}", list(members)) };
    format!("CREATE PUBLICATION {}{tables} WITH (publish_via_partition_root = true)", quote_ident(name))
}

/// The statement that adds tables to it.
pub fn add_sql(name: &str, members: &[Member]) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {}", quote_ident(name), list(members))
}

/// The statements that give a member another list of columns; its row filter has to be said again. To be run in one transaction.
pub fn relist_sql(name: &str, member: &Member, filter: Option<&str>) -> String {
    let publication = quote_ident(name);
    let filter = filter.map(|filter| format!(" WHERE ({filter})")).unwrap_or_default();
    format!(
        "ALTER PUBLICATION {publication} DROP TABLE ONLY {}; ALTER PUBLICATION {publication} ADD TABLE {}{filter}",
        member.table.sql(),
        member.sql()
    )
}

fn list(members: &[Member]) -> String {
    members.iter().map(Member::sql).collect::<Vec<_>>().join(", ")
}

/// Tables that could not become members now, because another session holds a lock on them (VACUUM, CREATE INDEX CONCURRENTLY, many an ALTER).
pub type Locked = Vec<TableName>;

/// Makes the publication as a list of tables, without those that are locked.
pub async fn create(client: &(impl GenericClient + Sync), name: &str, members: &[Member]) -> Result<Locked> {
    let doing = format!("making publication {name:?}");
    match change(client, &doing, &create_sql(name, members), LOCK_WAIT_SOME).await {
        Err(error) if is_locked(&error) => {}
        other => return other.map(|()| Locked::new()),
    }
    execute(client, &doing, &create_sql(name, &[])).await?;
    add_each(client, name, members).await
}

/// Adds tables to it, but for those that are locked; without tables, nothing.
pub async fn add(client: &(impl GenericClient + Sync), name: &str, members: &[Member]) -> Result<Locked> {
    if members.is_empty() {
        return Ok(Locked::new());
    }
    match change(client, &format!("adding tables to publication {name:?}"), &add_sql(name, members), LOCK_WAIT_SOME).await {
        Err(error) if is_locked(&error) => add_each(client, name, members).await,
        other => other.map(|()| Locked::new()),
    }
}

/// Adds them one by one, so that one that is locked does not hold up the others. All that is waited for takes seconds.
async fn add_each(client: &(impl GenericClient + Sync), name: &str, members: &[Member]) -> Result<Locked> {
    let (begun, mut locked) = (Instant::now(), Locked::new());
    for member in members {
        let doing = format!("adding {} to publication {name:?}", member.table);
        let wait = if begun.elapsed() < LOCK_WAIT_ALL { LOCK_WAIT_ONE } else { LOCK_WAIT_LEAST };
        match change(client, &doing, &add_sql(name, std::slice::from_ref(member)), wait).await {
            Err(error) if is_locked(&error) => locked.push(member.table.clone()),
            other => other?,
        }
    }
    Ok(locked)
}

/// Runs a statement that waits for locks no longer than that.
async fn change(client: &(impl GenericClient + Sync), doing: &str, sql: &str, wait: Duration) -> Result<()> {
    // Several statements in one message are one transaction, at whose end the limit is gone.
    run(client, doing, &format!("SET LOCAL lock_timeout = {}; {sql}", wait.as_millis()), sql).await
}

fn is_locked(error: &Error) -> bool {
    super::error::sqlstate(error) == Some(SqlState::LOCK_NOT_AVAILABLE.code())
}

/// Takes tables out of it; without tables, nothing.
pub async fn remove(client: &(impl GenericClient + Sync), name: &str, tables: &[TableName]) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let list = tables.iter().map(|table| format!("ONLY {}", table.sql())).collect::<Vec<_>>().join(", ");
    let sql = format!("ALTER PUBLICATION {} DROP TABLE {list}", quote_ident(name));
    execute(client, &format!("taking tables out of publication {name:?}"), &sql).await
}

/// Gives a member another list of columns (or none), and keeps its row filter.
pub async fn relist(client: &(impl GenericClient + Sync), name: &str, member: &Member, relid: u32) -> Result<()> {
    let filter = filters(client, name, &[relid]).await?.remove(&relid);
    let sql = relist_sql(name, member, filter.as_deref());
    // Several statements in one message are one transaction, so that no change falls between leaving and joining.
    let all = format!("SET LOCAL lock_timeout = '{LOCK_WAIT}'; {sql}");
    let doing = format!("changing the columns of {} in publication {name:?}", member.table);
    run(client, &doing, &all, &format!("BEGIN; {sql}; COMMIT")).await
}

/// Drops it if it is there.
pub async fn drop(client: &(impl GenericClient + Sync), name: &str) -> Result<()> {
    execute(client, &format!("dropping publication {name:?}"), &format!("DROP PUBLICATION IF EXISTS {}", quote_ident(name))).await
}

async fn execute(client: &(impl GenericClient + Sync), doing: &str, sql: &str) -> Result<()> {
    run(client, doing, sql, sql).await
}

/// Runs `sql`; if the role may not, `shown` is handed to the owner.
async fn run(client: &(impl GenericClient + Sync), doing: &str, sql: &str, shown: &str) -> Result<()> {
    match client.batch_execute(sql).await {
        Ok(()) => Ok(()),
        Err(e) if is(&e, &SqlState::INSUFFICIENT_PRIVILEGE) => {
            let said = e.as_db_error().map(|db| db.message().to_owned()).unwrap_or_default();
            Err(Error::source_refused(format!("{doing}: {said}. Let the tables' owner, or a superuser, run: {shown};")))
        }
        // Dropped or renamed since it was listed: the next look lists anew.
        Err(e) if is(&e, &SqlState::UNDEFINED_TABLE) || is(&e, &SqlState::INVALID_SCHEMA_NAME) => {
            Err(Error::retry(format!("{doing}: a table went away meanwhile")).with_source(e))
        }
        Err(e) if is(&e, &SqlState::LOCK_NOT_AVAILABLE) => {
            Err(Error::retry(format!("{doing}: another session holds a lock on a table")).with_source(e))
        }
        Err(e) => Err(failed(doing, e)),
    }
}

/// The publication of this name, if there is one.
pub async fn read(client: &(impl GenericClient + Sync), name: &str) -> Result<Option<Publication>> {
    read_members(client, name, None).await
}

/// The publication of this name with no members but these relations: reading thousands takes its time.
pub async fn read_of(client: &(impl GenericClient + Sync), name: &str, relids: &[u32]) -> Result<Option<Publication>> {
    read_members(client, name, Some(relids)).await
}

async fn read_members(client: &(impl GenericClient + Sync), name: &str, relids: Option<&[u32]>) -> Result<Option<Publication>> {
    let doing = format!("reading publication {name:?}");
    let version = server::version(client).await?;
    let sql = "SELECT oid, xmin::text, pg_catalog.pg_has_role(pubowner, 'USAGE'), puballtables,
                      pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot
                 FROM pg_catalog.pg_publication WHERE pubname = $1";
    let Some(row) = rows(client, &doing, sql, &[(&name, Type::TEXT)]).await?.into_iter().next() else {
        return Ok(None);
    };
    let mut publication = Publication {
        oid: row.get(0)?,
        xmin: xid(row.get(1)?)?,
        owner_is_me: row.get(2)?,
        all_tables: row.get(3)?,
        insert: row.get(4)?,
        update: row.get(5)?,
        delete: row.get(6)?,
        truncate: row.get(7)?,
        via_root: row.get(8)?,
        tables: BTreeMap::new(),
        schemas: BTreeMap::new(),
    };
    if version >= 150_000 {
        let sql = "SELECT n.nspname::text, m.oid, m.xmin::text FROM pg_catalog.pg_publication_namespace m
                     JOIN pg_catalog.pg_namespace n ON n.oid = m.pnnspid WHERE m.pnpubid = $1";
        for row in rows(client, &doing, sql, &[(&publication.oid, Type::OID)]).await? {
            publication.schemas.insert(row.get(0)?, PublishedSchema { oid: row.get(1)?, xmin: xid(row.get(2)?)? });
        }
    }
    if publication.all_tables || !publication.schemas.is_empty() {
        let brought = brought(&publication);
        for row in rows(client, &doing, brought, &[(&publication.oid, Type::OID), (&relids, Type::OID_ARRAY)]).await? {
            let table =
                PublishedTable { relid: row.get(2)?, oid: 0, xmin: 0, columns: None, row_filter: false, filter_columns: Vec::new() };
            publication.tables.insert(TableName::new(row.get::<String>(0)?, row.get::<String>(1)?), table);
        }
    }
    // Column list and filter came with 15; as JSON the row answers on every version. The filter is a tree of nodes, whose text
    // names its columns by number; `pg_get_expr`, which names them otherwise, would wait for the table's lock.
    let sql = "SELECT n.nspname::text, c.relname::text, m.prrelid, m.oid, m.xmin::text,
                      CASE WHEN (j.row -> 'prattrs') <> 'null' THEN
                        ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                               WHERE a.attrelid = m.prrelid AND (j.row -> 'prattrs') @> pg_catalog.to_jsonb(a.attnum)
                               ORDER BY a.attnum) END,
                      (j.row ->> 'prqual') IS NOT NULL,
                      ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                             WHERE a.attrelid = m.prrelid AND a.attnum::text IN
                                   (SELECT f.found[1] FROM pg_catalog.regexp_matches(j.row ->> 'prqual', ':varattno (\\d+)', 'g') AS f(found))
                             ORDER BY a.attnum)
                 FROM pg_catalog.pg_publication_rel m
                CROSS JOIN LATERAL (SELECT pg_catalog.to_jsonb(m) AS row) j
                 JOIN pg_catalog.pg_class c ON c.oid = m.prrelid
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                WHERE m.prpubid = $1 AND ($2 IS NULL OR m.prrelid = ANY ($2))";
    for row in rows(client, &doing, sql, &[(&publication.oid, Type::OID), (&relids, Type::OID_ARRAY)]).await? {
        let name = TableName::new(row.get::<String>(0)?, row.get::<String>(1)?);
        let (oid, xmin) = (row.get(3)?, xid(row.get(4)?)?);
        let counts = !publication.schemas.contains_key(&name.schema);
        let table = PublishedTable {
            relid: row.get(2)?,
            oid,
            xmin,
            columns: row.get(5)?,
            row_filter: counts && row.get::<bool>(6)?,
            filter_columns: if counts { row.get(7)? } else { Vec::new() },
        };
        publication.tables.insert(name, table);
    }
    Ok(Some(publication))
}

/// The row filters that count of these tables, as SQL conditions, by the table's oid. The server locks each table (ACCESS SHARE)
/// while it prints its filter: a session that holds that lock already waits for nobody.
pub async fn filters(client: &(impl GenericClient + Sync), name: &str, relids: &[u32]) -> Result<BTreeMap<u32, String>> {
    if server::version(client).await? < FILTERS_SINCE {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT m.prrelid, pg_catalog.pg_get_expr(m.prqual, m.prrelid)
                 FROM pg_catalog.pg_publication_rel m
                 JOIN pg_catalog.pg_publication p ON p.oid = m.prpubid JOIN pg_catalog.pg_class c ON c.oid = m.prrelid
                WHERE p.pubname = $1 AND m.prrelid = ANY ($2) AND m.prqual IS NOT NULL AND NOT p.puballtables
                  AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s
                                   WHERE s.pnpubid = p.oid AND s.pnnspid = c.relnamespace)";
    let params: [(&(dyn ToSql + Sync), Type); 2] = [(&name, Type::TEXT), (&relids, Type::OID_ARRAY)];
    let doing = format!("reading the row filters of publication {name:?}");
    let mut filters = BTreeMap::new();
    for row in rows(client, doing, sql, &params).await? {
        if let Some(filter) = row.get(1)? {
            filters.insert(row.get(0)?, filter);
        }
    }
    Ok(filters)
}

/// Tables that come without a row of their own, by the server's rule: permanent, not of the system; with the root option
/// partitions are hidden behind it, without it the roots are.
fn brought(publication: &Publication) -> &'static str {
    macro_rules! sql {
        ($kind:literal, $schema:literal) => {
            concat!(
                "SELECT n.nspname::text, c.relname::text, c.oid FROM pg_catalog.pg_class c
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.relpersistence = 'p' AND c.oid >= 16384 AND $1 <> 0 AND ($2 IS NULL OR c.oid = ANY ($2)) AND ",
                $kind,
                $schema
            )
        };
    }
    match (publication.via_root, publication.all_tables) {
        (true, true) => sql!("c.relkind IN ('r', 'p') AND NOT c.relispartition", ""),
        (false, true) => sql!("c.relkind = 'r'", ""),
        (true, false) => sql!(
            "c.relkind IN ('r', 'p') AND NOT c.relispartition",
            " AND n.oid IN (SELECT pnnspid FROM pg_catalog.pg_publication_namespace WHERE pnpubid = $1)"
        ),
        (false, false) => {
            sql!("c.relkind = 'r'", " AND n.oid IN (SELECT pnnspid FROM pg_catalog.pg_publication_namespace WHERE pnpubid = $1)")
        }
    }
}

/// A transaction id from its text: drivers have no such type.
pub(super) fn xid(text: String) -> Result<u32> {
    text.parse().map_err(|_| Error::retry(format!("the server gave the transaction id {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_quote_every_name() {
        let members = [
            Member::from(TableName::new("public", "a b")),
            Member { table: TableName::new("x\"y", "C"), columns: Some(vec!["id".into(), "sel\"ect".into()]) },
        ];
        assert_eq!(
            create_sql("hu\"ella", &members),
            "CREATE PUBLICATION \"hu\"\"ella\" FOR TABLE ONLY \"public\".\"a b\", ONLY \"x\"\"y\".\"C\" (\"id\", \"sel\"\"ect\") \
             WITH (publish_via_partition_root = true)"
        );
        assert_eq!(
            relist_sql("h", &members[1], Some("(a > 1)")),
            "ALTER PUBLICATION \"h\" DROP TABLE ONLY \"x\"\"y\".\"C\"; ALTER PUBLICATION \"h\" ADD TABLE ONLY \"x\"\"y\".\"C\" \
             (\"id\", \"sel\"\"ect\") WHERE ((a > 1))"
        );
        assert_eq!(add_sql("h", &members[..1]), "ALTER PUBLICATION \"h\" ADD TABLE ONLY \"public\".\"a b\"");
        assert_eq!(create_sql("h", &[]), "CREATE PUBLICATION \"h\" WITH (publish_via_partition_root = true)");
    }
}
