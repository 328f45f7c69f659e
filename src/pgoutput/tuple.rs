//! Rows as they lie in the message: borrowed, validated once, walked as often as needed.
//!
//! Owns: TupleData, old tuples, cells. Does not own: columns and types.
//! Invariants: a [`Tuple`] exists only after its bytes were checked to the end, so its iterator cannot fail;
//! `Debug` shows kinds and lengths, never values.

use super::reader::{DecodeError, Fault, Reader};
use std::fmt;
use std::iter::FusedIterator;

/// A row: one cell for each column that the publication sends, in the Relation message's order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: u16,
    body: &'a [u8],
}

/// One column's value in a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// SQL NULL; in a [`OldKind::Key`] tuple also the placeholder of every column outside the key.
    Null,
    /// A TOASTed value that the UPDATE did not touch: not sent.
    Unchanged,
    /// The type's text output, in the session's encoding.
    Text(&'a [u8]),
    /// The type's binary output (option `binary`).
    Binary(&'a [u8]),
}

/// What an old tuple holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldKind {
    /// The replica identity's columns only.
    Key,
    /// The whole old row (REPLICA IDENTITY FULL).
    Full,
}

/// The row before the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldTuple<'a> {
    /// Which columns are real.
    pub kind: OldKind,
    /// The old row.
    pub tuple: Tuple<'a>,
}

impl<'a> Tuple<'a> {
    /// Reads and checks one TupleData.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let count = reader.u16("number of cells")?;
        let start = reader.offset();
        for _ in 0..count {
            let offset = reader.offset();
            match reader.u8("kind of a cell")? {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    reader.sized("cell")?;
                }
                _ => return Err(DecodeError { what: "kind of a cell", offset, fault: Fault::Undefined }),
            }
        }
        Ok(Self { count, body: reader.since(start) })
    }

    /// Number of cells.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether the row has no cells (a table without columns).
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Size of all cells on the wire, in bytes: a measure of the memory a row will take.
    #[inline]
    pub fn wire_bytes(&self) -> usize {
        self.body.len()
    }

    /// The cells in column order.
    #[inline]
    pub fn cells(&self) -> Cells<'a> {
        Cells { left: self.count, rest: self.body }
    }
}

/// Iterator over a row's cells.
#[derive(Clone)]
pub struct Cells<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    #[inline]
    fn next(&mut self) -> Option<Cell<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (&kind, rest) = self.rest.split_first().expect("Tuple::read saw a kind for each cell");
        self.rest = rest;
        Some(match kind {
            b'n' => Cell::Null,
            b'u' => Cell::Unchanged,
            _ => {
                let (size, rest) = rest.split_first_chunk::<4>().expect("Tuple::read saw the cell's length");
                let (value, rest) = rest.split_at(u32::from_be_bytes(*size) as usize); // Tuple::read saw the value
                self.rest = rest;
                if kind == b't' { Cell::Text(value) } else { Cell::Binary(value) }
            }
        })
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Cells<'_> {}
impl FusedIterator for Cells<'_> {}

impl<'a> IntoIterator for Tuple<'a> {
    type Item = Cell<'a>;
    type IntoIter = Cells<'a>;

    #[inline]
    fn into_iter(self) -> Cells<'a> {
        self.cells()
    }
}

impl fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.cells()).finish()
    }
}

impl fmt::Debug for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Null => f.write_str("Null"),
            Cell::Unchanged => f.write_str("Unchanged"),
            Cell::Text(value) => write!(f, "Text({} bytes)", value.len()),
            Cell::Binary(value) => write!(f, "Binary({} bytes)", value.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(bytes: &[u8]) -> Result<Tuple<'_>, DecodeError> {
        Tuple::read(&mut Reader::new(bytes))
    }

    #[test]
    fn all_kinds_of_cells_come_back_in_order() {
        let row = tuple(b"\0\x05nut\0\0\0\x02hib\0\0\0\x01\xFFt\0\0\0\0").unwrap();
        assert_eq!(row.len(), 5);
        assert_eq!(row.cells().len(), 5);
        let cells: Vec<_> = row.cells().collect();
        assert_eq!(cells, [Cell::Null, Cell::Unchanged, Cell::Text(b"hi"), Cell::Binary(&[0xFF]), Cell::Text(b"")]);
    }

    #[test]
    fn a_row_without_columns_is_empty() {
        let row = tuple(b"\0\0").unwrap();
        assert!(row.is_empty());
        assert_eq!(row.cells().next(), None);
    }

    #[test]
    fn the_iterator_stays_finished() {
        let row = tuple(b"\0\x01n").unwrap();
        let mut cells = row.cells();
        assert_eq!((cells.next(), cells.next(), cells.next(), cells.len()), (Some(Cell::Null), None, None, 0));
    }

    #[test]
    fn an_undefined_kind_is_refused_where_it_stands() {
        let error = tuple(b"\0\x02nx").unwrap_err();
        assert_eq!((error.offset, error.fault), (3, Fault::Undefined));
    }

    #[test]
    fn debug_does_not_show_values() {
        let text = format!("{:?}", tuple(b"\0\x02t\0\0\0\x06secretn").unwrap());
        assert_eq!(text, "[Text(6 bytes), Null]");
    }
}
