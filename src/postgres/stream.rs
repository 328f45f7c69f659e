//! The stream of changes, as its consumer sees it.
//!
//! Owns: the handle and the reader task's life. Does not own: the socket (`reader`), decoding (`pgoutput`).
//! Invariants: dropping the handle ends the reader; the server is told as flushed only what
//! [`ReplicationStream::acknowledge`] was given.

use super::frames::Event;
use super::reader::{QUEUE_CHUNKS, Reader, StreamSetup};
use super::transport::Transport;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use bytes::BytesMut;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Bound for the last status update and the goodbye: a shutdown has ten seconds in all.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// A running stream; owns the task that reads the socket and answers keepalives.
#[derive(Debug)]
pub struct ReplicationStream {
    events: mpsc::Receiver<Result<Event>>,
    acked: watch::Sender<Lsn>,
    asks: Arc<Notify>,
    finish: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<()>>,
    /// The error that ended the stream was handed out.
    ended: bool,
}

impl ReplicationStream {
    /// Takes over a connection on which the server has begun to copy; `rest` is what has been read already.
    pub(super) fn begin(transport: Transport, rest: BytesMut, setup: StreamSetup, wal_sender_timeout: Option<Duration>) -> Self {
        let (to_consumer, events) = mpsc::channel(QUEUE_CHUNKS);
        let (acked, acks) = watch::channel(Lsn::ZERO);
        let (finish, finished) = oneshot::channel();
        let asks = Arc::new(Notify::new());
        let reader = Reader::new(transport, rest, setup, wal_sender_timeout, to_consumer, acks, asks.clone());
        let task = tokio::spawn(reader.run(finished));
        Self { events, acked, asks, finish: Some(finish), task, ended: false }
    }

    /// The next event; `None` once an error has ended the stream. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        match self.events.recv().await {
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(error)) => {
                self.ended = true;
                Err(error)
            }
            None if self.ended => Ok(None),
            // The reader hands its error over before it ends, so this is a panic in it.
            None => {
                self.ended = true;
                Err(Error::bug("the reader of the replication stream ended without an error"))
            }
        }
    }

    /// Tells the server, soon, that everything below `flush` is durable and its WAL may go. A lower position
    /// than before is ignored.
    pub fn acknowledge(&self, flush: Lsn) {
        self.acked.send_if_modified(|acked| {
            let advances = flush > *acked;
            *acked = flush.max(*acked);
            advances
        });
    }

    /// Asks the server for a keepalive now.
    pub fn request_keepalive(&self) {
        self.asks.notify_one();
    }

    /// Sends the last acknowledgement and ends the session; once this returns `Ok` the server has let go of
    /// the slot. Events not taken yet are dropped; the server sends them again. Takes at most two seconds.
    pub async fn finish(mut self) -> Result<()> {
        if let Some(finish) = self.finish.take() {
            let _ = finish.send(()); // a reader that has ended needs no telling
        }
        match timeout(FINISH_TIMEOUT, &mut self.task).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(Error::bug("the reader of the replication stream failed").with_source(panic)),
            Err(_) => Err(Error::retry("the server did not confirm the end of the stream within 2 s")),
        }
    }
}

impl Drop for ReplicationStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}
