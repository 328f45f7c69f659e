//! One session: from the stream's first frame to its last, with its timers.
//!
//! Owns: decoding into the batcher, when to cut, heartbeats, looks at the source, ends. Invariants: an
//! acknowledgement is a committed watermark's `through`; a heartbeat moves the position only between
//! transactions; whatever ends the session, what was handed over is committed up to its last boundary.

use super::announced;
use super::copier::{Lake, Outcome};
use super::membership;
use super::pipeline::{Finished, Order, Pipeline};
use super::proposals::{self, Found};
use super::registry::{Arrived, Registry};
use super::source::{self, Observed};
use super::takeover::Taken;
use super::writer::Writer;
use crate::batch::{Batcher, Replay, Target};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::lake::Watermark;
use crate::lsn::Lsn;
use crate::pgoutput::{self, Envelope, Message, Relation};
use crate::postgres::catalogue::Table;
use crate::postgres::{Event, Frames, ReplicationStream, catalogue, connect_sql, server, sqlstate};
use crate::schema::version::{Layout, TableSchema};
use crate::snapshot::{Copied, prepare};
use crate::table_name::TableName;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::Client;

/// How a session ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was asked to.
    Stopped,
    /// `--until-caught-up` has what it wanted.
    CaughtUp,
    /// A new one is to go on: this one may announce partitions wrongly (`announced`).
    Anew,
}

/// How often the server is asked for its position while a certain one is waited for.
const EAGER: Duration = Duration::from_millis(200);

/// A row of this size waits until the pieces before it have left room for it, before it is taken in.
const LARGE_BYTES: usize = 4 << 20;

/// When the catalogue was looked at.
#[derive(Debug, Clone, Copy)]
struct View {
    /// What transactions below it did is seen.
    horizon: u64,
    /// End of the server's WAL afterwards.
    position: Lsn,
}

/// What a look brings.
struct Looked {
    /// What transactions below it did is seen.
    horizon: u64,
    observed: Observed,
    /// Copies that others propose.
    proposals: Vec<Found>,
}

struct Session<'a> {
    writer: &'a mut Writer,
    stream: ReplicationStream,
    client: Client,
    pipeline: Pipeline,
    committed: watch::Receiver<Arc<Watermark>>,
    batcher: Batcher,
    registry: Registry,
    /// What the registry's tables were compared with last.
    view: View,
    targets: HashMap<u32, (Relation, Option<Target>)>,
    /// Descriptions whose target is to be found anew before their next row.
    stale: HashMap<u32, Relation>,
    lake: Lake,
    looking: Option<JoinHandle<Result<Looked>>>,
    look_again: bool,
    /// A relation was placed by a newer view of the catalogue than the one that is being taken: that one is of no use.
    look_outdated: bool,
    heartbeat_due: bool,
    /// A position that somebody waits for: a copy's, or the end of `--until-caught-up`.
    wanted: Option<Lsn>,
    /// A piece of one huge row is on its way: nothing is taken on before it is uploaded.
    alone: bool,
    /// The copier is at work.
    copying: bool,
    /// A proposal that was handed to the pipeline, until its commit.
    taking: Option<Found>,
    /// Copies that are on their way to the watermark, by their points.
    handed: BTreeMap<TableName, Lsn>,
}

