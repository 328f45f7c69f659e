//! Which rows of a table's past the state no longer depends on.
//!
//! Owns: the rule. Pure: rows without their cells. Invariants: rows are kept or dropped, and none is changed but that a DELETE loses what is not
//! its key; whatever changes follow, the state is the same with and without the dropped rows; the last row of every key stays, a
//! DELETE as well, so that a reader who has merged only a part of this past still learns of it.
//!
//! The rule. The last TRUNCATE (each copy begins with one) stays; rows before it go. Of the rows of a key behind it the last one stays.
//! Where that left out columns (`_unchanged`), the rows that it takes them from stay too: backwards from it, each row
//! that knows a column which is still missing, up to the beginning of its life. Where that is a change of key, the
//! row itself and its DELETE of the old key stay, and the missing columns are sought among the old key's rows before that.

use crate::lake::Position;
use std::collections::{BTreeSet, HashMap};

/// Digest of a key's cells: as good as the key itself.
pub(crate) type Key = [u8; 16];
/// Numbers of the columns that a row left out.
pub(super) type Columns = BTreeSet<u16>;

/// What a row does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// INSERT, SNAPSHOT.
    Put,
    Update,
    Delete,
}

/// A row of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) position: Position,
    pub(super) op: Op,
    /// An UPDATE that changed the key: the DELETE of the old key lies one ordinal before.
    pub(super) moved: bool,
    pub(super) unchanged: Columns,
    /// File and row.
    pub(super) place: (u32, u32),
}

/// Columns of the row that a DELETE removed, which somebody behind a change of key needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Demand {
    /// Position of the DELETE.
    pub(super) delete: Position,
    pub(super) columns: Columns,
}

/// Keeps the last row of each key, and what it rests on among the key's own rows. All of `keys`' rows lie behind the last TRUNCATE, in
/// their order. Returns what is needed of other keys.
pub(super) fn settle(keys: &HashMap<Key, Vec<Event>>, mut keep: impl FnMut(&Event)) -> Vec<Demand> {
    let mut needed = Vec::new();
    for events in keys.values() {
        let Some(last) = events.last() else { continue };
        keep(last);
        if last.op == Op::Update && !last.unchanged.is_empty() {
            needed.extend(trace(events, events.len() - 1, last.unchanged.clone(), &mut keep));
        }
    }
    needed
}

/// Keeps what demands need. Each life of a row ends once, so that no demand comes twice, and what it needs in turn lies before it.
pub(super) fn answer(keys: &HashMap<Key, Vec<Event>>, demands: &[(Key, Demand)], mut keep: impl FnMut(&Event)) -> Vec<Demand> {
    let mut needed = Vec::new();
    for (key, demand) in demands {
        let Some(events) = keys.get(key) else { continue };
        let Ok(at) = events.binary_search_by_key(&demand.delete, |event| event.position) else { continue };
        keep(&events[at]);
        needed.extend(trace(events, at, demand.columns.clone(), &mut keep));
    }
    needed
}

