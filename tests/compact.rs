//! `huella compact`: the same rows and the same state before and after, whatever happens meanwhile.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod aged_lake;
mod lake_reader;
mod private_server;
mod world;

use aged_lake::{Synthetic, age, huella, measured};
use huella::lake::FileKind;
use lake_reader::{Change, Lake};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use world::World;

const TABLES: &str = "CREATE TABLE donaciones (id int PRIMARY KEY, donante text, largo text, monto numeric(12,2), k date);
    ALTER TABLE donaciones ALTER largo SET STORAGE EXTERNAL;
    CREATE TABLE sin_clave (x int, y text); ALTER TABLE sin_clave REPLICA IDENTITY FULL;
    CREATE TABLE vacia (id int PRIMARY KEY); CREATE TABLE cortada (id int PRIMARY KEY, v text)";

/// One round of changes of every kind; `n` tells the rounds apart.
fn churn(n: u32) -> String {
    let long = "(SELECT string_agg(md5((i + g)::text), '') FROM generate_series(1, 100) g)";
    format!(
        "INSERT INTO donaciones SELECT {n} * 100 + i, 'd' || i, {long}, i, 'infinity' FROM generate_series(1, 20) i;
         UPDATE donaciones SET monto = {n} WHERE id % 3 = {n} % 3; UPDATE donaciones SET id = id + 50, donante = 'movida' WHERE id = {n} * 100 + 1;
         UPDATE donaciones SET id = id + 5000 WHERE id = {n} * 100 + 51; UPDATE donaciones SET monto = monto + 1 WHERE id = {n} * 100 + 5051;
         DELETE FROM donaciones WHERE id = {n} * 100 + 7; INSERT INTO sin_clave SELECT {n} % 4, 'y' FROM generate_series(1, 5);
         UPDATE sin_clave SET y = 'z{n}' WHERE x = {n} % 3; DELETE FROM sin_clave WHERE x = {n} % 5; {}
         INSERT INTO cortada SELECT {n} * 10 + i, 'c' FROM generate_series(1, 9) i",
        if n % 5 == 4 { "TRUNCATE cortada;" } else { "" }
    )
}

/// Runs the program to its end after each round, so that each makes commits of its own.
async fn rounds(w: &World, numbers: std::ops::Range<u32>) {
    for n in numbers {
        w.sql(&churn(n)).await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    }
}

/// Three days of the past, by the number of the commit.
fn three_days(seq: u64) -> String {
    format!("2026-11-{:02}", 10 + seq / 12 % 3)
}

/// Its exit code; 1 (on a busy machine a grace of a second is soon over) says to start it again.
fn compact(w: &World, env: &[(&str, &str)]) -> Option<i32> {
    let run = || w.start(&["compact"], env).wait();
    (0..10).map(|_| run()).find(|code| *code != Some(1)).unwrap_or(Some(1))
}

/// What is in the lake, independent of the files that hold it.
fn rows(lake: &Lake) -> Vec<(String, Vec<Change>)> {
    let sorted = |table: String| {
        let mut changes = lake.changes(&table);
        changes.sort_by_cached_key(|change| (change.lsn, change.seq, format!("{change:?}")));
        (table, changes)
    };
    lake.tables().into_iter().map(sorted).collect()
}

fn states(lake: &Lake) -> Vec<Vec<lake_reader::Cells>> {
    lake.tables().iter().map(|table| lake.state(table)).collect()
}

fn data_files(lake: &Path) -> BTreeSet<PathBuf> {
    fn walk(dir: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            if entry.path().is_dir() {
                walk(&entry.path(), found);
            } else if entry.path().extension().is_some_and(|e| e == "parquet") {
                found.insert(entry.path());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&lake.join("tables"), &mut found);
    found
}

fn listed(w: &World, args: &[&str]) -> BTreeSet<PathBuf> {
    let (code, out) = w.run(&[&["files"], args].concat());
    assert_eq!(code, 0, "{}", w.log());
    out.lines().map(PathBuf::from).collect()
}

fn record(lake: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(lake.join("state/compaction.json")).unwrap()).unwrap()
}

