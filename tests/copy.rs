//! Copies of whole tables against a real server: pieces, locks, failures, privileges.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use huella::error::Kind;
use huella::postgres::{ConnectOptions, CopySession, Replication, sqlstate};
use lake_reader::lsn;
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::Client;
use world::World;

/// About 12 MiB in not many rows: enough for several ranges.
const GRANDE: &str = "CREATE TABLE grande (id int PRIMARY KEY, n int, texto text);
    INSERT INTO grande SELECT i, i % 7, (SELECT string_agg(md5((i * 31 + k)::text), '') FROM generate_series(1, 30) k) FROM generate_series(1, 12000) i";

fn options(w: &World, user: &str) -> ConnectOptions {
    ConnectOptions::parse(&format!("postgresql://{user}@127.0.0.1:{}/postgres?sslmode=disable", w.server.port), None).unwrap()
}

async fn text(client: &Client, sql: &str) -> String {
    let rows = client.simple_query(sql).await.unwrap();
    let cells = rows.iter().filter_map(|m| if let tokio_postgres::SimpleQueryMessage::Row(row) = m { row.get(0) } else { None });
    cells.collect::<Vec<_>>().join("\n")
}

/// Waits until the process has stopped itself at a failpoint.
fn stopped(w: &World, run: &world::Running) {
    let status = format!("/proc/{}/status", run.id());
    w.wait("the process to stop", || std::fs::read_to_string(&status).is_ok_and(|s| s.contains("State:\tT")));
}

