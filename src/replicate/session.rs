//! One session: from the stream's first frame to its last, with its timers.
//!
//! Owns: decoding into the batcher, when to cut, heartbeats, looks at the source, ends. Invariants: an
//! acknowledgement is a committed watermark's `through`; a heartbeat moves the position only between
//! transactions; whatever ends the session, what was handed over is committed up to its last boundary.

mod looks;
mod relations;

use super::copier::Lake;
use super::pipeline::{Finished, Order, Pipeline};
use super::proposals::{self, Found};
use super::registry::Registry;
use super::source::{self, Observed};
use super::takeover::Taken;
use super::writer::Writer;
use crate::batch::{Batcher, Replay, Target};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::lake::Watermark;
use crate::lsn::Lsn;
use crate::pgoutput::{self, Envelope, Message, Relation};
use crate::postgres::server::Snapshot;
use crate::postgres::{Event, Frames, ReplicationStream, server, sqlstate};
use crate::table_name::TableName;
use crate::wait;
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

/// Where a relation's rows go.
#[derive(Debug, Clone)]
struct Destination {
    table: TableName,
    target: Target,
}

/// A row of this size waits until the pieces before it have left room for it, before it is taken in.
const LARGE_BYTES: usize = 4 << 20;

/// Relations that one session keeps the description of: about 50 MB. Somewhat more tables and partitions than a server can hold well.
const RELATIONS_MAX: usize = 100_000;

/// Longest wait for the position of the server's WAL, which takes less than a millisecond to read.
const VOUCH_WITHIN: Duration = Duration::from_secs(30);

/// When the catalog was looked at last.
#[derive(Debug, Clone)]
struct View {
    /// What transactions that had ended by then did is seen.
    snapshot: Snapshot,
    /// End of the server's WAL afterwards.
    position: Lsn,
}

