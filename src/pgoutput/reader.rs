//! A checked cursor over one message.
//!
//! Owns: bounds, big-endian integers, terminated strings, the decoding error. Does not own: what the fields mean.
//! Invariant: the position never passes the end, and an error names a field and an offset, never content.

use crate::lsn::Lsn;
use std::borrow::Cow;

/// Bytes that are not the message they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {offset}: {fault}")]
pub struct DecodeError {
    /// The field that was being read.
    pub what: &'static str,
    /// Where it begins, in bytes from the beginning of the message.
    pub offset: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The message ends inside the field.
    #[error("needs {needed} bytes, {left} left")]
    Short {
        /// Size of the field.
        needed: usize,
        /// What the message still holds.
        left: usize,
    },
    /// The message goes on behind its last field.
    #[error("{0} bytes behind the end of the message")]
    Trailing(usize),
    /// The first byte names no message that we know.
    #[error("unknown message 0x{0:02X}")]
    UnknownMessage(u8),
    /// A value outside those that the protocol defines.
    #[error("not a value of the protocol")]
    Undefined,
    /// A string without its terminating zero.
    #[error("string without an end")]
    Unterminated,
}

/// The cursor.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Position of the next byte.
    #[inline]
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    /// All bytes not yet read.
    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// The bytes from `start`, an earlier [`offset`](Self::offset), up to here.
    #[inline]
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        &self.bytes[start..self.at]
    }

    #[inline]
    pub(super) fn take(&mut self, what: &'static str, size: usize) -> Result<&'a [u8], DecodeError> {
        let Some((field, _)) = self.rest().split_at_checked(size) else {
            return Err(DecodeError { what, offset: self.at, fault: Fault::Short { needed: size, left: self.rest().len() } });
        };
        self.at += size;
        Ok(field)
    }

    #[inline]
    fn array<const SIZE: usize>(&mut self, what: &'static str) -> Result<[u8; SIZE], DecodeError> {
        let Some(field) = self.rest().first_chunk::<SIZE>() else {
            return Err(DecodeError { what, offset: self.at, fault: Fault::Short { needed: SIZE, left: self.rest().len() } });
        };
        self.at += SIZE;
        Ok(*field)
    }

    #[inline]
    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    #[inline]
    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_be_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_be_bytes)
    }

    #[inline]
    pub(super) fn i32(&mut self, what: &'static str) -> Result<i32, DecodeError> {
        self.array(what).map(i32::from_be_bytes)
    }

    #[inline]
    pub(super) fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.array(what).map(i64::from_be_bytes)
    }

    #[inline]
    pub(super) fn lsn(&mut self, what: &'static str) -> Result<Lsn, DecodeError> {
        self.array(what).map(|field| Lsn(u64::from_be_bytes(field)))
    }

    /// A length or count that the protocol sends as Int32 and that is never negative, then that many bytes.
    #[inline]
    pub(super) fn sized(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let offset = self.at;
        let size = usize::try_from(self.i32(what)?).map_err(|_| DecodeError { what, offset, fault: Fault::Undefined })?;
        self.take(what, size)
    }

    /// A zero-terminated string, without the zero. In a database without an encoding a name need not be UTF-8: what is not comes as U+FFFD,
    /// which no table that is replicated has in its names.
    pub(super) fn string(&mut self, what: &'static str) -> Result<Cow<'a, str>, DecodeError> {
        let error = |fault| DecodeError { what, offset: self.at, fault };
        let size = self.rest().iter().position(|&byte| byte == 0).ok_or(error(Fault::Unterminated))?;
        let text = String::from_utf8_lossy(&self.rest()[..size]);
        self.at += size + 1;
        Ok(text)
    }

    /// The message must end here.
    #[inline]
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        match self.rest().len() {
            0 => Ok(()),
            left => Err(DecodeError { what: "end of message", offset: self.at, fault: Fault::Trailing(left) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_field_offset_and_fault() {
        let mut reader = Reader::new(b"\0\x01secret");
        reader.u16("count").unwrap();
        assert_eq!(reader.i64("final LSN").unwrap_err().to_string(), "final LSN at byte 2: needs 8 bytes, 6 left");
        assert_eq!(reader.string("name").unwrap_err().to_string(), "name at byte 2: string without an end");
        assert_eq!(reader.end().unwrap_err().to_string(), "end of message at byte 2: 6 bytes behind the end of the message");
    }

    #[test]
    fn a_negative_or_huge_length_is_refused() {
        assert_eq!(Reader::new(&[0xFF; 8]).sized("cell").unwrap_err().fault, Fault::Undefined);
        let huge = [0x7F, 0xFF, 0xFF, 0xFF, 1];
        assert_eq!(Reader::new(&huge).sized("cell").unwrap_err().fault, Fault::Short { needed: 0x7FFF_FFFF, left: 1 });
    }
}
