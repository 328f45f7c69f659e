//! Whose rows are whose: a row is followed through the changes of its key, in both directions.
//!
//! Owns: the rule. Pure: rows without their cells. Invariants: what was asked for is found whole; a row of somebody else that bore a key of ours
//! at another time is never taken for ours as long as a state rests on it, which is what lies above a version's last TRUNCATE.
//!
//! The rule. The rows of a key are cut into lives: one begins with the row's insertion, or its arrival under this key, and ends with its
//! DELETE, or with a TRUNCATE. A life with a row that was asked for is ours. So is the life before a change of key, which
//! ends with the DELETE one ordinal below, and the life after one, which begins one ordinal above; and the life of the same
//! key on the other side of a copy, or of a version that began with one: a copy begins with a TRUNCATE, but the row lives on.

use crate::compact::keys::Key;
use crate::lake::Position;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

/// What a row does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// INSERT.
    Put,
    /// SNAPSHOT.
    Copied,
    /// UPDATE of a row that had this key.
    Update,
    /// UPDATE that gave the row this key.
    Moved,
    /// DELETE.
    Delete,
}

/// A row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) position: Position,
    pub(super) op: Op,
    /// File and row, in the order of the version's files.
    pub(super) place: (u32, u32),
    /// It was asked for, or a change of key led to it.
    pub(super) ours: bool,
}

/// A key of a version.
pub(super) type Node = (u32, Key);

/// What is known of a table's past.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Rows of each key in their order.
    pub(super) nodes: HashMap<Node, Vec<Event>>,
    /// Keys all of whose rows are known.
    pub(super) complete: HashSet<Node>,
    /// The TRUNCATE rows of each version, in their order; all versions are here.
    pub(super) floors: BTreeMap<u32, Vec<Position>>,
    /// Versions whose key is that of the version before them, so that equal digests are equal keys.
    pub(super) same_key: HashSet<u32>,
}

/// A row that a change of key leads to: there must be a DELETE, or an UPDATE that gave the row its key. What else stands there is another's.
pub(super) type Wanted = (u32, Position, Half);

/// Which of the two rows of a change of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Half {
    /// The DELETE of the old key.
    Old,
    /// The UPDATE with the new one.
    New,
}

impl Half {
    /// Which one a row could be.
    pub(super) fn of(op: Op) -> Option<Self> {
        match op {
            Op::Delete => Some(Half::Old),
            Op::Moved => Some(Half::New),
            Op::Put | Op::Copied | Op::Update => None,
        }
    }
}

/// What follows from it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Traced {
    /// Rows that are ours, with their version.
    pub(super) ours: Vec<(u32, Event)>,
    /// Versions in which a life of ours has no end: there the row is still in the state.
    pub(super) open: BTreeSet<u32>,
    /// Rows to look for: where the key was another before, or became another.
    pub(super) wanted: BTreeSet<Wanted>,
    /// Keys of which all rows must be known.
    pub(super) watched: BTreeSet<Node>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    Put,
    Copied,
    Moved(Position),
    /// Its first rows are not there: they are of the version before, or were folded.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Deleted(Position),
    Floor(Position),
    /// Another life begins without a word.
    Next,
    Open,
}

#[derive(Debug, Clone)]
struct Life {
    rows: Range<usize>,
    begin: Begin,
    end: End,
}

/// Cuts a key's rows into lives.
fn lives(events: &[Event], floors: &[Position]) -> Vec<Life> {
    let floor_after = |position: Position| floors.iter().copied().find(|floor| *floor > position);
    let begins = |at: usize| {
        at == 0
            || matches!(events[at].op, Op::Put | Op::Copied | Op::Moved)
            || events[at - 1].op == Op::Delete
            || floor_after(events[at - 1].position).is_some_and(|floor| floor < events[at].position)
    };
    let starts: Vec<usize> = (0..events.len()).filter(|at| begins(*at)).collect();
    let mut lives = Vec::with_capacity(starts.len());
    for (number, start) in starts.iter().enumerate() {
        let end = starts.get(number + 1).copied().unwrap_or(events.len());
        let last = events[end - 1];
        let begin = match events[*start].op {
            Op::Put => Begin::Put,
            Op::Copied => Begin::Copied,
            Op::Moved => Begin::Moved(events[*start].position),
            Op::Update | Op::Delete => Begin::Unknown,
        };
        let floor = floor_after(last.position).filter(|floor| events.get(end).is_none_or(|next| *floor < next.position));
        let end_of = match (last.op, floor) {
            (Op::Delete, _) => End::Deleted(last.position),
            (_, Some(floor)) => End::Floor(floor),
            (_, None) if end < events.len() => End::Next,
            (_, None) => End::Open,
        };
        lives.push(Life { rows: *start..end, begin, end: end_of });
    }
    lives
}