struct Session<'a> {
    writer: &'a mut Writer,
    stream: ReplicationStream,
    client: Client,
    pipeline: Pipeline,
    committed: watch::Receiver<Arc<Watermark>>,
    batcher: Batcher,
    /// How far the server's WAL goes at least, as it said over SQL.
    flushed: Lsn,
    registry: Registry,
    view: View,
    /// A look that waits until the stream has brought what was committed before it.
    seen: Option<Observed>,
    /// A look was compared in this session.
    compared: bool,
    targets: HashMap<u32, (Relation, Option<Destination>)>,
    /// A relation that belongs to no table announced itself just now: a partition does that right before its root's rows.
    unplaced: Option<u32>,
    /// Descriptions whose target is to be found anew before their next row.
    stale: HashMap<u32, Relation>,
    lake: Lake,
    looking: Option<JoinHandle<Result<looks::Looked>>>,
    look_again: bool,
    heartbeat_due: bool,
    /// Rows came since the last heartbeat.
    arrived: bool,
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
    let begun = wait::told("a look at the source's catalog and publication", looks::begin(writer, &taken.client, &held)).await;
    let (registry, seen) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            writer.held = Some(held);
            return Err(error);
        }
    };
    // From the slot's position on everything comes again; a commit that lies at it does.
    let last = held.watermark().last_transaction.clone();
    let replay = last.map(|last| Replay { due: taken.confirmed <= last.commit_lsn, last });
    let batcher = Batcher::new(through, taken.confirmed, replay, writer.piece_bytes(), writer.hash_key.clone());
    let pipeline = Pipeline::start(held, writer.room_bytes());
    let mut session = Session {
        stream: taken.stream,
        client: taken.client,
        committed: pipeline.committed(),
        pipeline,
        batcher,
        flushed: Lsn::ZERO,
        registry,
        view: View { snapshot: seen.snapshot.clone(), position: seen.position },
        wanted: writer.target.max(writer.announced.behind()).filter(|t| *t > through),
        seen: Some(seen),
        compared: false,
        targets: HashMap::new(),
        unplaced: None,
        stale: HashMap::new(),
        lake,
        looking: None,
        look_again: false,
        heartbeat_due: false,
        arrived: false,
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

impl Session<'_> {
    async fn stream_on(&mut self, stop: &mut watch::Receiver<bool>) -> Result<End> {
        let heartbeat = self.writer.config.batch.heartbeat;
        let mut beat = tokio::time::interval_at(Instant::now() + heartbeat, heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut eager = tokio::time::interval(EAGER);
        eager.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.compare().await?;
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
                    self.show_life().await?;
                }
                _ = eager.tick(), if self.wanted.is_some() || self.seen.is_some() => self.stream.request_keepalive(),
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
                        if notice.sqlstate == "55000" {
                            return Err(self.unpublished(None).await); // 18 says so much, and leaves the changes out
                        }
                        self.look();
                    }
                    Ok(None) => return Err(Error::retry("the server ended the stream")),
                },
            }
        }
    }

    /// Up to 17 the stream ends with SQLSTATE 42704 where a change was written while there was no publication of the name; again and again.
    async fn explained(&mut self, error: Error) -> Error {
        match sqlstate(&error) {
            Some("42704") => self.unpublished(Some(error)).await,
            Some("42804") if self.writer.announced.stays() => self.writer.announced.undecodable(error),
            _ => error,
        }
    }

    /// Changes were written while there was no publication of the name, and are not sent.
    async fn unpublished(&self, cause: Option<Error>) -> Error {
        let name = &self.writer.config.source.publication;
        match source::observe(&self.client, &self.writer.config, Vec::new()).await {
            Err(told) if told.kind() == Kind::Source => told,
            _ => {
                let error = Error::source_refused(format!(
                    "publication {name:?} is there, and was not when changes were written that are still to be sent: they cannot be decoded. \
                     Run `huella run --resnapshot`: it makes the slot anew and copies every table; history is kept"
                ));
                match cause {
                    Some(cause) => error.with_source(cause),
                    None => error,
                }
            }
        }
    }

    fn caught_up(&self) -> bool {
        let Some(target) = self.writer.target else { return false };
        let through = self.committed.borrow().position();
        let looked = self.compared && self.seen.is_none() && self.looking.is_none();
        through >= target
            && looked
            && !self.copying
            && self.taking.is_none()
            && self.registry.pending().is_empty()
            && !self.registry.has_edits()
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

    /// While a long transaction arrives the position cannot move: a standby would take that for death, end this session, and have the same
    /// transaction sent again to somebody who fares no better.
    async fn show_life(&mut self) -> Result<()> {
        if std::mem::take(&mut self.arrived) && self.batcher.in_transaction() {
            self.pipeline.send(Order::Alive).await?;
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

    /// The stream's positions are claims, which SQL has to bear out before anything is made of them.
    async fn vouch(&mut self) -> Result<Lsn> {
        if self.batcher.claimed() > self.flushed {
            let asked = tokio::time::timeout(VOUCH_WITHIN, server::flush_lsn(&self.client)).await;
            let late = |_| Error::retry(format!("reading the position of the WAL: no answer within {} s", VOUCH_WITHIN.as_secs()));
            self.flushed = asked.map_err(late)??;
        }
        Ok(self.flushed)
    }

    async fn cut(&mut self, boundary: bool) -> Result<()> {
        let flushed = self.vouch().await?;
        let bytes = self.batcher.bytes();
        let mut pieces = self.batcher.cut(boundary, flushed)?;
        let mut edits = self.registry.take_edits();
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
                    self.compare().await?;
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
        self.arrived = true;
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
                    Some(torn) => self.registry.torn(&torn).await,
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
                for relation in &truncate.relations {
                    let target = self.target(*relation).await?;
                    // Of some partitions alone: what the others hold stays, and the copy that the next look begins has the rest.
                    let part = self.registry.is_part(*relation, &truncate.relations);
                    self.batcher.truncate(target.filter(|_| !part))?;
                    if part && !self.batcher.is_known() {
                        let at = self.batcher.arriving().unwrap_or(self.batcher.position());
                        self.registry.truncated_in_part(*relation, at).await?;
                        self.look();
                    }
                }
                Ok(())
            }
            Message::Begin(begin) => {
                self.compare_before(begin.final_lsn).await?;
                self.batcher.begin(&begin)
            }
            Message::Commit(commit) => {
                self.batcher.commit(&commit)?;
                self.compare().await?;
                // Its rows were too many for one piece: the batch is over its size, so the age is not waited for.
                if self.batcher.overdue() { self.cut(true).await } else { Ok(()) }
            }
            Message::Relation(_) if self.targets.len() + self.stale.len() >= RELATIONS_MAX => {
                Err(Error::retry(format!("the server described more than {RELATIONS_MAX} relations in one session")))
            }
            Message::Relation(relation) => self.relation(relation).await,
            Message::Origin | Message::Type | Message::Logical { .. } => Ok(()),
            Message::Unasked(tag) => Err(Error::retry(format!("the server sent message {:?} that was not asked for", tag as char))),
        }
    }

    /// Ends: cuts what is complete, commits, acknowledges, and gives the claim back.
    async fn leave(mut self, ended: Result<End>) -> Result<End> {
        if ended.is_ok() {
            // The pipeline's own error is more telling than a failed send.
            if let Err(error) = self.cut(true).await {
                tracing::warn!(error = %error.full(), "what arrived last is not committed; it is sent again at the next start");
            }
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

fn undecodable(error: pgoutput::DecodeError) -> Error {
    Error::retry("the stream cannot be decoded; nothing after the watermark is acknowledged").with_source(error)
}