/// Looks backwards from the row `at` for `missing` columns; the demand that is left over where the key changed.
fn trace(events: &[Event], at: usize, mut missing: Columns, keep: &mut impl FnMut(&Event)) -> Option<Demand> {
    let moved = |event: &Event, missing: Columns| Demand { delete: (event.position.0, event.position.1 - 1), columns: missing };
    if events[at].moved {
        return Some(moved(&events[at], missing));
    }
    for event in events[..at].iter().rev() {
        match event.op {
            Op::Delete => return None, // nothing is known of a row that was not there
            Op::Put => {
                keep(event);
                return None;
            }
            Op::Update => {
                let left: Columns = missing.intersection(&event.unchanged).copied().collect();
                if left.len() < missing.len() || event.moved {
                    keep(event);
                }
                missing = left;
                if missing.is_empty() {
                    return None;
                }
                if event.moved {
                    return Some(moved(event, missing));
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use proptest::prelude::*;

    const COLUMNS: u16 = 3;

    /// A row as a lake has it: cells, `None` where left out.
    #[derive(Debug, Clone, PartialEq)]
    struct Row {
        position: Position,
        op: &'static str,
        key: u8,
        cells: [Option<u32>; COLUMNS as usize],
        moved: bool,
    }

    /// The contract's rule, written apart from everything else.
    fn state(rows: &[Row]) -> HashMap<u8, [Option<u32>; COLUMNS as usize]> {
        let mut state = HashMap::new();
        let mut removed: Option<(Position, [Option<u32>; COLUMNS as usize])> = None;
        for row in rows {
            match row.op {
                "TRUNCATE" => state.clear(),
                "DELETE" => removed = state.remove(&row.key).map(|cells| (row.position, cells)),
                "INSERT" => drop(state.insert(row.key, row.cells)),
                _ => {
                    let before = match (row.moved, removed) {
                        (true, Some((at, cells))) if at == (row.position.0, row.position.1 - 1) => Some(cells),
                        (true, _) => None,
                        (false, _) => state.get(&row.key).copied(),
                    };
                    let cells = std::array::from_fn(|c| row.cells[c].or(before.and_then(|before| before[c])));
                    state.insert(row.key, cells);
                }
            }
        }
        state
    }

    /// A history that a server could send: (choice, key, other key, columns left out).
    fn history(steps: &[(u8, u8, u8, u8)]) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let mut there: BTreeSet<u8> = BTreeSet::new();
        let mut value = 0;
        for (number, &(choice, key, other, out)) in steps.iter().enumerate() {
            let at = |seq: i64| (Lsn(number as u64 / 3), (number % 3) as i64 * 2 + seq);
            let mut cells = |out: u8| {
                value += 1;
                std::array::from_fn(|c| (out >> c & 1 == 0).then_some(value * 10 + c as u32))
            };
            let none = [None; COLUMNS as usize];
            let row = |seq: i64, op, key, cells, moved| Row { position: at(seq), op, key, cells, moved };
            match choice {
                0 if number % 7 == 6 => {
                    there.clear();
                    rows.push(row(1, "TRUNCATE", 0, none, false));
                }
                0..=2 if there.insert(key) => rows.push(row(1, "INSERT", key, cells(0), false)),
                3 if there.remove(&key) => rows.push(row(1, "DELETE", key, none, false)),
                4..=6 if there.contains(&key) && there.insert(other) => {
                    there.remove(&key);
                    rows.push(row(1, "DELETE", key, none, false));
                    rows.push(row(2, "UPDATE", other, cells(out), true));
                }
                _ if there.contains(&key) => rows.push(row(1, "UPDATE", key, cells(out), false)),
                _ => {}
            }
        }
        rows
    }

    /// Folds with keys spread over `parts` passes.
    fn folded(rows: &[Row], parts: u8) -> Vec<Row> {
        let floor = rows.iter().rposition(|row| row.op == "TRUNCATE");
        let mut kept: BTreeSet<usize> = floor.into_iter().collect();
        let digest = |key: u8| [key; 16];
        let mut passes = vec![HashMap::<Key, Vec<Event>>::new(); usize::from(parts)];
        for (at, row) in rows.iter().enumerate().skip(floor.map_or(0, |f| f + 1)) {
            let op = match row.op {
                "INSERT" => Op::Put,
                "DELETE" => Op::Delete,
                _ => Op::Update,
            };
            let unchanged = (0..COLUMNS).filter(|c| op == Op::Update && row.cells[*c as usize].is_none()).collect();
            let event = Event { position: row.position, op, moved: row.moved, unchanged, place: (0, at as u32) };
            passes[usize::from(row.key % parts)].entry(digest(row.key)).or_default().push(event);
        }
        let mut keep = |event: &Event| {
            kept.insert(event.place.1 as usize);
        };
        let mut demands: Vec<Demand> = passes.iter().flat_map(|keys| settle(keys, &mut keep)).collect();
        while !demands.is_empty() {
            let key_of =
                |demand: &Demand| rows.iter().find(|row| row.position == demand.delete).map(|row| (digest(row.key), demand.clone()));
            let asked: Vec<(Key, Demand)> = demands.iter().filter_map(key_of).collect();
            demands = passes.iter().flat_map(|keys| answer(keys, &asked, &mut keep)).collect();
        }
        kept.into_iter().map(|at| rows[at].clone()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_state_is_the_same_whatever_follows(
            steps in proptest::collection::vec((0u8..10, 0u8..4, 0u8..4, 0u8..8), 1..80),
            cut in 0usize..80,
            parts in 1u8..3,
        ) {
            let rows = history(&steps);
            // A horizon lies between transactions.
            let cut = cut.min(rows.len());
            let cut = (cut..rows.len()).find(|at| *at == 0 || rows[*at].position.0 != rows[at - 1].position.0).unwrap_or(rows.len());
            let (old, new) = rows.split_at(cut);
            let mut short = folded(old, parts);
            prop_assert!(short.len() <= old.len());
            prop_assert_eq!(state(&short), state(old));
            for (number, row) in new.iter().enumerate() {
                short.push(row.clone());
                prop_assert_eq!(state(&short), state(&rows[..cut + number + 1]), "{:?}", rows);
            }
        }

        /// A reader who has merged up to anywhere in the past goes on with the folded rows and comes to the same state.
        #[test]
        fn a_reader_in_the_middle_of_the_past_is_not_misled(steps in proptest::collection::vec((0u8..10, 0u8..4, 0u8..4, 0u8..8), 1..60), cut in 0usize..60) {
            let rows = history(&steps);
            let short = folded(&rows, 1);
            let cut = cut.min(rows.len());
            let at = rows.get(cut).map(|row| row.position.0);
            let merged: Vec<Row> = rows.iter().filter(|row| at.is_some_and(|at| row.position.0 < at)).cloned().collect();
            let mut both = merged;
            let last = both.last().map(|row| row.position);
            both.extend(short.into_iter().filter(|row| last.is_none_or(|last| row.position > last)));
            prop_assert_eq!(state(&both), state(&rows));
        }
    }

    #[test]
    fn superseded_rows_go_and_what_a_left_out_column_rests_on_stays() {
        let row = |lsn: u64, seq: i64, op, key, cells, moved| Row { position: (Lsn(lsn), seq), op, key, cells, moved };
        let rows = [
            row(1, 1, "INSERT", 1, [Some(1), Some(1), Some(1)], false),
            row(2, 1, "UPDATE", 1, [Some(2), None, Some(2)], false),
            row(3, 1, "UPDATE", 1, [Some(3), None, Some(3)], false),
            row(4, 1, "DELETE", 1, [None; 3], false),
            row(4, 2, "UPDATE", 2, [Some(4), None, Some(4)], true),
            row(5, 1, "INSERT", 3, [Some(5); 3], false),
            row(6, 1, "DELETE", 3, [None; 3], false),
        ];
        let kept: Vec<u64> = folded(&rows, 1).iter().map(|row| row.position.0.0).collect();
        assert_eq!(kept, [1, 4, 4, 6], "the inserted row for its second column, the change of key, the tombstone");
    }
}
