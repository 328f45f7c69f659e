//! What comes off the socket of a stream: whole frames in one shared buffer, and notices.
//!
//! Owns: the events, walking over the frames. Does not own: reading (`reader`), meaning (`pgoutput`).
//! Invariant: the bytes are a sequence of whole CopyData messages, checked by the reader when it cut them.

use super::error::DbError;
use bytes::Bytes;

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
pub struct Frames(Bytes);

impl Frames {
    /// `bytes` must hold whole CopyData messages only.
    pub(super) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The payload of each message in order (`w…` data, `k…` keepalive), as slices of the shared buffer.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (header, after) = rest.split_first_chunk::<HEADER_BYTES>()?;
            let (payload, next) = after.split_at_checked(payload_bytes(header)?)?;
            rest = next;
            Some(payload)
        })
    }

    /// Size on the wire, headers included.
    pub fn bytes(&self) -> usize {
        self.0.len()
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
