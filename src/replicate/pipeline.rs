//! From cut pieces to commits: encoding, uploading, committing, each ahead of the next by one piece.
//!
//! Owns: the encode task and the commit task, folding of pieces that arrive faster than the watermark may be
//! written, copies that wait for their position. Does not own: when to cut (`session`), the protocol (`commit`).
//! Invariants: commits follow the order of pieces; files without a boundary are named by the next boundary only;
//! when the sender is dropped, everything up to the last boundary is committed before the task ends.

use super::proposals::Together;
use crate::batch::{EncodedFile, LastTransaction, Piece, encode};
use crate::commit::{Change, Held, put_data};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{DataFile, Watermark};
use crate::lsn::Lsn;
use crate::shapes::Edit;
use crate::wait;
use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

/// Files of one piece that are uploaded at the same time: enough to hide the latency of an object store.
const UPLOADS: usize = 4;

/// A part of the memory that pieces may take until they are uploaded.
pub(crate) type Room = Arc<OwnedSemaphorePermit>;

/// Room is counted in these, because a semaphore counts no further than 2^32.
const ROOM_UNIT: usize = 1 << 10;

/// What the session hands over, in order.
#[derive(Debug)]
pub(crate) enum Order {
    /// Rows, and what changes with them.
    Piece(Piece, Vec<Edit>, Room),
    /// Copies that become current once the stream has passed their point.
    Copied(Together),
    /// A transaction is arriving, and there is nothing to commit yet.
    Alive,
}

enum Encoded {
    Piece {
        files: Vec<EncodedFile>,
        through: Option<Lsn>,
        transactions: u64,
        rows: u64,
        last: Option<LastTransaction>,
        edits: Vec<Edit>,
        room: Room,
    },
    Copied(Together),
    Alive,
}

/// What a pipeline leaves behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) held: Held,
    /// Copies whose point the stream has not passed.
    pub(crate) waiting: Vec<Together>,
    pub(crate) result: Result<()>,
}

/// The running pipeline of one session.
#[derive(Debug)]
pub(crate) struct Pipeline {
    orders: mpsc::Sender<Order>,
    room: Arc<Semaphore>,
    room_units: u32,
    committed: watch::Receiver<Arc<Watermark>>,
    task: JoinHandle<Finished>,
}

impl Pipeline {
    /// Starts both tasks on the lake that is held. `room_bytes`: what pieces may take, from their cut to their last upload; one that is larger
    /// goes alone.
    pub(crate) fn start(held: Held, room_bytes: usize) -> Self {
        let room_units = u32::try_from(room_bytes / ROOM_UNIT).unwrap_or(u32::MAX).max(1);
        let room = Arc::new(Semaphore::new(room_units as usize));
        // One piece in each hand: being filled (session), waiting, being encoded, being uploaded. The memory budget is divided accordingly.
        let (orders, to_encode) = mpsc::channel(1);
        let (encoded, to_commit) = mpsc::channel(1);
        let (report, committed) = watch::channel(Arc::new(held.watermark().clone()));
        let task = tokio::spawn(async move {
            let encoder = tokio::spawn(encode_all(to_encode, encoded));
            let mut committer = Committer { held, report, ready: None, tail: Vec::new(), waiting: Vec::new() };
            let mut done = committer.run(to_commit).await;
            if done.is_err() {
                // It may be waiting for an order that never comes, and the session waits for the end of both: neither would ever be told.
                encoder.abort();
            }
            match encoder.await {
                Ok(Ok(())) => {}
                Err(ended) if ended.is_cancelled() => {}
                Ok(Err(error)) => done = done.and(Err(error)),
                Err(panic) => done = done.and(Err(Error::bug("the encoder panicked").with_source(panic))),
            }
            Finished { held: committer.held, waiting: committer.waiting, result: done }
        });
        Self { orders, room, room_units, committed, task }
    }

    /// Room for a piece of this size; waits for it.
    pub(crate) async fn room(&self, bytes: usize) -> Result<Room> {
        let units = u32::try_from(bytes.div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX).min(self.room_units);
        let acquired = Arc::clone(&self.room).acquire_many_owned(units);
        let room = wait::told("room in memory: what was received before is not in the lake yet", acquired).await;
        room.map(Arc::new).map_err(|closed| Error::bug("there is no room for pieces any more").with_source(closed))
    }

    /// Hands an order over; waits while the lake is slower than the source.
    pub(crate) async fn send(&self, order: Order) -> Result<()> {
        let sent = wait::told("the lake to take what was received before", self.orders.send(order)).await;
        sent.map_err(|_| Error::retry("the commit task has ended"))
    }

    /// Ends when the commit task has ended.
    pub(crate) async fn closed(&self) {
        self.orders.closed().await;
    }

    /// The last committed watermark, and its changes.
    pub(crate) fn committed(&self) -> watch::Receiver<Arc<Watermark>> {
        self.committed.clone()
    }

    /// Commits what was handed over up to its last boundary, and gives the lake back.
    pub(crate) async fn finish(self) -> Result<Finished> {
        drop(self.orders);
        wait::told("the last commit", self.task).await.map_err(|panic| Error::bug("the commit task panicked").with_source(panic))
    }
}

