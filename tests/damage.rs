//! A lake that lost something: who notices, with which words, and the way out.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod aged_lake;
mod lake_reader;
mod private_server;
mod world;

use aged_lake::age;
use serde_json::Value;
use std::path::{Path, PathBuf};
use world::World;

const CAUGHT_UP: &[&str] = &["run", "--until-caught-up"];

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A lake with some commits, compacted to the last but a few.
async fn lake() -> World {
    let w = World::new().await;
    w.sql("CREATE TABLE donaciones (id int PRIMARY KEY, donante text, monto int); CREATE TABLE casos (id int PRIMARY KEY, estado text)")
        .await;
    w.sql("INSERT INTO donaciones SELECT i, 'd', 1 FROM generate_series(1, 300) i; INSERT INTO casos VALUES (1, 'a')").await;
    for n in 0..4 {
        w.sql(&format!("UPDATE donaciones SET monto = monto + 1 WHERE id % 4 = {n}")).await;
        assert_eq!(w.run(CAUGHT_UP).0, 0, "{}", w.log());
        if n == 2 {
            age(&w.lake(), |_| "2026-11-10".to_owned());
            assert_eq!(w.run(&["compact"]).0, 0, "{}", w.log());
            assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
        }
    }
    w
}

/// A live data file of a current version.
fn live_file(w: &World) -> PathBuf {
    let (code, out) = w.run(&["files", "public.donaciones"]);
    assert_eq!(code, 0, "{}", w.log());
    PathBuf::from(out.lines().last().unwrap())
}

fn manifest(w: &World) -> PathBuf {
    w.lake().join(w.watermark().unwrap()["commit"].as_str().unwrap())
}

fn remove(path: &Path) {
    match path.is_dir() {
        true => std::fs::remove_dir_all(path).unwrap(),
        false => std::fs::remove_file(path).unwrap(),
    }
}

