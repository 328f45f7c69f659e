//! One contract, every store: each claim runs on a directory, on the GCS client against a bucket in this process that
//! keeps every promise, and on the GCS client against the real program fake-gcs-server.
//!
//! Owns: what `Store` promises to its callers. Does not own: what only one store can show (`store_local`, `store_gcs`).

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use bytes::Bytes;
use huella::store::{FaultStore, GcsSettings, GcsStore, Generation, LocalStore, Plan, Store, StoreError};
use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

#[path = "support/fake_gcs.rs"]
#[allow(dead_code, reason = "the faults are for store_gcs")]
mod fake_gcs;

#[path = "support/fake_gcs_program.rs"]
mod fake_gcs_program;

/// A store to try, and what must live as long as it.
struct Bed {
    store: Arc<dyn Store>,
    _keep: Box<dyn Any + Send>,
}

async fn directory() -> Bed {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalStore::open(folder.path().join("not/yet/there")).unwrap());
    Bed { store, _keep: Box::new(folder) }
}

async fn behind_a_plan_without_faults() -> Bed {
    let Bed { store, _keep } = directory().await;
    Bed { store: Arc::new(FaultStore::new(store, Plan::default())), _keep }
}

/// Small pages, so that every listing of more than three objects is paged; a low threshold, so that large objects are resumed.
async fn bucket_in_this_process() -> Bed {
    let fake = fake_gcs::FakeGcs::start("bucket", 3).await;
    let settings = GcsSettings { emulator: Some(fake.base()), resumable_bytes_min: 8 << 20, patience: Duration::from_secs(20) };
    let store = Arc::new(GcsStore::with("bucket", "some/prefix", settings).await.unwrap());
    Bed { store, _keep: Box::new(fake) }
}

async fn fake_gcs_server() -> Bed {
    let program = fake_gcs_program::Program::start("bucket").await;
    let settings = GcsSettings { emulator: Some(program.base()), resumable_bytes_min: usize::MAX, patience: Duration::from_secs(20) };
    let store = Arc::new(GcsStore::with("bucket", "some/prefix", settings).await.unwrap());
    Bed { store, _keep: Box::new(program) }
}

macro_rules! contract {
    ($($claim:ident),* $(,)?) => {
        mod directory { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $claim() { super::claims::$claim(super::directory().await).await })* }
        mod behind_a_plan_without_faults { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $claim() { super::claims::$claim(super::behind_a_plan_without_faults().await).await })* }
        mod bucket_in_this_process { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $claim() { super::claims::$claim(super::bucket_in_this_process().await).await })* }
        mod fake_gcs_server { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $claim() { super::claims::$claim(super::fake_gcs_server().await).await })* }
    };
}

contract![
    of_16_creations_of_one_object_exactly_one_wins,
    of_16_replacements_of_one_generation_exactly_one_wins,
    four_tasks_lose_none_of_their_increments,
    creating_what_exists_is_a_precondition_failure_even_with_equal_content,
    replacing_what_is_absent_is_a_precondition_failure,
    replacing_an_old_generation_changes_nothing,
    every_write_has_another_generation_even_of_equal_content,
    an_absent_object_reads_as_none,
    head_agrees_with_get_and_list,
    an_empty_object_is_an_object,
    twenty_megabytes_come_back_whole,
    an_object_in_parts_is_seen_whole_or_not_at_all_and_replaces_nothing,
    a_listing_is_complete_and_ordered_by_the_bytes_of_the_path,
    a_listing_s_prefix_need_not_end_at_a_slash,
    hostile_names_are_kept_as_they_are,
    a_deleted_object_is_gone_and_deleting_it_again_is_no_error,
    paths_that_leave_the_lake_are_refused,
    a_uri_ends_with_the_path,
];

mod claims {
    use super::*;

