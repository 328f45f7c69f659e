//! The contract's rule: which rows a table has after a list of changes.
//!
//! Owns: the reduction. Does not own: reading changes (`changes`), the source. Pure.
//! Invariant: the result depends on positions alone, not on the order in which files are read.

use super::cell::{Cell, cells, filled};
use std::collections::HashMap;

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// INSERT, SNAPSHOT.
    Put,
    /// UPDATE.
    Update,
    Delete,
    Truncate,
}

/// A row of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// `(_commit_lsn, _seq)`.
    pub(super) position: (u64, i64),
    pub(super) op: Op,
    /// The key's cells; the whole row in a table without a key.
    pub(super) key: Box<[u8]>,
    pub(super) row: Box<[u8]>,
    /// An UPDATE that changed the key: the row before stands under the old key.
    pub(super) moved: bool,
}

/// The rows there are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Key → row; in a table without a key row → nothing.
    pub(super) rows: HashMap<Box<[u8]>, Box<[u8]>>,
    /// In a table without a key: how often each row is there.
    pub(super) counts: HashMap<Box<[u8]>, i64>,
    /// Rows that the lake holds more than once.
    pub(super) duplicates: u64,
}

/// A row that a DELETE removed, and where.
struct Removed {
    position: (u64, i64),
    row: Box<[u8]>,
}

/// Reduces changes to the rows that remain.
pub(super) fn reduce(mut changes: Vec<Change>, keyed: bool) -> State {
    changes.sort_by_key(|change| change.position);
    let mut state = State::default();
    let mut removed: Option<Removed> = None;
    let mut last = None;
    for change in changes {
        // Ordinals begin at 1; all rows of a copy share 0.
        if last == Some(change.position) && change.position.1 > 0 {
            state.duplicates += 1;
            continue;
        }
        last = Some(change.position);
        match change.op {
            Op::Truncate => {
                state.rows.clear();
                state.counts.clear();
            }
            Op::Delete if keyed => removed = state.rows.remove(&change.key).map(|row| Removed { position: change.position, row }),
            Op::Delete => *state.counts.entry(change.row).or_default() -= 1,
            Op::Put | Op::Update if !keyed => *state.counts.entry(change.row).or_default() += 1,
            Op::Put => {
                let before = state.rows.insert(change.key, change.row);
                state.duplicates += u64::from(before.is_some() && change.position.1 == 0);
            }
            Op::Update => {
                let (lsn, seq) = change.position;
                let before = match &removed {
                    Some(removed) if change.moved && removed.position == (lsn, seq - 1) => Some(&removed.row),
                    _ if change.moved => None,
                    _ => state.rows.get(&change.key),
                };
                let row = match before {
                    Some(before) if cells(&change.row).any(|cell| cell == Cell::Unchanged) => filled(&change.row, before),
                    _ => change.row,
                };
                state.rows.insert(change.key, row);
            }
        }
    }
    state.counts.retain(|_, count| *count != 0);
    state
}
