//! What a session does about the source's present state: looks, copies, proposals.
//!
//! Owns: when the catalogue is looked at, when a copy begins, which proposal is taken. Does not own: what a difference means
//! (`registry`). Invariant: nothing here waits for the source or the lake while the stream could go on, but for room in the pipeline.

use super::super::copier::Outcome;
use super::super::membership;
use super::super::pipeline::Order;
use super::super::proposals::{self, Found};
use super::super::registry::Registry;
use super::super::source::{self, Observed};
use super::super::writer::Writer;
use super::{Session, View};
use crate::commit::Held;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::postgres::{connect_sql, server};
use crate::snapshot::{Copied, next_group, prepare};
use crate::table_name::TableName;
use std::sync::Arc;
use tokio_postgres::Client;

/// What a look brings.
pub(super) struct Looked {
    /// What transactions below it did is seen.
    horizon: u64,
    observed: Observed,
    /// Copies that others propose.
    proposals: Vec<Found>,
}

/// The registry, compared with the source before the first frame is looked at.
pub(super) async fn begin(writer: &mut Writer, client: &Client, held: &Held) -> Result<(Registry, View)> {
    let horizon = server::oldest_running(client).await?;
    let mut registry = Registry::load(held.store().as_ref(), held.watermark()).await?;
    let (config, known) = (&writer.config, registry.names());
    let tables = source::wanted(client, config, &known, &writer.ended).await?;
    membership::ensure(client, config, &tables, false, held.watermark().source.publication.as_ref()).await?;
    let observed = source::observe(client, config, tables).await?;
    let waiting = writer.prepared.is_none() && !registry.pending().is_empty();
    registry.compare(held.store().as_ref(), config, &observed, true).await?;
    writer.ended.extend(known.difference(&registry.names()).cloned());
    writer.announced.looked(registry.take_moved(), waiting, observed.position);
    Ok((registry, View { horizon, position: observed.position }))
}