/// A copy's TRUNCATE stands one ordinal below its rows.
fn is_copys(floor: Position) -> bool {
    floor.1 < 0
}

/// Follows all that was asked for.
pub(super) fn trace(history: &History) -> Traced {
    let mut traced = Traced::default();
    let none = Vec::new();
    let mut cut: HashMap<Node, Vec<Life>> = HashMap::new();
    let mut marked: HashSet<(Node, usize)> = HashSet::new();
    let mut work: Vec<(Node, usize)> = Vec::new();
    for (node, events) in &history.nodes {
        if !history.complete.contains(node) {
            if events.iter().any(|event| event.ours) {
                traced.watched.insert(*node);
            }
            continue;
        }
        let lives = lives(events, history.floors.get(&node.0).unwrap_or(&none));
        work.extend((0..lives.len()).filter(|at| events[lives[*at].rows.clone()].iter().any(|event| event.ours)).map(|at| (*node, at)));
        cut.insert(*node, lives);
    }
    while let Some((node, at)) = work.pop() {
        if !marked.insert((node, at)) {
            continue;
        }
        let Some(lives) = cut.get(&node) else { continue };
        let life = &lives[at];
        if let Begin::Moved((lsn, seq)) = life.begin {
            traced.wanted.insert((node.0, (lsn, seq - 1), Half::Old));
        }
        if let End::Deleted((lsn, seq)) = life.end {
            traced.wanted.insert((node.0, (lsn, seq + 1), Half::New));
        }
        if matches!(life.end, End::Floor(floor) if is_copys(floor)) && lives.get(at + 1).is_some_and(|next| next.begin == Begin::Copied) {
            work.push((node, at + 1));
        }
        let before = at.checked_sub(1).map(|before| lives[before].end);
        if life.begin == Begin::Copied && matches!(before, Some(End::Floor(floor)) if is_copys(floor)) {
            work.push((node, at - 1));
        }
        for (other, forward) in neighbours(history, node, lives, at) {
            let known = history.complete.contains(&other);
            if !known {
                traced.watched.insert(other);
            }
            let Some(there) = cut.get(&other).filter(|there| !there.is_empty()) else { continue };
            let found = if forward { 0 } else { there.len() - 1 };
            let fits = if forward { is_taken_over(&there[found]) } else { there[found].end == End::Open };
            if fits {
                work.push((other, found));
            }
        }
    }
    for (node, at) in &marked {
        let life = &cut[node][*at];
        traced.ours.extend(history.nodes[node][life.rows.clone()].iter().map(|event| (node.0, *event)));
        if life.end == End::Open {
            traced.open.insert(node.0);
        }
    }
    traced.ours.sort_by_key(|(version, event)| (*version, event.place));
    traced
}

/// A life that may have begun in the version before.
fn is_taken_over(life: &Life) -> bool {
    matches!(life.begin, Begin::Unknown | Begin::Copied)
}

