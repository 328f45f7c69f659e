//! When a standby status update is due, and what it says.
//!
//! Owns: the clock of feedback and of silence. Does not own: sockets.
//! Invariant: the flush position is what was acknowledged, never more: acknowledging deletes WAL.

use crate::lsn::Lsn;
use bytes::{BufMut, BytesMut};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// An acknowledgement goes out at once, but no more often than this: each one makes the server write its slot.
const ACK_SPACING: Duration = Duration::from_secs(1);
/// PostgreSQL counts microseconds from 2000-01-01.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// The positions to report, and when.
pub(super) struct Schedule {
    every: Duration,
    ask_after: Duration,
    silence_max: Duration,
    last_sent: Instant,
    last_heard: Instant,
    last_asked: Instant,
    /// The server wants an answer now.
    answer_due: bool,
    /// We want a keepalive of the server now.
    ask_due: bool,
    received: Lsn,
    acked: Lsn,
    acked_sent: Lsn,
}

impl Schedule {
    pub(super) fn new(every: Duration, ask_after: Duration, silence_max: Duration, now: Instant) -> Self {
        Self {
            every,
            ask_after,
            silence_max,
            last_sent: now,
            last_heard: now,
            last_asked: now,
            answer_due: false,
            ask_due: false,
            received: Lsn::ZERO,
            acked: Lsn::ZERO,
            acked_sent: Lsn::ZERO,
        }
    }

    /// Something came from the server, or listening begins anew after a pause of ours.
    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
    }

    /// Data or WAL up to `end` is known.
    pub(super) fn received(&mut self, end: Lsn) {
        self.received = self.received.max(end);
    }

    /// The server asked for an answer.
    pub(super) fn answer(&mut self) {
        self.answer_due = true;
    }

    /// The server shall send a keepalive.
    pub(super) fn ask(&mut self) {
        self.ask_due = true;
    }

    /// Everything below `flush` is durable.
    pub(super) fn acknowledge(&mut self, flush: Lsn) {
        self.acked = self.acked.max(flush);
    }

    /// Whether the server has been silent for too long although it was asked.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        now >= self.last_heard + self.silence_max
    }

    /// When to look at silence again.
    pub(super) fn silent_at(&self) -> Instant {
        self.last_heard + self.silence_max
    }

    fn ask_at(&self) -> Instant {
        self.last_heard.max(self.last_asked) + self.ask_after
    }

    /// When the next update is due, if nothing happens before.
    pub(super) fn due_at(&self) -> Instant {
        let regular = self.last_sent + self.every;
        let ack = self.last_sent + ACK_SPACING;
        let sent = if self.acked > self.acked_sent { regular.min(ack) } else { regular };
        sent.min(self.ask_at())
    }

    /// Appends the update that is due, if one is.
    pub(super) fn write_due(&mut self, now: Instant, out: &mut BytesMut) -> bool {
        let due = self.answer_due || self.ask_due || now >= self.due_at();
        if due {
            self.write(now, out);
        }
        due
    }

    /// Appends an update.
    pub(super) fn write(&mut self, now: Instant, out: &mut BytesMut) {
        let ask = self.ask_due || now >= self.ask_at();
        if ask {
            self.last_asked = now;
        }
        out.put_u8(b'd');
        out.put_u32(38);
        out.put_u8(b'r');
        out.put_u64(self.received.max(self.acked).0); // written
        out.put_u64(self.acked.0); // flushed
        out.put_u64(self.acked.0); // applied
        out.put_i64(postgres_now());
        out.put_u8(u8::from(ask));
        (self.answer_due, self.ask_due) = (false, false);
        self.last_sent = now;
        self.acked_sent = self.acked;
    }
}

fn postgres_now() -> i64 {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(unix.saturating_sub(POSTGRES_EPOCH).as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn schedule(now: Instant) -> Schedule {
        Schedule::new(10 * SECOND, 30 * SECOND, 90 * SECOND, now)
    }

    /// Written, flushed, applied, reply requested.
    fn read(out: &[u8]) -> (u64, u64, u64, u8) {
        assert_eq!((out.len(), out[0], out[4], out[5]), (39, b'd', 38, b'r'));
        let word = |at: usize| u64::from_be_bytes(out[at..at + 8].try_into().unwrap());
        (word(6), word(14), word(22), out[38])
    }

    fn due(schedule: &mut Schedule, now: Instant) -> Option<(u64, u64, u64, u8)> {
        let mut out = BytesMut::new();
        schedule.write_due(now, &mut out).then(|| read(&out))
    }

    #[test]
    fn nothing_is_flushed_before_it_is_acknowledged() {
        let now = Instant::now();
        let mut s = schedule(now);
        s.received(Lsn(500));
        s.received(Lsn(400));
        s.answer();
        assert_eq!(due(&mut s, now), Some((500, 0, 0, 0)));
        assert_eq!(due(&mut s, now), None, "one answer to one question");
    }

    #[test]
    fn an_acknowledgement_goes_out_at_once_but_once_a_second() {
        let now = Instant::now();
        let mut s = schedule(now);
        s.acknowledge(Lsn(7));
        assert_eq!(due(&mut s, now + SECOND), Some((7, 7, 7, 0)));
        s.acknowledge(Lsn(9));
        s.acknowledge(Lsn(8));
        assert_eq!(due(&mut s, now + SECOND), None);
        assert_eq!(s.due_at(), now + 2 * SECOND);
        assert_eq!(due(&mut s, now + 2 * SECOND), Some((9, 9, 9, 0)));
        assert_eq!(s.due_at(), now + 12 * SECOND);
    }

    #[test]
    fn a_silent_server_is_asked_and_then_given_up() {
        let now = Instant::now();
        let mut s = schedule(now);
        for tick in 1..=8 {
            let asked = due(&mut s, now + 10 * tick * SECOND).map(|update| update.3);
            assert_eq!(asked, Some(u8::from(tick % 3 == 0)), "after {} s", 10 * tick);
        }
        assert!(!s.is_silent(now + 89 * SECOND) && s.is_silent(now + 90 * SECOND));
        s.heard(now + 85 * SECOND);
        assert!(!s.is_silent(now + 90 * SECOND));
    }

    #[test]
    fn a_wish_for_a_keepalive_is_sent_at_once() {
        let now = Instant::now();
        let mut s = schedule(now);
        s.ask();
        assert_eq!(due(&mut s, now), Some((0, 0, 0, 1)));
    }
}
