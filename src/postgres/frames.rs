//! What comes off the socket of a stream: whole frames in one shared buffer, and notices.
//!
//! Owns: the events, walking over the frames. Does not own: reading (`reader`), meaning (`pgoutput`).
//! Invariant: the bytes are a sequence of whole CopyData messages, checked by the reader when it cut them.

use super::error::DbError;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Tag byte and length word in front of every message.
pub(super) const HEADER_BYTES: usize = 5;
/// Tag of CopyData.
pub(super) const COPY_DATA_TAG: u8 = b'd';

/// Something that came from the server.
#[derive(Debug)]
pub enum Event {
    /// Data and keepalives, in order.
    Frames(Frames),
    /// A notice; since it may tell of an edit of the publication, the catalogue is worth a look.
    Notice(ServerNotice),
}

/// A NoticeResponse on the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerNotice {
    /// `WARNING`, `NOTICE`…
    pub severity: String,
    /// SQLSTATE.
    pub sqlstate: String,
    /// The message, empty where it could quote data.
    pub message: String,
}

impl From<DbError> for ServerNotice {
    fn from(fields: DbError) -> Self {
        Self { severity: fields.severity, sqlstate: fields.code, message: fields.message }
    }
}

/// Many whole CopyData messages.
#[derive(Clone)]
pub struct Frames {
    bytes: Bytes,
    /// Their part of what may be held; given back with the last clone.
    room: Option<Arc<OwnedSemaphorePermit>>,
}

/// What [`Frames`] took of the memory for what was read.
#[derive(Debug)]
pub struct FramesRoom(#[expect(dead_code, reason = "held for its drop")] Option<Arc<OwnedSemaphorePermit>>);

impl Frames {
    /// `bytes` must hold whole CopyData messages only.
    pub(super) fn new(bytes: Bytes, room: Option<OwnedSemaphorePermit>) -> Self {
        Self { bytes, room: room.map(Arc::new) }
    }

    /// The payload of each message in order (`w…` data, `k…` keepalive), as slices of the shared buffer.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let (header, after) = rest.split_first_chunk::<HEADER_BYTES>()?;
            let (payload, next) = after.split_at_checked(payload_bytes(header)?)?;
            rest = next;
            Some(payload)
        })
    }

    /// Gives the bytes up and keeps their room: until it is dropped nothing takes their place.
    pub fn into_room(self) -> FramesRoom {
        FramesRoom(self.room)
    }

    /// Size on the wire, headers included.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Length of the payload behind a header; `None` if its length word does not even count itself.
pub(super) fn payload_bytes(header: &[u8; HEADER_BYTES]) -> Option<usize> {
    let [_, a, b, c, d] = *header;
    (u32::from_be_bytes([a, b, c, d]) as usize).checked_sub(4)
}

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frames({} bytes)", self.bytes())
    }
}