    fn body(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn is_precondition<T>(result: &Result<T, StoreError>) -> bool {
        matches!(result, Err(StoreError::Precondition { .. }))
    }

    async fn text(store: &dyn Store, path: &str) -> String {
        String::from_utf8(store.get(path).await.unwrap().unwrap().body.to_vec()).unwrap()
    }

    async fn paths(store: &dyn Store, prefix: &str) -> Vec<String> {
        store.list(prefix).await.unwrap().into_iter().map(|meta| meta.path).collect()
    }

    /// Runs 16 writes at once; the number of the winner, all others having been told that they lost.
    async fn race<F, Fut>(write: F) -> (usize, Generation)
    where
        F: Fn(usize) -> Fut,
        Fut: Future<Output = Result<Generation, StoreError>> + Send + 'static,
    {
        let tasks: Vec<_> = (0..16).map(|n| tokio::spawn(write(n))).collect();
        let mut won = Vec::new();
        for (n, task) in tasks.into_iter().enumerate() {
            match task.await.unwrap() {
                Ok(generation) => won.push((n, generation)),
                Err(error) => assert!(matches!(error, StoreError::Precondition { .. }), "{error}"),
            }
        }
        assert_eq!(won.len(), 1, "{won:?}");
        won[0]
    }

    pub(super) async fn an_object_in_parts_is_seen_whole_or_not_at_all_and_replaces_nothing(bed: Bed) {
        let store = bed.store.as_ref();
        let begin = || async { store.put_new_in_parts("a/parts").await.unwrap() };
        let (Some(mut first), Some(mut second)) = (begin().await, begin().await) else {
            eprintln!("SKIPPED: this store takes objects whole only");
            return;
        };
        let content: Vec<u8> = (0..13 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for part in content.chunks(1_000_003) {
            first.write(Bytes::copy_from_slice(part)).await.unwrap();
            second.write(Bytes::from_static(b"other")).await.unwrap();
            assert!(store.head("a/parts").await.unwrap().is_none() && store.list("a/").await.unwrap().is_empty());
        }
        let generation = first.finish(crc32c::crc32c(&content)).await.unwrap();
        let found = store.get("a/parts").await.unwrap().unwrap();
        assert!(found.body == content && found.generation == generation);
        let others = b"other".repeat(content.chunks(1_000_003).count());
        assert!(is_precondition(&second.finish(crc32c::crc32c(&others)).await));
        let mut dropped = store.put_new_in_parts("b").await.unwrap().unwrap();
        dropped.write(Bytes::from_static(b"never")).await.unwrap();
        drop(dropped);
        let empty = store.put_new_in_parts("c").await.unwrap().unwrap();
        empty.finish(0).await.unwrap();
        assert_eq!(paths(store, "").await, ["a/parts", "c"]);
        assert!(store.get("c").await.unwrap().unwrap().body.is_empty());
    }

    pub(super) async fn of_16_creations_of_one_object_exactly_one_wins(bed: Bed) {
        for round in 0..5 {
            let path = format!("commits/{round}.json");
            let (winner, generation) = race(|n| {
                let (store, path) = (bed.store.clone(), path.clone());
                async move { store.put_new(&path, body(&format!("writer {n}"))).await }
            })
            .await;
            let found = bed.store.get(&path).await.unwrap().unwrap();
            assert_eq!((found.body, found.generation), (body(&format!("writer {winner}")), generation));
        }
    }

    pub(super) async fn of_16_replacements_of_one_generation_exactly_one_wins(bed: Bed) {
        let mut old = bed.store.put_new("watermark.json", body("start")).await.unwrap();
        for _ in 0..5 {
            let (winner, generation) = race(|n| {
                let store = bed.store.clone();
                async move { store.replace_if("watermark.json", body(&format!("writer {n}")), old).await }
            })
            .await;
            let found = bed.store.get("watermark.json").await.unwrap().unwrap();
            assert_eq!((found.body, found.generation), (body(&format!("writer {winner}")), generation));
            old = generation;
        }
    }

    pub(super) async fn four_tasks_lose_none_of_their_increments(bed: Bed) {
        const EACH: usize = 250;
        bed.store.put_new("counter", body("0")).await.unwrap();
        let tasks = (0..4).map(|_| {
            let store = bed.store.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done < EACH {
                    let now = store.get("counter").await.unwrap().unwrap();
                    let value: usize = std::str::from_utf8(&now.body).unwrap().parse().unwrap();
                    match store.replace_if("counter", body(&(value + 1).to_string()), now.generation).await {
                        Ok(_) => done += 1,
                        Err(StoreError::Precondition { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        assert_eq!(text(&*bed.store, "counter").await, (4 * EACH).to_string());
    }

    pub(super) async fn creating_what_exists_is_a_precondition_failure_even_with_equal_content(bed: Bed) {
        let first = bed.store.put_new("a/b", body("one")).await.unwrap();
        assert!(is_precondition(&bed.store.put_new("a/b", body("one")).await));
        assert!(is_precondition(&bed.store.put_new("a/b", body("two")).await));
        let found = bed.store.get("a/b").await.unwrap().unwrap();
        assert_eq!((found.body, found.generation), (body("one"), first));
    }

    pub(super) async fn replacing_what_is_absent_is_a_precondition_failure(bed: Bed) {
        for generation in [Generation(0), Generation(1), Generation(i64::MAX)] {
            assert!(is_precondition(&bed.store.replace_if("a/b", body("x"), generation).await), "{generation:?}");
        }
        let known = bed.store.put_new("a/c", body("x")).await.unwrap();
        bed.store.delete("a/c").await.unwrap();
        assert!(is_precondition(&bed.store.replace_if("a/c", body("y"), known).await));
        assert_eq!(paths(&*bed.store, "").await, [""; 0]);
    }

    pub(super) async fn replacing_an_old_generation_changes_nothing(bed: Bed) {
        let first = bed.store.put_new("a", body("one")).await.unwrap();
        let second = bed.store.replace_if("a", body("two"), first).await.unwrap();
        assert!(is_precondition(&bed.store.replace_if("a", body("three"), first).await));
        assert!(is_precondition(&bed.store.replace_if("a", body("three"), Generation(second.0 + 1)).await));
        assert!(is_precondition(&bed.store.replace_if("a", body("three"), Generation(0)).await));
        let found = bed.store.get("a").await.unwrap().unwrap();
        assert_eq!((found.body, found.generation), (body("two"), second));
    }

    pub(super) async fn every_write_has_another_generation_even_of_equal_content(bed: Bed) {
        let mut seen = HashSet::new();
        for _ in 0..5 {
            let mut now = bed.store.put_new("a", body("same")).await.unwrap();
            assert!(seen.insert(now), "created anew");
            for _ in 0..10 {
                now = bed.store.replace_if("a", body("same"), now).await.unwrap();
                assert!(seen.insert(now), "replaced");
                assert_eq!(bed.store.get("a").await.unwrap().unwrap().generation, now);
            }
            bed.store.delete("a").await.unwrap();
        }
    }

    pub(super) async fn an_absent_object_reads_as_none(bed: Bed) {
        assert!(bed.store.get("a").await.unwrap().is_none());
        assert!(bed.store.head("a/b/c").await.unwrap().is_none());
        assert!(bed.store.list("a").await.unwrap().is_empty());
        bed.store.put_new("a/b", body("x")).await.unwrap();
        // A folder is no object, and neither is anything below an object.
        for path in ["a", "a/b/c", "a/c"] {
            assert!(bed.store.get(path).await.unwrap().is_none(), "{path}");
            assert!(bed.store.head(path).await.unwrap().is_none(), "{path}");
            bed.store.delete(path).await.unwrap();
        }
        assert_eq!(paths(&*bed.store, "").await, ["a/b"]);
    }

    pub(super) async fn head_agrees_with_get_and_list(bed: Bed) {
        let before = chrono::Utc::now().timestamp_micros();
        let generation = bed.store.put_new("a/b.json", body("123456789")).await.unwrap();
        let head = bed.store.head("a/b.json").await.unwrap().unwrap();
        assert_eq!((head.path.as_str(), head.bytes, head.crc32c, head.generation), ("a/b.json", 9, Some(0xE306_9283), generation));
        // Clocks of another machine, and stamps cut to milliseconds: a minute's tolerance.
        assert!((head.modified_us - before).abs() < 60_000_000, "{} against {before}", head.modified_us);
        let listed = bed.store.list("").await.unwrap();
        assert_eq!(listed.len(), 1);
        assert!(listed[0].crc32c.is_none() || listed[0].crc32c == head.crc32c);
        assert_eq!(huella::store::Meta { crc32c: head.crc32c, ..listed[0].clone() }, head);
        assert_eq!(bed.store.get("a/b.json").await.unwrap().unwrap().generation, generation);
    }

    pub(super) async fn an_empty_object_is_an_object(bed: Bed) {
        let generation = bed.store.put_new("empty", Bytes::new()).await.unwrap();
        let found = bed.store.get("empty").await.unwrap().unwrap();
        assert_eq!((found.body.len(), found.generation), (0, generation));
        let head = bed.store.head("empty").await.unwrap().unwrap();
        assert_eq!((head.bytes, head.crc32c), (0, Some(0)));
        assert!(is_precondition(&bed.store.put_new("empty", Bytes::new()).await));
        let full = bed.store.replace_if("empty", body("x"), generation).await.unwrap();
        bed.store.replace_if("empty", Bytes::new(), full).await.unwrap();
        assert_eq!(bed.store.get("empty").await.unwrap().unwrap().body.len(), 0);
    }

    pub(super) async fn twenty_megabytes_come_back_whole(bed: Bed) {
        let mut state = 1_u32;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        });
        let large: Bytes = noise.take(20 << 20).collect::<Vec<_>>().into();
        let generation = bed.store.put_new("large", large.clone()).await.unwrap();
        let head = bed.store.head("large").await.unwrap().unwrap();
        assert_eq!((head.bytes, head.crc32c), (20 << 20, Some(crc32c::crc32c(&large))));
        let found = bed.store.get("large").await.unwrap().unwrap();
        assert!(found.body == large && found.generation == generation);
        assert!(is_precondition(&bed.store.put_new("large", large.slice(1..)).await));
    }

    pub(super) async fn a_listing_is_complete_and_ordered_by_the_bytes_of_the_path(bed: Bed) {
        let mut want: Vec<String> =
            ["a", "a-b", "a.b", "a0", "B", "b/1", "b/10", "b/2", "b-/1", "b0/1", "z~20", "é", "日", "😀", "\u{ff5e}"]
                .map(String::from)
                .to_vec();
        for path in &want {
            bed.store.put_new(path, body(path)).await.unwrap();
        }
        want.sort();
        assert_eq!(paths(&*bed.store, "").await, want);
    }

    pub(super) async fn a_listing_s_prefix_need_not_end_at_a_slash(bed: Bed) {
        let all = [
            "tables/public.a/v1/dt=2026-11-23/x.parquet",
            "tables/public.a/v1/dt=2026-11-24/x.parquet",
            "tables/public.a/v10/schema.json",
            "tables/public.ab/v1/schema.json",
            "tables/public~2Ea/v1/schema.json",
            "watermark.json",
        ];
        for path in all {
            bed.store.put_new(path, body("x")).await.unwrap();
        }
        for (prefix, want) in [
            ("", &all[..]),
            ("tables/public.a/v1/", &all[..2]),
            ("tables/public.a/v1", &all[..3]),
            ("tables/public.a/v1/dt=2026-11-24", &all[1..2]),
            ("tables/public.a", &all[..4]),
            ("tables/public.a/", &all[..3]),
            ("tables", &all[..5]),
            ("tab", &all[..5]),
            ("watermark.json", &all[5..]),
            ("watermark.json/", &[]),
            ("tables/public.c", &[]),
            ("nothing/here/", &[]),
        ] {
            assert_eq!(paths(&*bed.store, prefix).await, want, "{prefix:?}");
        }
    }

    pub(super) async fn hostile_names_are_kept_as_they_are(bed: Bed) {
        let mut names = vec![
            "tables/a~2Fb.c~20d/v1/dt=2026-11-24/0000000000000001-s1-e1-p000.parquet",
            "a b/c  d",
            "a%2Fb",
            "a%",
            "q?x=1&y=2",
            "h#h",
            "p+p",
            "s;s:s@s",
            "quote'\"`",
            "back\\slash",
            "[x]{y}(z)*",
            "..a/b..",
            "...",
            "~",
            "=",
            "ñandú/日本語/😀",
            "a/.hidden",
            "tmp-x",
            "-rf",
            "$HOME",
            "<>|^",
        ];
        for name in &names {
            bed.store.put_new(name, body(name)).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        for name in &names {
            assert_eq!(text(&*bed.store, name).await, *name);
            let head = bed.store.head(name).await.unwrap().unwrap();
            assert_eq!((head.path.as_str(), head.bytes), (*name, name.len() as u64));
            bed.store.replace_if(name, body("new"), head.generation).await.unwrap();
            assert!(paths(&*bed.store, name).await.contains(&(*name).to_owned()), "{name}");
        }
        names.sort_unstable();
        assert_eq!(paths(&*bed.store, "").await, names);
        for name in &names {
            bed.store.delete(name).await.unwrap();
        }
        assert_eq!(paths(&*bed.store, "").await, [""; 0]);
    }

    pub(super) async fn a_deleted_object_is_gone_and_deleting_it_again_is_no_error(bed: Bed) {
        for path in ["a/1", "a/2", "a/3"] {
            bed.store.put_new(path, body(path)).await.unwrap();
        }
        bed.store.delete("a/2").await.unwrap();
        bed.store.delete("a/2").await.unwrap();
        bed.store.delete("never/was").await.unwrap();
        assert_eq!(paths(&*bed.store, "a/").await, ["a/1", "a/3"]);
        assert!(bed.store.get("a/2").await.unwrap().is_none());
        assert!(bed.store.head("a/2").await.unwrap().is_none());
        bed.store.put_new("a/2", body("again")).await.unwrap();
        assert_eq!(text(&*bed.store, "a/2").await, "again");
    }

    pub(super) async fn paths_that_leave_the_lake_are_refused(bed: Bed) {
        for path in ["", "/etc/x", "../x", "a/../../x", "a//b", "a/", "./a", "a\nb", ".tmp-huella/lock", "a/.tmp-b"] {
            let refused = |what: Result<(), StoreError>| assert!(matches!(what, Err(StoreError::Refused { .. })), "{path:?}: {what:?}");
            refused(bed.store.put_new(path, body("x")).await.map(drop));
            refused(bed.store.replace_if(path, body("x"), Generation(1)).await.map(drop));
            refused(bed.store.get(path).await.map(drop));
            refused(bed.store.head(path).await.map(drop));
            refused(bed.store.delete(path).await);
        }
        assert!(matches!(bed.store.list("../").await, Err(StoreError::Refused { .. })));
        assert_eq!(paths(&*bed.store, "").await, [""; 0]);
    }

    pub(super) async fn a_uri_ends_with_the_path(bed: Bed) {
        let uri = bed.store.uri("tables/a~20b/x.parquet");
        assert!(uri.ends_with("/tables/a~20b/x.parquet"), "{uri}");
        assert!(uri.starts_with('/') || uri.starts_with("gs://bucket/some/prefix/"), "{uri}");
    }
}
