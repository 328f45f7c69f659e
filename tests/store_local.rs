//! What only a directory can show: several processes, killed holders, leftovers, directories that refuse.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use bytes::Bytes;
use huella::error::{Error, Kind};
use huella::store::{Generation, LocalStore, Store, StoreError};
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

/// Set for the processes that these tests start: the lake, and how many increments (0: until killed).
const CHILD_VARIABLE: &str = "STORE_LOCAL_TEST_CHILD";

fn open(root: &Path) -> LocalStore {
    LocalStore::open(root.to_owned()).unwrap()
}

fn body(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Adds one by compare-and-swap until it succeeds.
async fn increment(store: &dyn Store) -> Generation {
    loop {
        let now = store.get("counter").await.unwrap().unwrap();
        let value: u64 = std::str::from_utf8(&now.body).unwrap().trim().parse().unwrap();
        // Wide, so that a torn write would show.
        match store.replace_if("counter", body(&format!("{:>60000}", value + 1)), now.generation).await {
            Ok(generation) => return generation,
            Err(StoreError::Precondition { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn counter(store: &dyn Store) -> u64 {
    let found = store.get("counter").await.unwrap().unwrap();
    std::str::from_utf8(&found.body).unwrap().trim().parse().unwrap()
}

/// This test program again, as another process that increments.
fn start_child(root: &Path, increments: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "increments_in_a_process_of_its_own", "--ignored"])
        .env(CHILD_VARIABLE, format!("{increments} {}", root.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
#[ignore = "a part of other tests, which start it as a process"]
async fn increments_in_a_process_of_its_own() {
    let Ok(order) = std::env::var(CHILD_VARIABLE) else { return };
    let (increments, root) = order.split_once(' ').unwrap();
    let store = open(Path::new(root));
    let last: u64 = increments.parse().unwrap();
    for done in 1.. {
        increment(&store).await;
        if done == last {
            break;
        }
    }
}

#[tokio::test]
async fn two_processes_and_this_one_lose_none_of_their_increments() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.put_new("counter", body("0")).await.unwrap();
    let mut children = [start_child(folder.path(), 100), start_child(folder.path(), 100)];
    let mut seen = HashSet::new();
    for _ in 0..100 {
        assert!(seen.insert(increment(&store).await));
    }
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(counter(&store).await, 300);
}

#[tokio::test]
async fn a_killed_writer_leaves_a_whole_object_and_no_lock() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.put_new("counter", body("0")).await.unwrap();
    let mut last = 0;
    for round in 0..10_u64 {
        let mut child = start_child(folder.path(), 0);
        // Killed at a different point of its work each time, but only once it works.
        while counter(&store).await <= last + round {
            assert!(child.try_wait().unwrap().is_none(), "the writer ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let value = counter(&store).await;
        assert!(value > last);
        increment(&store).await;
        last = value + 1;
        assert_eq!(counter(&store).await, last);
    }
    let listed: Vec<_> = store.list("").await.unwrap().into_iter().map(|meta| meta.path).collect();
    assert_eq!(listed, ["counter"]);
}

#[tokio::test]
async fn a_lock_held_by_a_stopped_process_is_trouble_for_a_replacement_but_not_for_reading() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let generation = store.put_new("a", body("x")).await.unwrap();
    let held = File::open(folder.path().join(".tmp-huella/lock")).unwrap();
    held.lock().unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().body, "x");
    let error = store.replace_if("a", body("y"), generation).await.unwrap_err();
    assert!(matches!(error, StoreError::Trouble { .. }), "{error}");
    drop(held);
    store.replace_if("a", body("y"), generation).await.unwrap();
}

#[tokio::test]
async fn leftovers_of_a_crash_are_invisible_and_swept_after_a_day() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.put_new("a/b", body("x")).await.unwrap();
    let temp = folder.path().join(".tmp-huella");
    let names = || -> HashSet<_> { fs::read_dir(&temp).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect() };
    assert_eq!(names(), HashSet::from(["lock".to_owned()]), "a write leaves nothing behind");
    for (name, age_hours) in [("fresh", 23), ("stale", 25)] {
        fs::write(temp.join(name), "half").unwrap();
        let then = SystemTime::now() - Duration::from_secs(age_hours * 3600);
        File::options().write(true).open(temp.join(name)).unwrap().set_modified(then).unwrap();
    }
    fs::write(folder.path().join("a/.tmp-x"), "half").unwrap();
    let store = open(folder.path());
    assert_eq!(names(), HashSet::from(["lock".to_owned(), "fresh".to_owned()]));
    for prefix in ["", "a/", "a/."] {
        let want: &[&str] = if prefix == "a/." { &[] } else { &["a/b"] };
        let listed: Vec<_> = store.list(prefix).await.unwrap().into_iter().map(|meta| meta.path).collect();
        assert_eq!(listed, want, "{prefix:?}");
    }
}

#[tokio::test]
async fn generations_grow_even_if_the_clock_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.put_new("a", body("x")).await.unwrap();
    // As if it had been written by a clock that is a year ahead.
    let ahead = SystemTime::now() + Duration::from_secs(365 * 86_400);
    File::options().write(true).open(folder.path().join("a")).unwrap().set_modified(ahead).unwrap();
    let old = store.get("a").await.unwrap().unwrap().generation;
    let new = store.replace_if("a", body("x"), old).await.unwrap();
    assert_eq!(new, Generation(old.0 + 1));
    // Nor does a deletion make room for an old generation.
    store.delete("a").await.unwrap();
    let again = open(folder.path()).put_new("a", body("x")).await.unwrap();
    assert_eq!(again, Generation(new.0 + 1));
    assert!(matches!(store.replace_if("a", body("y"), old).await, Err(StoreError::Precondition { .. })));
}

#[tokio::test]
async fn a_folder_removed_by_hand_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("lake");
    let store = open(&root);
    store.put_new("a/b/c", body("x")).await.unwrap();
    fs::remove_dir_all(root.join("a")).unwrap();
    store.put_new("a/b/d", body("x")).await.unwrap();
    assert_eq!(store.list("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_written_is_refused_with_the_mend() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(LocalStore::open(file.clone()), Err(StoreError::Refused { .. })), "a file is no lake");
    let below = LocalStore::open(file.join("lake")).unwrap_err();
    assert!(matches!(below, StoreError::Refused { .. }), "{below}");

    let store = open(&folder.path().join("lake"));
    store.put_new("a", body("x")).await.unwrap();
    let error = store.put_new("a/b", body("x")).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "an object cannot be a folder here: {error}");
    let error = store.put_new(&"x".repeat(300), body("x")).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }) && error.to_string().contains("too long"), "{error}");
    assert_eq!(Error::from(error).kind(), Kind::Lake);
}

#[tokio::test]
async fn a_directory_that_may_not_be_written_is_refused_with_the_mend() {
    // The kernel's own file system lets nobody make a directory, root neither.
    let error = open(Path::new("/sys/lake")).put_new("a", body("x")).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }) && error.to_string().contains("writ"), "{error}");
}

#[tokio::test]
async fn uris_are_absolute_paths_of_readable_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = huella::store::open(&format!("file://{}", folder.path().display())).await.unwrap();
    store.put_new("a/b~20.json", body("x")).await.unwrap();
    assert_eq!(fs::read_to_string(store.uri("a/b~20.json")).unwrap(), "x");
    let relative = huella::store::open("./lake").await.unwrap();
    assert_eq!(relative.uri("a"), std::env::current_dir().unwrap().join("lake/a").display().to_string());
    assert_eq!(huella::store::open("s3://x").await.unwrap_err().kind(), Kind::Config);
    assert_eq!(store.min_replace_interval(), Duration::ZERO);
}
