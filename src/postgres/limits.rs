//! What a server may make this program hold.
//!
//! Owns: the longest messages, the size of an answer, counting both. Does not own: reading. Invariant: an answer that is kept until its end
//! is bounded before it is read; rows of a COPY and of the stream are not counted, for nobody keeps more of them than one at a time.

use std::fmt;

/// Longest row of a COPY or of the stream: PostgreSQL's own limit of a message.
pub(super) const ROW_BYTES_MAX: usize = 1 << 30;
/// Longest message while taking turns, and of a stream but for its data. Log-in and replication commands answer in a few hundred bytes, a
/// timeline history in a few thousand; anything else on this port is not PostgreSQL.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Notices in a stream without any data between them.
pub(super) const NOTICES_MAX: usize = 1000;
/// Settings that a server reports of a session; there are about fifteen.
const PARAMETERS_MAX: usize = 1000;
/// What a message takes beside its bytes until the answer ends.
const MESSAGE_OVERHEAD_BYTES: usize = 192;

/// The answer to a log-in or a replication command: a row, a notice or two, a dozen settings.
pub(super) const COMMAND: Answer = Answer { bytes: MESSAGE_BYTES_MAX, messages: 1000 };
/// The answer to a query of the catalog: every table, leaf or column of a database that a copy looks at.
pub(super) const QUERY: Answer = Answer { bytes: 64 << 20, messages: 300_000 };

/// How large an answer may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    bytes: usize,
    messages: usize,
}

/// A server's answer grew beyond all that it can need.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Excess(String);

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Excess {}

/// What has come of an answer.
#[derive(Debug)]
pub(super) struct Budget {
    allowed: Answer,
    bytes: usize,
    messages: usize,
}

impl Budget {
    pub(super) fn new(allowed: Answer) -> Self {
        Self { allowed, bytes: 0, messages: 0 }
    }

    /// Another answer begins.
    pub(super) fn begin(&mut self) {
        (self.bytes, self.messages) = (0, 0);
    }

    /// A message of `bytes` comes.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Excess> {
        if bytes > MESSAGE_BYTES_MAX {
            return Err(Excess(format!("a message of {bytes} bytes; is this PostgreSQL's port?")));
        }
        (self.bytes, self.messages) = (self.bytes.saturating_add(bytes), self.messages + 1);
        if self.bytes > self.allowed.bytes || self.messages > self.allowed.messages {
            return Err(Excess(format!("an answer of more than {} MiB or {} messages", self.allowed.bytes >> 20, self.allowed.messages)));
        }
        Ok(())
    }
}

/// Tag byte and length word.
const HEADER_BYTES: usize = 5;
const COPY_DATA: u8 = b'd';
const DATA_ROW: u8 = b'D';
const PARAMETER_STATUS: u8 = b'S';
const READY_FOR_QUERY: u8 = b'Z';

/// Watches messages go by to a reader who sets himself no limit.
#[derive(Debug)]
pub(super) struct Watch {
    budget: Budget,
    header: [u8; HEADER_BYTES],
    held: usize,
    /// Of the present message's body, what has not gone by.
    left: usize,
    parameters: usize,
    /// Whoever asked reads row by row.
    rows_pass: bool,
}

impl Watch {
    /// For a session of queries; `rows_pass`: nobody keeps their rows, which then are counted as little as a copy's.
    pub(super) fn new(rows_pass: bool) -> Self {
        Self { budget: Budget::new(QUERY), header: [0; HEADER_BYTES], held: 0, left: 0, parameters: 0, rows_pass }
    }

