//! Whole messages over a transport, for the phases in which client and server take turns.
//!
//! Owns: framing, recognising CopyBothResponse (unknown to postgres-protocol). Does not own: the stream phase (`reader`), a copy's rows
//! (`copy`), how much an answer may be (`limits`). Invariant: bytes from the server never panic and never make the buffer grow beyond
//! a message that the answer has room for.

use super::error::{from_io, protocol};
use super::limits::{Answer, Budget, COMMAND};
use super::transport::Transport;
use crate::error::{Error, Result};
use bytes::BytesMut;
use postgres_protocol::message::backend::{Header, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Tag of CopyBothResponse.
const COPY_BOTH_TAG: u8 = b'W';

/// A message of the server.
pub(super) enum Backend {
    Message(Message),
    /// START_REPLICATION was accepted: the stream begins.
    CopyBoth,
}

/// A transport with the bytes that were read and not yet used.
pub(super) struct Wire {
    pub(super) transport: Transport,
    pub(super) buf: BytesMut,
    budget: Budget,
    /// The message at the beginning of `buf` is counted.
    counted: bool,
}

impl Wire {
    pub(super) fn new(transport: Transport) -> Self {
        Self { transport, buf: BytesMut::new(), budget: Budget::new(COMMAND), counted: false }
    }

    /// From here on answers may be so large.
    pub(super) fn allow(&mut self, answer: Answer) {
        self.budget = Budget::new(answer);
    }

    /// Sends all of `bytes`; what comes from here on is another answer.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.budget.begin();
        let io_error = |e| from_io(e, "sending to the server");
        self.transport.write_all(bytes).await.map_err(io_error)?;
        self.transport.flush().await.map_err(io_error)
    }

    /// The next message. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Backend> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            // A server that never stops would keep timers from being looked at.
            tokio::task::consume_budget().await;
            let read = self.transport.read_buf(&mut self.buf).await;
            if read.map_err(|e| from_io(e, "reading from the server"))? == 0 {
                return Err(Error::retry("the server closed the connection"));
            }
        }
    }

    fn take(&mut self) -> Result<Option<Backend>> {
        let Some(header) = Header::parse(&self.buf).map_err(protocol)? else { return Ok(None) };
        let len = header.len() as usize + 1; // not negative: Header::parse refuses less than 4
        if !std::mem::replace(&mut self.counted, true) {
            self.budget.take(len).map_err(protocol)?;
        }
        if self.buf.len() < len {
            return Ok(None);
        }
        self.counted = false;
        if header.tag() == COPY_BOTH_TAG {
            let _formats = self.buf.split_to(len); // replication streams are always the same format
            return Ok(Some(Backend::CopyBoth));
        }
        let message = Message::parse(&mut self.buf).map_err(protocol)?;
        Ok(message.map(Backend::Message))
    }

    /// The transport, and the bytes that came behind the last message.
    pub(super) fn into_parts(self) -> (Transport, BytesMut) {
        (self.transport, self.buf)
    }
}
