//! A source that is not what it was: what is refused, with which words, and mended by `run --resnapshot`; and what passes by itself.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use huella::lsn::Lsn;
use huella::postgres::{ConnectOptions, Replication, StreamSetup};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use world::World;

const DONACIONES: &str = "CREATE TABLE donaciones (id int PRIMARY KEY, donante text, monto int)";
const CAUGHT_UP: &[&str] = &["run", "--until-caught-up"];
const FAST: i32 = libc::SIGINT;
const IMMEDIATE: i32 = libc::SIGQUIT;

impl World {
    async fn with_rows(settings: &[(&str, &str)]) -> Self {
        let w = World::with(settings).await;
        w.sql(DONACIONES).await;
        w.rows(0, 100).await;
        assert_eq!(w.run(CAUGHT_UP).0, 0, "{}", w.log());
        w
    }

    async fn rows(&self, from: i32, to: i32) {
        self.sql(&format!("INSERT INTO donaciones SELECT i, md5(i::text), 1 FROM generate_series({from} + 1, {to}) i")).await;
    }

    async fn text(&self, sql: &str) -> String {
        self.client.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).unwrap_or_default()
    }

    /// Stops the server, keeps a copy of it, lets both go on apart, and begins again with the copy.
    async fn back_to_a_copy(&mut self, standby: bool) {
        self.server.stop(FAST);
        self.server.back_up();
        self.server.begin_again();
        self.reconnect().await;
        self.rows(100, 8000).await;
        assert_eq!(self.run(CAUGHT_UP).0, 0, "{}", self.log());
        self.server.stop(FAST);
        self.server.restore();
        if standby {
            self.server.become_standby();
        }
        self.server.begin_again();
        self.reconnect().await;
    }

    async fn promote(&self) {
        let promoted: bool = self.client.query_one("SELECT pg_promote()", &[]).await.unwrap().get(0);
        assert!(promoted);
    }

    /// WAL until the slot is lost; nobody confirms anything meanwhile.
    async fn lose_the_slot(&self) {
        for n in 0..5 {
            self.sql(&format!("INSERT INTO donaciones VALUES (-1 - {n}, 'x'); SELECT pg_switch_wal(); CHECKPOINT")).await;
        }
        self.sql("DELETE FROM donaciones WHERE id < 0").await;
        assert_eq!(self.text("SELECT wal_status FROM pg_replication_slots").await, "lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_restored_to_an_earlier_point_is_refused() {
    let mut w = World::with_rows(&[]).await;
    w.back_to_a_copy(false).await;
    w.refused(&["it was restored to an earlier point", "behind the lake's watermark", "huella run --resnapshot"]);
    w.mended_by_resnapshot("UPDATE donaciones SET monto = 2 WHERE id < 10").await;
    let versions = w.watermark().unwrap()["tables"]["public.donaciones"]["version"].clone();
    assert_eq!(versions, 2, "positions are not compared over the break");
    assert_eq!(w.read().commits.iter().filter(|m| m["reset"] == true).count(), 1);
}

/// Nothing but its transactions betrays it: same cluster, same timeline, more WAL than the lake has followed.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_restored_to_an_earlier_point_that_has_gone_on_past_the_watermark_is_refused() {
    let mut w = World::with_rows(&[]).await;
    w.back_to_a_copy(false).await;
    w.rows(200, 20_000).await;
    assert!(lake_reader::lsn(&w.text("SELECT pg_current_wal_insert_lsn()::text").await) > w.through());
    let through = w.through();
    w.refused(&[
        "the server does not send again what the lake has: after transaction",
        "It was restored to an earlier point and has gone on",
        "huella run --resnapshot",
    ]);
    assert_eq!(w.through(), through, "nothing of the other history was committed");
    w.mended_by_resnapshot("UPDATE donaciones SET monto = 2 WHERE id < 10").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_that_left_before_the_watermark_is_refused() {
    let mut w = World::with_rows(&[]).await;
    w.back_to_a_copy(true).await;
    w.promote().await;
    // Its WAL is longer than the one that the lake has followed: only the history tells them apart.
    w.rows(200, 20_000).await;
    assert!(lake_reader::lsn(&w.text("SELECT pg_current_wal_insert_lsn()::text").await) > w.through());
    w.refused(&["timeline 2 of the server does not descend from the lake's (timeline 1", "huella run --resnapshot"]);
    w.mended_by_resnapshot("UPDATE donaciones SET monto = 2 WHERE id < 10").await;
    assert_eq!(w.watermark().unwrap()["source"]["timeline"], 2);
    assert_eq!(w.watermark().unwrap()["tables"]["public.donaciones"]["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_after_the_watermark_is_followed_if_the_slot_came_along() {
    let mut w = World::with_rows(&[]).await;
    let mut run = w.start(&["run"], &[]);
    w.rows(100, 200).await;
    w.caught_up().await;
    w.server.stop(FAST);
    w.server.become_standby();
    w.server.begin_again();
    w.reconnect().await;
    // While it is a standby nothing can be streamed from it; that passes.
    w.wait("an attempt at the standby", || w.log().contains("the server is a standby"));
    w.promote().await;
    w.rows(200, 300).await;
    w.caught_up().await;
    assert!(run.lives());
    w.true_in_the_lake().await;
    run.stop();
    let watermark = w.watermark().unwrap();
    assert_eq!((&watermark["source"]["timeline"], &watermark["tables"]["public.donaciones"]["version"]), (&2.into(), &1.into()));
    // And again to the next one, without the slot.
    w.server.stop(FAST);
    w.server.become_standby();
    w.server.begin_again();
    w.reconnect().await;
    w.promote().await;
    w.sql("SELECT pg_drop_replication_slot('huella'); UPDATE donaciones SET monto = 3 WHERE id < 10").await;
    w.refused(&["replication slot \"huella\" is missing", "huella run --resnapshot"]);
    w.mended_by_resnapshot("UPDATE donaciones SET monto = 4 WHERE id < 10").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_lost_to_the_wal_limit_is_refused() {
    let w = World::with_rows(&[("max_slot_wal_keep_size", "1MB")]).await;
    w.lose_the_slot().await;
    let lost = ["replication slot \"huella\" is lost", "max_slot_wal_keep_size", "huella run --resnapshot"];
    w.refused(&lost);
    w.mended_by_resnapshot("UPDATE donaciones SET monto = 2 WHERE id < 10").await;
    // The same while the program runs, but stands still.
    let run = w.start(&["run"], &[]);
    w.rows(100, 200).await;
    w.caught_up().await;
    run.signal(libc::SIGSTOP);
    w.wait("the program to stand still", || run.halted());
    w.lose_the_slot().await;
    let before = w.log().len();
    run.signal(libc::SIGCONT);
    assert_eq!(run.wait(), Some(4), "{}", w.log());
    w.last_error_says(before, &lost);
    w.mended_by_resnapshot("UPDATE donaciones SET monto = 3 WHERE id < 10").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_goes_while_the_program_runs_is_refused() {
    let w = World::with_rows(&[]).await;
    for (sql, says) in [
        ("DROP PUBLICATION huella", "publication \"huella\" is gone"),
        ("DROP PUBLICATION huella; CREATE PUBLICATION huella FOR TABLE donaciones", "was dropped and created again"),
        ("ALTER PUBLICATION huella SET (publish = 'insert')", "publication \"huella\" does not publish all operations"),
    ] {
        let run = w.start(&["run"], &[]);
        w.sql("UPDATE donaciones SET monto = monto + 1 WHERE id < 20").await;
        w.caught_up().await;
        let before = w.log().len();
        w.sql(&format!("BEGIN; {sql}; COMMIT; UPDATE donaciones SET monto = monto + 1 WHERE id < 30")).await;
        assert_eq!(run.wait(), Some(4), "{says}\n{}", w.log());
        w.last_error_says(before, &[says, "huella run --resnapshot"]);
        w.mended_by_resnapshot("UPDATE donaciones SET monto = monto + 1 WHERE id < 10").await;
    }
}

/// `initial = false` adopts a slot that may be older than the publication.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_younger_than_what_is_to_be_sent_is_refused() {
    let w = World::with(&[]).await;
    w.sql(DONACIONES).await;
    w.sql("SELECT pg_create_logical_replication_slot('huella', 'pgoutput')").await;
    w.rows(0, 100).await;
    std::fs::write(w.dir.path().join("huella.toml"), "[snapshot]\ninitial = false\n").unwrap();
    w.refused(&["publication \"huella\" is there, and was not when changes were written", "huella run --resnapshot"]);
    w.mended_by_resnapshot("UPDATE donaciones SET monto = 2 WHERE id < 10").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_mended_by_hand_still_means_a_new_copy() {
    let w = World::with_rows(&[]).await;
    w.sql("ALTER PUBLICATION huella SET (publish = 'insert'); UPDATE donaciones SET monto = 7").await;
    w.refused(&["does not publish all operations"]);
    let before = w.watermark().unwrap()["tables"]["public.donaciones"]["snapshot"].clone();
    w.sql("ALTER PUBLICATION huella SET (publish = 'insert, update, delete, truncate')").await;
    assert_eq!(w.run(CAUGHT_UP).0, 0, "{}", w.log());
    assert_ne!(w.watermark().unwrap()["tables"]["public.donaciones"]["snapshot"], before);
    w.true_in_the_lake().await;
}

/// Writes as long as it is told to, through every interruption of the server.
fn load(port: u16, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<u32> {
    tokio::spawn(async move {
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            let text = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
            if let Ok((client, connection)) = tokio_postgres::connect(&text, tokio_postgres::NoTls).await {
                tokio::spawn(connection);
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let sql = format!(
                        "BEGIN; INSERT INTO donaciones SELECT {n} * 10 + g, 'carga' FROM generate_series(1000, 1004) g ON CONFLICT DO NOTHING;
                         UPDATE donaciones SET monto = {n} WHERE id % 97 = {n} % 97; DELETE FROM donaciones WHERE id = {n} * 7; COMMIT"
                    );
                    if client.batch_execute(&sql).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        n
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn interruptions_of_the_source_pass_without_an_exit() {
    let mut w = World::with_rows(&[]).await;
    let mut run = w.start(&["run"], &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(w.server.port, stop.clone());
    for interruption in ["walsender", "fast", "walsender", "immediate", "every session", "immediate"] {
        let before = w.through();
        w.wait("progress", || w.through() > before);
        match interruption {
            "walsender" => w.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active").await,
            "every session" => {
                w.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')").await;
            }
            how => {
                w.server.stop(if how == "fast" { FAST } else { IMMEDIATE });
                w.server.begin_again();
                w.reconnect().await;
            }
        }
        let before = w.through();
        w.wait("progress again", || w.through() > before);
        w.slot_is_not_ahead().await;
        assert!(run.lives(), "{interruption}\n{}", w.log());
    }
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 100);
    w.caught_up().await;
    w.true_in_the_lake().await;
    assert_eq!(w.epoch(), 2, "a reconnection is no new claim");
    run.stop();
}

/// A server that shuts down waits until everything that it has sent is confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_of_the_server_does_not_wait_for_age_or_heartbeat() {
    let mut w = World::with_rows(&[("wal_sender_timeout", "10min")]).await;
    let run = w.start(&["run"], &[("HUELLA_BATCH_MAX_AGE", "24h"), ("HUELLA_BATCH_HEARTBEAT", "1h")]);
    for change in ["UPDATE donaciones SET monto = 2 WHERE id < 10", "CREATE TABLE ruido (x int); INSERT INTO ruido VALUES (1)"] {
        w.sql(change).await;
        let sent = "SELECT coalesce(bool_or(sent_lsn >= pg_current_wal_flush_lsn()), false) FROM pg_stat_replication";
        while !w.client.query_one(sent, &[]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        w.server.stop(FAST);
        w.server.begin_again();
        w.reconnect().await;
    }
    run.stop();
    assert_eq!(w.run(CAUGHT_UP).0, 0, "{}", w.log());
    w.true_in_the_lake().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_use_is_waited_for() {
    let w = World::with_rows(&[]).await;
    let options = ConnectOptions::parse(&w.url(), None).unwrap();
    let foreign = || async {
        let replication = Replication::connect(&options).await.unwrap();
        replication.start("huella", "huella", Lsn::ZERO, StreamSetup::default()).await.unwrap()
    };
    let holder = foreign().await;
    let mut run = w.start(&["run"], &[]);
    w.rows(100, 200).await;
    w.wait("the wait for the slot", || w.log().contains("the slot is in use by another writer"));
    assert!(run.lives());
    assert_eq!(w.epoch(), 1, "nothing is claimed without the slot");
    drop(holder);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
    // One that does not leave, and commits nothing, is ended in the end.
    let _holder = foreign().await;
    let run = w.start(&["run"], &[]);
    w.rows(200, 300).await;
    w.wait("the end of the holder", || w.log().contains("ending its session"));
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}