/// The same key in the version after, if the life has no end; in the version before, if its beginning is not there.
fn neighbours(history: &History, (version, key): Node, lives: &[Life], at: usize) -> Vec<(Node, bool)> {
    let mut found = Vec::new();
    let after = history.floors.range(version + 1..).next().map(|(after, _)| *after);
    if let Some(after) = after.filter(|after| lives[at].end == End::Open && history.same_key.contains(after)) {
        found.push(((after, key), true));
    }
    let before = history.floors.range(..version).next_back().map(|(before, _)| *before);
    if let Some(before) = before.filter(|_| at == 0 && is_taken_over(&lives[at]) && history.same_key.contains(&version)) {
        found.push(((before, key), false));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    fn key(number: u8) -> Key {
        [number; 16]
    }

    /// A history of version 1 (or another): rows `(lsn, seq, op, key, ours)`, all known.
    fn add(history: &mut History, version: u32, rows: &[(u64, i64, Op, u8)], floors: &[(u64, i64)]) {
        history.floors.insert(version, floors.iter().map(|(lsn, seq)| (Lsn(*lsn), *seq)).collect());
        for (number, (lsn, seq, op, of)) in rows.iter().enumerate() {
            let event = Event { position: (Lsn(*lsn), *seq), op: *op, place: (version, number as u32), ours: false };
            history.nodes.entry((version, key(*of))).or_default().push(event);
            history.complete.insert((version, key(*of)));
        }
    }

    /// Asks for a key, as if every row of it had been found; follows wanted rows as a scan would.
    fn traced(mut history: History, asked: u8) -> Traced {
        for (_, events) in history.nodes.iter_mut().filter(|((_, of), _)| *of == key(asked)) {
            events.iter_mut().for_each(|event| event.ours = true);
        }
        loop {
            let found = trace(&history);
            let mut more = false;
            for ((version, _), events) in &mut history.nodes {
                for event in events.iter_mut().filter(|event| !event.ours) {
                    event.ours = Half::of(event.op).is_some_and(|half| found.wanted.contains(&(*version, event.position, half)));
                    more |= event.ours;
                }
            }
            if !more {
                return found;
            }
        }
    }

    fn lsns(traced: &Traced) -> Vec<u64> {
        let mut lsns: Vec<u64> = traced.ours.iter().map(|(_, event)| event.position.0.0).collect();
        lsns.sort_unstable();
        lsns
    }

    #[test]
    fn changes_of_key_are_followed_both_ways_and_others_who_had_the_key_are_left_alone() {
        use Op::*;
        let rows = [
            (1, 1, Put, 5), // another
            (2, 1, Delete, 5),
            (3, 1, Put, 5), // ours
            (4, 1, Update, 5),
            (5, 1, Delete, 5),
            (5, 2, Moved, 6),
            (6, 1, Put, 5), // another again
            (7, 1, Delete, 6),
            (7, 2, Moved, 7),
            (8, 1, Put, 6),    // and another
            (9, 1, Delete, 7), // in one transaction with a change of another's key
            (9, 2, Delete, 9),
            (9, 3, Moved, 10),
        ];
        let mut history = History::default();
        add(&mut history, 1, &rows, &[]);
        let found = traced(history, 7);
        assert_eq!(lsns(&found), [3, 4, 5, 5, 7, 7, 9]);
        assert!(found.open.is_empty());
        // Every row of the key that was asked for goes, whosever it was.
        let mut history = History::default();
        add(&mut history, 1, &rows, &[]);
        let found = traced(history, 6);
        assert_eq!(lsns(&found), [3, 4, 5, 5, 7, 7, 8, 9]);
        assert_eq!(found.open, BTreeSet::from([1]), "it is in the state");
    }

    #[test]
    fn a_copy_does_not_end_a_life_and_a_truncate_does() {
        use Op::*;
        let rows = [(1, 1, Put, 1), (2, 1, Delete, 1), (2, 2, Moved, 2), (10, 0, Copied, 2), (21, 1, Put, 2), (22, 1, Delete, 2)];
        let mut history = History::default();
        add(&mut history, 1, &rows, &[(10, -1), (20, 1)]);
        let found = traced(history, 1);
        assert_eq!(lsns(&found), [1, 2, 2, 10], "the copy of the row under its later key, not who came after the TRUNCATE");
        assert!(found.open.is_empty());
    }

    #[test]
    fn a_row_lives_on_in_the_next_version() {
        use Op::*;
        let mut history = History::default();
        add(&mut history, 1, &[(1, 1, Put, 1), (2, 1, Delete, 1), (2, 2, Moved, 2)], &[(0, -1)]);
        add(
            &mut history,
            2,
            &[(5, 1, Update, 2), (10, 0, Copied, 2), (12, 1, Delete, 2), (12, 2, Moved, 3), (13, 1, Delete, 3)],
            &[(10, -1)],
        );
        history.same_key.insert(2);
        let found = traced(history, 3);
        assert_eq!(lsns(&found), [1, 2, 2, 5, 10, 12, 12, 13]);
        assert!(found.open.contains(&1) && !found.open.contains(&2), "a former version's state is nobody's");
    }

    #[test]
    fn keys_are_asked_for_until_all_of_their_rows_are_known() {
        use Op::*;
        let mut history = History::default();
        add(&mut history, 1, &[(1, 1, Delete, 1), (1, 2, Moved, 2)], &[]);
        history.complete.remove(&(1, key(1)));
        history.nodes.get_mut(&(1, key(2))).unwrap()[0].ours = true;
        let found = trace(&history);
        assert_eq!(found.wanted, BTreeSet::from([(1, (Lsn(1), 1), Half::Old)]));
        history.nodes.get_mut(&(1, key(1))).unwrap()[0].ours = true;
        assert_eq!(trace(&history).watched, BTreeSet::from([(1, key(1))]));
    }
}
