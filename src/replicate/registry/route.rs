//! Where the rows of a RELATION go: to which table, and to which of its versions.
//!
//! Owns: finding the table by oid and name, versions for shapes that the catalogue has left behind. Invariant: a row is written to the newest
//! version that its shape fits; a shape that fits none begins one.

use super::super::edit::store_schema;
use super::super::source::privacy;
use super::super::wire;
use super::{Entry, Registry, anew, note};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::pgoutput::Relation;
use crate::postgres::catalogue::Table;
use crate::postgres::fingerprint::{leaves_differ, rewritten};
use crate::schema::version::{Fit, Layout, Privacy, TableSchema};
use crate::store::Store;
use crate::table_name::TableName;
use std::sync::Arc;
use tokio_postgres::Client;

/// A RELATION message, and what is known beside it.
pub(crate) struct Arrived<'a> {
    pub(crate) relation: &'a Relation,
    /// The catalogue's present view of its table.
    pub(crate) table: Option<&'a Table>,
    /// Commit LSN of the rows that follow.
    pub(crate) at: Lsn,
}

impl Registry {
    /// The table that a relation belongs to, if its rows are replicated.
    pub(crate) fn table_of(&self, relation: &Relation) -> Option<TableName> {
        let find = |is: &dyn Fn(&Entry) -> bool| self.entries.iter().find(|(_, e)| is(e)).map(|(name, _)| name.clone());
        // Names change: the catalogue's present view counts before what the lake was made from, and both before the name.
        let now = |e: &Entry| e.table.as_ref().is_some_and(|t| t.oid == relation.id || t.leaves.iter().any(|l| l.oid == relation.id));
        let name = TableName::new(&relation.namespace, &relation.name);
        find(&now).or_else(|| find(&|e| e.mark.oid == relation.id)).or_else(|| self.entries.contains_key(&name).then_some(name))
    }

    /// Whether a relation is a partition of a table some of whose other partitions are not among `relations`.
    pub(crate) fn is_part(&self, relation: u32, relations: &[u32]) -> bool {
        let tables = self.entries.values().filter_map(|entry| entry.table.as_ref());
        tables.flat_map(|table| table.leaves.iter().map(move |leaf| (table, leaf.oid))).any(|(table, leaf)| {
            leaf == relation && !relations.contains(&table.oid) && !table.leaves.iter().all(|leaf| relations.contains(&leaf.oid))
        })
    }

    /// Whether a relation's rows belong to the table as the catalogue has it now, or to what it was when its versions began. If not,
    /// they belong to nothing that is replicated yet: should that join, it is copied after them.
    pub(crate) fn is_of(&self, table: &Table, relation: u32) -> bool {
        let began = |entry: &Entry| entry.mark.oid == relation || entry.versions.iter().any(|version| version.oid == relation);
        table.oid == relation || table.leaves.iter().any(|leaf| leaf.oid == relation) || self.entries.get(&table.name).is_some_and(began)
    }

