//! What the source says of the tables that are to be streamed, and whether it can be followed at all.
//!
//! Owns: which tables are meant, the publication that carries them, the refusals of the contract's section 5.
//! Invariant: a publication edited, dropped or re-created behind our back is never passed over.

use crate::config::{Config, Mode as TableMode};
use crate::error::{Error, Result};
use crate::lake::PublicationMark;
use crate::lsn::Lsn;
use crate::postgres::catalogue::{self, Table};
use crate::postgres::publication::{self, Member, Publication};
use crate::postgres::server;
use crate::schema::version::Privacy;
use crate::table_name::TableName;
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::Client;

/// The streamed tables and their publication, read together.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    pub(crate) publication: Publication,
    /// End of the server's WAL after the publication was read: every edit that it shows lies below.
    pub(crate) position: Lsn,
    /// Streamed tables, reduced to what the publication sends of them.
    pub(crate) tables: BTreeMap<TableName, Table>,
}

/// What the configuration keeps from the lake.
pub(crate) fn privacy(config: &Config, table: &TableName) -> Privacy {
    config.table(table).map(|t| Privacy { exclude: t.exclude.clone(), hash: t.hash.clone() }).unwrap_or_default()
}

/// The mark of a publication that the watermark keeps.
pub(crate) fn mark(name: &str, publication: &Publication) -> PublicationMark {
    PublicationMark {
        name: name.to_owned(),
        oid: publication.oid,
        xmin: publication.xmin,
        tables: publication.tables.iter().map(|(name, t)| (name.clone(), (t.oid, t.xmin))).collect(),
        schemas: publication.schemas.iter().map(|(name, s)| (name.clone(), (s.oid, s.xmin))).collect(),
    }
}

/// The server's settings that nothing can be done without.
pub(crate) async fn check_server(client: &Client) -> Result<server::ServerInfo> {
    let info = server::info(client).await?;
    if info.wal_level != "logical" {
        return Err(Error::source_refused(format!(
            "wal_level is {}: set wal_level = logical (ALTER SYSTEM SET wal_level = 'logical') and restart the server",
            info.wal_level
        )));
    }
    if !(info.role.replication || info.role.superuser) {
        return Err(Error::source_refused(format!("role {0} has no REPLICATION attribute: ALTER ROLE {0} REPLICATION", info.role.name)));
    }
    Ok(info)
}

/// Tables that are to be streamed: those configured, or all of schema public that have a key. `known` are those streamed before.
pub(crate) async fn wanted(client: &Client, config: &Config, known: &BTreeSet<TableName>) -> Result<Vec<Table>> {
    let names: Vec<TableName> = match &config.tables {
        Some(tables) => tables.iter().filter(|t| t.mode == TableMode::Stream).map(|t| t.name.clone()).collect(),
        None => catalogue::tables_with_key(client, "public").await?,
    };
    let tables = catalogue::tables(client, &names).await?;
    for name in &names {
        match tables.iter().find(|t| t.name == *name) {
            None if known.contains(name) => tracing::warn!(table = %name, "the table is no longer at the source; its files stay"),
            None => return Err(Error::source_refused(format!("table {name} does not exist: correct [[table]] name, or create it"))),
            Some(table) => refuse_unfit(config, table)?,
        }
    }
    Ok(tables)
}

fn refuse_unfit(config: &Config, table: &Table) -> Result<()> {
    let name = &table.name;
    if let Err(reason) = table.streamable() {
        return Err(Error::source_refused(format!(
            "table {name} cannot be streamed: {reason}. Give it a primary key, or ALTER TABLE {} REPLICA IDENTITY FULL, or leave it out (`huella check` has the mend)",
            name.sql()
        )));
    }
    if let Some(hidden) = privacy(config, name).exclude.iter().find(|e| table.key.contains(e)) {
        return Err(Error::config(format!("table {name}: column {hidden} belongs to the key and cannot be excluded; hash it instead")));
    }
    for column in privacy(config, name).exclude.iter().chain(&privacy(config, name).hash) {
        if !table.columns.iter().any(|c| c.name == *column) {
            tracing::warn!(table = %name, column, "a configured column is not in the table");
        }
    }
    if table.row_security {
        return Err(Error::source_refused(format!(
            "row level security filters what this role reads of {name}: a copy would lack rows. Give the role BYPASSRLS"
        )));
    }
    Ok(())
}

/// Makes the publication, or adds what is missing to it. Only ever called while nothing can be lost by it: added tables are copied afterwards.
pub(crate) async fn ensure_publication(client: &Client, name: &str, tables: &[Table], may_create: bool) -> Result<()> {
    let members = |tables: &[&Table]| tables.iter().map(|t| Member::from(t.name.clone())).collect::<Vec<_>>();
    match publication::read(client, name).await? {
        None if may_create => publication::create(client, name, &members(&tables.iter().collect::<Vec<_>>())).await,
        None => Err(Error::source_refused(format!(
            "publication {name:?} is gone: changes since then were not sent. Run `huella run --resnapshot` to make it anew and copy every table"
        ))),
        Some(found) => {
            let missing: Vec<&Table> = tables.iter().filter(|t| !found.tables.contains_key(&t.name)).collect();
            if !missing.is_empty() {
                tracing::warn!(tables = %missing.iter().map(|t| t.name.to_string()).collect::<Vec<_>>().join(","), "adding tables to the publication");
            }
            publication::add(client, name, &members(&missing)).await
        }
    }
}

/// Reads the publication and the tables it is to carry; refuses what would leave holes.
pub(crate) async fn observe(client: &Client, publication_name: &str, tables: Vec<Table>) -> Result<Observed> {
    let Some(publication) = publication::read(client, publication_name).await? else {
        return Err(Error::source_refused(format!(
            "publication {publication_name:?} is gone: changes since then were not sent. Run `huella run --resnapshot` to make it anew and copy every table"
        )));
    };
    if !(publication.insert && publication.update && publication.delete && publication.truncate) {
        return Err(Error::source_refused(format!(
            "publication {publication_name:?} does not publish all operations: ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate'), then `huella run --resnapshot`",
            crate::table_name::quote_ident(publication_name)
        )));
    }
    let position = server::insert_lsn(client).await?;
    let mut reduced = BTreeMap::new();
    for mut table in tables {
        let Some(published) = publication.tables.get(&table.name) else { continue };
        if published.row_filter {
            return Err(Error::source_refused(format!(
                "the publication filters rows of {}: copies could not honour the filter. Remove it (ALTER PUBLICATION … SET TABLE without WHERE)",
                table.name
            )));
        }
        if let Some(columns) = &published.columns {
            table.columns.retain(|c| columns.contains(&c.name));
        }
        reduced.insert(table.name.clone(), table);
    }
    Ok(Observed { publication, position, tables: reduced })
}
