//! The whole program against a real server: what `huella run` leaves in a lake, whatever happens to it meanwhile.
//!
//! Two oracles: `huella verify` compares the state with the source cell by cell; `Lake::check` reads the commits
//! and the Parquet files on its own and proves that the chain has no gap and no change stands twice.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod private_server;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use private_server::Server;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    server: Server,
    client: Client,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(settings: &[(&str, &str)]) -> Self {
        let mut all = vec![("wal_level", "logical"), ("wal_sender_timeout", "3s")];
        all.extend_from_slice(settings);
        let server = Server::start(&all).unwrap();
        let client = server.connect().await;
        client.batch_execute("SET search_path = public").await.unwrap();
        Self { server, client, dir: tempfile::tempdir().unwrap() }
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    fn lake(&self) -> PathBuf {
        self.dir.path().join("lake")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_huella"));
        for (key, _) in std::env::vars().filter(|(k, _)| k.starts_with("HUELLA_") || k.starts_with("PG")) {
            command.env_remove(key);
        }
        command
            .args(["--log-format", "json"])
            .args(args)
            .current_dir(self.dir.path())
            .env("HUELLA_SOURCE_URL", format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.server.port))
            .env("HUELLA_LAKE_URL", self.lake())
            .env("HUELLA_HTTP_LISTEN", "")
            .env("HUELLA_BATCH_MAX_AGE", "150ms")
            .env("HUELLA_BATCH_HEARTBEAT", "1s");
        command
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn start(&self, args: &[&str], env: &[(&str, &str)]) -> Running {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = self.command(args).envs(env.iter().copied()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Running(child)
    }

    /// Runs to the end; exit code and standard output.
    fn run(&self, args: &[&str]) -> (i32, String) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let output = self.command(args).stderr(log).output().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn watermark(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.lake().join("watermark.json")).ok()?).ok()
    }

    fn through(&self) -> u64 {
        self.watermark().and_then(|w| Some(lsn(w["through"].as_str()?))).unwrap_or(0)
    }

    /// Waits until all that is committed now is in the lake and no table waits for a copy.
    async fn caught_up(&self) {
        let row = self.client.query_one("SELECT pg_catalog.pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
        let target = lsn(row.get(0));
        self.wait("the lake to catch up", || {
            let pending = self.watermark().is_some_and(|w| w["tables"].as_object().unwrap().values().any(|t| t.get("pending").is_some()));
            self.through() >= target && !pending
        });
    }

    fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < limit, "waited for {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Both oracles.
    async fn true_in_the_lake(&self) {
        let (code, out) = self.run(&["verify"]);
        assert_eq!(code, 0, "{out}\n{}", self.log());
        let row =
            self.client.query_one("SELECT confirmed_flush_lsn::text FROM pg_catalog.pg_replication_slots WHERE slot_name = 'huella'", &[]);
        let confirmed = lsn(row.await.unwrap().get(0));
        let through = self.through();
        assert!(confirmed <= through, "the slot was acknowledged beyond the watermark");
        check_commits(&self.lake(), &self.watermark().unwrap());
    }

    fn rows(&self, table: &str) -> Vec<(String, i64, i64)> {
        let mut rows = Vec::new();
        for file in live(&self.lake(), &self.watermark().unwrap(), table) {
            rows.extend(keys(&self.lake().join(file)));
        }
        rows
    }
}

struct Running(Child);

impl Running {
    fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and not yet reaped.
        unsafe { libc::kill(self.0.id() as i32, signal) };
    }

    fn wait(mut self) -> Option<i32> {
        let limit = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < limit, "the process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(self) {
        self.signal(libc::SIGTERM);
        assert_eq!(self.wait(), Some(0), "SIGTERM ends with 0");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

fn chain(lake: &Path, watermark: &Value) -> Vec<Value> {
    let mut commits = Vec::new();
    let mut next = watermark["commit"].as_str().map(str::to_owned);
    while let Some(path) = next {
        let manifest: Value = serde_json::from_slice(&std::fs::read(lake.join(path)).unwrap()).unwrap();
        next = manifest["previous"].as_str().map(str::to_owned);
        commits.push(manifest);
    }
    commits.reverse();
    commits
}

fn live(lake: &Path, watermark: &Value, table: &str) -> Vec<String> {
    let version = &watermark["tables"][table]["version"];
    let files = chain(lake, watermark).into_iter().flat_map(|m| m["files"].as_array().unwrap().clone());
    files.filter(|f| f["table"] == table && f["version"] == *version).map(|f| f["path"].as_str().unwrap().to_owned()).collect()
}

/// `_op`, `_commit_lsn`, `_seq` of every row, in order.
fn keys(path: &Path) -> Vec<(String, i64, i64)> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap().build().unwrap();
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let (op, at, seq) =
            (batch.column_by_name("_op").unwrap(), batch.column_by_name("_commit_lsn").unwrap(), batch.column_by_name("_seq").unwrap());
        for i in 0..batch.num_rows() {
            rows.push((
                op.as_string::<i32>().value(i).to_owned(),
                at.as_primitive::<Int64Type>().value(i),
                seq.as_primitive::<Int64Type>().value(i),
            ));
        }
    }
    rows
}

