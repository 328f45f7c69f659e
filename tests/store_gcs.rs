//! What only a bucket can show: refusals, lost replies, damaged and late bytes, and that the client never retries by itself.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use bytes::Bytes;
use fake_gcs::{Call, FakeGcs, Fault};
use huella::error::{Error, Kind};
use huella::store::{GcsSettings, GcsStore, Generation, Store, StoreError};
use std::time::{Duration, Instant};

#[path = "support/fake_gcs.rs"]
mod fake_gcs;

const RESUMABLE: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_millis(500);

async fn bed() -> (FakeGcs, GcsStore) {
    let fake = FakeGcs::start("bucket", 1000).await;
    let store = open(&fake, "bucket").await;
    (fake, store)
}

async fn open(fake: &FakeGcs, bucket: &str) -> GcsStore {
    let settings = GcsSettings { emulator: Some(fake.base()), resumable_bytes_min: RESUMABLE, patience: PATIENCE };
    GcsStore::with(bucket, "lake", settings).await.unwrap()
}

fn small() -> Bytes {
    Bytes::from_static(b"small")
}

fn large() -> Bytes {
    Bytes::from(vec![7; RESUMABLE + 1])
}

fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> &'static str {
    match result {
        Err(StoreError::Precondition { .. }) => "precondition",
        Err(StoreError::Trouble { .. }) => "trouble",
        Err(StoreError::Refused { .. }) => "refused",
        Err(StoreError::Denied { .. }) => "denied",
        Ok(_) => "ok",
    }
}

#[tokio::test]
async fn a_write_whose_reply_was_lost_is_trouble_and_its_repetition_a_precondition_failure_with_equal_checksum() {
    for (content, call) in [(small(), Call::Upload), (large(), Call::Bytes)] {
        let (fake, store) = bed().await;
        fake.fault(call, 1, Fault::DoneThenDrop);
        assert_eq!(kind(store.put_new("a", content.clone()).await), "trouble");
        assert_eq!(fake.names(), ["lake/a"], "it was done");
        assert_eq!(kind(store.put_new("a", content.clone()).await), "precondition");
        let head = store.head("a").await.unwrap().unwrap();
        assert_eq!((head.bytes, head.crc32c), (content.len() as u64, Some(crc32c::crc32c(&content))));

        fake.fault(Call::Upload, 1, Fault::DoneThenDrop);
        assert_eq!(kind(store.replace_if("a", small(), head.generation).await), "trouble");
        assert_eq!(kind(store.replace_if("a", small(), head.generation).await), "precondition");
        assert_eq!(store.get("a").await.unwrap().unwrap().body, small());
        assert_eq!(fake.faults_left(), 0);
    }
}

#[tokio::test]
async fn a_precondition_failure_after_a_success_is_passed_on_as_it_came() {
    let (fake, store) = bed().await;
    fake.fault(Call::Upload, 1, Fault::DoneThenStatus(412));
    assert_eq!(kind(store.put_new("a", small()).await), "precondition");
    assert_eq!(store.get("a").await.unwrap().unwrap().body, small());
}

#[tokio::test]
async fn passing_statuses_are_trouble_and_one_request_each() {
    for status in [408, 429, 500, 502, 503, 504] {
        let (fake, store) = bed().await;
        let planted = store.put_new("there", small()).await.unwrap();
        let refuse = Fault::Status(status, "try later");
        for call in [Call::Upload, Call::Begin, Call::Media, Call::Metadata, Call::List, Call::Delete] {
            fake.fault(call, if call == Call::Upload { 2 } else { 1 }, refuse.clone());
        }
        for result in [
            store.put_new("a", small()).await.map(drop),
            store.put_new("a", large()).await.map(drop),
            store.replace_if("there", small(), planted).await.map(drop),
            store.get("there").await.map(drop),
            store.head("there").await.map(drop),
            store.list("").await.map(drop),
            store.delete("there").await,
        ] {
            let error = result.unwrap_err();
            assert!(error.to_string().contains(&status.to_string()) && error.to_string().contains("try later"), "{error}");
            assert_eq!(kind::<()>(Err(error)), "trouble", "{status}");
        }
        assert_eq!((fake.faults_left(), fake.calls(Call::Upload), fake.calls(Call::Begin), fake.calls(Call::Media)), (0, 3, 1, 1));
        assert_eq!(fake.names(), ["lake/there"]);
    }
}

#[tokio::test]
async fn a_failed_part_of_a_resumable_upload_is_trouble_and_not_sent_again() {
    for fault in [Fault::Status(503, "try later"), Fault::Status(404, "no such session"), Fault::Status(410, "session expired")] {
        let (fake, store) = bed().await;
        fake.fault(Call::Bytes, 1, fault);
        assert_eq!(kind(store.put_new("a", large()).await), "trouble");
        assert_eq!((fake.calls(Call::Begin), fake.calls(Call::Bytes)), (1, 1));
        assert!(fake.names().is_empty());
        assert_eq!(kind(store.put_new("a", large()).await), "ok");
    }
}

