//! The whole on a real Cloud Storage server program: first copy, changes, compaction, publication, the daily job, and the source at the end.

#![allow(clippy::unwrap_used)] // a broken test may panic

#[path = "support/fake_gcs_program.rs"]
mod fake_gcs_program;
mod lake_reader;
mod private_server;
mod world;

use huella::store::{GcsSettings, GcsStore, Store};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use world::World;

async fn json(store: &GcsStore, path: &str) -> Value {
    serde_json::from_slice(&store.get(path).await.unwrap().unwrap_or_else(|| panic!("{path} is not there")).body).unwrap()
}

/// Moves the files of every commit into a day of the past, by the commit's number.
async fn age(store: &GcsStore) {
    for commit in store.list("commits/").await.unwrap() {
        let mut manifest = json(store, &commit.path).await;
        let day = 1 + manifest["seq"].as_u64().unwrap() % 3;
        for file in manifest["files"].as_array_mut().unwrap() {
            let path = file["path"].as_str().unwrap().to_owned();
            let (folder, rest) = path.split_once("/dt=").unwrap();
            let moved = format!("{folder}/dt=2026-11-{day:02}{}", &rest[10..]);
            store.put_new(&moved, store.get(&path).await.unwrap().unwrap().body).await.unwrap();
            store.delete(&path).await.unwrap();
            file["path"] = moved.into();
        }
        store.replace_if(&commit.path, serde_json::to_vec(&manifest).unwrap().into(), commit.generation).await.unwrap();
    }
}

/// A figure of the last line of the log that says `message`.
fn figure(w: &World, message: &str, name: &str) -> u64 {
    let log = w.log();
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.rfind(|line| line["message"] == message).unwrap()[name].as_u64().unwrap()
}

fn done(w: &World, args: &[&str]) -> String {
    let (code, out) = w.run(args);
    assert_eq!(code, 0, "{args:?}\n{out}\n{}", w.log());
    out
}

/// What is published, by path: generation and content.
async fn published(store: &GcsStore) -> BTreeMap<String, (i64, String)> {
    let mut found = BTreeMap::new();
    let mut there = store.list("published/").await.unwrap();
    there.extend(store.list("tables/").await.unwrap().into_iter().filter(|meta| meta.path.contains("/_published.")));
    for meta in there {
        let body = store.get(&meta.path).await.unwrap().unwrap().body;
        found.insert(meta.path, (meta.generation.0, String::from_utf8_lossy(&body).into_owned()));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_written_compacted_published_and_read() {
    let program = fake_gcs_program::Program::start("bucket").await;
    let settings = GcsSettings { emulator: Some(program.base()), resumable_bytes_min: usize::MAX, patience: Duration::from_secs(20) };
    let store = GcsStore::with("bucket", "a/lake", settings).await.unwrap();
    let mut w = World::new().await;
    w.env = [("HUELLA_LAKE_URL", "gs://bucket/a/lake"), ("STORAGE_EMULATOR_HOST", &program.base()), ("HUELLA_COMPACT_GRACE", "20s")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec();
    w.sql("CREATE TABLE donaciones (id int PRIMARY KEY, donante text, monto numeric); CREATE TABLE casos (id int PRIMARY KEY)").await;
    w.sql("INSERT INTO donaciones SELECT i, md5(i::text), i / 3.0 FROM generate_series(1, 500) i").await;
    done(&w, &["check"]);
    done(&w, &["run", "--until-caught-up"]);
    for n in 1..=6 {
        w.sql(&format!(
            "INSERT INTO donaciones VALUES (1000 + {n}, 'nueva', {n}); UPDATE donaciones SET monto = {n} WHERE id % 9 = {n}; INSERT INTO casos VALUES ({n});
             DELETE FROM donaciones WHERE id = {n} * 7; UPDATE donaciones SET id = id + 5000 WHERE id = {n} * 11"
        ))
        .await;
        done(&w, &["run", "--until-caught-up"]);
    }
    age(&store).await;
    done(&w, &["verify"]);
    let files = |w: &World, table: &str| -> BTreeSet<String> { done(w, &["files", table]).lines().map(str::to_owned).collect() };
    let before = files(&w, "public.donaciones");
    assert!(before.len() >= 7, "{before:?}");

    // Two of the three days are compacted; the third stays as it is.
    done(&w, &["compact", "--before", "2026-11-03"]);
    let after = files(&w, "public.donaciones");
    let of_day = |files: &BTreeSet<String>, day: &str| files.iter().filter(|file| file.contains(day)).cloned().collect::<BTreeSet<_>>();
    for day in ["dt=2026-11-01", "dt=2026-11-02"] {
        assert!(of_day(&before, day).len() > 1 && of_day(&after, day).len() == 1, "{day}: {before:?} {after:?}");
    }
    assert_eq!(of_day(&before, "dt=2026-11-03"), of_day(&after, "dt=2026-11-03"));
    done(&w, &["verify"]);

    done(&w, &["publish"]);
    let cut = json(&store, "published/cut.json").await;
    assert_eq!(cut["through"], json(&store, "watermark.json").await["through"]);
    for table in ["public.donaciones", "public.casos"] {
        let manifest = cut["tables"][table]["manifest"].as_str().unwrap();
        assert_eq!(manifest, format!("gs://bucket/a/lake/tables/{table}/v1/_published.manifest"));
        let body = store.get(manifest.strip_prefix("gs://bucket/a/lake/").unwrap()).await.unwrap().unwrap().body;
        let named: BTreeSet<String> = String::from_utf8(body.to_vec()).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(named, files(&w, table));
        for uri in &named {
            assert!(store.head(uri.strip_prefix("gs://bucket/a/lake/").unwrap()).await.unwrap().is_some(), "{uri}");
        }
    }
    let first = published(&store).await;
    done(&w, &["publish"]);
    assert_eq!(published(&store).await, first, "an unchanged lake writes nothing");

    // The next days: what is left is compacted, and what nobody names any more goes.
    w.sql("TRUNCATE casos; INSERT INTO casos VALUES (99); UPDATE donaciones SET donante = 'otra' WHERE id < 20").await;
    done(&w, &["run", "--until-caught-up"]);
    done(&w, &["daily"]);
    assert_eq!(of_day(&files(&w, "public.donaciones"), "dt=2026-11-03").len(), 1);
    let (waiting, there) = (figure(&w, "compacted", "files_waiting"), store.list("tables/").await.unwrap().len());
    assert!(waiting > 0, "what was replaced is noted");
    let daily = published(&store).await;
    w.env.last_mut().unwrap().1 = "1s".to_owned();
    w.wait("what was replaced to be deleted", || {
        done(&w, &["compact"]);
        figure(&w, "compacted", "files_deleted") > 0
    });
    assert!(store.list("tables/").await.unwrap().len() < there);
    done(&w, &["daily"]);
    assert_eq!(published(&store).await, daily, "a second daily job finds everything done");
    done(&w, &["verify"]);
    done(&w, &["status"]);
}