/// The chain has no gap; files are as named; no change stands twice; every change lies in its commit's range.
fn check_commits(lake: &Path, watermark: &Value) {
    let mut before: Option<u64> = None;
    let mut seen = BTreeSet::new();
    for manifest in chain(lake, watermark) {
        let (after, through) = (lsn(manifest["after"].as_str().unwrap()), lsn(manifest["through"].as_str().unwrap()));
        assert!(before.is_none_or(|b| b == after) || manifest["reset"] == true, "a gap before {manifest}");
        before = Some(through);
        for file in manifest["files"].as_array().unwrap() {
            let path = lake.join(file["path"].as_str().unwrap());
            assert_eq!(std::fs::metadata(&path).unwrap().len(), file["bytes"].as_u64().unwrap());
            let rows = keys(&path);
            assert_eq!(rows.len() as u64, file["rows"].as_u64().unwrap());
            for (op, at, seq) in rows {
                if file["kind"] == "snapshot" {
                    assert!(at as u64 <= through, "a snapshot above its commit");
                    continue;
                }
                assert!((after..through).contains(&(at as u64)), "{op} at {at} outside {after}..{through}");
                assert!(seen.insert((file["table"].as_str().unwrap().to_owned(), at, seq)), "({at}, {seq}) stands twice");
            }
        }
    }
    assert!(before.is_none_or(|b| b == lsn(watermark["through"].as_str().unwrap())));
}

const DONACIONES: &str = "CREATE TABLE donaciones (id int PRIMARY KEY, donante text, monto numeric(12,2), fecha date, creado timestamptz DEFAULT now(), ok bool)";

