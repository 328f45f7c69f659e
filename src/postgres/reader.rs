//! The task between the socket and the consumer of a replication stream.
//!
//! Owns: the read buffer, back-pressure, feedback to the server. Does not own: what the data means.
//! Invariants: bytes are copied once, from the socket into the buffer that the consumer sees; a consumer that
//! stalls stops reading but never feedback; a server that does not read blocks neither reading nor the timers;
//! what is read and not yet done with takes `ROOM_BYTES`, or is one larger frame.

use super::error::{DbError, from_io, protocol};
use super::frames::{COPY_DATA_TAG, Event, Frames, HEADER_BYTES, ServerNotice, payload_bytes};
use super::limits::{MESSAGE_BYTES_MAX, NOTICES_MAX, ROW_BYTES_MAX};
use super::socket::Quiet;
use super::status::Schedule;
use super::transport::Transport;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

/// Chunks that wait for the consumer: one that it can take at once; the one behind it waits in the reader.
pub(super) const QUEUE_CHUNKS: usize = 1;
/// A chunk is handed over when this much is held, or when the socket has nothing more.
const CHUNK_BYTES: usize = 1 << 20;
/// What the reader, the queue and the consumer may hold of the wire: a chunk each, and one to spare. A larger frame is read alone, once
/// the consumer is done with all before it.
const ROOM_BYTES: u32 = 4 << 20;
/// Room below which a new buffer is taken: small reads are what makes an eager reader slow.
const READ_BYTES_MIN: usize = 64 << 10;
/// After the socket was drained: how long more may gather, unheard. Every arrival that is waited for costs both sides
/// more than a row does. Latency is hardly touched: what there was has been handed over before the pause, and a
/// socket that stayed empty over it is waited on again.
const GATHER: Duration = Duration::from_millis(2);
/// A status update goes out this many times within the server's `wal_sender_timeout`.
const UPDATES_PER_TIMEOUT: u32 = 4;

/// The clocks of a stream.
#[derive(Debug, Clone, Copy)]
pub struct StreamSetup {
    /// A status update goes out at least this often (more often if the server's `wal_sender_timeout` is short).
    pub status_every: Duration,
    /// After this much silence the server is asked for a keepalive.
    pub ask_after: Duration,
    /// After this much silence the connection counts as broken.
    pub silence_max: Duration,
}

impl Default for StreamSetup {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { status_every: seconds(10), ask_after: seconds(30), silence_max: seconds(90) }
    }
}

/// What one round of reading came to.
enum Filled {
    /// The wanted size is held.
    Full,
    /// The socket had nothing more.
    Drained,
    /// The server closed the connection.
    Closed,
}

/// What the task woke up for.
enum Happened {
    Finish(bool),
    Ack(bool),
    Ask,
    Written(io::Result<()>),
    Clock,
    Taken(bool),
    Room(OwnedSemaphorePermit),
    Gathered,
    Filled(io::Result<Filled>),
}

pub(super) struct Reader {
    read: ReadHalf<Transport>,
    write: WriteHalf<Transport>,
    /// On from each successful read until one finds nothing.
    quiet: Quiet,
    /// Begins at a frame's first byte.
    buf: BytesMut,
    /// Bytes of it that were looked at.
    parsed: usize,
    /// Bytes that came since the last sign of life. A whole message is one, or as much of a large one as any line carries in its time: behind
    /// a damaged length, keepalives fill up a frame that never ends.
    unheard: usize,
    /// Size of the frame at the beginning of `buf`, as far as known.
    frame_bytes: usize,
    room: Arc<Semaphore>,
    /// The part of `room` that is taken for `buf`.
    held: Option<OwnedSemaphorePermit>,
    /// There was no room: a stall of ours, which is no silence of the server's.
    stalled: bool,
    /// Parsed and waiting for the consumer.
    events: VecDeque<Event>,
    /// Notices since the last data.
    notices: usize,
    /// Why the stream ended; sent once all events are.
    end: Option<Error>,
    out: BytesMut,
    /// Written, but perhaps not through TLS yet.
    unsent: bool,
    /// A write failed. What the server said before is still worth reading.
    write_error: Option<io::Error>,
    schedule: Schedule,
    to_consumer: mpsc::Sender<Result<Event>>,
    acks: watch::Receiver<Lsn>,
    asks: Arc<Notify>,
}

