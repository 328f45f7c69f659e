//! The commit protocol, explored exhaustively: every interleaving of writers, crashes and lost replies in a small world.
//!
//! Owns: a model of `commit/PROTOCOL.md` (take over, commit, read back, ack); protocol and model change together.
//! Does not own: the real committer; its failpoints are tested on it.
//!
//! The world: transactions 1..=N in the WAL; a slot that remembers what was acked; one watermark object that only a
//! conditional write replaces; create-only data files and manifests. A writer may crash between any two
//! steps. A conditional write's reply may be lost: then the write landed, will land later, or never.
//!
//! What can make no difference is not told apart, or the world would be too large: a write whose expected
//! generation is past can never land, so generations shrink to "current or not"; nobody reads what a dead writer
//! knew; writers have no names; a file that no manifest can name any more, and a manifest below
//! one of a higher epoch for the same commit, are forgotten.

use std::collections::HashSet;

const TRANSACTIONS: u8 = 2;
/// Writers over the whole time: the first and its successors or rivals.
const WRITERS: usize = 3;
const LOST_REPLIES: u8 = 2;
/// Commits have at least one transaction each; one number more for a writer that believes in a commit that is none.
const COMMITS_MAX: u8 = TRANSACTIONS + 1;
/// Each writer claims once, and once more for a claim whose reply was lost and that was overtaken.
const EPOCH_MAX: u8 = WRITERS as u8 + LOST_REPLIES;
const BATCHES: u8 = TRANSACTIONS * (TRANSACTIONS + 1) / 2;

/// The protocol, or one with a fault that the exploration must find.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Ours,
    /// Acks after the data files, before the watermark.
    AcksEarly,
    /// Data files' names do not carry the epoch.
    NamesWithoutEpoch,
    /// A lost reply is taken for success.
    AssumesSuccess,
    /// A failed conditional write is tried again on the newest generation, whoever wrote it.
    IgnoresEpoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Violation {
    /// The slot was acked beyond the watermark: WAL is gone that the lake does not have.
    AckedBeyondWatermark,
    /// The chain of commits has a gap or an overlap.
    BrokenChain,
    /// A committed manifest names a file that does not hold its rows.
    WrongFile,
    /// The manifest of the highest epoch is not the committed one.
    HighestEpochNotCommitted,
    /// A read-back saw what cannot be (exit 70).
    Impossible,
}

/// A commit's manifest: transactions `after < t <= through`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Manifest {
    seq: u8,
    epoch: u8,
    after: u8,
    through: u8,
}

impl Manifest {
    /// All manifests of one commit number and epoch, as bits of a set.
    fn siblings(seq: u8, epoch: u8) -> u64 {
        assert!((1..=COMMITS_MAX).contains(&seq) && epoch <= EPOCH_MAX, "the set is too small");
        ((1 << BATCHES) - 1) << ((epoch * COMMITS_MAX + seq - 1) * BATCHES)
    }

    fn bit(self) -> u64 {
        let siblings = Self::siblings(self.seq, self.epoch);
        siblings & siblings.wrapping_neg() << (self.through * (self.through - 1) / 2 + self.after)
    }

    /// Bit of its data file.
    fn file(self, protocol: Protocol) -> u64 {
        self.named(protocol).bit()
    }