    /// Where the rows of a shape go; a shape that fits no version begins one. `table`: the catalogue now. `at`: the commit LSN of
    /// the transaction that brings it.
    pub(crate) async fn route(
        &mut self,
        store: &dyn Store,
        client: &Client,
        config: &Config,
        name: &TableName,
        arrived: &Arrived<'_>,
    ) -> Result<(Arc<TableSchema>, Arc<Layout>)> {
        let (table, at) = (arrived.table, arrived.at);
        let privacy = privacy(config, name);
        let Some(entry) = self.entries.get_mut(name) else { return Err(Error::bug(format!("{name} is not replicated"))) };
        let mut relation = arrived.relation.clone();
        if let Some(table) = table.filter(|t| t.leaves.iter().any(|l| l.oid == relation.id)) {
            relation.id = table.oid;
        }
        if let (Some(newest), Some(table)) = (entry.versions.last(), table) {
            newest.guard(&privacy, table)?;
        }
        let mut why = String::new();
        for index in (0..entry.versions.len()).rev() {
            let schema = Arc::clone(&entry.versions[index]);
            // Of a table that was dropped, and created again since, the catalogue says nothing any more.
            match schema.fit_relation(&relation, table.filter(|table| table.oid == relation.id), &privacy) {
                Fit::Same(layout) => return Ok((schema, Arc::new(layout))),
                Fit::Extends { schema: extended, layout, copy, what } => {
                    let extended = Arc::new(*extended);
                    store_schema(store, &extended).await?;
                    note(&mut self.edits, name, extended.version, &what);
                    entry.versions[index] = Arc::clone(&extended);
                    let newest = entry.newest_fingerprint();
                    let others = |t: &&Table| rewritten(newest, &t.fingerprint) || leaves_differ(newest, &t.fingerprint);
                    let anew = table.filter(others).map(|_| anew(&what));
                    if let (Some(reason), Some(table)) = (copy.or(anew), table) {
                        self.begin(store, &privacy, table, Some(Arc::clone(&extended)), None, &reason).await?;
                    } else if let Some(table) = table {
                        self.keep(name, table.fingerprint.clone())?;
                    }
                    return Ok((extended, Arc::new(layout)));
                }
                // What it says of the newest is what a person understands.
                Fit::Breaks(reason) if why.is_empty() => why = reason,
                Fit::Breaks(_) => {}
            }
        }
        let table = table.ok_or_else(|| Error::retry(format!("{name}: {why}, and the table is no longer in the catalogue")))?;
        let mut hidden = privacy.clone();
        let ahead = matches!(TableSchema::begin(table, 0, &privacy).fit_relation(&relation, Some(table), &privacy), Fit::Breaks(_));
        if ahead && relation.id != table.oid {
            let why = format!("the table was dropped and created again (oid {} became {})", relation.id, table.oid);
            return self.superseded(store, &privacy, &relation, table, at, &why).await;
        }
        if ahead {
            // The catalogue has gone on: these rows get a version of their own, of the shape they were sent in, which a copy of the
            // present shape supersedes. Nothing waits for a shape that never comes back.
            let then = wire::table(client, &relation, table).await?;
            let had = |v: &Arc<TableSchema>| !v.excluded.is_empty() || v.columns.iter().any(|c| c.hashed);
            if hidden.is_asked() || entry.versions.iter().any(had) {
                // A column that nobody knows any more may be a private one under a name of before: it stays out.
                hidden.exclude.extend(wire::unknown(&relation, table, &entry.versions));
            }
            let reason = format!("{why}; the stream is behind the catalogue there");
            self.begin(store, &hidden, &then, None, None, &reason).await?;
        }
        let schema = if ahead { Some(self.newest(name)?) } else { None };
        // Only a copy taken after these rows has what they left behind.
        self.begin(store, &privacy, table, None, ahead.then_some(Lsn(at.0 + 1)), &why).await?;
        let schema = schema.map_or_else(|| self.newest(name), Ok)?;
        match schema.fit_relation(&relation, Some(table).filter(|_| !ahead), &hidden) {
            Fit::Same(layout) | Fit::Extends { layout, .. } => Ok((schema, Arc::new(layout))),
            Fit::Breaks(reason) => Err(Error::bug(format!("{name}: a version was begun for a shape that does not fit it ({reason})"))),
        }
    }

    /// Rows of a table that was dropped, and created again since: a copy of the new one, taken after them, has nothing of them. They stand
    /// where it supersedes them, as far as its version has their columns.
    async fn superseded(
        &mut self,
        store: &dyn Store,
        privacy: &Privacy,
        relation: &Relation,
        table: &Table,
        at: Lsn,
        why: &str,
    ) -> Result<(Arc<TableSchema>, Arc<Layout>)> {
        let name = &table.name;
        let Some(entry) = self.entries.get(name) else { return Err(Error::bug(format!("{name} is not replicated"))) };
        let newest = entry.versions.last().filter(|newest| matches!(newest.fit_catalogue(table, privacy), Fit::Same(_))).cloned();
        let current = newest.as_ref().is_some_and(|newest| entry.mark.version == Some(newest.version));
        if !(current && entry.mark.snapshot.is_some_and(|snapshot| at < snapshot)) {
            self.begin(store, privacy, table, newest.filter(|_| !current), Some(Lsn(at.0 + 1)), why).await?;
        }
        let schema = self.newest(name)?;
        let layout = schema.superseded_layout(relation, privacy);
        Ok((schema, Arc::new(layout)))
    }
}
