//! Sessions for COPY … TO STDOUT whose rows are read where the socket put them.
//!
//! Owns: the copy's frames, the answer's beginning and end. Does not own: what a row means (`snapshot`), which rows
//! are asked for. Invariants: a copy counts as ended only when the server said so in full; nothing is copied between
//! the socket's buffer and the frames that are handed out; what is buffered is a chunk, or one larger row.

use super::auth::{Session, Takes, log_in};
use super::error::{from_io, protocol};
use super::frames::{COPY_DATA_TAG, Frames, HEADER_BYTES, payload_bytes};
use super::limits::{QUERY, ROW_BYTES_MAX};
use super::options::ConnectOptions;
use super::replication::Row;
use super::transport::{Tls, Transport, attempt};
use super::wire::Backend;
use crate::error::{Error, Result};
use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::AsyncReadExt;

/// Room that is made for a read: some thousand rows, so that waking up for them costs little, and still within a
/// core's cache when they are decoded.
const CHUNK_BYTES: usize = 256 << 10;
/// Less room than this is not read into.
const READ_BYTES_MIN: usize = 64 << 10;
/// Code of the binary format in CopyOutResponse.
const BINARY: u8 = 1;

/// A SQL session that copies.
#[derive(Debug)]
pub struct CopySession {
    session: Session,
    version: u32,
    /// A statement is under way, or was broken off.
    busy: bool,
}

impl CopySession {
    /// Connects, logs in and pins the session's settings; no statement of it is ever cancelled for its duration.
    pub async fn connect(options: &ConnectOptions) -> Result<Self> {
        attempt(options, |tls| Self::open(options, tls)).await
    }

    async fn open(options: &ConnectOptions, tls: Tls) -> Result<Self> {
        let mut session = log_in(Transport::connect(options, tls).await?, options, Takes::Sql).await?;
        session.wire.allow(QUERY);
        let (version, pins) = (session.version()?, session.pins()?);
        let mut this = Self { session, version, busy: false };
        // Parallel workers cost a range of a table more than they give.
        let sql = format!("{pins} SET statement_timeout = 0; SET lock_timeout = 0; SET max_parallel_workers_per_gather = 0");
        this.rows(&sql, "setting up the session").await?;
        Ok(this)
    }

    /// The server's version as a number: 150018 is 15.18.
    pub fn server_version(&self) -> u32 {
        self.version
    }

    /// Runs a simple query; its rows as text.
    pub async fn rows(&mut self, sql: &str, doing: &str) -> Result<Vec<Row>> {
        self.send_query(sql).await.map_err(|e| e.context(doing))?;
        let (rows, ready) = self.session.answer(doing).await;
        self.busy = !ready;
        rows
    }

    /// Begins a COPY … TO STDOUT (FORMAT binary).
    pub async fn begin_copy(&mut self, sql: &str) -> Result<()> {
        let doing = "copying";
        self.send_query(sql).await.map_err(|e| e.context(doing))?;
        match self.session.next_or_refusal(doing).await? {
            Backend::Message(Message::CopyOutResponse(body)) if body.format() == BINARY => Ok(()),
            _ => Err(protocol("no binary copy after COPY")),
        }
    }

    /// The next rows of the copy, each CopyData of the server a row; `None` once the copy has ended well. After an error
    /// the session is of no use any more.
    pub async fn next(&mut self) -> Result<Option<Frames>> {
        loop {
            let (run, wanted) = self.whole_frames()?;
            if run > 0 {
                return Ok(Some(Frames::new(self.session.wire.buf.split_to(run).freeze(), None)));
            }
            match self.session.wire.buf.first() {
                Some(&tag) if tag != COPY_DATA_TAG => match self.session.next_or_refusal("copying").await? {
                    Backend::Message(Message::CopyDone | Message::CommandComplete(_)) => {}
                    Backend::Message(Message::ReadyForQuery(_)) => {
                        self.busy = false;
                        return Ok(None);
                    }
                    _ => return Err(protocol("an unexpected message in a copy")),
                },
                _ => self.read(wanted).await?,
            }
        }
    }

    /// Bytes of whole CopyData messages at the beginning of the buffer, and how many the next one needs.
    fn whole_frames(&self) -> Result<(usize, usize)> {
        let buf = &self.session.wire.buf;
        let mut run = 0;
        while let Some(header) = buf.get(run..).and_then(|rest| rest.first_chunk::<HEADER_BYTES>()) {
            if header[0] != COPY_DATA_TAG {
                break;
            }
            let total = payload_bytes(header).map(|n| HEADER_BYTES + n).filter(|total| *total <= ROW_BYTES_MAX);
            let total = total.ok_or_else(|| protocol("a row of an impossible length"))?;
            if buf.len() - run < total {
                return Ok((run, total));
            }
            run += total;
        }
        Ok((run, HEADER_BYTES))
    }

    async fn read(&mut self, wanted: usize) -> Result<()> {
        let wire = &mut self.session.wire;
        let missing = wanted.saturating_sub(wire.buf.len());
        if wire.buf.capacity() - wire.buf.len() < missing.max(READ_BYTES_MIN) {
            wire.buf.reserve(missing.max(CHUNK_BYTES));
        }
        match wire.transport.read_buf(&mut wire.buf).await.map_err(|e| from_io(e, "reading a copy"))? {
            0 => Err(Error::retry("the server closed the connection in the middle of a copy")),
            _ => Ok(()),
        }
    }

    async fn send_query(&mut self, sql: &str) -> Result<()> {
        if self.busy {
            return Err(Error::bug("a statement was sent while another one was under way"));
        }
        self.busy = true;
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(|e| Error::config("a name cannot be sent to the server").with_source(e))?;
        self.session.wire.send(&out).await
    }
}