impl Reader {
    pub(super) fn new(
        transport: Transport,
        rest: BytesMut,
        setup: StreamSetup,
        wal_sender_timeout: Option<Duration>,
        to_consumer: mpsc::Sender<Result<Event>>,
        acks: watch::Receiver<Lsn>,
        asks: Arc<Notify>,
    ) -> Self {
        let every = wal_sender_timeout.map_or(setup.status_every, |timeout| setup.status_every.min(timeout / UPDATES_PER_TIMEOUT));
        let schedule = Schedule::new(every, setup.ask_after, setup.silence_max, Instant::now());
        let quiet = transport.quiet();
        let (read, write) = tokio::io::split(transport);
        let mut buf = BytesMut::with_capacity(CHUNK_BYTES.max(rest.len()));
        buf.extend_from_slice(&rest);
        Self {
            read,
            write,
            quiet,
            buf,
            parsed: 0,
            unheard: 0,
            frame_bytes: HEADER_BYTES,
            room: Arc::new(Semaphore::new(ROOM_BYTES as usize)),
            held: None,
            stalled: false,
            events: VecDeque::new(),
            notices: 0,
            end: None,
            out: BytesMut::new(),
            unsent: false,
            write_error: None,
            schedule,
            to_consumer,
            acks,
            asks,
        }
    }