#[tokio::test]
async fn no_rights_is_refused_on_every_operation_and_names_the_role() {
    for status in [401, 403] {
        let (fake, store) = bed().await;
        let refuse = Fault::Status(status, "huella@p.iam.gserviceaccount.com does not have access");
        for call in [Call::Upload, Call::Begin, Call::Media, Call::Metadata, Call::List, Call::Delete] {
            fake.fault(call, if call == Call::Upload { 2 } else { 1 }, refuse.clone());
        }
        for result in [
            store.put_new("a", small()).await.map(drop),
            store.put_new("a", large()).await.map(drop),
            store.replace_if("a", small(), Generation(1)).await.map(drop),
            store.get("a").await.map(drop),
            store.head("a").await.map(drop),
            store.list("").await.map(drop),
            store.delete("a").await,
        ] {
            let error = result.unwrap_err();
            // Credentials may be refused for a moment: whether they stay so is seen by who repeats the request.
            let is_meant = match status {
                401 => matches!(error, StoreError::Denied { .. }),
                _ => matches!(error, StoreError::Refused { .. }),
            };
            assert!(is_meant, "{error}");
            assert!(
                error.to_string().contains(if status == 403 { "roles/storage.objectUser" } else { "GOOGLE_APPLICATION_CREDENTIALS" }),
                "{error}"
            );
            assert_eq!(Error::from(error).kind(), Kind::Lake);
        }
    }
}