const SHORT: (&str, &str) = ("HUELLA_COMPACT_GRACE", "1s");

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_become_few_with_the_same_rows_and_old_ones_go_after_the_grace() {
    let w = World::new().await;
    w.sql(TABLES).await;
    w.sql(&churn(0)).await;
    rounds(&w, 1..8).await;
    assert_eq!(w.run(&["run", "--until-caught-up", "--resnapshot"]).0, 0, "{}", w.log());
    rounds(&w, 8..14).await;
    age(&w.lake(), three_days);
    w.true_in_the_lake().await;
    let (before, state, files) = (rows(&w.read()), states(&w.read()), listed(&w, &["--all-versions"]));
    assert_eq!(compact(&w, &[SHORT]), Some(0), "{}", w.log());
    let after = listed(&w, &["--all-versions"]);
    assert!(after.len() * 3 < files.len(), "{} files became {}", files.len(), after.len());
    assert_eq!(rows(&w.read()), before);
    assert_eq!(states(&w.read()), state);
    w.true_in_the_lake().await;
    assert!(w.log().contains("\"files_before\":") && w.log().contains("\"message\":\"compacted\""));

    // Nothing is left to do, and nothing is written, until the grace is over.
    assert_eq!(compact(&w, &[]), Some(0));
    let number = record(&w.lake())["number"].clone();
    assert_eq!(compact(&w, &[]), Some(0));
    assert_eq!(record(&w.lake())["number"], number);
    assert!(files.iter().all(|file| file.exists()), "replaced files outlive the grace");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(compact(&w, &[SHORT]), Some(0), "{}", w.log());
    assert_eq!(data_files(&w.lake()), after, "and not more than that");
    let manifests = std::fs::read_dir(w.lake().join("commits")).unwrap().count();
    assert!(manifests <= 2, "{manifests} manifests are left");
    w.true_in_the_lake().await;
    // Everything goes on from there.
    rounds(&w, 14..16).await;
    w.true_in_the_lake().await;
    assert_eq!(w.run(&["publish"]).0, 0);
    assert_eq!(w.run(&["status"]).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_it_changes_nothing_and_goes_on() {
    let w = World::new().await;
    w.sql(TABLES).await;
    w.sql(&churn(0)).await;
    rounds(&w, 1..3).await;
    let mut next = 3;
    for point in [
        "compact.after_checkpoint@1",
        "compact.after_record@1",
        "compact.after_file@1",
        "compact.after_file@3",
        "compact.after_checkpoint@2",
        "compact.after_record@2",
        "compact.after_prune@1",
        "compact.after_marks@1",
        "compact.after_delete@1",
        "compact.after_delete@2",
    ] {
        rounds(&w, next..next + 2).await;
        next += 2;
        age(&w.lake(), three_days);
        let before = rows(&w.read());
        let (name, nth) = point.split_once('@').unwrap();
        let mut killed = None;
        // A deletion needs what a former run has noted, a while ago.
        for _ in 0..3 {
            killed = compact(&w, &[SHORT, ("HUELLA_FAILPOINT", &format!("{name}=abort@{nth}"))]);
            if killed.is_none() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        assert_eq!(killed, None, "{point} must be passed\n{}", w.log());
        assert_eq!(rows(&w.read()), before, "{point}");
        w.true_in_the_lake().await;
        assert_eq!(compact(&w, &[SHORT]), Some(0), "{point}\n{}", w.log());
        assert_eq!(rows(&w.read()), before, "{point}");
        w.true_in_the_lake().await;
    }
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(compact(&w, &[SHORT]), Some(0), "{}", w.log());
    }
    assert_eq!(data_files(&w.lake()), listed(&w, &["--all-versions"]), "no orphan is left");
    w.true_in_the_lake().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_beside_a_writer_lose_and_repeat_nothing() {
    let w = World::new().await;
    w.sql(TABLES).await;
    w.sql(&churn(0)).await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    for n in 1..20u32 {
        w.sql(&churn(n)).await;
        if n % 2 == 0 {
            w.caught_up().await;
        }
        if n % 4 == 0 {
            age(&w.lake(), three_days);
            // The one stops itself with its new files written and its list not yet, and goes on when the other is through.
            let first = w.start(&["compact"], &[SHORT, ("HUELLA_FAILPOINT", "compact.after_checkpoint=stop@2")]);
            w.wait("its second checkpoint", || {
                std::fs::read_to_string(format!("/proc/{}/stat", first.id())).is_ok_and(|stat| stat.contains(") T "))
            });
            assert_eq!(compact(&w, &[("HUELLA_COMPACT_GRACE", "1h")]), Some(0), "{}", w.log());
            first.signal(libc::SIGCONT);
            // It may find that its time is over.
            assert!(matches!(first.wait(), Some(0 | 1)), "{}", w.log());
            let both = [w.start(&["compact"], &[SHORT]), w.start(&["compact"], &[SHORT])];
            w.sql(&churn(100 + n)).await;
            both.into_iter().for_each(|one| assert!(matches!(one.wait(), Some(0 | 1)), "{}", w.log()));
        }
    }
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
    assert!(listed(&w, &["--all-versions"]).iter().all(|file| file.exists()));
}

#[tokio::test(flavor = "multi_thread")]
async fn folded_days_give_the_same_state_and_go_on_doing_so() {
    let w = World::new().await;
    w.sql(TABLES).await;
    w.sql(&churn(0)).await;
    rounds(&w, 1..10).await;
    age(&w.lake(), |seq| format!("2026-{:02}-10", 1 + seq / 8 % 6));
    let (state, before) = (states(&w.read()), rows(&w.read()));
    let fold = [("HUELLA_COMPACT_GRACE", "1h"), ("HUELLA_COMPACT_FOLD_AFTER", "30d")];
    assert_eq!(compact(&w, &fold), Some(0), "{}", w.log());
    assert_eq!(states(&w.read()), state);
    w.true_in_the_lake().await;
    let count = |all: &[(String, Vec<Change>)], table: &str| all.iter().find(|(name, _)| name == table).unwrap().1.len();
    let after = rows(&w.read());
    let (many, few) = (count(&before, "public.donaciones"), count(&after, "public.donaciones"));
    println!("{many} rows were folded to {few}");
    assert!(few < many, "superseded rows are gone");
    assert_eq!(count(&after, "public.sin_clave"), count(&before, "public.sin_clave"), "without a key nothing is folded");
    // Left-out columns, changed keys and tombstones of before the fold are still what later changes rest on.
    for n in 10..16 {
        rounds(&w, n..n + 1).await;
        w.sql("UPDATE donaciones SET monto = monto + 1; UPDATE donaciones SET id = -id WHERE id % 4 = 1").await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0);
        w.true_in_the_lake().await;
    }
    age(&w.lake(), |seq| format!("2026-08-{:02}", 1 + seq % 9));
    let state = states(&w.read());
    assert_eq!(compact(&w, &fold), Some(0), "{}", w.log());
    assert_eq!(states(&w.read()), state);
    w.true_in_the_lake().await;
    let number = record(&w.lake())["number"].clone();
    assert_eq!(compact(&w, &[("HUELLA_COMPACT_FOLD_AFTER", "30d"), ("HUELLA_COMPACT_GRACE", "1h")]), Some(0));
    assert_eq!(record(&w.lake())["number"], number, "what is folded is not read again");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_row_that_was_deleted_long_ago_only_its_key_is_left() {
    let w = World::new().await;
    w.sql("CREATE TABLE entera (id int, d date, nombre text, f float8, PRIMARY KEY (id, d)); ALTER TABLE entera REPLICA IDENTITY FULL")
        .await;
    w.sql("INSERT INTO entera SELECT i, 'infinity', 'ERASEME ' || i, 'NaN' FROM generate_series(1, 9) i").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    let deletes = || {
        let all = w.read().changes("public.entera").into_iter();
        all.filter(|change| change.op == "DELETE").collect::<Vec<_>>()
    };
    let fold = [("HUELLA_COMPACT_GRACE", "1h"), ("HUELLA_COMPACT_FOLD_AFTER", "30d")];
    for change in ["UPDATE entera SET id = 50 WHERE id = 5", "DELETE FROM entera WHERE id IN (2, 3)", "DELETE FROM entera WHERE id = 50"] {
        w.sql(change).await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        assert!(deletes().iter().any(|change| change.cells["nombre"].is_some()), "under FULL it is the whole row");
        age(&w.lake(), |seq| format!("2026-01-{:02}", 1 + seq % 5));
        assert_eq!(compact(&w, &fold), Some(0), "{}", w.log());
        w.true_in_the_lake().await;
    }
    assert_eq!(deletes().len(), 4, "each key's last row");
    for change in deletes() {
        let left: Vec<&str> = change.cells.iter().filter(|(_, cell)| cell.is_some()).map(|(name, _)| name.as_str()).collect();
        assert_eq!(left, ["d", "id"], "{change:?}");
        assert_eq!(change.exceptions, ["d"], "the key is told apart as before");
    }
    w.true_in_the_lake().await;
    w.sql("INSERT INTO entera VALUES (2, 'infinity', 'de nuevo', 0)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    w.true_in_the_lake().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn former_versions_leave_the_lake_after_a_while() {
    let w = World::new().await;
    w.sql("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY, v int)").await;
    w.sql("INSERT INTO t SELECT i, i FROM generate_series(1, 9) i; INSERT INTO u SELECT i, i FROM generate_series(1, 9) i").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    w.sql("ALTER TABLE t ALTER v TYPE text; UPDATE t SET v = 'x' WHERE id < 3").await;
    w.sql("UPDATE u SET v = 0").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.watermark().unwrap()["tables"]["public.t"]["version"], 2, "{}", w.log());
    age(&w.lake(), |_| "2026-06-01".to_owned());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    let of_version = |version: &str| listed(&w, &["--all-versions"]).iter().filter(|path| path.to_string_lossy().contains(version)).count();
    let state = states(&w.read());
    // Its files are from long ago; so is what came after it, but not that long.
    assert_eq!(compact(&w, &[SHORT, ("HUELLA_COMPACT_KEEP_VERSIONS", "36500d")]), Some(0), "{}", w.log());
    assert!(of_version("public.t/v1/") > 0);
    for _ in 0..3 {
        assert_eq!(compact(&w, &[SHORT, ("HUELLA_COMPACT_KEEP_VERSIONS", "30d")]), Some(0), "{}", w.log());
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    assert_eq!(of_version("public.t/v1/"), 0);
    assert!(of_version("public.t/v2/") > 0 && of_version("public.u/v1/") > 0);
    // The manifest of the former version still names its files: they are there until it does not.
    let named = |lake: &Path| {
        let text = std::fs::read_to_string(lake.join("tables/public.t/v1/_published.manifest")).unwrap();
        text.lines().map(PathBuf::from).collect::<Vec<_>>()
    };
    let before = named(&w.lake());
    assert!(!before.is_empty() && before.iter().all(|path| path.exists()));
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    for _ in 0..3 {
        assert_eq!(compact(&w, &[SHORT, ("HUELLA_COMPACT_KEEP_VERSIONS", "30d")]), Some(0), "{}", w.log());
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    assert!(before.iter().all(|path| !path.exists()), "{before:?}");
    assert!(named(&w.lake()).iter().all(|path| path.exists()));
    assert_eq!(states(&w.read()), state);
    w.true_in_the_lake().await;
}

#[test]
fn ten_thousand_files_are_merged_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("lake");
    let mut lake = Synthetic::new(&root);
    let text = "x".repeat(300);
    for n in 0..10_000u64 {
        let values: Vec<String> =
            (0..20).map(|i| format!("{n}-{i}-{:016x}-{text}", (n * 20 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
        let rows: Vec<_> =
            (0..20).map(|i| (100 + n * 10, i + 1, "INSERT", (n * 20) as i64 + i, Some(values[i as usize].as_str()))).collect();
        let file = lake.file("2026-01-05", FileKind::Stream, &rows);
        lake.commit(100 + n * 10 + 1, vec![file]);
    }
    lake.write();
    let changes = || Lake::read(&root).unwrap().changes("public.t").into_iter().map(|c| (c.lsn, c.seq, c.cells)).collect::<Vec<_>>();
    let before = changes();
    assert_eq!(before.len(), 200_000);
    let begun = Instant::now();
    let (code, log, kib) = measured(huella(&root, &["compact"], &[("HUELLA_COMPACT_FILE_SIZE", "4MiB")]));
    println!("10,000 files in {:?}, at most {} MiB\n{log}", begun.elapsed(), kib / 1024);
    assert_eq!(code, 0, "{log}");
    assert!(kib < 256 * 1024, "{kib} KiB");
    assert_eq!(changes(), before);
    let lake = Lake::read(&root).unwrap();
    lake.assert_exactly_once();
    assert!(lake.live("public.t").len() < 20);
}

#[test]
fn copies_that_overlap_the_stream_and_files_of_one_commit_come_out_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("lake");
    let mut lake = Synthetic::new(&root);
    let day = "2026-01-05";
    let a = lake.file(day, FileKind::Stream, &[(20, 1, "INSERT", 1, Some("a")), (30, 1, "UPDATE", 1, Some("b"))]);
    lake.commit(31, vec![a]);
    // A copy at 25 becomes visible after rows above it; its first file is not listed first.
    let s2 = lake.file(day, FileKind::Snapshot, &[(25, 0, "SNAPSHOT", 3, Some("c")), (25, 0, "SNAPSHOT", 4, Some("c"))]);
    let s1 = lake.file(day, FileKind::Snapshot, &[(25, -1, "TRUNCATE", 0, None), (25, 0, "SNAPSHOT", 1, Some("a"))]);
    // One transaction over three files of its commit, listed in any order; it begins exactly where the last commit ended.
    let c = lake.file(day, FileKind::Stream, &[(31, 5, "DELETE", 4, None)]);
    let b = lake.file(day, FileKind::Stream, &[(31, 1, "INSERT", 9, Some("d")), (31, 2, "UPDATE", 9, Some("e"))]);
    lake.commit(40, vec![s2, c, s1, b]);
    lake.write();
    let before = Lake::read(&root).unwrap();
    let (code, log, _) = measured(huella(&root, &["compact"], &[]));
    assert_eq!(code, 0, "{log}");
    let after = Lake::read(&root).unwrap();
    after.assert_exactly_once();
    assert_eq!(after.live("public.t").len(), 1);
    let positions: Vec<(u64, i64)> = after.changes("public.t").iter().map(|change| (change.lsn, change.seq)).collect();
    assert_eq!(positions, [(20, 1), (25, -1), (25, 0), (25, 0), (25, 0), (30, 1), (31, 1), (31, 2), (31, 5)]);
    assert_eq!(after.state("public.t"), before.state("public.t"));
}

#[test]
fn only_what_nobody_can_name_any_more_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("lake");
    let mut lake = Synthetic::new(&root);
    let row = [(20, 1, "INSERT", 1, Some("a"))];
    let [a, stale, proposed] = [1, 2, 3].map(|_| lake.file("2026-01-05", FileKind::Stream, &row));
    lake.commit(21, vec![a.clone()]);
    lake.next_epoch();
    let in_flight = lake.file("2026-01-05", FileKind::Stream, &row);
    lake.write();
    let foreign = root.join("tables/public.t/v1/dt=2026-01-05/notas.parquet");
    std::fs::write(&foreign, "de una persona").unwrap();
    std::fs::create_dir_all(root.join("state/proposals")).unwrap();
    let proposal = root.join("state/proposals/1.json");
    std::fs::write(&proposal, format!(r#"{{"files": [{{"path": "{}"}}]}}"#, proposed.path)).unwrap();
    let there = |file: &huella::lake::DataFile| root.join(&file.path).exists();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1100));
        let (code, log, _) = measured(huella(&root, &["compact"], &[SHORT]));
        assert_eq!(code, 0, "{log}");
    }
    assert!(!there(&stale), "an orphan of an epoch that is over");
    assert!(there(&a) && there(&proposed) && there(&in_flight) && foreign.exists() && proposal.exists());
    assert!(root.join("tables/public.t/v1").join(aged_lake::SCHEMA).exists());
}

#[test]
fn a_damaged_file_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("lake");
    let mut lake = Synthetic::new(&root);
    let files: Vec<_> = (0..3).map(|n| lake.file("2026-01-05", FileKind::Stream, &[(20 + n, 1, "INSERT", n as i64, Some("a"))])).collect();
    let damaged = root.join(&files[1].path);
    lake.commit(30, files);
    lake.write();
    let mut body = std::fs::read(&damaged).unwrap();
    body[40] ^= 1;
    std::fs::write(&damaged, &body).unwrap();
    let (code, log, _) = measured(huella(&root, &["compact"], &[]));
    assert_eq!(code, 5, "{log}");
    assert!(log.contains("CRC-32C"), "{log}");
    assert_eq!(Lake::read(&root).unwrap().live("public.t").len(), 3);
}

#[test]
fn days_that_are_not_over_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("lake");
    Synthetic::new(&root).write();
    assert_eq!(measured(huella(&root, &["compact", "--before", "9999-01-01"], &[])).0, 2);
    assert_eq!(measured(huella(&root, &["compact", "--before", "2026-01-01"], &[])).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_commits_do_not_slow_the_commands() {
    let w = World::new().await;
    w.sql(TABLES).await;
    w.sql(&churn(0)).await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    // A table that is replicated no longer: its files are history, and every commit has one.
    let mut watermark = w.watermark().unwrap();
    let (first, epoch) = (watermark["seq"].as_u64().unwrap(), watermark["epoch"].as_u64().unwrap());
    let (through, mut previous) = (watermark["through"].clone(), watermark["commit"].clone());
    for seq in first + 1..=first + 100_000 {
        let path = format!("commits/{seq:020}-e{epoch:06}.json");
        let file = format!("tables/public.antigua/v1/dt=9999-01-01/{:016X}-s{seq:020}-e{epoch:06}-p{seq:03}.parquet", seq);
        let manifest = serde_json::json!({"format": 1, "seq": seq, "epoch": epoch, "previous": previous, "after": through, "through": through,
            "commit_time": "2026-11-24T00:00:00.000000Z", "snapshots": [], "proposals": [],
            "files": [{"path": file, "table": "public.antigua", "version": 1, "rows": 1, "bytes": 1, "crc32c": "AAAAAA==", "kind": "stream"}]});
        std::fs::write(w.lake().join(&path), manifest.to_string()).unwrap();
        previous = path.into();
    }
    watermark["seq"] = (first + 100_000).into();
    watermark["commit"] = previous;
    std::fs::write(w.lake().join("watermark.json"), watermark.to_string()).unwrap();
    let time = |args: &[&str]| {
        let begun = Instant::now();
        assert_eq!(w.run(args).0, 0, "{args:?}\n{}", w.log());
        println!("{args:?}: {:?}", begun.elapsed());
    };
    time(&["files"]);
    println!("with a checkpoint:");
    time(&["compact"]);
    for args in [&["files"][..], &["status"], &["verify"], &["publish"], &["run", "--until-caught-up"], &["compact"]] {
        time(args);
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let begun = Instant::now();
    assert_eq!(measured(huella(&w.lake(), &["compact"], &[SHORT])).0, 0);
    println!("pruned in {:?}", begun.elapsed());
    println!("with a checkpoint and without the manifests before it:");
    assert!(std::fs::read_dir(w.lake().join("commits")).unwrap().count() < 10);
    for args in [&["files"][..], &["status"], &["verify"], &["publish"], &["run", "--until-caught-up"]] {
        time(args);
    }
}
