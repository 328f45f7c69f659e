//! Failover slots: asked for, made, shown; and refused where the server has none.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use serde_json::Value;
use std::fmt::Write;
use std::process::{Child, Command, Stdio};
use tokio_postgres::{Client, NoTls};
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

/// A standby of the world's server, made from a copy of its files.
struct Standby {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Standby {
    async fn of(w: &World) -> Self {
        let data: String = w.client.query_one("SHOW data_directory", &[]).await.unwrap().get(0);
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("data");
        w.sql("SELECT pg_create_physical_replication_slot('standby_1', true)").await;
        w.client.query_one("SELECT pg_backup_start('standby', true)::text", &[]).await.unwrap();
        let copied = Command::new("cp").args(["-a", &data]).arg(&copy).stderr(Stdio::null()).status();
        copied.unwrap(); // files that vanish meanwhile are no fault
        let label: String = w.client.query_one("SELECT labelfile FROM pg_backup_stop(false)", &[]).await.unwrap().get(0);
        std::fs::remove_file(copy.join("postmaster.pid")).unwrap();
        std::fs::write(copy.join("backup_label"), label).unwrap();
        std::fs::write(copy.join("standby.signal"), "").unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut conf = std::fs::read_to_string(copy.join("postgresql.conf")).unwrap();
        let primary = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", w.server.port);
        write!(conf, "port = {port}\nprimary_conninfo = '{primary}'\nprimary_slot_name = 'standby_1'\nhot_standby_feedback = on\nsync_replication_slots = on\nsynchronized_standby_slots = ''\nwal_receiver_status_interval = 1s\n").unwrap();
        std::fs::write(copy.join("postgresql.conf"), conf).unwrap();
        for name in [dir.path().to_owned(), copy.join("backup_label"), copy.join("standby.signal"), copy.join("postgresql.conf")] {
            let chown = Command::new("chown").arg(format!("--reference={data}")).arg(name).status().unwrap();
            assert!(chown.success());
        }
        let program = private_server::bin_dir().unwrap().join("postgres");
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = private_server::command(&program).arg("-D").arg(&copy).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { process, port, _dir: dir }
    }

    async fn connect(&self) -> Client {
        let url = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port);
        for _ in 0..600 {
            if let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await {
                tokio::spawn(connection);
                client.batch_execute("SET search_path = public").await.unwrap();
                return client;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("the standby does not answer: {}", std::fs::read_to_string(self._dir.path().join("log")).unwrap());
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        // SAFETY: the child is ours and not yet reaped.
        unsafe { libc::kill(self.process.id() as i32, libc::SIGQUIT) };
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_is_followed_where_the_primary_left_off() {
    let w = World::with(&[("max_slot_wal_keep_size", "4GB")]).await;
    if huella::postgres::server::version(&w.client).await.unwrap() < 170_000 {
        eprintln!("SKIPPED: failover slots came with PostgreSQL 17, and this server is older");
        return;
    }
    w.sql("CREATE TABLE donaciones (id int PRIMARY KEY, nota text); INSERT INTO donaciones VALUES (1, 'a')").await;
    let standby = Standby::of(&w).await;
    let there = standby.connect().await;
    w.sql("ALTER SYSTEM SET synchronized_standby_slots = 'standby_1'").await;
    w.sql("SELECT pg_reload_conf()").await;
    let asked = [("HUELLA_SOURCE_FAILOVER", "true")];
    let run = w.start(&["run"], &asked);
    w.caught_up().await;
    // The standby takes the slot over once the primary's has passed the point from which it can.
    let mut id = 1;
    loop {
        id += 1;
        w.sql(&format!("INSERT INTO donaciones VALUES ({id}, 'b'); SELECT pg_log_standby_snapshot()")).await;
        w.caught_up().await;
        let synced = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = 'huella'";
        if there.query_opt(synced, &[]).await.unwrap().is_some_and(|row| row.get(0)) {
            break;
        }
        assert!(id < 300, "the standby has no slot\n{}", std::fs::read_to_string(standby._dir.path().join("log")).unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    run.stop();
    let snapshot = |w: &World| w.watermark().unwrap()["tables"]["public.donaciones"]["snapshot"].clone();
    let copied = snapshot(&w);
    loop {
        let received = there.query_one("SELECT pg_last_wal_receive_lsn()::text", &[]).await.unwrap();
        if lake_reader::lsn(received.get(0)) >= w.through() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let World { server, client, dir, .. } = w;
    drop(client);
    drop(server);
    there.query_one("SELECT pg_promote()", &[]).await.unwrap();
    there.batch_execute("INSERT INTO donaciones VALUES (1000, 'nueva'); DELETE FROM donaciones WHERE id = 1").await.unwrap();
    let url = format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", standby.port);
    let huella = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_huella"));
        command.args(args).current_dir(dir.path()).env("HUELLA_SOURCE_URL", &url).env("HUELLA_LAKE_URL", dir.path().join("lake"));
        let output = command.env("HUELLA_HTTP_LISTEN", "").envs(asked).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = huella(&["run", "--until-caught-up"]);
    assert!(code == Some(0) && said.contains("promoted to a new timeline"), "{said}");
    let (code, said) = huella(&["verify"]);
    assert_eq!(code, Some(0), "{said}");
    let lake = lake_reader::Lake::read(&dir.path().join("lake")).unwrap();
    lake.assert_exactly_once();
    lake.assert_equals_source(&there, "public.donaciones", &[]).await;
    assert_eq!(lake.watermark["tables"]["public.donaciones"]["snapshot"], copied, "nothing was copied anew");
    assert_eq!(lake.watermark["source"]["timeline"], 2);
}
