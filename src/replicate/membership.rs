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
use crate::postgres::publication::Member;
use crate::postgres::publication::{self, Publication};
use crate::table_name::{TableName, quote_ident};
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::Client;

/// Why a table is not added to the publication yet.
const LOCKED: &str = "another session holds a lock on it: it is added at the next look";

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
/// called while nothing can be lost by it: tables that are added or changed are copied afterwards. Returns new tables that could not be added,
/// and why: beside those in `known`, which are replicated already, they are left out for now.
pub(crate) async fn ensure(
    client: &Client,
    config: &Config,
    tables: &[Table],
    may_create: bool,
    before: Option<&PublicationMark>,
    known: &BTreeSet<TableName>,
) -> Result<BTreeMap<TableName, String>> {
    let name = &config.source.publication;
    let new = |table: &Table| member(table, &exclusion(config, &table.name, None, None));
    let Some(found) = publication::read(client, name).await? else {
        if may_create {
            let locked = publication::create(client, name, &tables.iter().map(new).collect::<Vec<_>>()).await?;
            return Ok(locked.into_iter().map(|table| (table, LOCKED.to_owned())).collect());
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
    // One that is configured by name is refused.
    let may_leave_out = |table: &TableName| config.tables.is_none() && !known.is_empty() && !known.contains(table);
    let left_out = add(client, name, &missing, may_leave_out).await?;
    for table in tables {
        let Some(published) = found.tables.get(&table.name) else { continue };
        let wanted = exclusion(config, &table.name, Some((published.oid, published.xmin)), before);
        let Some(member) = relisted(table, published, &wanted) else { continue };
        tracing::warn!(table = %table.name, list = member.columns.is_some(), "changing the table's column list in the publication (exclude_at_source)");
        publication::relist(client, name, &member, published.relid).await?;
    }
    Ok(left_out)
}

/// Adds tables; those that another session locks are added at the next look, and the others are streamed meanwhile. If it is refused, they are
/// added one by one, and those are left out that may be.
async fn add(
    client: &Client,
    publication: &str,
    missing: &[Member],
    may_leave_out: impl Fn(&TableName) -> bool,
) -> Result<BTreeMap<TableName, String>> {
    let told = |locked: publication::Locked| locked.into_iter().map(|table| (table, LOCKED.to_owned()));
    match publication::add(client, publication, missing).await {
        Err(error) if missing.iter().any(|member| may_leave_out(&member.table)) => {
            tracing::debug!(error = %error.full(), "adding the tables one by one");
        }
        other => return other.map(|locked| told(locked).collect()),
    }
    let mut left_out = BTreeMap::new();
    for member in missing {
        match publication::add(client, publication, std::slice::from_ref(member)).await {
            Err(why) if may_leave_out(&member.table) => {
                left_out.insert(member.table.clone(), why.full());
            }
            other => left_out.extend(told(other?)),
        }
    }
    Ok(left_out)
}

/// The publication does not exist, though the lake has begun with it.
pub(super) fn gone(name: &str) -> Error {
    Error::source_refused(format!(
        "publication {name:?} is gone: changes since then were not sent. Run `huella run --resnapshot` to make it again and copy every table"
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