#[tokio::test]
async fn a_missing_bucket_is_refused_and_never_taken_for_a_missing_object() {
    let (fake, _) = bed().await;
    let store = open(&fake, "no-such-bucket").await;
    for result in [
        store.put_new("a", small()).await.map(drop),
        store.put_new("a", large()).await.map(drop),
        store.replace_if("a", small(), Generation(1)).await.map(drop),
        store.get("a").await.map(drop),
        store.head("a").await.map(drop),
        store.list("").await.map(drop),
        store.delete("a").await,
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("bucket no-such-bucket does not exist"), "{error}");
    }
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_trouble_within_the_deadline() {
    let (fake, store) = bed().await;
    store.put_new("there", small()).await.unwrap();
    for call in [Call::Upload, Call::Begin, Call::Media, Call::Metadata, Call::List, Call::Delete] {
        fake.fault(call, 1, Fault::Hang);
    }
    fake.fault(Call::Upload, 1, Fault::DoneThenHang);
    let begun = Instant::now();
    let results = tokio::join!(
        store.put_new("a", small()),
        store.put_new("b", small()),
        store.put_new("c", large()),
        store.get("there"),
        store.head("there"),
        store.list(""),
        store.delete("there"),
    );
    let kinds = [kind(results.0), kind(results.1), kind(results.2), kind(results.3), kind(results.4), kind(results.5), kind(results.6)];
    assert_eq!(kinds, ["trouble"; 7]);
    // The large upload's size adds 4 s to its deadline.
    assert!(begun.elapsed() < PATIENCE + Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(fake.names().len(), 2, "one of the unanswered writes was done");
}

#[tokio::test]
async fn nobody_listening_is_trouble() {
    let (fake, _) = bed().await;
    let store = open(&fake, "bucket").await;
    drop(fake);
    tokio::task::yield_now().await;
    assert_eq!(kind(store.put_new("a", small()).await), "trouble");
    assert_eq!(kind(store.get("a").await), "trouble");
    assert_eq!(kind(store.list("").await), "trouble");
}

#[tokio::test]
async fn damaged_or_broken_content_is_never_taken_for_the_object() {
    for content in [small(), large()] {
        let (fake, store) = bed().await;
        store.put_new("a", content.clone()).await.unwrap();
        for fault in [Fault::Damage, Fault::Cut] {
            fake.fault(Call::Media, 1, fault.clone());
            assert_eq!(kind(store.get("a").await), "trouble", "{fault:?}");
            assert!(store.get("a").await.unwrap().unwrap().body == content);
        }
        assert_eq!((fake.faults_left(), fake.calls(Call::Media)), (0, 4), "each failure was seen, none resumed unseen");
    }
}

#[tokio::test]
async fn an_upload_damaged_on_its_way_is_trouble_and_makes_no_object() {
    for (content, call) in [(small(), Call::Upload), (large(), Call::Bytes)] {
        let (fake, store) = bed().await;
        fake.fault(call, 1, Fault::Damage);
        assert_eq!(kind(store.put_new("a", content).await), "trouble");
        assert!(fake.names().is_empty() && fake.faults_left() == 0);
    }
}

#[tokio::test]
async fn a_rival_that_comes_between_beginning_and_end_of_an_upload_wins() {
    for (content, call) in [(small(), Call::Upload), (large(), Call::Bytes)] {
        let (fake, store) = bed().await;
        fake.fault(call, 1, Fault::Rival);
        assert_eq!(kind(store.put_new("a", content).await), "precondition");
        assert_eq!(store.get("a").await.unwrap().unwrap().body, "rival");
    }
}

#[tokio::test]
async fn large_uploads_are_resumable_and_small_ones_are_one_request() {
    let (fake, store) = bed().await;
    store.put_new("small", small()).await.unwrap();
    store.put_new("large", large()).await.unwrap();
    assert_eq!((fake.calls(Call::Upload), fake.calls(Call::Begin), fake.calls(Call::Bytes)), (1, 1, 1));
}

#[tokio::test]
async fn an_upload_in_parts_survives_what_befalls_its_parts() {
    let content: Vec<u8> = (0..11 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (times, fault) in [
        (2, Fault::Status(503, "busy")),
        (1, Fault::DoneThenStatus(500)),
        (1, Fault::DoneThenDrop),
        (1, Fault::DoneThenHang),
        (1, Fault::Hang),
    ] {
        let (fake, store) = bed().await;
        let mut upload = store.put_new_in_parts("a").await.unwrap().unwrap();
        fake.fault(Call::Bytes, times, fault.clone());
        for part in content.chunks(3 << 20) {
            upload.write(Bytes::copy_from_slice(part)).await.unwrap();
        }
        upload.finish(crc32c::crc32c(&content)).await.unwrap();
        assert!(store.get("a").await.unwrap().unwrap().body == content, "{fault:?}");
        assert_eq!(fake.faults_left(), 0, "{fault:?}");
    }
}

#[tokio::test]
async fn the_end_of_an_upload_in_parts_is_never_guessed_at() {
    for (fault, expected) in [
        (Fault::DoneThenDrop, "trouble"), // done, and the session with it
        (Fault::Damage, "trouble"),
        (Fault::Rival, "precondition"),
        (Fault::Status(403, "no"), "refused"),
        (Fault::Status(410, "gone"), "trouble"),
    ] {
        let (fake, store) = bed().await;
        let mut upload = store.put_new_in_parts("a").await.unwrap().unwrap();
        upload.write(small()).await.unwrap();
        fake.fault(Call::Bytes, 1, fault.clone());
        assert_eq!(kind(upload.finish(crc32c::crc32c(&small())).await), expected, "{fault:?}");
    }
    let (fake, store) = bed().await;
    fake.fault(Call::Begin, 1, Fault::Status(403, "no"));
    assert_eq!(kind(store.put_new_in_parts("a").await), "refused");
    fake.plant("lake/a", b"there");
    assert_eq!(kind(store.put_new_in_parts("a").await), "precondition");
}

#[tokio::test]
async fn other_lakes_and_folder_marks_in_the_bucket_are_not_listed() {
    let (fake, store) = bed().await;
    for name in ["lake/", "lake/tables/", "lakeside/x", "lak", "other", "zoo/lake/x"] {
        fake.plant(name, b"");
    }
    fake.plant("lake/tables/x", b"");
    let found: Vec<_> = store.list("").await.unwrap().into_iter().map(|meta| meta.path).collect();
    assert_eq!(found, ["tables/x"]);
    let root =
        GcsStore::with("bucket", "", GcsSettings { emulator: Some(fake.base()), resumable_bytes_min: RESUMABLE, patience: PATIENCE })
            .await
            .unwrap();
    let found: Vec<_> = root.list("l").await.unwrap().into_iter().map(|meta| meta.path).collect();
    assert_eq!(found, ["lak", "lake/tables/x", "lakeside/x"]);
}

#[tokio::test]
async fn a_listing_that_breaks_on_a_later_page_is_no_shorter_listing() {
    let fake = FakeGcs::start("bucket", 2).await;
    let store = open(&fake, "bucket").await;
    for n in 0..5 {
        store.put_new(&format!("{n}"), small()).await.unwrap();
    }
    assert_eq!(store.list("").await.unwrap().len(), 5);
    assert_eq!(fake.calls(Call::List), 3);
    // The rule counts down over pages: the first passes by a fault that changes nothing there.
    fake.fault(Call::List, 1, Fault::Damage);
    fake.fault(Call::List, 1, Fault::Status(503, "try later"));
    assert_eq!(kind(store.list("").await), "trouble");
    assert_eq!(fake.calls(Call::List), 5);
}