    /// Runs until the consumer leaves, `finish` is sent (then with a goodbye to the server), or the
    /// connection ends; the error goes to the consumer after everything that came before it.
    pub(super) async fn run(mut self, mut finish: oneshot::Receiver<()>) -> Result<()> {
        if let Err(error) = self.parse() {
            self.end = Some(error);
        }
        self.parsed = self.buf.len();
        let mut gather_until: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let idle = self.events.is_empty() && self.end.is_none();
            let reading = idle && self.has_room();
            let wanted = self.wanted_room();
            if reading && self.schedule.is_silent(now) {
                self.end = Some(Error::retry("the server has been silent for too long although it was asked for a keepalive"));
                continue;
            }
            if !self.unsent && self.can_write() && self.schedule.write_due(now, &mut self.out) {
                self.unsent = true;
            }
            let wake_at = self.wake_at(reading);
            // Feedback stands before data: it is small and rare, and must not wait behind a flood.
            let happened = tokio::select! {
                biased;
                told = &mut finish => Happened::Finish(told.is_ok()),
                changed = self.acks.changed() => Happened::Ack(changed.is_ok()),
                () = self.asks.notified() => Happened::Ask,
                written = send(&mut self.write, &mut self.out), if self.unsent && self.can_write() => Happened::Written(written),
                () = sleep_until(wake_at) => Happened::Clock,
                taken = self.to_consumer.reserve(), if !idle => Happened::Taken(taken.is_ok()),
                room = take_room(&self.room, wanted), if idle && !reading => Happened::Room(room),
                () = sleep_until(gather_until.unwrap_or(now)), if reading && gather_until.is_some() => Happened::Gathered,
                filled = fill(&mut self.read, &mut self.quiet, &mut self.buf, self.frame_bytes), if reading && gather_until.is_none() => {
                    Happened::Filled(filled)
                }
            };
            match happened {
                Happened::Finish(true) => return self.leave().await,
                // The handle or its receiver is gone: nobody wants anything any more.
                Happened::Finish(false) | Happened::Ack(false) | Happened::Taken(false) => return Ok(()),
                Happened::Ack(true) => {
                    let flush = *self.acks.borrow_and_update();
                    self.schedule.acknowledge(flush);
                }
                Happened::Ask => self.schedule.ask(),
                Happened::Written(result) => {
                    self.unsent = false;
                    self.write_error = result.err();
                }
                Happened::Clock => {}
                Happened::Room(room) => {
                    self.held = Some(room);
                    self.stalled = false;
                    self.schedule.heard(Instant::now());
                }
                Happened::Taken(true) => {
                    if self.deliver() {
                        return Err(Error::retry("the replication stream had ended before"));
                    }
                }
                Happened::Gathered => gather_until = None,
                Happened::Filled(filled) => {
                    self.quiet.begin(CHUNK_BYTES);
                    if matches!(filled, Ok(Filled::Drained)) {
                        gather_until = Some(Instant::now() + GATHER);
                    }
                    self.end = self.filled(filled).err();
                }
            }
        }
    }

    /// Hands one event to the consumer, or at last the error; true if that was all. There is room: this task
    /// alone sends.
    fn deliver(&mut self) -> bool {
        // A stall of ours is no silence of the server's.
        self.schedule.heard(Instant::now());
        let (item, last) = match (self.events.pop_front(), self.end.take()) {
            (Some(event), end) => {
                self.end = end;
                (Ok(event), false)
            }
            (None, Some(error)) => (Err(error), true),
            (None, None) => return false,
        };
        self.to_consumer.try_send(item).is_err() || last
    }

    /// Whether the next chunk or frame may be read; takes the room for it if it is there.
    fn has_room(&mut self) -> bool {
        let wanted = self.wanted_room();
        if self.held.as_ref().is_none_or(|held| held.num_permits() < wanted as usize) {
            self.held = None; // before asking for more: nobody else would give it back
            self.held = Arc::clone(&self.room).try_acquire_many_owned(wanted).ok();
            if self.held.is_some() && std::mem::take(&mut self.stalled) {
                self.schedule.heard(Instant::now());
            }
            self.stalled |= self.held.is_none();
        }
        self.held.is_some()
    }

    fn wanted_room(&self) -> u32 {
        u32::try_from(self.frame_bytes.max(CHUNK_BYTES)).map_or(ROOM_BYTES, |bytes| bytes.min(ROOM_BYTES))
    }

    fn can_write(&self) -> bool {
        self.write_error.is_none() && self.end.is_none()
    }

    /// When the loop has to look at the clock again.
    fn wake_at(&self, reading: bool) -> Instant {
        let silent = reading.then(|| self.schedule.silent_at());
        let due = (self.can_write() && !self.unsent).then(|| self.schedule.due_at());
        let far = Instant::now() + Duration::from_secs(3600);
        silent.into_iter().chain(due).min().unwrap_or(far)
    }

    fn filled(&mut self, filled: io::Result<Filled>) -> Result<()> {
        // First of all what was read before an end: a server says why it goes.
        self.unheard += self.buf.len() - self.parsed;
        self.parse()?;
        self.parsed = self.buf.len();
        if !self.events.is_empty() || self.unheard >= READ_BYTES_MIN {
            self.unheard = 0;
            self.schedule.heard(Instant::now());
        }
        match filled {
            Ok(Filled::Full | Filled::Drained) => Ok(()),
            Ok(Filled::Closed) => {
                let error = Error::retry("the server closed the replication stream");
                Err(match self.write_error.take() {
                    Some(cause) => error.with_source(cause),
                    None => error,
                })
            }
            Err(error) => Err(from_io(error, "reading the replication stream")),
        }
    }

    /// Cuts everything whole out of the buffer into events.
    fn parse(&mut self) -> Result<()> {
        let mut run = 0; // bytes of whole CopyData frames at the beginning
        let mut largest = 0;
        while let Some(header) = self.buf.get(run..).and_then(|rest| rest.first_chunk::<HEADER_BYTES>()) {
            let is_data = header[0] == COPY_DATA_TAG;
            let most = if is_data { ROW_BYTES_MAX } else { MESSAGE_BYTES_MAX };
            let Some(total) = payload_bytes(header).map(|n| HEADER_BYTES + n).filter(|total| *total <= most) else {
                self.hand_over(run, largest);
                return Err(protocol("a message of an impossible length"));
            };
            let Some(frame) = self.buf.get(run..run + total) else {
                self.hand_over(run, largest);
                self.frame_bytes = total;
                return Ok(());
            };
            if is_data {
                if let Err(error) = note(&mut self.schedule, &frame[HEADER_BYTES..]) {
                    self.hand_over(run, largest);
                    return Err(error);
                }
                run += total;
                largest = largest.max(total);
                self.notices = 0;
            } else {
                self.hand_over(run, largest);
                (run, largest) = (0, 0);
                self.other_message(total)?;
            }
        }
        self.hand_over(run, largest);
        self.frame_bytes = HEADER_BYTES;
        Ok(())
    }

    /// Makes an event of the first `run` bytes. A buffer that had to grow for a huge frame is given up with it.
    fn hand_over(&mut self, run: usize, largest: usize) {
        if run == 0 {
            return;
        }
        let frames = Frames::new(self.buf.split_to(run).freeze(), self.held.take());
        self.events.push_back(Event::Frames(frames));
        if largest > CHUNK_BYTES {
            let mut small = BytesMut::with_capacity(CHUNK_BYTES.max(self.buf.len()));
            small.extend_from_slice(&self.buf);
            self.buf = small;
        }
    }

    /// A message that is not CopyData, of `total` bytes, at the beginning of the buffer.
    fn other_message(&mut self, total: usize) -> Result<()> {
        let mut message = self.buf.split_to(total);
        match Message::parse(&mut message).map_err(protocol)? {
            Some(Message::ErrorResponse(body)) => Err(DbError::read(body.fields()).map_err(protocol)?.into_error("streaming")),
            Some(Message::NoticeResponse(body)) => {
                let notice = ServerNotice::from(DbError::read(body.fields()).map_err(protocol)?);
                self.notices += 1;
                if self.notices > NOTICES_MAX {
                    return Err(protocol("nothing but notices"));
                }
                self.events.push_back(Event::Notice(notice));
                Ok(())
            }
            Some(Message::ParameterStatus(_)) => Ok(()),
            Some(Message::CopyDone | Message::CommandComplete(_) | Message::ReadyForQuery(_)) => {
                Err(Error::retry("the server ended the replication stream (it may be shutting down)"))
            }
            _ => Err(protocol("an unexpected message on the replication stream")),
        }
    }

    /// The last status update, CopyDone, Terminate; then reads until the server has closed the connection, so
    /// that no unread data makes the kernel reset the connection under the last update.
    async fn leave(mut self) -> Result<()> {
        self.schedule.acknowledge(*self.acks.borrow_and_update());
        self.schedule.write(Instant::now(), &mut self.out);
        frontend::copy_done(&mut self.out);
        frontend::terminate(&mut self.out);
        let read_out = async {
            let mut nowhere = vec![0; READ_BYTES_MIN];
            // A reset is an end as well.
            while self.read.read(&mut nowhere).await.is_ok_and(|n| n > 0) {}
        };
        let (sent, ()) = tokio::join!(send(&mut self.write, &mut self.out), read_out);
        sent.map_err(|e| from_io(e, "sending the last status update"))
    }
}

