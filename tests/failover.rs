//! Failover slots: asked for, made, shown; and refused where the server has none.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use serde_json::Value;
use world::World;

async fn slot_fails_over(w: &World) -> bool {
    w.client.query_one("SELECT failover FROM pg_replication_slots WHERE slot_name = 'huella'", &[]).await.unwrap().get(0)
}

fn json(w: &World, args: &[&str], env: &[(&str, &str)]) -> (i32, Value) {
    let output = w.command(args).envs(env.iter().copied()).output().unwrap();
    (output.status.code().unwrap_or(-1), serde_json::from_slice(&output.stdout).unwrap())
}

fn finding(document: &Value, code: &str) -> Option<Value> {
    document["findings"].as_array().unwrap().iter().find(|f| f["code"] == code).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_kept_in_step_on_standbys_if_that_is_asked_for() {
    let w = World::with(&[("max_slot_wal_keep_size", "4GB"), ("wal_sender_timeout", "30s")]).await;
    w.sql("CREATE TABLE donaciones (id int PRIMARY KEY, nota text); INSERT INTO donaciones VALUES (1, 'a')").await;
    let asked = [("HUELLA_SOURCE_FAILOVER", "true")];
    let version = huella::postgres::server::version(&w.client).await.unwrap();
    if version < 170_000 {
        let output = w.command(&["run"]).envs(asked).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(3) && log.contains("needs PostgreSQL 17"), "{log}");
        assert!(w.watermark().is_none(), "nothing was begun");
        let (code, check) = json(&w, &["check", "--json"], &asked);
        assert!(code == 7 && finding(&check, "slot-failover-version").is_some(), "{check}");
        // Of a lake that stands as well, before the server sees a command that it does not know.
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        assert_eq!(w.command(&["run"]).envs(asked).output().unwrap().status.code(), Some(3));
        eprintln!("SKIPPED: failover slots came with PostgreSQL 17, and this server is {}; only the refusal was tried", version / 10_000);
        return;
    }
    let (_, check) = json(&w, &["check", "--json"], &asked);
    assert!(finding(&check, "slot-failover").is_some() && finding(&check, "slot-failover-ahead").is_some(), "{check}");

    let run = w.start(&["run"], &asked);
    w.caught_up().await;
    assert!(slot_fails_over(&w).await);
    let (_, status) = json(&w, &["status", "--json"], &[]);
    assert_eq!(status["slot"]["failover"], true, "{status}");
    assert!(w.run(&["status"]).1.contains("kept in step on standbys"));
    w.sql("INSERT INTO donaciones VALUES (2, 'b')").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();

    // Not asked for any more: left as it is, and said. A slot of before: changed at the next start.
    let (_, check) = json(&w, &["check", "--json"], &[]);
    assert!(finding(&check, "slot-failover").unwrap()["message"].as_str().unwrap().contains("left as it is"), "{check}");
    assert_eq!(w.run(&["run", "--until-caught-up", "--resnapshot"]).0, 0, "{}", w.log());
    assert!(!slot_fails_over(&w).await, "a new slot, and failover was not asked for");
    let run = w.start(&["run"], &asked);
    w.sql("INSERT INTO donaciones VALUES (3, 'c')").await;
    w.caught_up().await;
    assert!(slot_fails_over(&w).await);
    w.true_in_the_lake().await;
    run.stop();
}
