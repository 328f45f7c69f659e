//! Rows as comparable bytes: each cell in its canonical text, one behind the other.
//!
//! Owns: the encoding. Does not own: what is canonical (`canonical`).
//! Invariant: two rows of the same columns are equal exactly if their bytes are.

/// A cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell<'a> {
    /// NULL.
    Null,
    /// A value, in canonical text.
    Value(&'a [u8]),
    /// The source's text of a value that the lake's type cannot hold.
    Exception(&'a [u8]),
    /// Left out by an UPDATE, to be taken from the row before.
    Unchanged,
}

const NULL: u8 = 0;
const VALUE: u8 = 1;
const EXCEPTION: u8 = 2;
const UNCHANGED: u8 = 3;

/// Appends a cell to a row.
pub(super) fn push(row: &mut Vec<u8>, cell: Cell<'_>) {
    let (tag, bytes) = match cell {
        Cell::Null => return row.push(NULL),
        Cell::Unchanged => return row.push(UNCHANGED),
        Cell::Value(bytes) => (VALUE, bytes),
        Cell::Exception(bytes) => (EXCEPTION, bytes),
    };
    row.push(tag);
    row.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    row.extend_from_slice(bytes);
}

/// The cells of a row that [`push`] made.
pub(super) fn cells(row: &[u8]) -> impl Iterator<Item = Cell<'_>> {
    let mut rest = row;
    std::iter::from_fn(move || {
        let (tag, behind) = rest.split_first()?;
        rest = behind;
        Some(match *tag {
            NULL => Cell::Null,
            UNCHANGED => Cell::Unchanged,
            tag => {
                let (length, behind) = rest.split_first_chunk::<8>().expect("a length stands behind the tag of a text");
                let (bytes, behind) = behind.split_at(u64::from_le_bytes(*length) as usize);
                rest = behind;
                if tag == VALUE { Cell::Value(bytes) } else { Cell::Exception(bytes) }
            }
        })
    })
}

/// `row` with its left-out cells taken from `before`.
pub(super) fn filled(row: &[u8], before: &[u8]) -> Box<[u8]> {
    let mut whole = Vec::with_capacity(row.len());
    for (new, old) in cells(row).zip(cells(before)) {
        push(&mut whole, if new == Cell::Unchanged { old } else { new });
    }
    whole.into()
}

/// The key's cells of `row`, in the key's order.
pub(super) fn key_of(row: &[u8], key: &[usize]) -> Box<[u8]> {
    let all: Vec<Cell<'_>> = cells(row).collect();
    let mut bytes = Vec::new();
    key.iter().for_each(|at| push(&mut bytes, all[*at]));
    bytes.into()
}