async fn take_room(room: &Arc<Semaphore>, bytes: u32) -> OwnedSemaphorePermit {
    // It is never closed; waiting for ever would be right if it were.
    match Arc::clone(room).acquire_many_owned(bytes).await {
        Ok(permit) => permit,
        Err(_) => std::future::pending().await,
    }
}

/// Takes positions and questions out of a CopyData payload.
fn note(schedule: &mut Schedule, payload: &[u8]) -> Result<()> {
    let word = |at: usize| payload.get(at..).and_then(|rest| rest.first_chunk::<8>()).map(|bytes| Lsn(u64::from_be_bytes(*bytes)));
    match (payload.first(), word(1)) {
        (Some(b'w'), Some(start)) => {
            let end = word(9).ok_or_else(|| protocol("a truncated data message"))?;
            schedule.received(start.max(end));
        }
        (Some(b'k'), Some(end)) => {
            schedule.received(end);
            let asks = payload.get(17).ok_or_else(|| protocol("a truncated keepalive"))?;
            if *asks != 0 {
                schedule.answer();
            }
        }
        _ => return Err(protocol("an unknown message in the copy stream")),
    }
    Ok(())
}

/// Writes all of `out` and sees it through TLS. Cancel-safe: what was written leaves `out` at once.
async fn send(write: &mut WriteHalf<Transport>, out: &mut BytesMut) -> io::Result<()> {
    while out.has_remaining() {
        let written = write.write(out).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        out.advance(written);
    }
    write.flush().await
}

/// Reads until a chunk, or the frame at the beginning of `buf`, is held, or the socket has nothing more. Only with
/// nothing at all does it wait, and then it hears of every byte. Cancel-safe. Not subject to tokio's budget, which would look like a drained socket; it is bounded itself.
async fn fill(read: &mut ReadHalf<Transport>, quiet: &mut Quiet, buf: &mut BytesMut, frame_bytes: usize) -> io::Result<Filled> {
    let want = frame_bytes.max(CHUNK_BYTES);
    let mut got = false;
    tokio::task::unconstrained(poll_fn(|cx| {
        while buf.len() < want {
            if buf.capacity() - buf.len() < READ_BYTES_MIN.min(want - buf.len()) {
                buf.reserve(want - buf.len());
            }
            let mut room = ReadBuf::uninit(buf.spare_capacity_mut());
            match Pin::new(&mut *read).poll_read(cx, &mut room) {
                Poll::Pending if got => return Poll::Ready(Ok(Filled::Drained)),
                Poll::Pending if quiet.end() => continue,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(result) => result?,
            }
            let read = room.filled().len();
            if read == 0 {
                return Poll::Ready(Ok(Filled::Closed));
            }
            // SAFETY: `poll_read` has initialised `read` bytes of the spare capacity, beginning at `buf.len()`.
            unsafe { buf.set_len(buf.len() + read) };
            got = true;
        }
        Poll::Ready(Ok(Filled::Full))
    }))
    .await
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
