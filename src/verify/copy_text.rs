//! COPY's text format: lines, fields, escapes.
//!
//! Owns: reading it back. Invariant: a field is NULL exactly if it is `\N`; no bytes panic.

use bytes::BytesMut;

/// Bytes of a COPY, cut into lines.
#[derive(Default)]
pub(super) struct Lines {
    held: BytesMut,
    /// So much of `held` has no line break.
    searched: usize,
}

impl Lines {
    /// Adds what arrived.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole line without its break.
    pub(super) fn next(&mut self) -> Option<BytesMut> {
        match self.held[self.searched..].iter().position(|b| *b == b'\n') {
            Some(at) => {
                let line = self.held.split_to(self.searched + at);
                let _ = self.held.split_to(1);
                self.searched = 0;
                Some(line)
            }
            None => {
                self.searched = self.held.len();
                None
            }
        }
    }

    /// Whether bytes without a line break are left.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// Calls `each` with every field of a line: `None` for NULL.
pub(super) fn fields(line: &[u8], mut each: impl FnMut(usize, Option<&[u8]>)) {
    let mut plain = Vec::new();
    for (at, field) in line.split(|b| *b == b'\t').enumerate() {
        if field == b"\\N" {
            each(at, None);
        } else if field.contains(&b'\\') {
            plain.clear();
            unescape(field, &mut plain);
            each(at, Some(&plain));
        } else {
            each(at, Some(field));
        }
    }
}

fn unescape(field: &[u8], plain: &mut Vec<u8>) {
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'b') => 0x08,
                Some(b'f') => 0x0C,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'v') => 0x0B,
                Some(&other) => other,
                None => b'\\',
            },
            byte => byte,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_fields_read_back() {
        let mut lines = Lines::default();
        lines.add(b"a\\tb\t\\N\t\\\\N");
        assert!(lines.next().is_none());
        lines.add(b"\t\n\n");
        let line = lines.next().unwrap();
        let mut seen = Vec::new();
        fields(&line, |at, field| seen.push((at, field.map(<[u8]>::to_vec))));
        assert_eq!(seen, [(0, Some(b"a\tb".to_vec())), (1, None), (2, Some(b"\\N".to_vec())), (3, Some(Vec::new()))]);
        assert_eq!(lines.next().unwrap(), "");
        assert!(lines.next().is_none() && lines.is_empty());
    }
}