/// `run`, `publish` and `check` notice, and say so; nothing is committed or acknowledged; `run --resnapshot` is a way out.
async fn noticed(damage: impl FnOnce(&World), says: &[&str]) {
    let w = lake().await;
    damage(&w);
    let watermark = w.watermark();
    w.sql("UPDATE donaciones SET monto = monto + 1 WHERE id < 9").await;
    for (command, code) in [(CAUGHT_UP, 5), (&["publish"], 5)] {
        let before = w.log().len();
        assert_eq!(w.run(command).0, code, "{command:?}\n{}", w.log());
        w.last_error_says(before, says);
        w.last_error_says(before, &["huella run --resnapshot"]);
    }
    let (code, out) = w.run(&["check"]);
    assert!(code == 7 && says.iter().all(|part| out.contains(part)), "{out}\n{}", w.log());
    assert_eq!(w.watermark().map(|w| w["through"].clone()), watermark.map(|w| w["through"].clone()));
    w.slot_is_not_ahead().await;
    // Readers of what was published last go on with it until there is something better.
    w.mended_by_resnapshot("UPDATE donaciones SET monto = 2 WHERE id < 10").await;
    let first = w.read().commits.first().cloned().unwrap();
    assert!(first["previous"].is_null() && first["reset"] == true, "{first}");
    for command in [&["files", "--all-versions"][..], &["status"], &["compact"], &["publish"], &["verify"]] {
        assert_eq!(w.run(command).0, 0, "{command:?}\n{}", w.log());
    }
    w.true_in_the_lake().await;
    assert_eq!(w.run(CAUGHT_UP).0, 0, "{}", w.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_manifest_is_noticed() {
    noticed(|w| remove(&manifest(w)), &["commits/", "is missing"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_folder_of_commits_is_noticed() {
    noticed(|w| remove(&w.lake().join("commits")), &["commits/", "is missing"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_is_noticed() {
    noticed(|w| std::fs::write(manifest(w), "{}").unwrap(), &["a commit manifest cannot be read"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_data_file_is_noticed() {
    noticed(|w| remove(&live_file(w)), &[".parquet is missing, though commit"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_file_cut_short_is_noticed() {
    let cut = |w: &World| std::fs::OpenOptions::new().write(true).open(live_file(w)).unwrap().set_len(10).unwrap();
    noticed(cut, &[".parquet has 10 bytes, where commit"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_record_of_compaction_is_called_what_it_is() {
    let lose = |w: &World| {
        remove(&w.lake().join("state/compaction.json"));
        // As after a grace: only the checkpoint knows what was before it.
        for entry in std::fs::read_dir(w.lake().join("commits")).unwrap().flatten().filter(|entry| entry.path() != manifest(w)) {
            remove(&entry.path());
        }
    };
    noticed(lose, &["state/compaction.json is missing, though there are checkpoints"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_checkpoint_is_noticed() {
    noticed(|w| remove(&w.lake().join("state/checkpoints")), &["state/checkpoints/", "is missing"]).await;
}

/// What is left behind is never swept: nobody can tell what of it was live.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_left_behind_is_kept() {
    let w = lake().await;
    let before: Vec<PathBuf> = w.run(&["files", "--all-versions"]).1.lines().map(PathBuf::from).collect();
    remove(&manifest(&w));
    w.mended_by_resnapshot("UPDATE donaciones SET monto = 2 WHERE id < 10").await;
    for _ in 0..4 {
        std::thread::sleep(std::time::Duration::from_millis(1050)); // a grace: nothing else can be waited for
        assert!(matches!(w.start(&["compact"], &[("HUELLA_COMPACT_GRACE", "1s")]).wait(), Some(0 | 1)), "{}", w.log());
    }
    before.iter().for_each(|file| assert!(file.exists(), "{}", file.display()));
    w.true_in_the_lake().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_watermark_put_back_is_noticed_and_its_epochs_are_not_used_again() {
    let w = lake().await;
    let earlier = std::fs::read(w.lake().join("watermark.json")).unwrap();
    for n in 0..3 {
        w.sql(&format!("UPDATE donaciones SET monto = monto + 1 WHERE id % 4 = {n}")).await;
        assert_eq!(w.run(CAUGHT_UP).0, 0, "{}", w.log());
    }
    let newest = w.epoch();
    std::fs::write(w.lake().join("watermark.json"), earlier).unwrap();
    let (code, out) = w.run(&["check"]);
    assert!(code == 7 && out.contains("an earlier watermark.json was put back"), "{out}");
    let before = w.log().len();
    assert!(matches!(w.run(CAUGHT_UP).0, 4 | 5), "{}", w.log());
    w.last_error_says(before, &["huella run --resnapshot"]);
    w.mended_by_resnapshot("UPDATE donaciones SET monto = 2 WHERE id < 10").await;
    assert!(w.epoch() > newest);
    for command in [&["compact"][..], &["publish"], &["verify"], &["run", "--until-caught-up"]] {
        assert_eq!(w.run(command).0, 0, "{command:?}\n{}", w.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watermark_without_its_position_is_refused_by_all() {
    let w = lake().await;
    let path = w.lake().join("watermark.json");
    let whole = std::fs::read_to_string(&path).unwrap();
    for (from, to) in [("\"through\"", "\"thrOugh\""), ("\"commit\"", "\"commat\"")] {
        std::fs::write(&path, whole.replacen(from, to, 1)).unwrap();
        for command in [CAUGHT_UP, &["files"], &["compact"], &["publish"], &["verify"]] {
            assert_eq!(w.run(command).0, 5, "{command:?}\n{}", w.log());
        }
        assert_ne!(w.run(&["status"]).0, 0);
    }
    std::fs::write(&path, whole).unwrap();
    assert_eq!(w.run(CAUGHT_UP).0, 0, "{}", w.log());
    w.true_in_the_lake().await;
}

/// Whoever may write below the lake must not lead its readers out of it, nor in circles.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_manifest_is_refused_by_all() {
    let w = lake().await;
    let path = manifest(&w);
    let whole = json(&path);
    let mut forged = whole.clone();
    forged["previous"] = w.watermark().unwrap()["commit"].clone();
    let mut leads_out = whole.clone();
    leads_out["files"] = serde_json::json!([{"path": "/etc/passwd", "table": "public.casos", "version": 1, "rows": 1, "bytes": 1, "crc32c": "AAAAAA==", "kind": "stream"}]);
    for forged in [forged, leads_out] {
        std::fs::write(&path, forged.to_string()).unwrap();
        for command in [CAUGHT_UP, &["files"], &["compact"], &["publish"], &["verify"]] {
            let (code, out) = w.run(command);
            assert!(code == 5 && !out.contains("/etc/passwd"), "{command:?}: {code}\n{}", w.log());
        }
    }
}
