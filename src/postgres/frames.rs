//! Copy data as it came off the socket: whole frames in one shared buffer.
//!
//! Owns: walking over the frames. Does not own: reading (`reader`), meaning (`pgoutput`).
//! Invariant: the bytes are a sequence of whole CopyData messages, checked by the reader when it cut them.

use bytes::Bytes;

/// Tag byte and length word in front of every message.
pub(super) const HEADER_BYTES: usize = 5;
/// Tag of CopyData.
pub(super) const COPY_DATA_TAG: u8 = b'd';

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
