//! COPY's text format, row by row.
//!
//! Owns: splitting and unescaping a line. Does not own: what a cell means (`schema`). Source of the rule:
//! PostgreSQL's documentation of COPY, "Text Format". Invariant: no panic on any bytes.

use crate::pgoutput::Cell;
use std::ops::Range;

/// One line's cells; reused from line to line.
#[derive(Debug, Default)]
pub(super) struct Line {
    bytes: Vec<u8>,
    cells: Vec<Option<Range<usize>>>,
}

impl Line {
    /// Reads a line, with or without its newline.
    pub(super) fn read(&mut self, line: &[u8]) {
        self.bytes.clear();
        self.cells.clear();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        for raw in line.split(|b| *b == b'\t') {
            if raw == b"\\N" {
                self.cells.push(None);
                continue;
            }
            let start = self.bytes.len();
            unescape(raw, &mut self.bytes);
            self.cells.push(Some(start..self.bytes.len()));
        }
    }

    /// How many cells; a line of a table without columns has none.
    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    /// The cells in order.
    pub(super) fn cells(&self) -> impl Iterator<Item = Cell<'_>> {
        self.cells.iter().map(|cell| match cell {
            Some(range) => Cell::Text(&self.bytes[range.clone()]),
            None => Cell::Null,
        })
    }
}

fn unescape(raw: &[u8], out: &mut Vec<u8>) {
    let mut rest = raw;
    while let Some(at) = rest.iter().position(|b| *b == b'\\') {
        out.extend_from_slice(&rest[..at]);
        let Some(escaped) = rest.get(at + 1) else {
            out.push(b'\\');
            return;
        };
        out.push(match escaped {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            other => *other,
        });
        rest = &rest[at + 2..];
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_escapes_and_empty_cells_are_told_apart() {
        let mut line = Line::default();
        line.read(b"1\t\\N\t\ta\\tb\\\\c\\nd\t\\\\N\n");
        let texts: Vec<Option<&[u8]>> = line
            .cells()
            .map(|cell| match cell {
                Cell::Text(text) => Some(text),
                _ => None,
            })
            .collect();
        assert_eq!(texts, [Some(b"1".as_slice()), None, Some(b""), Some(b"a\tb\\c\nd"), Some(b"\\N")]);
    }

    #[test]
    fn a_trailing_backslash_does_not_panic() {
        let mut line = Line::default();
        line.read(b"\\");
        assert_eq!(line.len(), 1);
    }
}
