//! The crash matrix of the commands that need no server: every write of `compact` and `publish`, with every way in which its reply can
//! fail, and with a rival in the gap between a write and the look at what became of it.
//!
//! Owns: the list of writes. The judge is `lake_reader`, which shares no code with the program.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod aged_lake;
mod lake_reader;

use aged_lake::{Synthetic, huella, measured};
use huella::lake::{FileKind, WATERMARK};
use lake_reader::Lake;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Every way in which a write's answer can fail to be its true one.
const FAILURES: &[&str] = &["lose", "conflict", "refuse(timeout)", "refuse(429)", "late(20ms)", "late(700ms)"];

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command, what must have been done before it, and a write that it makes then.
struct Write {
    command: &'static str,
    /// Runs of it before, each with a commit of its own.
    before: u32,
    /// In the grammar of `HUELLA_FAULTS`.
    rule: &'static str,
    /// Whether it is a compare-and-swap: then a rival may stand in the gap.
    swap: bool,
}

const fn write(command: &'static str, before: u32, rule: &'static str, swap: bool) -> Write {
    Write { command, before, rule, swap }
}

const WRITES: &[Write] = &[
    write("compact", 0, "put_new:^state/checkpoints/@1", false),
    write("compact", 0, "put_new:state/compaction.json@1", true),
    write("compact", 0, "put_new:.parquet@1", false),
    write("compact", 0, "put_new:^state/checkpoints/@2", false),
    write("compact", 0, "replace_if:state/compaction.json@1", true),
    write("compact", 0, "put_new:state/sweep.json@1", true),
    // Of a later run: its first look, what it makes count, what lapses, what is noted.
    write("compact", 2, "replace_if:state/compaction.json@1", true),
    write("compact", 2, "replace_if:state/compaction.json@2", true),
    write("compact", 2, "replace_if:state/compaction.json@3", true),
    write("compact", 2, "replace_if:state/sweep.json@1", true),
    write("compact", 2, "delete@1", false),
    write("publish", 0, "put_new:schema.parquet@1", false),
    write("publish", 0, "put_new:.manifest@1", true),
    write("publish", 0, "put_new:published/cut.json@1", true),
    write("publish", 1, "replace_if:.manifest@1", true),
    write("publish", 1, "replace_if:published/cut.json@1", true),
];

/// A lake with three commits in a day that is over, and a command that did its work a few times already.
struct Place {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("lake");
        Self { _dir: dir, root }
    }
}

/// A day that is over, and one that never will be.
const OVER: &str = "2026-01-05";
const OPEN: &str = "9999-01-05";

/// A few commits more.
fn grow(lake: &mut Synthetic, from: u64, day: &str) {
    for n in from..from + 3 {
        let file = lake.file(day, FileKind::Stream, &[(100 + n * 10, 1, "INSERT", n as i64, Some("a"))]);
        lake.commit(100 + n * 10 + 1, vec![file]);
    }
    lake.write();
}

fn start(root: &Path, command: &str, env: &[(&str, &str)]) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log(root)).unwrap();
    huella(root, &[command], env).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

fn log(root: &Path) -> PathBuf {
    root.with_file_name("log")
}

fn said(root: &Path) -> String {
    std::fs::read_to_string(log(root)).unwrap_or_default()
}

fn until(what: &str, root: &Path, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < limit, "waited for {what}\n{}", said(root));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until it has stopped itself at a failpoint.
fn halted(root: &Path, child: &mut Child) {
    until("the process to stop at its failpoint", root, || {
        assert_eq!(child.try_wait().unwrap(), None, "it must not end before\n{}", said(root));
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    });
}

fn go_on(root: &Path, mut child: Child) -> Option<i32> {
    // SAFETY: the child is ours and not yet reaped.
    unsafe { libc::kill(child.id() as i32, libc::SIGCONT) };
    until("the end of the process", root, || child.try_wait().unwrap().is_some());
    child.wait().unwrap().code()
}

/// The command ends well; told to start again (exit code 1), it does so.
fn done(root: &Path, command: &str, env: &[(&str, &str)]) {
    let code = (0..5).map(|_| measured(huella(root, &[command], env))).find(|(code, ..)| *code != 1);
    let (code, log, _) = code.unwrap_or_else(|| panic!("{command} does not end"));
    assert_eq!(code, 0, "{command}\n{log}");
}

/// Every row of every commit is there, once, and whatever is published is there.
fn is_whole(root: &Path, rows: usize, when: &str) {
    let lake = Lake::read(root).unwrap();
    lake.assert_exactly_once();
    assert_eq!(lake.changes("public.t").len(), rows, "{when}");
    if let Ok(record) = std::fs::read(root.join("state/compaction.json")) {
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        for mark in record["checkpoints"].as_array().unwrap() {
            let checkpoint = std::fs::read(root.join(mark["path"].as_str().unwrap())).unwrap();
            let checkpoint: serde_json::Value = serde_json::from_slice(&checkpoint).unwrap();
            for live in checkpoint["files"].as_array().unwrap() {
                let path = live["file"]["path"].as_str().unwrap();
                assert!(root.join(path).exists(), "{when}: {path} is gone, and a checkpoint of the record names it");
            }
        }
    }
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.path().to_string_lossy().ends_with(".manifest") {
                let lines = std::fs::read_to_string(entry.path()).unwrap();
                lines.lines().for_each(|line| assert!(Path::new(line).exists(), "{when}: {line} is published and gone"));
            }
        }
    }
}