    /// These bytes come next.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> Result<(), Excess> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let gone = self.left.min(bytes.len());
                (self.left, bytes) = (self.left - gone, &bytes[gone..]);
                continue;
            }
            let more = (HEADER_BYTES - self.held).min(bytes.len());
            self.header[self.held..self.held + more].copy_from_slice(&bytes[..more]);
            (self.held, bytes) = (self.held + more, &bytes[more..]);
            if self.held == HEADER_BYTES {
                self.held = 0;
                self.left = self.message()?;
            }
        }
        Ok(())
    }

    fn is_row(&self, tag: u8) -> bool {
        tag == COPY_DATA || (tag == DATA_ROW && self.rows_pass)
    }

    /// Judges the header that is held; the body's size.
    fn message(&mut self) -> Result<usize, Excess> {
        let [tag, a, b, c, d] = self.header;
        let length = (u32::from_be_bytes([a, b, c, d]) as usize).checked_sub(4);
        let body = length.ok_or_else(|| Excess("a message of an impossible length".to_owned()))?;
        match tag {
            _ if self.is_row(tag) && body > ROW_BYTES_MAX => return Err(Excess(format!("a row of {body} bytes"))),
            _ if self.is_row(tag) => return Ok(body),
            READY_FOR_QUERY => self.budget.begin(),
            PARAMETER_STATUS => self.parameters += 1,
            _ => {}
        }
        if self.parameters > PARAMETERS_MAX {
            return Err(Excess(format!("more than {PARAMETERS_MAX} settings")));
        }
        if body > MESSAGE_BYTES_MAX {
            return Err(Excess(format!("a message of {body} bytes; is this PostgreSQL's port?")));
        }
        self.budget.take(body + MESSAGE_OVERHEAD_BYTES)?;
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    #[test]
    fn an_answer_is_bounded_in_bytes_and_messages_and_begins_again() {
        let mut budget = Budget::new(COMMAND);
        assert!((0..1000).all(|_| budget.take(10).is_ok()) && budget.take(10).is_err());
        budget.begin();
        assert!(budget.take(MESSAGE_BYTES_MAX).is_ok() && budget.take(1).is_err());
        budget.begin();
        assert!(budget.take(MESSAGE_BYTES_MAX + 1).is_err());
    }

    #[test]
    fn messages_are_found_however_the_bytes_are_cut() {
        let ok = [message(b'T', &[0; 40]), message(b'D', &[7; 100]), message(b'd', &[9; 3]), message(b'Z', b"I")].concat();
        for step in [1, 2, 3, 5, 7, 64, 1000] {
            let mut watch = Watch::new(false);
            for _ in 0..50 {
                assert!(ok.chunks(step).all(|bytes| watch.pass(bytes).is_ok()), "{step}");
            }
            let short = [b'D', 0, 0, 0, 3];
            assert!(short.chunks(step).any(|bytes| watch.pass(bytes).is_err()), "{step}");
        }
    }

    #[test]
    fn floods_and_giants_are_stopped_but_a_copy_may_go_on() {
        let huge = |tag: u8| [tag, 0x7F, 0xFF, 0xFF, 0xFF];
        for tag in *b"DSNTEd" {
            assert!(Watch::new(false).pass(&huge(tag)).is_err(), "{}", tag as char);
        }
        let flood = |one: &[u8], count: usize| {
            let mut watch = Watch::new(false);
            (0..count).find(|_| watch.pass(one).is_err())
        };
        assert!(flood(&message(b'D', b"\0\x01\0\0\0\x01x"), 400_000).is_some());
        assert!(flood(&message(b'N', b"\0"), 400_000).is_some());
        assert!(flood(&message(b'S', b"a\0b\0"), 1002).is_some());
        assert_eq!(flood(&message(b'd', &[1; 64]), 2_000_000), None);
        let mut streaming = Watch::new(true);
        assert!((0..400_000).all(|_| streaming.pass(&message(b'D', &[1; 64])).is_ok()) && streaming.pass(&huge(b'D')).is_err());
        let answers = [message(b'D', &[0; 1000]).repeat(1000), message(b'Z', b"I")].concat();
        assert_eq!(flood(&answers, 500), None, "each answer for itself");
    }
}
