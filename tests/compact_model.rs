//! The record of compaction, explored exhaustively: two compactions with their sweeps, a writer, a copy that is handed over, in every
//! interleaving, with crashes, lost replies, writes that land late, and processes that stand still for longer than the grace.
//!
//! Owns: a model of `commit/PROTOCOL.md`, "Compaction" and "Copies of other processes"; protocol and model change together.
//! Does not own: the real `compact`; `lake_matrix.rs` breaks its writes.
//!
//! The world: commits of one file each; two compactors that each merge what is live, once, and sweep; a proposal. Time is an age: a
//! grace passes from one to the next. What can make no difference is not told apart: notes are read and written in one step (their
//! object is compared and swapped), and so are the record's steps that carry no replacement.

use std::collections::HashSet;

const COMMITS: [u8; 3] = [0, 1, 2];
/// The file of the copy that another process hands over.
const COPY: u8 = 3;
/// What compactors make.
const MERGED: [u8; 2] = [4, 5];
const FILES: usize = 6;
/// Noted in the second, deleted in the third.
const AGE_MAX: u8 = 2;
const LOST_REPLIES: u8 = 1;
const MARKS: usize = 6;

fn bit(file: u8) -> u8 {
    1 << file
}

/// The protocol, or one with a fault that the exploration must find.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Ours,
    /// What finds its inputs replaced takes itself for too late, though it may have replaced them itself, and deletes what it made.
    DeletesWhatCameTooLate,
    /// A replacement counts however old its files are.
    ForgetsTheGrace,
    /// A sweep deletes without moving the record first.
    DeletesBeforeTheRecordMoves,
    /// A sweep that stood still goes on with what it knew.
    SweepsWithOldKnowledge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Violation {
    /// The live list does not have every committed row once.
    RowsNotOnce,
    /// A checkpoint that the record names has a file that is gone.
    NamedAndGone,
    /// A copy that may still be taken has lost its file.
    ProposedAndGone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Mark {
    live: u8,
    /// Committed up to there.
    at: u8,
    superseded: Option<u8>,
}

/// A record that a compactor wants to write on the one of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Request {
    number: u8,
    live: u8,
    at: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    New,
    /// Has made its file; looks at the record.
    Look,
    Swap(Request),
    ReadBack(Request),
    Sweep,
    /// Knows what others name; with the age of the sweep's beginning.
    Named {
        named: u8,
        since: u8,
    },
    /// Knows what is live as well.
    Listed {
        named: u8,
        live: u8,
        former: u8,
        since: u8,
    },
    /// What is noted long enough.
    Due {
        due: u8,
        since: u8,
    },
    Delete {
        due: u8,
        since: u8,
    },
    /// Has swept; another run may begin in a later age.
    Rest {
        since: u8,
    },
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Compactor {
    step: Step,
    /// Age when its work began.
    since: u8,
    inputs: u8,
    in_flight: Option<Request>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Proposal {
    None,
    /// Its file is there, not named yet.
    Copied,
    Proposed,
    /// Committed or void, the object still there; then gone.
    Settled,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    committed: u8,
    files: u8,
    born: [u8; FILES],
    /// Rows of each merged file, as the commits that they are from.
    rows: [u8; 2],
    marks: [Option<Mark>; MARKS],
    number: u8,
    notes: [Option<u8>; FILES],
    proposal: Proposal,
    age: u8,
    lost_replies_left: u8,
    compactors: [Compactor; 2],
}

type Next = (&'static str, World);
/// Adds what a step leads to.
type Then<'a> = &'a mut dyn FnMut(&'static str, Step, &dyn Fn(&mut World));

/// What is explored together: all of it at once is too large.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scope {
    /// Two compactors that merge and sweep.
    Compactors,
    /// Two sweeps beside a copy that is handed over.
    Proposal,
}

impl World {
    fn new(scope: Scope) -> Self {
        let (step, proposal) = match scope {
            Scope::Compactors => (Step::New, Proposal::Gone),
            Scope::Proposal => (Step::Sweep, Proposal::None),
        };
        let committed = bit(COMMITS[0]) | bit(COMMITS[1]);
        World {
            committed,
            files: committed,
            born: [0; FILES],
            rows: [0; 2],
            // The first step of `compact` has been done: the list as it stands is in a checkpoint.
            marks: [Some(Mark { live: committed, at: committed, superseded: None }), None, None, None, None, None],
            number: 1,
            notes: [None; FILES],
            proposal,
            age: 0,
            lost_replies_left: LOST_REPLIES,
            compactors: [Compactor { step, since: 0, inputs: 0, in_flight: None }; 2],
        }
    }

    fn newest(&self) -> Mark {
        self.marks[0].expect("there is always one")
    }

    fn live(&self) -> u8 {
        self.newest().live | (self.committed & !self.newest().at)
    }

    /// Rows of a list of files, and whether one stands twice.
    fn rows_of(&self, files: u8) -> (u8, bool) {
        let mut all = (0, false);
        for file in (0..FILES as u8).filter(|file| files & bit(*file) != 0) {
            let rows = if file >= MERGED[0] { self.rows[(file - MERGED[0]) as usize] } else { bit(file) };
            all = (all.0 | rows, all.1 || all.0 & rows != 0);
        }
        all
    }

    fn land(&mut self, request: Request) {
        assert_eq!(self.number, request.number, "the store compares");
        self.number += 1;
        if let Some(before) = self.marks[0].as_mut() {
            before.superseded = Some(self.age);
        }
        assert!(self.marks[MARKS - 1].is_none(), "more checkpoints than there is room for");
        self.marks.rotate_right(1);
        self.marks[0] = Some(Mark { live: request.live, at: request.at, superseded: None });
    }

    fn next(&self, protocol: Protocol) -> Vec<Next> {
        let mut next = Vec::new();
        let mut then = |label, change: &dyn Fn(&mut World)| {
            let mut world = *self;
            change(&mut world);
            next.push((label, world));
        };
        if self.age < AGE_MAX {
            then("a grace passes", &|w| w.age += 1);
        }
        if self.committed & bit(COMMITS[2]) == 0 {
            then("a commit", &|w| {
                w.committed |= bit(COMMITS[2]);
                w.files |= bit(COMMITS[2]);
            });
        }
        match self.proposal {
            Proposal::None => then("a copy's file", &|w| {
                (w.proposal, w.files, w.born[COPY as usize]) = (Proposal::Copied, w.files | bit(COPY), w.age);
            }),
            // Must take less than the grace: the protocol says so.
            Proposal::Copied if self.age == self.born[COPY as usize] => then("a proposal", &|w| w.proposal = Proposal::Proposed),
            Proposal::Copied => {}
            Proposal::Proposed => {
                then("the proposal is taken", &|w| (w.proposal, w.committed) = (Proposal::Settled, w.committed | bit(COPY)));
                then("the proposal is void", &|w| w.proposal = Proposal::Settled);
            }
            Proposal::Settled => then("the proposal is removed", &|w| w.proposal = Proposal::Gone),
            Proposal::Gone => {}
        }
        for by in 0..self.compactors.len() {
            self.of(by, protocol, &mut next);
        }
        next
    }

    fn of(&self, by: usize, protocol: Protocol, next: &mut Vec<Next>) {
        let me = self.compactors[by];
        let mut then = |label, step: Step, change: &dyn Fn(&mut World)| {
            let mut world = *self;
            world.compactors[by].step = step;
            change(&mut world);
            next.push((label, world));
        };
        if let Some(request) = me.in_flight {
            then("a late write is lost", me.step, &|w| w.compactors[by].in_flight = None);
            if request.number == self.number {
                then("a late write lands", me.step, &|w| {
                    w.compactors[by].in_flight = None;
                    w.land(request);
                });
            }
        }
        if !matches!(me.step, Step::New | Step::Dead) {
            then("crash", Step::Dead, &|_| {});
        }
        let file = bit(MERGED[by]);
        match me.step {
            Step::New => {
                then("only sweeps", Step::Sweep, &|_| {});
                if self.live().count_ones() > 1 {
                    then("merges what is live", Step::Look, &|w| {
                        w.files |= file;
                        w.born[MERGED[by] as usize] = w.age;
                        w.rows[by] = w.rows_of(w.live()).0;
                        w.compactors[by].inputs = w.live();
                        w.compactors[by].since = w.age;
                    });
                }
            }
            Step::Look if protocol != Protocol::ForgetsTheGrace && me.since < self.age => {
                then("its grace is over", Step::Dead, &|_| {});
            }
            Step::Look => {
                let live = self.live();
                if me.inputs & !live == 0 {
                    let request = Request { number: self.number, live: live & !me.inputs | file, at: self.committed };
                    then("puts its checkpoint", Step::Swap(request), &|_| {});
                } else if protocol == Protocol::DeletesWhatCameTooLate {
                    then("deletes what came too late", Step::Sweep, &|w| w.files &= !file);
                } else if live & file != 0 {
                    then("finds its replacement done", Step::Sweep, &|_| {});
                } else {
                    then("leaves what came too late", Step::Sweep, &|_| {});
                }
            }
            Step::Swap(request) if request.number != self.number => then("the swap is refused", Step::ReadBack(request), &|_| {}),
            Step::Swap(request) => {
                then("the swap is done", Step::Sweep, &|w| w.land(request));
                if self.lost_replies_left > 0 {
                    then("the swap is done, its reply lost", Step::ReadBack(request), &|w| {
                        w.lost_replies_left -= 1;
                        w.land(request);
                    });
                    then("the swap is late", Step::ReadBack(request), &|w| {
                        w.lost_replies_left -= 1;
                        w.compactors[by].in_flight = Some(request);
                    });
                }
            }
            Step::ReadBack(request) => {
                let stands = self.number == request.number + 1 && (self.newest().live, self.newest().at) == (request.live, request.at);
                if stands {
                    then("finds its record", Step::Sweep, &|_| {});
                } else if self.number == request.number {
                    then("tries the identical swap again", Step::Swap(request), &|_| {});
                } else {
                    then("looks again", Step::Look, &|_| {});
                }
            }
            _ => self.sweep(me.step, protocol, &mut then),
        }
    }

    fn sweep(&self, step: Step, protocol: Protocol, then: Then) {
        let proposed = if matches!(self.proposal, Proposal::Proposed | Proposal::Settled) { bit(COPY) } else { 0 };
        let former = self.marks.iter().skip(1).flatten().fold(0, |all, mark| all | mark.live);
        match step {
            Step::Sweep => then("reads what others name", Step::Named { named: proposed, since: self.age }, &|_| {}),
            Step::Named { named, since } => {
                // The list as it stands becomes a checkpoint, so that what it is compared with stands in the record.
                let request = Request { number: self.number, live: self.live(), at: self.committed };
                let moves = self.newest().at != self.committed;
                let before = former | if moves { self.newest().live } else { 0 };
                then("lists what is live", Step::Listed { named, live: self.live(), former: before, since }, &|w| {
                    if moves {
                        w.land(request);
                    }
                });
            }
            Step::Listed { named, live, former, since } => {
                let due = (0..FILES as u8).filter(|file| self.is_due(*file, named, live)).fold(0, |all, file| all | bit(file));
                then("notes what is unnamed", Step::Due { due, since }, &|w| w.note(named, live, former));
            }
            Step::Due { due, since } => {
                then("lapses checkpoints", Step::Delete { due, since }, &|w| {
                    let before = w.marks;
                    let lapsed = |mark: &Mark| mark.superseded.is_some_and(|since| since < w.age);
                    let kept: Vec<Mark> = before.iter().flatten().filter(|mark| !lapsed(mark)).copied().collect();
                    w.marks = std::array::from_fn(|at| kept.get(at).copied());
                    if w.marks != before || (due != 0 && protocol != Protocol::DeletesBeforeTheRecordMoves) {
                        w.number += 1;
                    }
                });
            }
            Step::Delete { since, .. } if protocol != Protocol::SweepsWithOldKnowledge && since < self.age => {
                then("its knowledge is old", Step::Rest { since: self.age }, &|_| {});
            }
            Step::Rest { since } if since < self.age => then("runs again", Step::Sweep, &|_| {}),
            Step::Delete { due, .. } => then("deletes", Step::Rest { since: self.age }, &|w| {
                let named = w.marks.iter().flatten().fold(0, |all, mark| all | mark.live);
                w.files &= !(due & !named);
            }),
            _ => {}
        }
    }

    fn is_due(&self, file: u8, named: u8, live: u8) -> bool {
        let dead = self.files & bit(file) & !live & !named != 0;
        dead && self.notes[file as usize].is_some_and(|since| since < self.age)
    }

    fn note(&mut self, named: u8, live: u8, former: u8) {
        for file in 0..FILES as u8 {
            let there = self.files & bit(file) & !live != 0;
            let orphan = file >= COPY && self.born[file as usize] < self.age;
            let note = &mut self.notes[file as usize];
            match *note {
                _ if !there => *note = None,
                _ if named & bit(file) != 0 => *note = None,
                Some(_) => {}
                None if former & bit(file) != 0 || orphan => *note = Some(self.age),
                None => {}
            }
        }
    }

    fn violation(&self) -> Option<Violation> {
        let (rows, twice) = self.rows_of(self.live());
        if twice || rows != self.committed {
            return Some(Violation::RowsNotOnce);
        }
        let named = self.marks.iter().flatten().fold(self.live(), |all, mark| all | mark.live);
        if named & !self.files != 0 {
            return Some(Violation::NamedAndGone);
        }
        (self.proposal == Proposal::Proposed && self.files & bit(COPY) == 0).then_some(Violation::ProposedAndGone)
    }
}

struct Exploration {
    violation: Option<(Violation, Vec<&'static str>)>,
    states: usize,
    labels: HashSet<&'static str>,
}

/// Breadth first, so that a violation comes with a shortest history.
fn explore(protocol: Protocol, scope: Scope) -> Exploration {
    let mut seen = HashSet::from([World::new(scope)]);
    let mut reached = vec![(World::new(scope), 0, "start")];
    let mut found = Exploration { violation: None, states: 0, labels: HashSet::new() };
    while let Some(&(world, _, _)) = reached.get(found.states) {
        if let Some(violation) = world.violation() {
            let (mut history, mut at) = (Vec::new(), found.states);
            while at != 0 {
                history.push(reached[at].2);
                at = reached[at].1;
            }
            history.reverse();
            found.violation = Some((violation, history));
            return found;
        }
        for (label, mut next) in world.next(protocol) {
            found.labels.insert(label);
            // What was merged, and when, makes no difference to a sweep.
            for compactor in next.compactors.iter_mut() {
                if !matches!(compactor.step, Step::Look | Step::Swap(_) | Step::ReadBack(_)) {
                    (compactor.since, compactor.inputs) = (0, 0);
                }
                compactor.in_flight = compactor.in_flight.filter(|request| request.number == next.number);
            }
            if seen.insert(next) {
                reached.push((next, found.states, label));
            }
        }
        found.states += 1;
    }
    found
}

fn faulty(protocol: Protocol, scope: Scope) -> Violation {
    let (violation, history) = explore(protocol, scope).violation.expect("the fault was not found");
    println!("{protocol:?}: {violation:?} after {history:?}");
    violation
}

fn holds(scope: Scope, happen: &[&str]) {
    let found = explore(Protocol::Ours, scope);
    println!("{scope:?}: {} states", found.states);
    assert_eq!(found.violation, None);
    assert!(found.states > 10_000, "{} states: the protocol gets nowhere", found.states);
    happen.iter().for_each(|label| assert!(found.labels.contains(label), "never happened: {label}"));
}

#[test]
fn no_history_of_two_compactions_breaks_a_guarantee() {
    let happen = [
        "finds its replacement done",
        "leaves what came too late",
        "finds its record",
        "tries the identical swap again",
        "a late write lands",
        "its grace is over",
        "its knowledge is old",
        "deletes",
        "a commit",
    ];
    holds(Scope::Compactors, &happen);
}

#[test]
fn no_history_of_a_copy_that_is_handed_over_breaks_a_guarantee() {
    holds(Scope::Proposal, &["the proposal is taken", "the proposal is void", "the proposal is removed", "deletes"]);
}

#[test]
fn deleting_what_came_too_late_deletes_live_files() {
    assert_eq!(faulty(Protocol::DeletesWhatCameTooLate, Scope::Compactors), Violation::NamedAndGone);
}

#[test]
fn a_replacement_older_than_the_grace_names_files_that_were_swept() {
    assert_eq!(faulty(Protocol::ForgetsTheGrace, Scope::Compactors), Violation::NamedAndGone);
}

#[test]
fn a_sweep_that_does_not_move_the_record_deletes_what_is_about_to_be_named() {
    assert_eq!(faulty(Protocol::DeletesBeforeTheRecordMoves, Scope::Compactors), Violation::NamedAndGone);
}

#[test]
fn a_sweep_that_stood_still_deletes_what_was_named_since() {
    assert_eq!(faulty(Protocol::SweepsWithOldKnowledge, Scope::Proposal), Violation::ProposedAndGone);
}