/// Streams until an end or an error; gives the claim back to `writer`.
pub(crate) async fn run(writer: &mut Writer, taken: Taken, stop: &mut watch::Receiver<bool>) -> Result<End> {
    let held = writer.take_held()?;
    let lake = Lake::from(&held);
    let through = held.watermark().position();
    let (registry, view) = match begin(writer, &taken.client, &held).await {
        Ok(begun) => begun,
        Err(error) => {
            writer.held = Some(held);
            return Err(error);
        }
    };
    // From the slot's position on everything comes again; a commit that lies at it does.
    let last = held.watermark().last_transaction.clone();
    let replay = last.map(|last| Replay { due: taken.confirmed <= last.commit_lsn, last });
    let batcher = Batcher::new(through, replay, writer.piece_bytes(), writer.hash_key.clone());
    let pipeline = Pipeline::start(held, writer.room_bytes());
    let mut session = Session {
        stream: taken.stream,
        client: taken.client,
        committed: pipeline.committed(),
        pipeline,
        batcher,
        registry,
        view,
        targets: HashMap::new(),
        stale: HashMap::new(),
        lake,
        looking: None,
        look_again: false,
        look_outdated: false,
        heartbeat_due: false,
        wanted: writer.target.max(writer.announced.behind()).filter(|t| *t > through),
        alone: false,
        copying: writer.copier.busy(),
        taking: None,
        handed: BTreeMap::new(),
        writer,
    };
    if let Some((prepared, jobs)) = session.writer.prepared.take() {
        let (hash_key, limit) = (session.writer.hash_key.clone(), session.writer.copy_bytes());
        session.writer.copier.start(prepared, jobs, &session.lake, hash_key, limit);
        session.copying = true;
    }
    let ended = match session.settle_former().await {
        Ok(()) => session.stream_on(stop).await,
        Err(error) => Err(error),
    };
    session.leave(ended).await
}

