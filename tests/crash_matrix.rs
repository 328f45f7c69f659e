//! The crash matrix: at every failpoint a crash and a rival, at every write of the lake each way in which its reply can fail.
//!
//! Owns: the list of steps, which must be that of the program. The judges are the two oracles of `world`, which look at lake,
//! slot and source only.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use huella::failpoint::POINTS;
use private_server::Server;
use std::collections::BTreeSet;
use std::sync::Arc;
use world::World;

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum In {
    FirstStart,
    Commit,
}

/// What becomes of a writer that stood still at a step until its session was over, when it goes on beside a second one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    /// The second has claimed the lake: exit 6.
    Fenced,
    /// It had claimed nothing yet and lost the slot: it waits for the slot and touches nothing.
    Waits,
    /// It holds the turn of a first start, and nothing is ready yet: the second waits.
    KeepsTurn,
}

struct Step {
    point: &'static str,
    within: In,
    then: Then,
    /// The lake's writes between the step before and this one, in the grammar of `HUELLA_FAULTS`.
    writes: &'static [&'static str],
}

const fn step(point: &'static str, within: In, then: Then, writes: &'static [&'static str]) -> Step {
    Step { point, within, then, writes }
}

const MATRIX: &[Step] = &[
    step("start.after_create", In::FirstStart, Then::KeepsTurn, &["put_new:watermark.json@1"]),
    step("start.after_slot", In::FirstStart, Then::KeepsTurn, &[]),
    step("start.after_import", In::FirstStart, Then::KeepsTurn, &[]),
    step("start.after_promote", In::FirstStart, Then::KeepsTurn, &[]),
    step("start.after_ready", In::FirstStart, Then::Fenced, &["put_new:/_schema-@1", "replace_if:watermark.json@1"]),
    // By table: which of two copies comes first, nobody can tell.
    step("snapshot.after_first_file", In::FirstStart, Then::Fenced, &["put_new:^tables/public.casos/v1/dt=@1"]),
    step("snapshot.after_files", In::FirstStart, Then::Fenced, &["put_new:^tables/public.donaciones/v1/dt=@1"]),
    step("snapshot.after_commit", In::FirstStart, Then::Fenced, &["put_new:^commits/@1", "replace_if:watermark.json@2"]),
    step("claim.before_cas", In::Commit, Then::Waits, &[]),
    step("claim.after_cas", In::Commit, Then::Fenced, &["replace_if:watermark.json@1"]),
    step("commit.after_data", In::Commit, Then::Fenced, &["put_new:.parquet@1", "put_new:/_schema-@1"]),
    step("commit.after_manifest", In::Commit, Then::Fenced, &["put_new:^commits/@1"]),
    step("commit.after_cas", In::Commit, Then::Fenced, &["replace_if:watermark.json@2"]),
    step("commit.before_ack", In::Commit, Then::Fenced, &[]),
    step("commit.after_ack", In::Commit, Then::Fenced, &[]),
];

/// Every way in which a write's answer can fail to be its true one.
const FAILURES: &[&str] = &[
    "lose",            // done, no answer
    "conflict",        // done, and a repetition below us was told that it is there
    "refuse(timeout)", // not done, no answer
    "refuse(429)",     // not done, and said so
    "late(20ms)",      // no answer, done before it is tried again
    "late(700ms)",     // no answer, and it arrives after it was done by another attempt
];

/// Small pieces, so that a copy has several files.
const PIECES: (&str, &str) = ("HUELLA_BATCH_MAX_BYTES", "128KiB");

/// Failpoints that `run` does not pass stand in the tests of their own commands.
const ELSEWHERE: &[(&str, &str)] = &[
    ("swap.unanswered", include_str!("lake_matrix.rs")),
    ("snapshot.after_proposal", CATALOGUES),
    ("snapshot.after_alone", CATALOGUES),
    ("snapshot.between_ranges", include_str!("copy.rs")),
    ("compact.after_file", COMPACT),
    ("compact.after_checkpoint", COMPACT),
    ("compact.after_record", COMPACT),
    ("compact.after_marks", COMPACT),
    ("compact.after_prune", COMPACT),
    ("compact.after_delete", COMPACT),
    ("forget.after_receipt", FORGET),
    ("forget.after_swap", FORGET),
    ("forget.after_publish", FORGET),
    ("publish.after_schema", PUBLISH),
    ("publish.after_rowless", PUBLISH),
    ("publish.after_manifest", PUBLISH),
    ("publish.after_cut", PUBLISH),
];
const COMPACT: &str = include_str!("compact.rs");
const FORGET: &str = include_str!("forget.rs");
const PUBLISH: &str = include_str!("publish.rs");
const CATALOGUES: &str = include_str!("catalogues.rs");

#[test]
fn every_failpoint_stands_in_the_matrix() {
    let matrix = MATRIX.iter().map(|s| s.point).chain(ELSEWHERE.iter().map(|(point, _)| *point));
    assert_eq!(POINTS.iter().copied().collect::<BTreeSet<_>>(), matrix.collect::<BTreeSet<_>>());
    assert_eq!(MATRIX.len() + ELSEWHERE.len(), POINTS.len());
    for (point, tests) in ELSEWHERE {
        assert!(tests.contains(point), "{point}");
    }
}

async fn world(server: &Arc<Server>, name: &str, within: In) -> World {
    let w = World::on(server, name).await;
    w.sql("CREATE TABLE donaciones (id int PRIMARY KEY, donante text, monto int); CREATE TABLE casos (id int PRIMARY KEY, estado text)")
        .await;
    w.sql("INSERT INTO donaciones SELECT i, md5(i::text), 0 FROM generate_series(1, 5000) i; INSERT INTO casos VALUES (0, 'a')").await;
    if within == In::Commit {
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    }
    w
}

/// One transaction over both tables: no reader may see half of it.
async fn change(w: &World, n: i32) {
    w.sql(&format!(
        "BEGIN; INSERT INTO donaciones SELECT {n} * 10000 + i, 'nuevo', {n} FROM generate_series(1, 20) i; UPDATE donaciones SET monto = {n} WHERE id % 500 = {n};
         DELETE FROM donaciones WHERE id = {n} * 37; UPDATE donaciones SET id = -{n} WHERE id = {n} * 41; INSERT INTO casos VALUES ({n}, 'b'); COMMIT"
    ))
    .await;
}

/// Does `case` for all of `steps`, in as many lanes as keep two cores busy (most of the time is spent waiting for a timeout).
async fn in_lanes<T: Copy + Send + 'static, F: Future<Output = ()> + Send>(
    prefix: &'static str,
    cases: Vec<T>,
    case: impl Fn(Arc<Server>, String, T) -> F + Copy + Send + 'static,
) {
    const LANES: usize = 5;
    let server = World::server();
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..LANES {
        let mine: Vec<(usize, T)> = cases.iter().copied().enumerate().skip(lane).step_by(LANES).collect();
        let server = Arc::clone(&server);
        lanes.spawn(async move {
            for (n, one) in mine {
                case(Arc::clone(&server), format!("{prefix}{n}"), one).await;
            }
        });
    }
    while let Some(ended) = lanes.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn a_crash_at_any_step_loses_and_repeats_nothing() {
    in_lanes("crash", MATRIX.iter().collect(), crash).await;
}

async fn crash(server: Arc<Server>, name: String, step: &'static Step) {
    let w = world(&server, &name, step.within).await;
    // The second process dies at its own passage of the same step, if it comes there again.
    let passed_once = ["start.after_create", "start.after_ready"].contains(&step.point);
    for n in 1..=if passed_once { 1 } else { 2 } {
        let killed = w.start(&["run"], &[PIECES, ("HUELLA_FAILPOINT", &format!("{}=abort", step.point))]);
        if step.within == In::Commit {
            change(&w, n).await;
        }
        assert_eq!(killed.wait(), None, "{} must be passed\n{}", step.point, w.log());
        if step.within == In::FirstStart {
            change(&w, n).await;
        }
    }
    let run = w.start(&["run"], &[PIECES]);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn a_rival_at_any_step_loses_and_repeats_nothing() {
    in_lanes("rival", MATRIX.iter().collect(), rival).await;
}

async fn rival(server: Arc<Server>, name: String, step: &'static Step) {
    let w = world(&server, &name, step.within).await;
    let mut old = w.start(&["run"], &[PIECES, ("HUELLA_FAILPOINT", &format!("{}=stop", step.point))]);
    if step.within == In::Commit {
        change(&w, 1).await;
    }
    w.wait(step.point, || old.halted());
    let epoch = w.epoch();
    change(&w, 2).await;
    let new = w.start(&["run"], &[PIECES]);
    if step.then == Then::KeepsTurn {
        w.wait("the second's turn", || w.log().contains("another process makes the first start"));
        old.signal(libc::SIGCONT);
        w.caught_up().await;
        old.stop();
    } else {
        // The server ends the session of who stands still (wal_sender_timeout); the second gets the slot and claims the lake.
        w.wait("the second's claim", || w.epoch() > epoch);
        let claimed = w.epoch();
        change(&w, 3).await;
        w.caught_up().await;
        w.slot_is_not_ahead().await;
        let before = w.log().len();
        old.signal(libc::SIGCONT);
        if step.then == Then::Fenced {
            assert_eq!(old.wait(), Some(6), "{}\n{}", step.point, w.log());
        } else {
            w.wait("the first to wait for the slot", || w.log()[before..].contains("the slot is in use by another writer"));
            change(&w, 4).await;
            w.caught_up().await;
            assert!(old.lives());
            old.stop();
        }
        assert_eq!(w.epoch(), claimed, "{}: who holds the slot is not fenced", step.point);
    }
    change(&w, 5).await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    new.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn a_lost_reply_at_any_write_loses_and_repeats_nothing() {
    in_lanes("reply", FAILURES.iter().flat_map(|f| [(In::FirstStart, *f), (In::Commit, *f)]).collect(), lost_reply).await;
}

/// All writes of one walk through the steps fail in this way.
async fn lost_reply(server: Arc<Server>, name: String, (within, failure): (In, &'static str)) {
    let w = world(&server, &name, within).await;
    let rules: Vec<String> =
        MATRIX.iter().filter(|s| s.within == within).flat_map(|s| s.writes).map(|write| format!("{write}={failure}")).collect();
    let run = w.start(&["run"], &[PIECES, ("HUELLA_FAULTS", &rules.join(";"))]);
    change(&w, 1).await;
    w.sql("ALTER TABLE donaciones ADD nota text; INSERT INTO donaciones (id, nota) VALUES (0, 'n')").await;
    w.caught_up().await;
    for rule in &rules {
        w.wait(rule, || w.log().contains(rule.as_str()));
    }
    change(&w, 2).await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_loses_every_reply_still_gets_everything() {
    let w = world(&World::server(), "every", In::FirstStart).await;
    let run = w.start(&["run"], &[PIECES, ("HUELLA_FAULTS", "put_new=lose; replace_if=lose; get@3..4=refuse; head@2=refuse(timeout)")]);
    for n in 1..4 {
        change(&w, n).await;
        w.caught_up().await;
    }
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_forbids_a_write_ends_the_program_with_the_reason() {
    let w = world(&World::server(), "forbid", In::Commit).await;
    for write in ["put_new:.parquet", "put_new:^commits/", "replace_if:watermark.json@2"] {
        let run = w.start(&["run"], &[("HUELLA_FAULTS", &format!("{write}=forbid"))]);
        let before = w.log().len();
        change(&w, 1).await;
        assert_eq!(run.wait(), Some(5), "{write}\n{}", w.log());
        w.last_error_says(before, &["403"]);
        w.sql("DELETE FROM casos WHERE id = 1; DELETE FROM donaciones WHERE id > 9999 OR id < 0").await;
    }
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}
