//! What a session does about the source's present state: looks, copies, proposals.
//!
//! Owns: when the catalogue is looked at, when a copy begins, which proposal is taken. Does not own: what a difference means
//! (`registry`). Invariant: nothing here waits for the source or the lake while the stream could go on, but for room in the pipeline.

use super::super::copier::Outcome;
use super::super::pipeline::Order;
use super::super::proposals::{self, Found};
use super::super::registry::Registry;
use super::super::source::{self, Observed};
use super::super::writer::Writer;
use super::{Session, View};
use crate::commit::Held;
use crate::config::Mode;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::postgres::connect_sql;
use crate::snapshot::{Copied, next_group, prepare};
use crate::table_name::TableName;
use std::sync::Arc;
use tokio_postgres::Client;

/// What a look brings.
pub(super) struct Looked {
    observed: Observed,
    /// Copies that others propose.
    proposals: Vec<Found>,
}

/// The registry, and the first look, which waits until the stream has brought what was committed before it. What nothing can be done about is
/// refused before the first frame.
pub(super) async fn begin(writer: &mut Writer, client: &Client, held: &Held) -> Result<(Registry, Observed)> {
    let mut registry = Registry::load(held.store(), &writer.config, held.watermark()).await?;
    let before = held.watermark().source.publication.as_ref();
    let known = registry.names();
    let observed = source::take_look(client, &writer.config, (&known, &writer.ended), before, &registry.reconciled()).await?;
    registry.viewed(&observed)?;
    writer.tell_left_out(&observed);
    Ok((registry, observed))
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

    /// Begins a look at publication and catalog, off the loop: a slow answer must not hold the stream. One at a time, from its beginning
    /// until it is taken into account.
    pub(super) fn look(&mut self) {
        if self.looking.is_some() || self.seen.is_some() {
            self.look_again = true;
            return;
        }
        let (options, config, known) = (self.writer.options.clone(), self.writer.config.clone(), self.registry.names());
        let (store, ended, reconciled) = (Arc::clone(&self.writer.store), self.writer.ended.clone(), self.registry.reconciled());
        self.looking = Some(tokio::spawn(async move {
            let client = connect_sql(&options).await?;
            let observed = source::take_look(&client, &config, (&known, &ended), None, &reconciled).await?;
            Ok(Looked { observed, proposals: proposals::list(store.as_ref()).await })
        }));
    }

    /// A look was taken. It is compared once the stream has brought all that was committed before it, and nothing after: only then do the
    /// layouts that the wire brought and the catalog that was seen belong to one moment.
    pub(super) async fn looked(&mut self, looked: Result<Looked>) -> Result<()> {
        let Looked { observed, proposals } = looked?;
        self.registry.viewed(&observed)?;
        self.writer.tell_left_out(&observed);
        self.view = View { snapshot: observed.snapshot.clone(), position: observed.position };
        self.seen = Some(observed);
        self.compare().await?;
        self.proposed(proposals).await
    }

    /// Takes the look that waits into account, if the stream has come to it.
    pub(super) async fn compare(&mut self) -> Result<()> {
        let due = |seen: &mut Observed| !self.batcher.in_transaction() && self.batcher.position() >= seen.position;
        let Some(seen) = self.seen.take_if(due) else { return Ok(()) };
        self.compare_with(seen).await
    }

    /// Takes the look that waits into account before a transaction that committed after it.
    pub(super) async fn compare_before(&mut self, commit: Lsn) -> Result<()> {
        match self.seen.take_if(|seen| seen.position <= commit) {
            Some(seen) => self.compare_with(seen).await,
            None => Ok(()),
        }
    }

    async fn compare_with(&mut self, observed: Observed) -> Result<()> {
        let before = self.registry.names();
        let waiting = self.writer.prepared.is_none() && !self.registry.pending().is_empty();
        let whole = self.registry.reconcile(&observed).await?;
        let now = self.registry.names();
        self.writer.ended.extend(before.difference(&now).cloned());
        if std::mem::replace(&mut self.compared, true) {
            self.moved(observed.position).await?;
        } else {
            self.writer.announced.looked(self.registry.take_moved(), waiting, observed.position);
        }
        if self.registry.has_edits() {
            // The server describes a relation again only if that itself changed.
            self.stale.extend(self.targets.drain().map(|(id, (relation, _))| (id, relation)));
            self.cut(true).await?;
        }
        if std::mem::take(&mut self.look_again) || !whole {
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
            let streamed = found.proposal.tables.iter().filter(|t| t.mode == Mode::Stream);
            self.registry.taking(streamed.map(|t| (&t.table, &t.look)));
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
            next_group(self.uncopied().into_iter().map(|name| (name.clone(), self.registry.view(&name))), self.writer.copy_workers());
        let (options, workers) = (self.writer.options.clone(), self.writer.copy_workers());
        self.writer.copier.prepare(async move { prepare(&options, &names, workers).await });
        self.copying = true;
    }

    pub(super) async fn copied(&mut self, outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Prepared(prepared) => {
                let known = self.registry.names();
                let wanted = source::judged(&self.writer.config, prepared.tables.clone(), &known)?;
                let observed = source::observe(&self.client, &self.writer.config, wanted).await?;
                let mut filters = prepared.filters(&self.writer.config.source.publication).await?;
                let may_copy = self.writer.announced.may_copy(prepared.point);
                let jobs = if may_copy { self.registry.jobs(&observed, prepared.point, &mut filters).await? } else { Vec::new() };
                self.moved(observed.position).await?;
                if jobs.len() < prepared.tables.len() {
                    self.look(); // the source changed meanwhile; what is left over waits for the next copy
                }
                if self.registry.has_edits() {
                    self.stale.extend(self.targets.drain().map(|(id, (relation, _))| (id, relation)));
                    self.cut(true).await?; // a version's schema is known before its rows
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