async fn encode_all(mut orders: mpsc::Receiver<Order>, encoded: mpsc::Sender<Encoded>) -> Result<()> {
    while let Some(order) = orders.recv().await {
        let next = match order {
            Order::Copied(copied) => Encoded::Copied(copied),
            Order::Alive => Encoded::Alive,
            Order::Piece(piece, edits, room) => {
                let (through, transactions, rows) = (piece.through, piece.transactions, piece.rows);
                let last = piece.last;
                let files = if piece.tables.is_empty() {
                    Vec::new()
                } else {
                    tokio::task::spawn_blocking(move || piece.tables.into_iter().map(|table| encode(&table)).collect::<Result<Vec<_>>>())
                        .await
                        .map_err(|panic| Error::bug("encoding panicked").with_source(panic))??
                };
                Encoded::Piece { files, through, transactions, rows, last, edits, room }
            }
        };
        if encoded.send(next).await.is_err() {
            break; // the committer has ended and says why itself
        }
    }
    Ok(())
}

/// What the next commit will hold.
#[derive(Default)]
struct Ready {
    change: Change,
    edits: Vec<Edit>,
    transactions: u64,
    rows: u64,
    last: Option<LastTransaction>,
}

struct Committer {
    held: Held,
    report: watch::Sender<Arc<Watermark>>,
    ready: Option<Ready>,
    /// Files of a transaction that is still arriving.
    tail: Vec<DataFile>,
    waiting: Vec<Together>,
}

impl Committer {
    async fn run(&mut self, mut pieces: mpsc::Receiver<Encoded>) -> Result<()> {
        loop {
            let may_write = self.held.next_write();
            tokio::select! {
                biased;
                // Visible as soon as the store allows; until then further pieces join the same commit.
                () = tokio::time::sleep_until(may_write), if self.ready.is_some() => self.commit().await?,
                piece = pieces.recv() => match piece {
                    Some(piece) => self.take(piece).await?,
                    None => break,
                },
            }
        }
        if self.ready.is_some() {
            self.commit().await?;
        }
        Ok(())
    }

    async fn take(&mut self, piece: Encoded) -> Result<()> {
        match piece {
            // A commit that is about to be made says as much.
            Encoded::Alive if self.ready.is_some() => {}
            Encoded::Alive => {
                self.held.show_life().await?;
                self.report.send_replace(Arc::new(self.held.watermark().clone()));
            }
            Encoded::Copied(copied) => {
                let through = self.held.watermark().position();
                if copied.needs <= through && self.ready.is_none() {
                    self.ready = Some(Ready { change: Change { through, ..Change::default() }, ..Ready::default() });
                }
                self.waiting.push(copied);
            }
            Encoded::Piece { files, through, transactions, rows, last, edits, room } => {
                let (store, namer) = (Arc::clone(self.held.store()), Arc::clone(self.held.namer()));
                let mut uploads = futures_util::stream::iter(files)
                    .map(|file| {
                        let (store, namer) = (Arc::clone(&store), Arc::clone(&namer));
                        async move { put_data(store.as_ref(), &namer, file).await }
                    })
                    .buffer_unordered(UPLOADS);
                while let Some(file) = uploads.next().await {
                    self.tail.push(file?);
                }
                drop(uploads);
                drop(room);
                if through.is_none() && edits.is_empty() {
                    return Ok(());
                }
                let position = self.held.watermark().position();
                let ready = self
                    .ready
                    .get_or_insert_with(|| Ready { change: Change { through: position, ..Change::default() }, ..Ready::default() });
                ready.edits.extend(edits);
                if let Some(through) = through {
                    ready.change.through = through;
                    ready.change.files.append(&mut self.tail);
                    ready.transactions += transactions;
                    ready.rows += rows;
                    ready.last = last;
                }
            }
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<()> {
        let Some(mut ready) = self.ready.take() else { return Ok(()) };
        let through = ready.change.through;
        let (mature, waiting): (Vec<Together>, _) = std::mem::take(&mut self.waiting).into_iter().partition(|c| c.needs <= through);
        self.waiting = waiting;
        for copies in mature {
            ready.change.files.extend(copies.files);
            ready.change.snapshots.extend(copies.marks);
            ready.change.proposals.extend(copies.proposal);
            ready.edits.extend(copies.edits);
        }
        let tables: BTreeSet<String> = ready.change.files.iter().map(|f| f.table.to_string()).collect();
        let (files, bytes) = (ready.change.files.len(), ready.change.files.iter().map(|f| f.bytes).sum::<u64>());
        let rows: u64 = ready.change.files.iter().map(|f| f.rows).sum();
        let snapshots = ready.change.snapshots.clone();
        let edits = ready.edits;
        let with = |watermark: &mut Watermark| {
            if let Some(last) = &ready.last {
                watermark.last_transaction = Some(last.mark());
            }
            edits.iter().for_each(|edit| edit.apply(watermark));
        };
        self.held.commit(ready.change, with).await?;
        for snapshot in &snapshots {
            tracing::info!(table = %snapshot.table, version = snapshot.version, snapshot = %snapshot.snapshot, rows = snapshot.rows, "table copied and current");
            failpoint::hit("snapshot.after_commit");
        }
        let now_us = chrono::Utc::now().timestamp_micros();
        tracing::info!(
            seq = self.held.watermark().seq.0,
            through = %through,
            transactions = ready.transactions,
            rows,
            files,
            bytes,
            lag_ms = ready.last.filter(|_| ready.transactions > 0).map(|last| (now_us - last.commit_time_us).max(0) / 1000),
            tables = %tables.into_iter().collect::<Vec<_>>().join(","),
            "committed"
        );
        failpoint::hit("commit.before_ack");
        // Only a watermark that stands is ever published for the ack.
        self.report.send_replace(Arc::new(self.held.watermark().clone()));
        Ok(())
    }
}