impl Session<'_> {
    /// Tables that wait for a copy that has not been made.
    pub(super) fn uncopied(&self) -> Vec<TableName> {
        self.registry.pending().into_iter().filter(|table| !self.handed.contains_key(table)).collect()
    }

    /// Copies that were finished for a session before this one, under the same claim.
    pub(super) async fn settle_former(&mut self) -> Result<()> {
        let epoch = self.committed.borrow().epoch;
        for (of, copied) in std::mem::take(&mut self.writer.unsettled) {
            if of == epoch && self.registry.pending().contains(&copied.mark.table) {
                self.hand_over(copied).await?;
            }
        }
        Ok(())
    }

    /// Gives a finished copy to the pipeline, and sees to it that its point is reached.
    pub(super) async fn hand_over(&mut self, copied: Copied) -> Result<()> {
        let point = copied.mark.snapshot;
        self.handed.insert(copied.mark.table.clone(), point);
        self.pipeline.send(Order::Copied(copied.into())).await?;
        self.await_point(point).await
    }

    /// Begins a look at publication and catalogue, off the loop: a slow answer must not hold the stream.
    pub(super) fn look(&mut self) {
        if self.looking.is_some() {
            self.look_again = true;
            return;
        }
        let (options, config, known) = (self.writer.options.clone(), self.writer.config.clone(), self.registry.names());
        let (store, ended) = (Arc::clone(&self.writer.store), self.writer.ended.clone());
        self.looking = Some(tokio::spawn(async move {
            let client = connect_sql(&options).await?;
            let horizon = server::oldest_running(&client).await?;
            let tables = source::wanted(&client, &config, &known, &ended).await?;
            membership::ensure(&client, &config, &tables, false, None).await?;
            let observed = source::observe(&client, &config, tables).await?;
            Ok(Looked { horizon, observed, proposals: proposals::list(store.as_ref()).await })
        }));
    }

    pub(super) async fn looked(&mut self, looked: Result<Looked>) -> Result<()> {
        let Looked { horizon, observed, proposals } = looked?;
        // What it saw may be older than what the registry knows by now: comparing would turn the shape back, and begin a version for it.
        if std::mem::take(&mut self.look_outdated) {
            self.look_again = false;
            self.look();
            return Ok(());
        }
        let (store, before) = (self.writer.store.clone(), self.registry.names());
        self.registry.compare(store.as_ref(), &self.writer.config, &observed, true).await?;
        self.view = View { horizon, position: observed.position };
        let now = self.registry.names();
        self.writer.ended.extend(before.difference(&now).cloned());
        self.moved(observed.position).await?;
        if self.registry.has_edits() {
            // The server describes a relation again only if that itself changed.
            self.stale.extend(self.targets.drain().map(|(id, (relation, _))| (id, relation)));
            self.cut(true).await?;
        }
        self.proposed(proposals).await?;
        if std::mem::take(&mut self.look_again) {
            self.look();
        }
        Ok(())
    }

    /// Where partitions moved below `position`: copies may have to wait for a session that begins behind it.
    pub(super) async fn moved(&mut self, position: Lsn) -> Result<()> {
        if self.registry.take_moved() {
            self.writer.announced.moved(position);
            if let Some(behind) = self.writer.announced.behind() {
                self.await_point(behind).await?;
            }
        }
        Ok(())
    }

    /// Takes the first proposal that fits; removes those that never will.
    pub(super) async fn proposed(&mut self, found: Vec<Found>) -> Result<()> {
        for found in found {
            if self.taking.is_some() {
                return Ok(());
            }
            if found.proposal.is_settled(&self.committed.borrow()) {
                proposals::remove(&self.writer.store, &found.path); // committed before, perhaps by a predecessor
                continue;
            }
            let standing = self.registry.ahead_of(&self.committed.borrow());
            if let Err(reason) = found.proposal.judge(&standing) {
                tracing::warn!(proposal = found.path, writer = found.proposal.writer, reason, "a proposed copy is void");
                proposals::remove(&self.writer.store, &found.path);
                continue;
            }
            tracing::info!(proposal = found.path, writer = found.proposal.writer, "taking a proposed copy in");
            self.taking = Some(found.clone());
            let point = found.proposal.needs();
            self.pipeline.send(Order::Copied(found.into())).await?;
            self.await_point(point).await?;
        }
        Ok(())
    }

    /// The next commit is to reach this position, as soon as the stream does.
    pub(super) async fn await_point(&mut self, point: Lsn) -> Result<()> {
        if self.batcher.position() < point || self.batcher.moved() {
            self.wanted = self.wanted.max(Some(point));
            self.reach().await?;
        }
        Ok(())
    }

    /// Prepares a copy of all tables that wait for one.
    pub(super) fn copy_pending(&mut self) {
        let names =
            next_group(self.uncopied().into_iter().map(|name| (name.clone(), self.registry.table(&name))), self.writer.copy_workers());
        let (options, workers) = (self.writer.options.clone(), self.writer.copy_workers());
        self.writer.copier.prepare(async move { prepare(&options, &names, workers).await });
        self.copying = true;
    }

    pub(super) async fn copied(&mut self, outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Prepared(prepared) => {
                let config = &self.writer.config;
                let observed = source::observe(&self.client, config, prepared.tables.clone()).await?;
                let mut filters = prepared.filters(&config.source.publication).await?;
                let unedited = observed.tables.values().filter(|t| self.registry.knows(config, &observed, &t.name));
                let jobs: Vec<_> = unedited.filter_map(|t| self.registry.job(t, filters.remove(&t.oid))).collect();
                let jobs = if self.writer.announced.may_copy(prepared.point) { jobs } else { Vec::new() };
                if jobs.len() < prepared.tables.len() {
                    self.look(); // a shape changed meanwhile; what is left over waits for the next copy
                }
                if jobs.is_empty() {
                    self.writer.copier.delay();
                    self.copying = false;
                    return Ok(());
                }
                let (hash_key, limit) = (self.writer.hash_key.clone(), self.writer.copy_bytes());
                self.writer.copier.start(*prepared, jobs, &self.lake, hash_key, limit);
            }
            Outcome::Copied(copied) => self.hand_over(copied).await?,
            Outcome::Finished => self.copying = false,
            Outcome::Failed(error) if error.is_retry() => {
                tracing::warn!(error = %error.full(), "the copy was interrupted and will be repeated");
                self.copying = false;
            }
            Outcome::Failed(error) => return Err(error),
        }
        Ok(())
    }
}
