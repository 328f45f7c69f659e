//! Where the rows of a relation go.
//!
//! Owns: the targets of a session, and when the catalog is asked for a relation. Does not own: versions (`shapes`). Invariant: a
//! relation is placed by a view of the catalog that has what the arriving transaction did.

use super::super::registry::{Registry, wire_types};
use super::super::source;
use super::{Destination, Session};
use crate::batch::Target;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::pgoutput::Relation;
use crate::postgres::catalogue::{self, Table};
use crate::postgres::server;
use crate::shapes::Arrival;
use crate::table_name::TableName;

impl Session<'_> {
    /// The target of a row's relation.
    pub(super) async fn target(&mut self, relation: u32) -> Result<Option<Target>> {
        let missing = || Error::retry(format!("rows of relation {relation} came before its description"));
        if !self.targets.contains_key(&relation) {
            self.relation(self.stale.get(&relation).ok_or_else(missing)?.clone()).await?;
        }
        if let Some(unplaced) = self.unplaced.take().filter(|unplaced| *unplaced != relation) {
            self.leaf(unplaced, relation).await?;
        }
        let (_, destination) = self.targets.get(&relation).ok_or_else(missing)?;
        Ok(destination.as_ref().map(|destination| destination.target))
    }

    /// RELATION: comes lazily, repeatedly, and for leaves; only a new content matters.
    pub(super) async fn relation(&mut self, relation: Relation) -> Result<()> {
        if self.targets.get(&relation.id).is_some_and(|(known, _)| *known == relation) {
            return Ok(());
        }
        let destination = match self.registry.table_of(&relation) {
            None => {
                tracing::debug!(relation = relation.id, "rows of this relation are not replicated");
                self.unplaced = Some(relation.id);
                None
            }
            Some(name) if self.registry.is_aside(&name) => None,
            Some(name) => self.place(name, &relation).await?,
        };
        self.stale.remove(&relation.id);
        self.targets.insert(relation.id, (relation, destination));
        Ok(())
    }

    async fn place(&mut self, table: TableName, relation: &Relation) -> Result<Option<Destination>> {
        let (now, position) = self.table_now(&table).await?;
        if now.as_ref().is_some_and(|now| !self.registry.is_of(now, relation.id)) {
            tracing::debug!(table = %table, relation = relation.id, "a relation is no longer this table's (a partition was detached, say)");
            self.look();
            return Ok(None);
        }
        let types = wire_types(&self.client, Registry::unknown_types(relation, now.as_ref())).await?;
        let arrival = Arrival { relation, table: now.as_ref(), position, types: &types, xid: self.batcher.xid() };
        let place = self.registry.place(&table, &arrival).await?;
        if self.registry.has_edits() {
            self.look(); // what the wire brought is one thing, what else changed another
        }
        self.moved(position).await?;
        let target = self.batcher.register(place.schema, place.layout);
        Ok(Some(Destination { table, target }))
    }

    /// A relation that no table has announced itself right before rows of `relation`: a partition that no look has shown. The catalog is asked at
    /// once, so that the debt is committed with these rows: a partition that is gone by the next look leaves no other mark.
    async fn leaf(&mut self, leaf: u32, relation: u32) -> Result<()> {
        let Some((_, Some(Destination { table, .. }))) = self.targets.get(&relation) else { return Ok(()) };
        let table = table.clone();
        if self.batcher.is_known() || !self.registry.is_new_leaf(&table, leaf) {
            return Ok(());
        }
        let (now, _) = self.table_now(&table).await?;
        let commit = self.batcher.arriving().unwrap_or(self.batcher.position());
        self.registry.leaf_announced(&table, leaf, commit, now.as_ref()).await
    }

    /// A table as the catalog has it after the transaction that is arriving, and the end of WAL when it was looked at.
    pub(super) async fn table_now(&self, name: &TableName) -> Result<(Option<Table>, Lsn)> {
        let xid = self.batcher.xid();
        if let Some(known) = self.registry.view(name)
            && xid.is_some_and(|xid| self.view.snapshot.has_seen(xid))
        {
            return Ok((Some(known.clone()), self.view.position));
        }
        if let Some(xid) = xid {
            server::await_visible(&self.client, xid).await?;
        }
        let Some(table) = catalogue::tables(&self.client, std::slice::from_ref(name)).await?.pop() else {
            return Ok((None, server::insert_lsn(&self.client).await?));
        };
        let mut observed = source::observe_one(&self.client, &self.writer.config, table.clone()).await?;
        Ok((Some(observed.tables.remove(name).unwrap_or(table)), observed.position))
    }
}
