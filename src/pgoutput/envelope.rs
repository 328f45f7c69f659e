//! What a replication connection carries in its CopyData: data and keepalives in, status updates out.
//!
//! Owns: the envelope's fields and PostgreSQL's epoch. Does not own: when to answer, and with which position.
//! Invariant: times inside this program count from 1970; only here they meet PostgreSQL's 2000.

use super::reader::{DecodeError, Fault, Reader};
use crate::lsn::Lsn;

/// PostgreSQL's epoch, 2000-01-01 UTC, in microseconds since 1970-01-01 UTC.
pub const PG_EPOCH_US: i64 = 946_684_800_000_000;

/// One CopyData of the server's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Envelope<'a> {
    /// A piece of the stream; with `pgoutput` always one whole message.
    Data {
        /// Position of the message (0/0 for some): not a row's position, not to be acked.
        start: Lsn,
        /// The same again with `pgoutput`, whatever the manual says.
        end: Lsn,
        /// When it was sent, by the server's clock, in microseconds since 1970-01-01 UTC.
        sent_us: i64,
        /// The message.
        payload: &'a [u8],
    },
    /// A sign of life.
    Keepalive {
        /// How far the server has read its WAL. May go backward after a reconnect.
        wal_end: Lsn,
        /// When it was sent, by the server's clock, in microseconds since 1970-01-01 UTC.
        sent_us: i64,
        /// The server wants a status update now.
        reply_requested: bool,
    },
}

impl std::fmt::Debug for Envelope<'_> {
    /// Without the payload's bytes: they hold cells.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Envelope::Data { start, end, sent_us, payload } => f
                .debug_struct("Data")
                .field("start", start)
                .field("end", end)
                .field("sent_us", sent_us)
                .field("payload", &format_args!("{} bytes", payload.len()))
                .finish(),
            Envelope::Keepalive { wal_end, sent_us, reply_requested } => f
                .debug_struct("Keepalive")
                .field("wal_end", wal_end)
                .field("sent_us", sent_us)
                .field("reply_requested", reply_requested)
                .finish(),
        }
    }
}

/// Opens one CopyData.
#[inline]
pub fn envelope(copy_data: &[u8]) -> Result<Envelope<'_>, DecodeError> {
    let mut reader = Reader::new(copy_data);
    match reader.u8("kind of envelope")? {
        b'w' => Ok(Envelope::Data {
            start: reader.lsn("start of data")?,
            end: reader.lsn("end of WAL")?,
            sent_us: unix_us(reader.i64("time of sending")?),
            payload: reader.rest(),
        }),
        b'k' => {
            let keepalive = Envelope::Keepalive {
                wal_end: reader.lsn("end of WAL")?,
                sent_us: unix_us(reader.i64("time of sending")?),
                reply_requested: reader.u8("request for a reply")? != 0,
            };
            reader.end()?;
            Ok(keepalive)
        }
        kind => Err(DecodeError { what: "kind of envelope", offset: 0, fault: Fault::UnknownMessage(kind) }),
    }
}

/// The standby status update to be sent as CopyData: `flush` is what lets the server recycle WAL.
pub fn status_update(write: Lsn, flush: Lsn, apply: Lsn, now_us: i64, reply_requested: bool) -> [u8; 34] {
    let mut message = [0; 34];
    message[0] = b'r';
    message[1..9].copy_from_slice(&write.0.to_be_bytes());
    message[9..17].copy_from_slice(&flush.0.to_be_bytes());
    message[17..25].copy_from_slice(&apply.0.to_be_bytes());
    message[25..33].copy_from_slice(&now_us.saturating_sub(PG_EPOCH_US).to_be_bytes());
    message[33] = u8::from(reply_requested);
    message
}

/// From PostgreSQL's epoch to 1970's. Saturates: the far end of time is 290,000 years away.
#[inline]
pub(super) fn unix_us(pg_us: i64) -> i64 {
    pg_us.saturating_add(PG_EPOCH_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &[u8] = b"w\0\0\0\0\x01\x6B\x37\x48\0\0\0\0\x01\x6B\x37\x50\0\0\0\0\0\0\0\x01hello";
    const KEEPALIVE: &[u8] = b"k\0\0\0\x01\0\0\0\x10\0\0\0\0\0\0\0\0\x01";

    #[test]
    fn data_gives_positions_time_and_payload() {
        let expected = Envelope::Data { start: Lsn(0x16B_3748), end: Lsn(0x16B_3750), sent_us: PG_EPOCH_US + 1, payload: b"hello" };
        assert_eq!(envelope(DATA), Ok(expected));
        assert!(!format!("{expected:?}").contains("104"), "payload bytes in Debug");
    }

    #[test]
    fn a_keepalive_gives_position_time_and_request() {
        let expected = Envelope::Keepalive { wal_end: Lsn((1 << 32) | 0x10), sent_us: PG_EPOCH_US, reply_requested: true };
        assert_eq!(envelope(KEEPALIVE), Ok(expected));
    }

    #[test]
    fn a_truncated_envelope_is_refused_at_every_byte() {
        for end in 0..25 {
            assert!(envelope(&DATA[..end]).is_err(), "{end}");
        }
        for end in 0..KEEPALIVE.len() {
            assert!(envelope(&KEEPALIVE[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn a_payload_may_be_empty_but_a_keepalive_has_no_more() {
        assert!(matches!(envelope(&DATA[..25]), Ok(Envelope::Data { payload: b"", .. })));
        assert_eq!(envelope(&[KEEPALIVE, b"x"].concat()).unwrap_err().fault, Fault::Trailing(1));
    }

    #[test]
    fn another_kind_is_refused() {
        assert_eq!(envelope(b"x").unwrap_err().to_string(), "kind of envelope at byte 0: unknown message 0x78");
    }

    #[test]
    fn times_at_the_edges_saturate() {
        assert_eq!(unix_us(i64::MAX), i64::MAX);
        assert_eq!(unix_us(i64::MIN), i64::MIN + PG_EPOCH_US);
        assert_eq!(status_update(Lsn(0), Lsn(0), Lsn(0), i64::MIN, false)[25..33], i64::MIN.to_be_bytes());
    }

    #[test]
    fn a_status_update_lays_out_write_flush_apply_time_reply() {
        let message = status_update(Lsn(1), Lsn(2), Lsn(3), PG_EPOCH_US + 4, true);
        let expected = b"r\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\x01";
        assert_eq!(&message, expected);
    }
}