fn files_on_disk(w: &World, table: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![w.lake().join("tables").join(table)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.retain(|path| path.extension().is_some_and(|e| e == "parquet"));
    found
}

fn snapshot(w: &World, table: &str) -> u64 {
    w.watermark().and_then(|m| Some(lsn(m["tables"][table]["snapshot"].as_str()?))).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_is_copied_in_ranges_of_ctids_by_all_workers() {
    let w = World::with(&[("session_preload_libraries", "auto_explain"), ("auto_explain.log_min_duration", "0")]).await;
    w.sql(GRANDE).await;
    w.sql("CREATE TABLE vacia (id int PRIMARY KEY)").await;
    let env = [("HUELLA_SNAPSHOT_WORKERS", "3"), ("HUELLA_BATCH_MEMORY", "72MiB")];
    let run = w.start(&["run"], &env);
    w.caught_up().await;
    // Before the oracles scan the table themselves.
    let log = text(&w.client, "SELECT pg_read_file(current_setting('data_directory') || '/../log')").await;
    assert!(log.matches("Tid Range Scan on grande").count() >= 5, "ranges are read by their ctids");
    assert!(log.contains("ctid >= ") && !log.contains("Seq Scan on grande"));
    w.true_in_the_lake().await;
    run.stop();
    let lake = w.read();
    let heads: Vec<_> = lake.live("public.grande").iter().map(|file| lake_reader::changes_in(file)[0].op.clone()).collect();
    assert!(heads.len() >= 2, "several workers, several files");
    assert_eq!(heads[0], "TRUNCATE", "the first file begins with the TRUNCATE row");
    assert!(heads[1..].iter().all(|op| op == "SNAPSHOT"));
    assert_eq!(lake.changes("public.vacia").iter().map(|c| (c.op.as_str(), c.seq)).collect::<Vec<_>>(), [("TRUNCATE", -1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_groups_and_files_stay_within_the_budget() {
    let w = World::new().await;
    w.sql(GRANDE).await;
    let env = [("HUELLA_SNAPSHOT_WORKERS", "64"), ("HUELLA_BATCH_MEMORY", "24MiB"), ("HUELLA_BATCH_MAX_BYTES", "4MiB")];
    let run = w.start(&["run"], &env);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
    let files = w.read().live("public.grande");
    assert_eq!(files.len(), 1, "a budget of 8 MiB has room for one worker");
    let groups = SerializedFileReader::new(std::fs::File::open(&files[0]).unwrap()).unwrap().metadata().num_row_groups();
    assert!(groups > 1, "{groups} row groups");
}

/// Without the locks the first two would lose rows, silently.
#[tokio::test(flavor = "multi_thread")]
async fn what_rewrites_a_table_waits_for_its_copy_to_end() {
    for point in ["start.after_import", "snapshot.between_ranges"] {
        let w = World::with(&[("wal_sender_timeout", "60s")]).await;
        w.sql(GRANDE).await;
        w.sql("DELETE FROM grande WHERE id % 3 = 0").await;
        let env = [("HUELLA_SNAPSHOT_WORKERS", "1"), ("HUELLA_FAILPOINT", &format!("{point}=stop"))];
        let run = w.start(&["run"], &env);
        stopped(&w, &run);
        let impatient = w.server.connect().await;
        impatient.batch_execute("SET lock_timeout = '300ms'").await.unwrap();
        for ddl in ["VACUUM FULL public.grande", "ALTER TABLE public.grande ALTER n TYPE int8", "TRUNCATE public.grande"] {
            let refused = impatient.batch_execute(ddl).await.expect_err(ddl);
            assert_eq!(refused.code().map(|c| c.code()), Some("55P03"), "{point}: {ddl}");
        }
        let port = w.server.port;
        let patient = tokio::spawn(async move {
            let text = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
            let (client, connection) = tokio_postgres::connect(&text, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client.batch_execute("VACUUM FULL grande").await.unwrap();
        });
        run.signal(libc::SIGCONT);
        patient.await.unwrap();
        w.caught_up().await;
        assert!(!w.log().contains("interrupted"), "one copy was enough\n{}", w.log());
        w.true_in_the_lake().await;
        run.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_lives_as_long_as_its_connection_is_silent() {
    let w = World::new().await;
    let mut worker = CopySession::connect(&options(&w, "postgres")).await.unwrap();
    let mut exporter = Replication::connect(&options(&w, "postgres")).await.unwrap();
    let slot = exporter.create_temporary_slot("prueba").await.unwrap();
    exporter.identify_system().await.unwrap();
    let import = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'", slot.snapshot);
    assert!(worker.rows(&import, "importing").await.is_err(), "one command, and the snapshot is gone");
}

/// Timeouts that a role or database sets would end the exporting session, the locks, or a long COPY.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_outlives_every_timeout_of_the_server() {
    let w = World::new().await;
    w.sql(GRANDE).await;
    for setting in ["idle_in_transaction_session_timeout", "idle_session_timeout", "statement_timeout"] {
        w.sql(&format!("ALTER DATABASE postgres SET {setting} = '700ms'")).await;
    }
    let mut session = CopySession::connect(&options(&w, "postgres")).await.unwrap();
    session.rows("SELECT pg_catalog.pg_sleep(1)", "waiting").await.unwrap();
    let run = w.start(&["run"], &[("HUELLA_FAILPOINT", "start.after_slot=stop")]);
    stopped(&w, &run);
    tokio::time::sleep(Duration::from_millis(1500)).await; // longer than the timeouts: that is the claim
    run.signal(libc::SIGCONT);
    w.caught_up().await;
    assert!(!w.log().contains("reconnecting after a pause") && !w.log().contains("interrupted"), "{}", w.log());
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_an_error_of_a_copy_and_never_a_filter() {
    let w = World::new().await;
    w.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); ALTER TABLE t ENABLE ROW LEVEL SECURITY").await;
    w.sql("CREATE ROLE lector LOGIN; GRANT SELECT ON t TO lector").await;
    let mut session = CopySession::connect(&options(&w, "lector")).await.unwrap();
    let error = match session.begin_copy("COPY (SELECT id FROM public.t) TO STDOUT (FORMAT binary)").await {
        Ok(()) => session.next().await.expect_err("a copy without the policy's rows"),
        Err(error) => error,
    };
    assert_eq!((error.kind(), sqlstate(&error)), (Kind::Source, Some("42501")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_worker_costs_its_table_alone() {
    let w = World::with(&[("wal_sender_timeout", "60s")]).await;
    // So many ranges that a worker whose range is on its way already needs its session again, however quick the other one is.
    w.sql(&format!("{GRANDE}; INSERT INTO grande SELECT id + k * 12000, 0, texto FROM grande, generate_series(1, 2) k")).await;
    w.sql("CREATE TABLE chica (id int PRIMARY KEY); INSERT INTO chica SELECT generate_series(1, 100)").await;
    // Which table the broken session stands at depends on what its socket still holds; the other table is finished without it.
    let env = [("HUELLA_SNAPSHOT_WORKERS", "2"), ("HUELLA_FAILPOINT", "snapshot.between_ranges=stop@1")];
    let run = w.start(&["run"], &env);
    stopped(&w, &run);
    let ended = text(
        &w.client,
        "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY (SELECT%' ORDER BY pid LIMIT 1) w",
    )
    .await;
    assert_eq!(ended, "t");
    run.signal(libc::SIGCONT);
    w.wait("the first attempt's end", || w.log().contains("the copy was interrupted"));
    w.sql("UPDATE grande SET n = -1 WHERE id % 11 = 0").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
    let (large, small) = (snapshot(&w, "public.grande"), snapshot(&w, "public.chica"));
    assert_ne!(small, large, "the table that was finished is not copied again");
    if small < large {
        let named = w.read().live("public.grande");
        assert!(files_on_disk(&w, "public.grande").iter().all(|file| named.contains(file)), "the first attempt took its files away");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_killed_at_one_table_does_not_repeat_those_before_it() {
    let w = World::new().await;
    w.sql(GRANDE).await;
    w.sql("CREATE TABLE segunda AS SELECT * FROM grande WHERE id < 9000; ALTER TABLE segunda ADD PRIMARY KEY (id)").await;
    let env = [("HUELLA_SNAPSHOT_WORKERS", "1"), ("HUELLA_FAILPOINT", "snapshot.after_commit=abort")];
    assert_eq!(w.start(&["run"], &env).wait(), None, "{}", w.log());
    let first = snapshot(&w, "public.grande");
    assert!(first > 0 && snapshot(&w, "public.segunda") == 0, "the largest first\n{}", w.log());
    w.sql("DELETE FROM grande WHERE id < 10; UPDATE segunda SET n = 0 WHERE id < 10").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
    assert_eq!(snapshot(&w, "public.grande"), first);
    assert!(snapshot(&w, "public.segunda") > first);
}

/// All Parquet files in the folders of days.
fn data_files(w: &World) -> BTreeSet<PathBuf> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![w.lake().join("tables")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.path().to_string_lossy().contains("/dt=") {
                found.insert(entry.path());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_or_whose_reply_is_lost_leaves_no_half_copy() {
    for fault in [
        "put_new:tables/@1=lose",
        "put_new:tables/@1=refuse",
        "put_new:tables/@2=conflict",
        "put_new:tables/@1=late(500ms)",
        "put_new:tables/@1..2=refuse",
        // A file that was handed over in parts cannot be sent again: the copy is made again, and its other files are taken away.
        "put_new:/dt=@2=refuse",
    ] {
        let w = World::new().await;
        w.sql(GRANDE).await;
        let run = w.start(&["run"], &[("HUELLA_FAULTS", fault), ("HUELLA_SNAPSHOT_WORKERS", "2")]);
        w.wait("the first watermark", || w.watermark().is_some());
        w.sql("UPDATE grande SET n = 100 WHERE id < 1000; DELETE FROM grande WHERE id > 11900").await;
        w.caught_up().await;
        assert!(w.log().contains("injected fault"), "{fault}");
        w.true_in_the_lake().await;
        // They are taken away beside the stream. What is late arrives after its copy was given up.
        if !fault.contains("late") {
            w.wait(&format!("the files of a copy that failed to go ({fault})"), || {
                let (code, out) = w.run(&["files", "--all-versions"]);
                code == 0 && data_files(&w) == out.lines().map(PathBuf::from).collect()
            });
        }
        run.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_copied_leaf_by_leaf_and_inheritance_is_left_alone() {
    let w = World::new().await;
    w.sql(
        "CREATE TABLE raiz (id int PRIMARY KEY, v text, n int) PARTITION BY RANGE (id);
         CREATE TABLE raiz_a (viejo int, n int, id int NOT NULL, v text); ALTER TABLE raiz_a DROP viejo;
         ALTER TABLE raiz ATTACH PARTITION raiz_a FOR VALUES FROM (0) TO (100000);
         CREATE TABLE raiz_b PARTITION OF raiz FOR VALUES FROM (100000) TO (300000) PARTITION BY RANGE (id);
         CREATE TABLE raiz_b1 PARTITION OF raiz_b FOR VALUES FROM (100000) TO (200000);
         INSERT INTO raiz SELECT i * 10, repeat(md5(i::text), 31), i % 5 FROM generate_series(1, 15000) i;
         CREATE TABLE sin_hojas (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE madre (id int PRIMARY KEY, v text); CREATE TABLE hija () INHERITS (madre); ALTER TABLE hija ADD PRIMARY KEY (id);
         INSERT INTO madre VALUES (1, 'madre'); INSERT INTO hija VALUES (2, 'hija')",
    )
    .await;
    let run = w.start(&["run"], &[("HUELLA_SNAPSHOT_WORKERS", "2")]);
    w.caught_up().await;
    w.sql("UPDATE raiz SET id = 150001 WHERE id = 10; UPDATE madre SET v = 'x'").await;
    w.caught_up().await;
    assert_eq!(w.read().state("public.madre").len(), 1, "a child's rows are its own");
    assert_eq!(w.read().state("public.raiz").len(), 15_000);
    assert_eq!(w.read().state("public.sin_hojas").len(), 0);
    let (code, out) = w.run(&["verify"]);
    assert_eq!(code, 0, "{out}\n{}", w.log());
    w.read().assert_exactly_once();
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_that_the_role_may_not_read_are_copied_through_their_root() {
    let w = World::new().await;
    w.sql(
        "CREATE TABLE raiz (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE raiz_a PARTITION OF raiz FOR VALUES FROM (0) TO (1000);
         INSERT INTO raiz SELECT i, 'v' FROM generate_series(1, 500) i;
         CREATE ROLE lector LOGIN REPLICATION; GRANT SELECT ON raiz TO lector;
         CREATE PUBLICATION huella FOR TABLE raiz WITH (publish_via_partition_root = true)",
    )
    .await;
    let url = format!("postgresql://lector@127.0.0.1:{}/postgres?sslmode=disable", w.server.port);
    let run = w.start(&["run"], &[("HUELLA_SOURCE_URL", &url)]);
    w.caught_up().await;
    assert_eq!(w.read().state("public.raiz").len(), 500, "{}", w.log());
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_list_of_the_publication_is_honoured_by_the_copy() {
    let w = World::new().await;
    if huella::postgres::server::version(&w.client).await.unwrap() < 150_000 {
        eprintln!("SKIPPED: column lists came with PostgreSQL 15, and this server is older");
        return;
    }
    w.sql("CREATE TABLE t (id int PRIMARY KEY, publica text, privada text); INSERT INTO t SELECT i, 'p' || i, 'SECRETA' FROM generate_series(1, 50) i").await;
    w.sql("CREATE PUBLICATION huella FOR TABLE t (id, publica)").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("INSERT INTO t VALUES (51, 'p51', 'SECRETA')").await;
    w.caught_up().await;
    w.read().assert_equals_source(&w.client, "public.t", &["privada"]).await;
    run.stop();
    for file in files_on_disk(&w, "public.t") {
        assert!(!std::fs::read(&file).unwrap().windows(7).any(|bytes| bytes == b"SECRETA"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_larger_than_the_budget_is_copied_alone() {
    let w = World::new().await;
    w.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text, b bytea);
         INSERT INTO t SELECT i, CASE WHEN i = 50 THEN repeat('largo', 4000000) ELSE 'corto' END, decode(repeat('00ff', i * 300), 'hex')
           FROM generate_series(1, 100) i",
    )
    .await;
    let env = [("HUELLA_BATCH_MEMORY", "8MiB"), ("HUELLA_BATCH_MAX_BYTES", "1MiB")];
    let run = w.start(&["run"], &env);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}