    fn named(self, protocol: Protocol) -> Self {
        Self { epoch: if protocol == Protocol::NamesWithoutEpoch { 0 } else { self.epoch }, ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    New,
    Claim,
    ClaimReadBack,
    Read,
    PutData,
    PutManifest,
    Cas,
    CasReadBack,
    Ack,
    Impossible,
    Dead,
}

/// A conditional write of the watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Request {
    Claim,
    Commit(Manifest),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Writer {
    step: Step,
    epoch: u8,
    /// The generation it knows is the watermark's.
    current: bool,
    /// The watermark names it as the writer.
    owns: bool,
    seq: u8,
    position: u8,
    /// End of the batch in work.
    batch: u8,
    /// A write of unknown fate that may still land.
    in_flight: Option<Request>,
}

impl Writer {
    const NEW: Writer = Writer { step: Step::New, epoch: 0, current: false, owns: false, seq: 0, position: 0, batch: 0, in_flight: None };

    fn manifest(&self) -> Manifest {
        Manifest { seq: self.seq + 1, epoch: self.epoch, after: self.position, through: self.batch }
    }

    fn committed(&mut self) {
        *self = Writer { step: Step::Ack, current: true, seq: self.seq + 1, position: self.batch, batch: 0, ..*self };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    epoch: u8,
    seq: u8,
    through: u8,
    /// What was committed, in order: known to the observer only.
    chain: [Option<Manifest>; COMMITS_MAX as usize],
    manifests: u64,
    files: u64,
    acked: u8,
    lost_replies_left: u8,
    writers: [Writer; WRITERS],
}

type Next = (&'static str, World);

impl World {
    fn new() -> Self {
        let writers = [Writer::NEW; WRITERS];
        let (chain, lost_replies_left) = ([None; COMMITS_MAX as usize], LOST_REPLIES);
        World { epoch: 0, seq: 0, through: 0, chain, manifests: 0, files: 0, acked: 0, lost_replies_left, writers }
    }

    fn last_commit(&self) -> Option<Manifest> {
        self.chain.iter().flatten().last().copied()
    }

    /// The watermark is replaced: every other knowledge of its generation is out of date, every write under way will fail.
    fn land(&mut self, by: usize, request: Request) {
        for writer in &mut self.writers {
            (writer.current, writer.owns, writer.in_flight) = (false, false, None);
        }
        self.writers[by].owns = true;
        match request {
            Request::Claim => self.epoch += 1,
            Request::Commit(manifest) => {
                (self.epoch, self.seq, self.through) = (manifest.epoch, manifest.seq, manifest.through);
                *self.chain.iter_mut().find(|commit| commit.is_none()).expect("a longer chain is a broken one") = Some(manifest);
            }
        }
    }

    /// A conditional write by writer `by`, in all its fates.
    fn write(&self, by: usize, request: Request, next: &mut Vec<Next>) {
        let read_back = if request == Request::Claim { Step::ClaimReadBack } else { Step::CasReadBack };
        let mut unknown = *self;
        unknown.writers[by].step = read_back;
        if !self.writers[by].current {
            next.push(("conditional write refused", unknown));
            return;
        }
        let mut landed = *self;
        landed.land(by, request);
        let mut done = landed;
        match request {
            Request::Claim => done.claimed(by),
            Request::Commit(_) => done.writers[by].committed(),
        }
        next.push(("conditional write done", done));
        if self.lost_replies_left > 0 {
            unknown.lost_replies_left -= 1;
            landed.lost_replies_left -= 1;
            landed.writers[by].step = read_back;
            next.push(("conditional write done, reply lost", landed));
            let before = unknown.writers[by].in_flight.replace(request);
            assert!(before.is_none_or(|before| before == request), "one writer, two different writes under way");
            next.push(("conditional write delayed", unknown));
        }
    }

    /// Writer `by` holds the watermark and begins where the lake and the slot stand.
    fn claimed(&mut self, by: usize) {
        let position = self.through.max(self.acked);
        let writer = &mut self.writers[by];
        *writer = Writer { step: Step::Read, epoch: self.epoch, current: true, seq: self.seq, position, batch: 0, ..*writer };
    }

    /// All that can happen next.
    fn next(&self, protocol: Protocol) -> Vec<Next> {
        let mut next = Vec::new();
        for (by, writer) in self.writers.iter().enumerate() {
            if let Some(request) = writer.in_flight {
                let mut landed = *self;
                landed.land(by, request);
                next.push(("delayed write lands", landed));
                let mut lost = *self;
                lost.writers[by].in_flight = None;
                next.push(("delayed write never lands", lost));
            }
            if !matches!(writer.step, Step::New | Step::Dead) {
                let mut crashed = *self;
                crashed.writers[by].step = Step::Dead;
                next.push(("crash", crashed));
            }
            self.step(protocol, by, &mut next);
        }
        next
    }

    fn step(&self, protocol: Protocol, by: usize, next: &mut Vec<Next>) {
        let writer = self.writers[by];
        let mut world = *self;
        let mut moved = |label, step, change: &dyn Fn(&mut World)| {
            world.writers[by].step = step;
            change(&mut world);
            next.push((label, world));
        };
        match writer.step {
            Step::New => moved("reads the watermark", Step::Claim, &|world| world.writers[by].current = true),
            Step::Claim => self.write(by, Request::Claim, next),
            Step::ClaimReadBack if writer.owns => moved("finds its claim", Step::Read, &|world| world.claimed(by)),
            // The program goes back to waiting for the slot if another claim was in between: a part of these histories.
            Step::ClaimReadBack => moved("claims again", Step::Claim, &|world| world.writers[by].current = true),
            Step::Read => {
                for end in writer.position + 1..=TRANSACTIONS {
                    moved("cuts a batch", Step::PutData, &|world| world.writers[by].batch = end);
                }
            }
            Step::PutData => moved("puts data", Step::PutManifest, &|world| {
                let named = writer.manifest().named(protocol);
                world.files = world.files & !Manifest::siblings(named.seq, named.epoch) | named.bit();
                if protocol == Protocol::AcksEarly {
                    world.acked = world.acked.max(writer.batch);
                }
            }),
            Step::PutManifest => moved("puts the manifest", Step::Cas, &|world| world.manifests |= writer.manifest().bit()),
            Step::Cas => self.write(by, Request::Commit(writer.manifest()), next),
            Step::CasReadBack => {
                if protocol == Protocol::AssumesSuccess {
                    moved("assumes success", Step::Ack, &|world| world.writers[by].committed());
                } else if protocol == Protocol::IgnoresEpoch {
                    moved("tries on the newest", Step::Cas, &|world| {
                        (world.writers[by].current, world.writers[by].seq) = (true, world.seq);
                    });
                } else if self.epoch > writer.epoch {
                    moved("is fenced", Step::Dead, &|_| {});
                } else if self.last_commit() == Some(writer.manifest()) {
                    moved("finds its commit", Step::Ack, &|world| world.writers[by].committed());
                } else if writer.current {
                    moved("tries the identical write again", Step::Cas, &|_| {});
                } else {
                    moved("sees the impossible", Step::Impossible, &|_| {});
                }
            }
            Step::Ack => moved("acks", Step::Read, &|world| world.acked = world.acked.max(writer.position)),
            Step::Impossible | Step::Dead => {}
        }
    }

    /// Drops what can make no difference any more (see the head of this file).
    fn canonical(mut self, protocol: Protocol) -> Self {
        let mut needed: u64 = self.chain.iter().flatten().map(|m| m.file(protocol)).fold(0, |set, bit| set | bit);
        for writer in &mut self.writers {
            match writer.step {
                Step::Dead => *writer = Writer { step: Step::Dead, in_flight: writer.in_flight, ..Writer::NEW },
                Step::Claim | Step::New => {}
                Step::ClaimReadBack => writer.current = false,
                _ => writer.owns = false,
            }
            if matches!(writer.step, Step::PutManifest | Step::Cas | Step::CasReadBack) {
                needed |= writer.manifest().file(protocol);
            }
            if let Some(Request::Commit(manifest)) = writer.in_flight {
                needed |= manifest.file(protocol);
            }
        }
        self.files &= needed;
        for seq in 1..=COMMITS_MAX {
            let mut epochs = (0..=EPOCH_MAX).rev().map(|epoch| Manifest::siblings(seq, epoch));
            epochs.find(|siblings| self.manifests & siblings != 0); // the highest stays
            epochs.for_each(|siblings| self.manifests &= !siblings);
        }
        self.writers.sort_unstable();
        self
    }

    fn violation(&self, protocol: Protocol) -> Option<Violation> {
        if self.writers.iter().any(|writer| writer.step == Step::Impossible) {
            return Some(Violation::Impossible);
        }
        if self.acked > self.through {
            return Some(Violation::AckedBeyondWatermark);
        }
        let mut end = 0;
        for (seq, manifest) in (1..).zip(self.chain.iter().flatten()) {
            if manifest.after != end || manifest.seq != seq {
                return Some(Violation::BrokenChain);
            }
            end = manifest.through;
            if self.files & manifest.file(protocol) == 0 {
                return Some(Violation::WrongFile);
            }
            let highest = (0..=EPOCH_MAX).rev().map(|epoch| self.manifests & Manifest::siblings(seq, epoch)).find(|&set| set != 0);
            if highest != Some(manifest.bit()) {
                return Some(Violation::HighestEpochNotCommitted);
            }
        }
        (end != self.through).then_some(Violation::BrokenChain)
    }
}

struct Exploration {
    violation: Option<(Violation, Vec<&'static str>)>,
    states: usize,
    labels: HashSet<&'static str>,
    through_max: u8,
}

/// Breadth first, so that a violation comes with a shortest history.
fn explore(protocol: Protocol) -> Exploration {
    let mut seen = HashSet::from([World::new()]);
    let mut reached = vec![(World::new(), 0, "start")];
    let mut found = Exploration { violation: None, states: 0, labels: HashSet::new(), through_max: 0 };
    while let Some(&(world, _, _)) = reached.get(found.states) {
        found.through_max = found.through_max.max(world.through);
        if let Some(violation) = world.violation(protocol) {
            found.violation = Some((violation, history(&reached, found.states)));
            return found;
        }
        for (label, next) in world.next(protocol) {
            found.labels.insert(label);
            let next = next.canonical(protocol);
            if seen.insert(next) {
                reached.push((next, found.states, label));
            }
        }
        found.states += 1;
    }
    found
}

fn history(reached: &[(World, usize, &'static str)], mut at: usize) -> Vec<&'static str> {
    let mut labels = Vec::new();
    while at != 0 {
        labels.push(reached[at].2);
        at = reached[at].1;
    }
    labels.reverse();
    labels
}

fn faulty(protocol: Protocol) -> Violation {
    let (violation, history) = explore(protocol).violation.expect("the fault was not found");
    println!("{protocol:?}: {violation:?} after {history:?}");
    violation
}

#[test]
fn no_history_of_our_protocol_breaks_a_guarantee() {
    let found = explore(Protocol::Ours);
    println!("{} states", found.states);
    assert_eq!(found.violation, None);
    assert_eq!(found.through_max, TRANSACTIONS, "the protocol gets nowhere");
    for label in ["is fenced", "finds its commit", "finds its claim", "tries the identical write again", "delayed write lands", "acks"] {
        assert!(found.labels.contains(label), "never happened: {label}");
    }
}

#[test]
fn an_ack_before_the_watermark_loses_data() {
    assert_eq!(faulty(Protocol::AcksEarly), Violation::AckedBeyondWatermark);
}

#[test]
fn file_names_without_the_epoch_let_a_stale_writer_replace_committed_rows() {
    assert_eq!(faulty(Protocol::NamesWithoutEpoch), Violation::WrongFile);
}

#[test]
fn taking_a_lost_reply_for_success_loses_data() {
    assert_eq!(faulty(Protocol::AssumesSuccess), Violation::AckedBeyondWatermark);
}

#[test]
fn trying_again_without_reading_back_commits_twice() {
    assert_eq!(faulty(Protocol::IgnoresEpoch), Violation::BrokenChain);
}