/// The registry, compared with the source before the first frame is looked at.
async fn begin(writer: &mut Writer, client: &Client, held: &crate::commit::Held) -> Result<(Registry, View)> {
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
    async fn stream_on(&mut self, stop: &mut watch::Receiver<bool>) -> Result<End> {
        let heartbeat = self.writer.config.batch.heartbeat;
        let mut beat = tokio::time::interval_at(Instant::now() + heartbeat, heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut eager = tokio::time::interval(EAGER);
        eager.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        if self.registry.has_edits() {
            self.cut(true).await?;
        }
        // Also for a run that ends at once: who handed a copy over waits for a writer.
        let found = proposals::list(self.writer.store.as_ref()).await;
        self.proposed(found).await?;
        loop {
            if self.caught_up() {
                return Ok(End::CaughtUp);
            }
            if self.writer.announced.behind().is_some_and(|behind| self.committed.borrow().position() >= behind) {
                tracing::info!(
                    "partitions came or went, and this server goes on announcing their rows as before in a session: another one begins, and then the tables are copied"
                );
                return Ok(End::Anew);
            }
            let age_at = self.batcher.oldest().map(|at| Instant::from_std(at) + self.writer.config.batch.max_age);
            let may_cut = age_at.is_some() && (self.batcher.has_complete() || !self.batcher.in_transaction());
            let copy_at = self.writer.copier.not_before();
            let wants_copy =
                self.writer.announced.behind().is_none() && !self.copying && !self.writer.copier.busy() && !self.uncopied().is_empty();
            tokio::select! {
                biased;
                // Leaving comes first: a person or the platform waits, and has seconds.
                _ = stop.wait_for(|s| *s) => return Ok(End::Stopped),
                // The committer ends by itself only with an error, which `leave` finds.
                () = self.pipeline.closed() => return Err(Error::retry("the commit task ended")),
                // Acks free WAL at the source: before more work is taken on.
                changed = self.committed.changed() => {
                    changed.map_err(|_| Error::retry("the commit task ended"))?;
                    self.committed();
                }
                looked = async { self.looking.as_mut().expect("guarded").await }, if self.looking.is_some() => {
                    self.looking = None;
                    self.looked(looked.unwrap_or_else(|e| Err(Error::bug("looking at the source panicked").with_source(e)))).await?;
                }
                outcome = self.writer.copier.next() => self.copied(outcome).await?,
                () = tokio::time::sleep_until(copy_at), if wants_copy => self.copy_pending(),
                () = tokio::time::sleep_until(age_at.unwrap_or_else(Instant::now)), if may_cut => self.cut(true).await?,
                _ = beat.tick() => {
                    self.heartbeat_due = true;
                    self.stream.request_keepalive();
                    self.look();
                }
                _ = eager.tick(), if self.wanted.is_some() => self.stream.request_keepalive(),
                // Data last: everything above is rare and quick.
                event = self.stream.next() => match event {
                    Err(error) => return Err(self.explained(error).await),
                    Ok(Some(Event::Frames(frames))) => {
                        self.frames(&frames).await?;
                        if std::mem::take(&mut self.alone) {
                            let _room = frames.into_room();
                            self.pipeline.room(usize::MAX).await?;
                        }
                    }
                    Ok(Some(Event::Notice(notice))) => {
                        tracing::warn!(severity = %notice.severity, sqlstate = %notice.sqlstate, "the server says: {}", notice.message);
                        self.look();
                    }
                    Ok(None) => return Err(Error::retry("the server ended the stream")),
                },
            }
        }
    }

    /// Up to 17 the stream ends with SQLSTATE 42704 where a change was written while there was no publication of the name; again and again.
    async fn explained(&self, error: Error) -> Error {
        match sqlstate(&error) {
            Some("42704") => {}
            Some("42804") if self.writer.announced.stays() => return announced::undecodable(error),
            _ => return error,
        }
        let name = &self.writer.config.source.publication;
        match source::observe(&self.client, &self.writer.config, Vec::new()).await {
            Err(told) if told.kind() == Kind::Source => told,
            _ => Error::source_refused(format!(
                "publication {name:?} is there, and was not when changes were written that are still to be sent: they cannot be decoded. \
                 Run `huella run --resnapshot`: it makes the slot anew and copies every table; history is kept"
            ))
            .with_source(error),
        }
    }

    fn caught_up(&self) -> bool {
        let Some(target) = self.writer.target else { return false };
        let through = self.committed.borrow().position();
        through >= target && !self.copying && self.taking.is_none() && self.registry.pending().is_empty()
    }

    /// A new watermark stands.
    fn committed(&mut self) {
        let watermark = self.committed.borrow_and_update().clone();
        self.stream.acknowledge(watermark.position());
        failpoint::hit("commit.after_ack");
        self.registry.committed(&watermark);
        if self.taking.as_ref().is_some_and(|taken| taken.proposal.is_settled(&watermark)) {
            let path = self.taking.take().map(|taken| taken.path).unwrap_or_default();
            proposals::remove(&self.writer.store, &path);
            self.look(); // for the next one
        }
        self.handed.retain(|table, point| watermark.tables.get(table).is_some_and(|mark| mark.snapshot.is_none_or(|s| s < *point)));
    }

    /// Tables that wait for a copy that has not been made.
    fn uncopied(&self) -> Vec<TableName> {
        self.registry.pending().into_iter().filter(|table| !self.handed.contains_key(table)).collect()
    }

    /// Copies that were finished for a session before this one, under the same claim.
    async fn settle_former(&mut self) -> Result<()> {
        let epoch = self.committed.borrow().epoch;
        for (of, copied) in std::mem::take(&mut self.writer.unsettled) {
            if of == epoch && self.registry.pending().contains(&copied.mark.table) {
                self.hand_over(copied).await?;
            }
        }
        Ok(())
    }

    /// Gives a finished copy to the pipeline, and sees to it that its point is reached.
    async fn hand_over(&mut self, copied: Copied) -> Result<()> {
        let point = copied.mark.snapshot;
        self.handed.insert(copied.mark.table.clone(), point);
        self.pipeline.send(Order::Copied(copied.into())).await?;
        self.await_point(point).await
    }

    /// Begins a look at publication and catalogue, off the loop: a slow answer must not hold the stream.
    fn look(&mut self) {
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

    async fn looked(&mut self, looked: Result<Looked>) -> Result<()> {
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
    async fn moved(&mut self, position: Lsn) -> Result<()> {
        if self.registry.take_moved() {
            self.writer.announced.moved(position);
            if let Some(behind) = self.writer.announced.behind() {
                self.await_point(behind).await?;
            }
        }
        Ok(())
    }

    /// Takes the first proposal that fits; removes those that never will.
    async fn proposed(&mut self, found: Vec<Found>) -> Result<()> {
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
    async fn await_point(&mut self, point: Lsn) -> Result<()> {
        if self.batcher.position() < point || self.batcher.moved() {
            self.wanted = self.wanted.max(Some(point));
            self.reach().await?;
        }
        Ok(())
    }

    /// Prepares a copy of all tables that wait for one.
    fn copy_pending(&mut self) {
        let names = self.uncopied();
        let (options, workers) = (self.writer.options.clone(), self.writer.copy_workers());
        self.writer.copier.prepare(async move { prepare(&options, &names, workers).await });
        self.copying = true;
    }

    async fn copied(&mut self, outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Prepared(prepared) => {
                let config = &self.writer.config;
                let observed = source::observe(&self.client, config, prepared.tables.clone()).await?;
                let mut filters = prepared.filters(&config.source.publication).await?;
                let unedited = observed.tables.values().filter(|t| self.registry.knows(config, &observed, &t.name));
                let jobs: Vec<_> = unedited.filter_map(|t| self.registry.job(t, filters.remove(&t.oid))).collect();
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

    /// Cuts at once when a position that somebody waits for is reached.
    async fn reach(&mut self) -> Result<()> {
        if let Some(wanted) = self.wanted
            && self.batcher.position() >= wanted
        {
            self.wanted = None;
            self.cut(true).await?;
        }
        Ok(())
    }

    async fn cut(&mut self, boundary: bool) -> Result<()> {
        let mut edits = self.registry.take_edits();
        let bytes = self.batcher.bytes();
        let mut pieces = self.batcher.cut(boundary)?;
        if pieces.is_empty() && !edits.is_empty() {
            pieces.push(crate::batch::Piece::default());
        }
        if pieces.is_empty() {
            return Ok(());
        }
        let room = self.pipeline.room(bytes).await?;
        for piece in pieces {
            self.pipeline.send(Order::Piece(piece, std::mem::take(&mut edits), Arc::clone(&room))).await?;
        }
        Ok(())
    }

    async fn frames(&mut self, frames: &Frames) -> Result<()> {
        for frame in frames.iter() {
            match pgoutput::envelope(frame).map_err(undecodable)? {
                Envelope::Keepalive { wal_end, reply_requested, .. } => {
                    self.batcher.keepalive(wal_end)?;
                    // A server that shuts down asks, and waits until all that it has sent is confirmed: age and heartbeat would hold it up.
                    if (self.heartbeat_due || reply_requested) && !self.batcher.in_transaction() {
                        self.heartbeat_due = false;
                        if self.batcher.moved() && (reply_requested || self.batcher.oldest().is_none()) {
                            self.cut(true).await?;
                        }
                    }
                }
                Envelope::Data { payload, .. } => self.message(payload).await?,
            }
        }
        self.reach().await
    }

    async fn message(&mut self, payload: &[u8]) -> Result<()> {
        self.change(payload).await?;
        if payload.len() >= LARGE_BYTES && self.batcher.full(0) {
            self.alone = true;
            self.cut(self.batcher.has_complete()).await?;
        }
        Ok(())
    }

    async fn change(&mut self, payload: &[u8]) -> Result<()> {
        let message = pgoutput::decode(payload).map_err(undecodable)?;
        if self.batcher.full(payload.len()) {
            self.cut(self.batcher.has_complete()).await?;
        }
        if payload.len() >= LARGE_BYTES {
            self.pipeline.room(payload.len()).await?;
        }
        match message {
            Message::Insert { relation, new } => {
                let target = self.target(relation).await?;
                self.batcher.insert(target, new)?;
                match self.batcher.take_torn() {
                    Some(torn) => self.registry.torn(&self.writer.store.clone(), &self.writer.config, &torn).await,
                    None => Ok(()),
                }
            }
            Message::Update { relation, old, new } => {
                let target = self.target(relation).await?;
                self.batcher.update(target, old, new)
            }
            Message::Delete { relation, old } => {
                let target = self.target(relation).await?;
                self.batcher.delete(target, old)
            }
            Message::Truncate(truncate) => {
                for relation in truncate.relations {
                    let target = self.target(relation).await?;
                    self.batcher.truncate(target)?;
                }
                Ok(())
            }
            Message::Begin(begin) => self.batcher.begin(&begin),
            Message::Commit(commit) => {
                self.batcher.commit(&commit)?;
                // Its rows were too many for one piece: the batch is over its size, so the age is not waited for.
                if self.batcher.overdue() { self.cut(true).await } else { Ok(()) }
            }
            Message::Relation(relation) => self.relation(relation).await,
            Message::Origin | Message::Type | Message::Logical { .. } => Ok(()),
            Message::Unasked(tag) => Err(Error::bug(format!("the server sent message {:?} that was not asked for", tag as char))),
        }
    }

    async fn target(&mut self, relation: u32) -> Result<Option<Target>> {
        if let Some((_, target)) = self.targets.get(&relation) {
            return Ok(*target);
        }
        let missing = || Error::retry(format!("rows of relation {relation} came before its description"));
        self.relation(self.stale.get(&relation).ok_or_else(missing)?.clone()).await?;
        self.targets.get(&relation).map(|(_, target)| *target).ok_or_else(missing)
    }

    /// RELATION: comes lazily, repeatedly, and for leaves; only a new content matters.
    async fn relation(&mut self, relation: Relation) -> Result<()> {
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
    async fn table_now(&self, name: &TableName) -> Result<(Option<Table>, Lsn)> {
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

    async fn route(&mut self, name: &TableName, relation: &Relation, table: Option<&Table>) -> Result<(Arc<TableSchema>, Arc<Layout>)> {
        let store = self.writer.store.clone();
        let at = self.batcher.arriving().unwrap_or(self.batcher.position());
        self.registry.route(store.as_ref(), &self.client, &self.writer.config, name, &Arrived { relation, table, at }).await
    }

    /// Ends: cuts what is complete, commits, acknowledges, and gives the claim back.
    async fn leave(mut self, ended: Result<End>) -> Result<End> {
        if ended.is_ok() {
            // The pipeline's own error is more telling than a failed send.
            let _ = self.cut(true).await;
        }
        if let Some(looking) = self.looking.take() {
            looking.abort();
        }
        let Finished { held, waiting, result: committed } = self.pipeline.finish().await?;
        self.writer.unsettled = waiting.into_iter().filter_map(|copies| Some((held.watermark().epoch, copies.own?))).collect();
        self.stream.acknowledge(held.watermark().position());
        let through = held.watermark().position();
        self.writer.held = Some(held);
        let committed = match committed {
            Err(error) if !error.is_retry() => return Err(error),
            other => other,
        };
        if let Err(error) = self.stream.finish().await {
            tracing::debug!(error = %error.full(), "the last status update was not taken; the slot stands where it was acknowledged before");
        }
        let end = ended?;
        committed?;
        tracing::info!(through = %through, caught_up = end == End::CaughtUp, "leaving; everything received is committed");
        Ok(end)
    }
}

/// Whether a transaction of the stream, which has 32 bits of its id, is older than another.
fn precedes(xid: u32, other: u64) -> bool {
    (xid.wrapping_sub(other as u32) as i32) < 0
}

fn undecodable(error: pgoutput::DecodeError) -> Error {
    Error::bug("the stream cannot be decoded; nothing after the watermark is acknowledged").with_source(error)
}
