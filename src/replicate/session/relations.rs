//! Where the rows of a relation go.
//!
//! Owns: the targets of a session, and when the catalogue is asked for a relation. Does not own: versions (`registry`). Invariant: a
//! relation is placed by a view of the catalogue that has what the arriving transaction did.

use super::super::registry::Arrived;
use super::super::source;
use super::Session;
use crate::batch::Target;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::pgoutput::Relation;
use crate::postgres::catalogue::Table;
use crate::postgres::{catalogue, server};
use crate::schema::version::{Layout, TableSchema};
use crate::table_name::TableName;
use std::sync::Arc;

impl Session<'_> {
    pub(super) async fn target(&mut self, relation: u32) -> Result<Option<Target>> {
        if let Some((_, target)) = self.targets.get(&relation) {
            return Ok(*target);
        }
        let missing = || Error::retry(format!("rows of relation {relation} came before its description"));
        self.relation(self.stale.get(&relation).ok_or_else(missing)?.clone()).await?;
        self.targets.get(&relation).map(|(_, target)| *target).ok_or_else(missing)
    }

    /// RELATION: comes lazily, repeatedly, and for leaves; only a new content matters.
    pub(super) async fn relation(&mut self, relation: Relation) -> Result<()> {
        if self.targets.get(&relation.id).is_some_and(|(known, _)| *known == relation) {
            return Ok(());
        }
        let target = match self.registry.table_of(&relation) {
            None => {
                tracing::debug!(relation = relation.id, "rows of this relation are not replicated");
                None
            }
            Some(name) => {
                let (table, position) = self.table_now(&name).await?;
                if let Some(table) = table.as_ref().filter(|table| !self.registry.is_of(table, relation.id)) {
                    tracing::debug!(table = %table.name, relation = relation.id, "a relation is no longer this table's (a partition was detached, say)");
                    self.look();
                    self.stale.remove(&relation.id);
                    self.targets.insert(relation.id, (relation, None));
                    return Ok(());
                }
                let (schema, layout) = self.route(&name, &relation, table.as_ref()).await?;
                self.look_outdated |= self.looking.is_some() && self.registry.has_edits();
                self.moved(position).await?;
                Some(self.batcher.register(schema, layout))
            }
        };
        self.look_outdated |= self.looking.is_some();
        self.stale.remove(&relation.id);
        self.targets.insert(relation.id, (relation, target));
        Ok(())
    }

    /// A table as the catalogue has it after the transaction that is arriving, and the end of WAL when it was looked at.
    pub(super) async fn table_now(&self, name: &TableName) -> Result<(Option<Table>, Lsn)> {
        let xid = self.batcher.xid();
        if let Some(known) = self.registry.table(name)
            && xid.is_some_and(|xid| precedes(xid, self.view.horizon))
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

    pub(super) async fn route(
        &mut self,
        name: &TableName,
        relation: &Relation,
        table: Option<&Table>,
    ) -> Result<(Arc<TableSchema>, Arc<Layout>)> {
        let store = self.writer.store.clone();
        let at = self.batcher.arriving().unwrap_or(self.batcher.position());
        self.registry.route(store.as_ref(), &self.client, &self.writer.config, name, &Arrived { relation, table, at }).await
    }
}

/// Whether a transaction of the stream, which has 32 bits of its id, is older than another.
fn precedes(xid: u32, other: u64) -> bool {
    (xid.wrapping_sub(other as u32) as i32) < 0
}