#[tokio::test(flavor = "multi_thread")]
async fn every_order_of_changes_is_true_in_the_lake() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("CREATE TABLE par (b int, a text, v text, PRIMARY KEY (a, b)); CREATE TABLE sin_clave (x int, y text); ALTER TABLE sin_clave REPLICA IDENTITY FULL").await;
    w.sql("INSERT INTO donaciones SELECT i, 'd' || i, i * 1.5, DATE '2024-01-01' + i, now(), i % 2 = 0 FROM generate_series(1, 500) i")
        .await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("INSERT INTO donaciones VALUES (1001, 'ana')").await;
    w.sql("UPDATE donaciones SET monto = 7 WHERE id = 1001; DELETE FROM donaciones WHERE id = 1001").await;
    w.sql("BEGIN; INSERT INTO donaciones VALUES (1002, 'x'); DELETE FROM donaciones WHERE id = 1002; INSERT INTO donaciones VALUES (1002, 'y'); COMMIT").await;
    w.sql("BEGIN; INSERT INTO donaciones VALUES (1003, 'x'); DELETE FROM donaciones WHERE id = 1003; COMMIT").await;
    w.sql("BEGIN; INSERT INTO donaciones VALUES (1004, 'nunca'); ROLLBACK").await;
    for i in 0..50 {
        w.sql(&format!("UPDATE donaciones SET monto = {i} WHERE id = 3")).await;
    }
    w.sql("UPDATE donaciones SET id = 2001 WHERE id = 4; UPDATE donaciones SET id = id WHERE id = 5").await;
    w.sql("INSERT INTO par VALUES (1, 'k', 'v'), (2, 'k', 'v'); UPDATE par SET b = 3 WHERE b = 2; UPDATE par SET v = 'w' WHERE b = 1")
        .await;
    w.sql("INSERT INTO sin_clave SELECT i % 3, 'y' FROM generate_series(1, 9) i; UPDATE sin_clave SET y = 'z' WHERE x = 1; DELETE FROM sin_clave WHERE x = 2").await;
    w.sql("BEGIN; CREATE TEMP TABLE t (i int); COMMIT").await;
    w.sql("INSERT INTO donaciones SELECT i, 'copia', 1, NULL, NULL, NULL FROM generate_series(10001, 20000) i").await;
    // B commits before A though A began first.
    let other = w.server.connect().await;
    other.batch_execute("BEGIN; INSERT INTO public.donaciones VALUES (3001, 'A')").await.unwrap();
    w.sql("INSERT INTO donaciones VALUES (3002, 'B')").await;
    other.batch_execute("COMMIT").await.unwrap();
    w.caught_up().await;
    w.true_in_the_lake().await;
    let rows = w.rows("public.donaciones");
    assert!(!rows.iter().any(|(op, _, _)| op == "ROLLBACK"));
    let copied: BTreeSet<i64> = rows.iter().filter(|(op, _, seq)| op == "INSERT" && *seq > 1).map(|(_, _, seq)| *seq).collect();
    assert!(copied.contains(&10_000), "10,000 rows of one statement have 10,000 ordinals");
    w.sql("TRUNCATE donaciones, par; INSERT INTO donaciones VALUES (1, 'nuevo')").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn values_left_out_for_toast_keep_their_last_known_cell() {
    let w = World::new().await;
    w.sql("CREATE TABLE textos (id int PRIMARY KEY, n int, largo text, datos jsonb, bytes bytea); CREATE TABLE enteros (LIKE textos INCLUDING ALL); ALTER TABLE enteros REPLICA IDENTITY FULL").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let long = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 3200) i)";
    for table in ["textos", "enteros"] {
        w.sql(&format!("INSERT INTO {table} SELECT i, 0, {long}, to_jsonb({long}), decode({long}, 'hex') FROM generate_series(1, 4) i"))
            .await;
        w.sql(&format!("UPDATE {table} SET n = n + 1; UPDATE {table} SET largo = NULL WHERE id = 2; UPDATE {table} SET id = 10, n = 9 WHERE id = 3; UPDATE {table} SET largo = 'corto' WHERE id = 4; UPDATE {table} SET n = 5 WHERE id = 10")).await;
    }
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_during_the_first_copy_win_over_it() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("INSERT INTO donaciones SELECT i, 'd' || i, i, NULL, now(), true FROM generate_series(1, 60000) i").await;
    let run = w.start(&["run"], &[]);
    w.wait("the first watermark", || w.watermark().is_some());
    for i in 0..40 {
        w.sql(&format!("UPDATE donaciones SET monto = -1 WHERE id % 50 = {i}; DELETE FROM donaciones WHERE id = {i}; INSERT INTO donaciones VALUES ({}, 'n')", 70000 + i)).await;
    }
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_killed_at_any_step_goes_on() {
    for point in [
        "start.after_create",
        "start.after_slot",
        "start.after_import",
        "start.after_promote",
        "start.after_ready",
        "snapshot.after_first_file",
        "snapshot.after_files",
        "snapshot.after_commit",
    ] {
        let w = World::new().await;
        w.sql(DONACIONES).await;
        w.sql("INSERT INTO donaciones SELECT i, 'd', i, NULL, now(), true FROM generate_series(1, 500) i").await;
        let killed = w.start(&["run"], &[("HUELLA_FAILPOINT", &format!("{point}=abort"))]);
        assert_eq!(killed.wait(), None, "{point} must be passed\n{}", w.log());
        w.sql("UPDATE donaciones SET monto = 0 WHERE id < 9; DELETE FROM donaciones WHERE id = 10").await;
        let run = w.start(&["run"], &[]);
        w.caught_up().await;
        w.true_in_the_lake().await;
        run.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_killed_at_any_step_of_a_commit_loses_and_repeats_nothing() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.start(&["run", "--until-caught-up"], &[]).wait();
    let mut id = 0;
    for point in [
        "claim.before_cas",
        "claim.after_cas",
        "commit.after_data",
        "commit.after_manifest",
        "commit.after_cas",
        "commit.before_ack",
        "commit.after_ack",
    ] {
        let killed = w.start(&["run"], &[("HUELLA_FAILPOINT", &format!("{point}=abort"))]);
        id += 100;
        w.sql(&format!(
            "INSERT INTO donaciones SELECT i, 'd' FROM generate_series({id}, {id} + 20) i; UPDATE donaciones SET monto = 1 WHERE id = {id}"
        ))
        .await;
        assert_eq!(killed.wait(), None, "{point} must be passed\n{}", w.log());
    }
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_replies_of_the_lake_lose_and_repeat_nothing() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.start(&["run", "--until-caught-up"], &[]).wait();
    let mut id = 0;
    for fault in [
        "put_new:tables/@1=lose",
        "put_new:commits/@1=lose",
        "replace_if:watermark.json@1=lose",
        "replace_if:watermark.json@2=lose",
        "replace_if:watermark.json@2=conflict",
        "replace_if:watermark.json@2=refuse",
        "put_new:tables/@1..3=refuse",
        "replace_if:watermark.json@2=late(700ms)",
    ] {
        let run = w.start(&["run"], &[("HUELLA_FAULTS", fault)]);
        id += 100;
        w.sql(&format!(
            "INSERT INTO donaciones SELECT i, 'd' FROM generate_series({id}, {id} + 20) i; UPDATE donaciones SET monto = 1 WHERE id = {id}"
        ))
        .await;
        w.caught_up().await;
        w.true_in_the_lake().await;
        run.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_refuses_for_long_stops_nothing_for_good() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.start(&["run", "--until-caught-up"], &[]).wait();
    let run = w.start(&["run"], &[("HUELLA_FAULTS", "put_new=refuse<8s")]);
    w.wait("the take-over", || w.watermark().is_some_and(|m| m["epoch"] == 2));
    let through = w.through();
    let active = || async {
        w.client
            .query_one("SELECT active_pid, confirmed_flush_lsn::text FROM pg_catalog.pg_replication_slots WHERE slot_name = 'huella'", &[])
            .await
            .unwrap()
    };
    let pid: Option<i32> = active().await.get(0);
    w.sql("INSERT INTO donaciones SELECT i, 'd' FROM generate_series(1, 3000) i").await;
    tokio::time::sleep(Duration::from_secs(6)).await; // longer than wal_sender_timeout: that is the claim
    let row = active().await;
    assert_eq!(row.get::<_, Option<i32>>(0), pid, "the connection is kept");
    assert!(lsn(row.get(1)) <= through, "the slot has not moved");
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn random_kills_under_load_lose_and_repeat_nothing() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("CREATE TABLE casos (id int PRIMARY KEY, estado text)").await;
    let (port, stop) = (w.server.port, std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let stopped = stop.clone();
    let load = tokio::spawn(async move {
        let (client, connection) =
            tokio_postgres::connect(&format!("host=127.0.0.1 port={port} user=postgres dbname=postgres"), tokio_postgres::NoTls)
                .await
                .unwrap();
        tokio::spawn(connection);
        let mut i = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            i += 1;
            let sql = format!(
                "BEGIN; INSERT INTO donaciones SELECT {i} * 10 + g, 'd' FROM generate_series(0, 6) g; UPDATE donaciones SET monto = {i} WHERE id % 97 = {i} % 97;
                 INSERT INTO casos VALUES ({i}, 'a') ON CONFLICT DO NOTHING; DELETE FROM donaciones WHERE id = {i} * 7; COMMIT; {}",
                if i % 60 == 0 { "TRUNCATE casos;" } else { "" }
            );
            client.batch_execute(&sql).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    let mut random = 20_261_124u64;
    for _ in 0..20 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let run = w.start(&["run"], &[]);
        tokio::time::sleep(Duration::from_millis(100 + (random >> 33) % 900)).await;
        run.signal(libc::SIGKILL);
        run.wait();
    }
    let run = w.start(&["run"], &[]);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    load.await.unwrap();
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_writer_is_fenced_and_nothing_is_lost() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.start(&["run", "--until-caught-up"], &[]).wait();
    let old = w.start(&["run"], &[("HUELLA_FAILPOINT", "commit.after_manifest=stop")]);
    w.sql("INSERT INTO donaciones VALUES (1, 'a')").await;
    w.wait("an orphan manifest", || {
        std::fs::read_dir(w.lake().join("commits")).is_ok_and(|d| d.flatten().any(|e| e.file_name().to_string_lossy().contains("e000002")))
    });
    // The stalled one's session is ended by the server (wal_sender_timeout); the new one gets the slot.
    let new = w.start(&["run"], &[]);
    w.wait("the new writer's claim", || w.watermark().is_some_and(|m| m["epoch"] == 3));
    w.sql("INSERT INTO donaciones VALUES (2, 'b')").await;
    w.caught_up().await;
    old.signal(libc::SIGCONT);
    assert_eq!(old.wait(), Some(6), "{}", w.log());
    w.sql("INSERT INTO donaciones VALUES (3, 'c')").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    new.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_refused_and_resnapshot_mends_them() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("INSERT INTO donaciones VALUES (1, 'a')").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    let holes: BTreeMap<&str, &str> = BTreeMap::from([
        ("1 dropped", "SELECT pg_drop_replication_slot('huella')"),
        ("2 ahead", "INSERT INTO donaciones VALUES (20, 'x'); SELECT pg_replication_slot_advance('huella', pg_current_wal_lsn())"),
        ("3 publication gone", "DROP PUBLICATION huella"),
        (
            "4 publication made again",
            "DROP PUBLICATION huella; INSERT INTO donaciones VALUES (40, 'x'); CREATE PUBLICATION huella FOR TABLE donaciones",
        ),
        ("5 not all operations", "ALTER PUBLICATION huella SET (publish = 'insert')"),
    ]);
    for (hole, sql) in holes {
        w.sql(sql).await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 4, "{hole}\n{}", w.log());
        assert_eq!(w.run(&["run", "--until-caught-up", "--resnapshot"]).0, 0, "{hole}\n{}", w.log());
        w.sql(&format!("UPDATE donaciones SET donante = '{hole}'")).await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{hole}\n{}", w.log());
        w.true_in_the_lake().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_publication_means_a_new_copy() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("INSERT INTO donaciones VALUES (1, 'a')").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    for edit in [
        "ALTER PUBLICATION huella SET (publish = 'insert'); UPDATE donaciones SET donante = 'perdido'; ALTER PUBLICATION huella SET (publish = 'insert, update, delete, truncate')",
        "ALTER PUBLICATION huella DROP TABLE donaciones; UPDATE donaciones SET donante = 'otra vez'; ALTER PUBLICATION huella ADD TABLE donaciones",
    ] {
        let before = w.watermark().unwrap()["tables"]["public.donaciones"]["snapshot"].clone();
        w.sql(&format!("BEGIN; {edit}; COMMIT")).await;
        w.wait("a new copy", || w.watermark().is_some_and(|m| m["tables"]["public.donaciones"]["snapshot"] != before));
        w.caught_up().await;
        w.true_in_the_lake().await;
    }
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_that_change_keep_or_begin_versions_and_lose_nothing() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("INSERT INTO donaciones VALUES (1, 'a', 1)").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let version = || w.watermark().unwrap()["tables"]["public.donaciones"]["version"].clone();
    w.sql("ALTER TABLE donaciones ADD nota text; INSERT INTO donaciones (id, nota) VALUES (2, 'n')").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    assert_eq!(version(), 1, "a nullable column at the end stays in the version");
    w.sql("ALTER TABLE donaciones DROP fecha; INSERT INTO donaciones (id, nota) VALUES (3, 'n')").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    assert_eq!(version(), 1, "a dropped column stays in the version");
    w.sql("ALTER TABLE donaciones ALTER monto TYPE text; INSERT INTO donaciones (id, monto) VALUES (4, 'mucho')").await;
    w.wait("version 2", || version() == 2);
    w.caught_up().await;
    w.true_in_the_lake().await;
    w.sql("ALTER TABLE donaciones RENAME donante TO quien; INSERT INTO donaciones (id, quien) VALUES (5, 'q')").await;
    w.wait("version 3", || version() == 3);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_lake_gets_positions_and_no_files() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("CREATE TABLE ruido (x int)").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let (before, commits) = (w.through(), chain(&w.lake(), &w.watermark().unwrap()).len());
    w.sql("INSERT INTO ruido SELECT generate_series(1, 1000)").await;
    w.caught_up().await;
    assert!(w.through() > before, "WAL of an unpublished table moves the position");
    let added: usize = chain(&w.lake(), &w.watermark().unwrap())[commits..].iter().map(|m| m["files"].as_array().unwrap().len()).sum();
    assert_eq!(added, 0);
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_transaction_has_the_same_order_keys() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("CREATE TABLE otra (id int PRIMARY KEY)").await;
    w.start(&["run", "--until-caught-up"], &[]).wait();
    // Killed with its files written and its manifest there, but before the watermark: the next one sends all again.
    let killed = w.start(&["run"], &[("HUELLA_FAILPOINT", "commit.after_manifest=abort")]);
    w.sql("BEGIN; INSERT INTO otra VALUES (1); INSERT INTO donaciones SELECT i, 'd' FROM generate_series(1, 50) i; UPDATE donaciones SET id = id + 1000 WHERE id < 5; DELETE FROM otra; DELETE FROM donaciones WHERE id = 7; COMMIT").await;
    assert_eq!(killed.wait(), None);
    let orphans = |epoch: &str| {
        let mut keyed = BTreeSet::new();
        for table in ["public.donaciones", "public.otra"] {
            let folder = w.lake().join("tables").join(table).join("v1");
            for day in std::fs::read_dir(folder).unwrap().flatten().filter(|d| d.path().is_dir()) {
                for file in std::fs::read_dir(day.path()).unwrap().flatten().filter(|f| f.file_name().to_string_lossy().contains(epoch)) {
                    keyed.extend(keys(&file.path()).into_iter().map(|key| (table, key)));
                }
            }
        }
        keyed
    };
    let first = orphans("-e000002-");
    assert!(first.len() > 50);
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    assert_eq!(first, orphans("-e000003-"));
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn excluded_and_hashed_columns_reach_no_file_and_no_log() {
    let w = World::new().await;
    w.sql("CREATE TABLE donantes (id int PRIMARY KEY, nombre text, cedula text, notas text); ALTER TABLE donantes REPLICA IDENTITY FULL")
        .await;
    w.sql("INSERT INTO donantes VALUES (1, 'ana', 'CEDULASECRETA1', 'NOTASECRETA1')").await;
    std::fs::write(w.dir.path().join("huella.toml"), "[[table]]\nname = \"public.donantes\"\nexclude = [\"notas\"]\nhash = [\"cedula\"]\n")
        .unwrap();
    let key = [("HUELLA_HASH_KEY", "una clave bastante larga"), ("HUELLA_LOG", "trace")];
    let run = w.start(&["run"], &key);
    w.caught_up().await;
    w.sql("INSERT INTO donantes VALUES (2, 'eva', 'CEDULASECRETA1', 'NOTASECRETA2'); UPDATE donantes SET notas = 'NOTASECRETA3'; DELETE FROM donantes WHERE id = 1").await;
    w.caught_up().await;
    run.stop();
    let mut hashes = BTreeSet::new();
    for file in live(&w.lake(), &w.watermark().unwrap(), "public.donantes") {
        let bytes = std::fs::read(w.lake().join(&file)).unwrap();
        assert!(!bytes.windows(7).any(|b| b == b"SECRETA"), "{file}");
        let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(w.lake().join(&file)).unwrap()).unwrap().build().unwrap();
        for batch in reader {
            let batch = batch.unwrap();
            assert!(batch.column_by_name("notas").is_none());
            let column = batch.column_by_name("cedula").unwrap().as_string::<i32>().clone();
            hashes.extend(column.iter().flatten().map(str::to_owned));
        }
    }
    assert_eq!(hashes.len(), 1, "the same value has the same hash in copy and stream");
    assert!(!w.log().contains("SECRETA") && !w.log().contains("una clave bastante"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_the_batch_becomes_visible_at_once() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.start(&["run", "--until-caught-up"], &[]).wait();
    let run = w.start(&["run"], &[("HUELLA_BATCH_MAX_BYTES", "256KiB"), ("HUELLA_BATCH_MEMORY", "8MiB"), ("HUELLA_BATCH_MAX_AGE", "1h")]);
    w.sql("INSERT INTO donaciones SELECT i, md5(i::text) FROM generate_series(1, 30000) i").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    let commits: Vec<usize> =
        chain(&w.lake(), &w.watermark().unwrap()).iter().map(|m| m["files"].as_array().unwrap().len()).filter(|n| *n > 1).collect();
    assert!(commits.len() == 1 && commits[0] > 5, "its parts are named by one commit: {commits:?}");
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_is_refused_and_resnapshot_begins_new_versions() {
    let (w, other) = (World::new().await, World::new().await);
    for world in [&w, &other] {
        world.sql(DONACIONES).await;
        world.sql("INSERT INTO donaciones VALUES (1, 'a')").await;
    }
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    std::fs::rename(w.lake(), other.lake()).unwrap();
    assert_eq!(other.run(&["run", "--until-caught-up"]).0, 4, "{}", other.log());
    assert_eq!(other.run(&["run", "--until-caught-up", "--resnapshot"]).0, 0, "{}", other.log());
    let watermark = other.watermark().unwrap();
    assert_eq!(watermark["tables"]["public.donaciones"]["version"], 2);
    assert_eq!(chain(&other.lake(), &watermark).iter().filter(|m| m["reset"] == true).count(), 1);
    other.true_in_the_lake().await;
}
