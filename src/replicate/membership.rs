//! The publication's members: made, added, and given the column lists of `exclude_at_source`.
//!
//! Owns: when the publication is changed, and what of it the watermark remembers. Does not own: which list is right
//! (`postgres::column_list`), what an edit means for a table (`registry`).
//! Invariant: after [`ensure`] no column that is to stay at the source is published; where that cannot be had, the program ends.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::lake::{ListMark, PublicationMark};
use crate::postgres::catalogue::Table;
use crate::postgres::column_list::{Exclusion, member, relisted};
use crate::postgres::publication::{self, Publication};
use crate::table_name::{TableName, quote_ident};
use tokio_postgres::Client;

/// What the configuration says of a table's columns; `before` is what the lake remembers of the publication.
fn exclusion<'a>(config: &'a Config, table: &TableName, row: Option<(u32, u32)>, before: Option<&'a PublicationMark>) -> Exclusion<'a> {
    let ours = before.and_then(|mark| mark.lists.get(table)).filter(|list| Some(list.row) == row);
    let table = config.table(table);
    Exclusion {
        at_source: table.is_some_and(|t| t.exclude_at_source),
        exclude: table.map_or(&[], |t| &t.exclude),
        ours: ours.map(|list| list.exclude.as_slice()),
    }
}

/// The mark of a publication that the watermark keeps.
pub(crate) fn mark(config: &Config, publication: &Publication) -> PublicationMark {
    let excluded_there = |name: &TableName| config.table(name).filter(|table| table.exclude_at_source);
    let lists = publication.tables.iter().filter(|(_, published)| published.columns.is_some()).filter_map(|(name, published)| {
        let mark = ListMark { row: (published.oid, published.xmin), exclude: excluded_there(name)?.exclude.clone() };
        Some((name.clone(), mark))
    });
    PublicationMark {
        name: config.source.publication.clone(),
        oid: publication.oid,
        xmin: publication.xmin,
        tables: publication.tables.iter().map(|(name, t)| (name.clone(), (t.oid, t.xmin))).collect(),
        schemas: publication.schemas.iter().map(|(name, s)| (name.clone(), (s.oid, s.xmin))).collect(),
        lists: lists.collect(),
    }
}

/// Makes the publication, adds what is missing to it, and changes column lists that are not as the configuration wants them. Only ever
/// called while nothing can be lost by it: tables that are added or changed are copied afterwards.
pub(crate) async fn ensure(
    client: &Client,
    config: &Config,
    tables: &[Table],
    may_create: bool,
    before: Option<&PublicationMark>,
) -> Result<()> {
    let name = &config.source.publication;
    let new = |table: &Table| member(table, &exclusion(config, &table.name, None, None));
    let Some(found) = publication::read(client, name).await? else {
        if may_create {
            put_off(&publication::create(client, name, &tables.iter().map(new).collect::<Vec<_>>()).await?);
            return Ok(());
        }
        return Err(gone(name));
    };
    if found.all_tables || !found.schemas.is_empty() {
        refuse_without_lists(config, tables)?;
    }
    if let Some((table, root)) = tables.iter().find_map(|table| Some((table, found.sent_under(table)?))) {
        return Err(Error::source_refused(format!(
            "publication {name:?} sends the rows of {} under the name of {root}, a table above it: name {root} under [[table]] instead, or \
             ALTER PUBLICATION {} DROP TABLE ONLY {}",
            table.name,
            quote_ident(name),
            root.sql()
        )));
    }
    let missing: Vec<_> = tables.iter().filter(|t| !found.tables.contains_key(&t.name)).map(new).collect();
    if !missing.is_empty() {
        let names: Vec<String> = missing.iter().map(|member| member.table.to_string()).collect();
        tracing::warn!(tables = %names.join(","), "adding tables to the publication");
    }
    put_off(&publication::add(client, name, &missing).await?);
    for table in tables {
        let Some(published) = found.tables.get(&table.name) else { continue };
        let wanted = exclusion(config, &table.name, Some((published.oid, published.xmin)), before);
        let Some(member) = relisted(table, published, &wanted) else { continue };
        tracing::warn!(table = %table.name, list = member.columns.is_some(), "changing the table's column list in the publication (exclude_at_source)");
        publication::relist(client, name, &member, published.relid).await?;
    }
    Ok(())
}

/// The others are streamed meanwhile; the next look tries again.
fn put_off(locked: &[TableName]) {
    if !locked.is_empty() {
        let tables = locked.iter().map(TableName::to_string).collect::<Vec<_>>().join(",");
        tracing::warn!(tables, "another session holds a lock on these tables: they are added to the publication at the next look");
    }
}

/// The publication does not exist, though the lake has begun with it.
pub(super) fn gone(name: &str) -> Error {
    Error::source_refused(format!(
        "publication {name:?} is gone: changes since then were not sent. Run `huella run --resnapshot` to make it anew and copy every table"
    ))
}

fn refuse_without_lists(config: &Config, tables: &[Table]) -> Result<()> {
    let asks = tables.iter().find(|table| config.table(&table.name).is_some_and(|t| t.exclude_at_source));
    asks.map_or(Ok(()), |table| {
        Err(Error::source_refused(format!(
            "publication {:?} publishes all tables, or all of a schema, and cannot have the column list that exclude_at_source of {} needs. \
             Name a publication of listed tables (source.publication), or take exclude_at_source out",
            config.source.publication, table.name
        )))
    })
}