const SHORT: (&str, &str) = ("HUELLA_COMPACT_GRACE", "1s");
const LONG: (&str, &str) = ("HUELLA_COMPACT_GRACE", "1h");

/// The lake as `write` finds it; how many commits it has.
fn prepared<'a>(place: &'a Place, write: &Write) -> (Synthetic<'a>, u64) {
    let mut lake = Synthetic::new(&place.root);
    let mut commits = 0;
    for _ in 0..write.before {
        grow(&mut lake, commits, OVER);
        commits += 3;
        done(&place.root, write.command, &[SHORT]);
        // What was superseded is old enough to lapse: the grace is a clock's, and nothing else can be waited for.
        std::thread::sleep(Duration::from_millis(1050));
    }
    grow(&mut lake, commits, OVER);
    (lake, commits + 3)
}

#[test]
fn any_failure_of_any_write_loses_and_repeats_nothing() {
    std::thread::scope(|scope| {
        let cases: Vec<_> = WRITES.iter().flat_map(|write| FAILURES.iter().map(move |failure| (write, *failure))).collect();
        for lane in 0..4 {
            let mine: Vec<_> = cases.iter().skip(lane).step_by(4).copied().collect();
            scope.spawn(move || mine.into_iter().for_each(|(write, failure)| fails(write, failure)));
        }
    });
}

fn fails(write: &Write, failure: &str) {
    if write.rule.starts_with("delete") && failure == "conflict" {
        return; // no store answers so
    }
    let place = Place::new();
    let (_lake, commits) = prepared(&place, write);
    let rule = format!("{}={failure}", write.rule);
    let when = format!("{} with {rule}", write.command);
    let code = start(&place.root, write.command, &[SHORT, ("HUELLA_FAULTS", &rule)]).wait().unwrap().code();
    // 1: it was told to start again.
    assert!(matches!(code, Some(0 | 1)), "{when}: {code:?}\n{}", said(&place.root));
    assert!(said(&place.root).contains(&rule), "{when}: never came\n{}", said(&place.root));
    is_whole(&place.root, commits as usize, &when);
    done(&place.root, write.command, &[SHORT]);
    is_whole(&place.root, commits as usize, &when);
}

#[test]
fn a_rival_between_a_write_and_the_look_at_it_loses_and_repeats_nothing() {
    let swaps: Vec<&Write> = WRITES.iter().filter(|write| write.swap).collect();
    std::thread::scope(|scope| {
        // Landed, landing late, never landed.
        let failures = ["lose", "late(1ms)", "refuse(timeout)"];
        // The rival compacts what the first one made, or leaves it as it is.
        let ways = || failures.iter().flat_map(|failure| [OVER, OPEN].map(|day| (*failure, day)));
        let cases: Vec<_> = swaps.iter().flat_map(|write| ways().map(|(failure, day)| (*write, failure, day))).collect();
        for lane in 0..4 {
            let mine: Vec<_> = cases.iter().skip(lane).step_by(4).copied().collect();
            scope.spawn(move || mine.into_iter().for_each(|(write, failure, day)| rival(write, failure, day)));
        }
    });
}

fn rival(write: &Write, failure: &str, day: &str) {
    let place = Place::new();
    let (mut lake, mut commits) = prepared(&place, write);
    let rule = format!("{}={failure}", write.rule);
    let when = format!("{} with {rule} and a rival", write.command);
    // What lapses needs a short grace; the rival deletes nothing that the first one is at.
    let env = [SHORT, ("HUELLA_FAULTS", rule.as_str()), ("HUELLA_FAILPOINT", "swap.unanswered=stop")];
    let mut first = start(&place.root, write.command, &env);
    halted(&place.root, &mut first);
    grow(&mut lake, commits, day);
    commits += 3;
    for _ in 0..2 {
        done(&place.root, write.command, &[LONG]);
    }
    is_whole(&place.root, commits as usize, &when);
    let code = go_on(&place.root, first);
    assert!(matches!(code, Some(0 | 1)), "{when}: {code:?}\n{}", said(&place.root));
    is_whole(&place.root, commits as usize, &when);
    assert!(place.root.join(WATERMARK).exists());
    done(&place.root, write.command, &[LONG]);
    is_whole(&place.root, commits as usize, &when);
}

/// A full disk takes no write and gives every read.
#[test]
fn a_lake_that_takes_no_write_ends_a_command_within_its_time() {
    for command in ["compact", "publish"] {
        let place = Place::new();
        let mut lake = Synthetic::new(&place.root);
        grow(&mut lake, 0, OVER);
        let command = huella(&place.root, &[command, "--timeout", "1s"], &[("HUELLA_FAULTS", "put_new=refuse; replace_if=refuse")]);
        let (code, log, _) = measured(command);
        assert!(code == 1 && log.contains("no progress within 1s") && log.contains("503"), "{code}\n{log}");
        is_whole(&place.root, 3, "a lake that takes no write");
    }
}
