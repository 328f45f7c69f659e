//! The whole program against a real server: what `huella run` leaves in a lake, whatever happens to it meanwhile.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use lake_reader::{changes_in, lsn};
use std::collections::BTreeSet;
use std::time::Duration;
use world::World;

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
    let changes = w.read().changes("public.donaciones");
    assert!(!changes.iter().any(|change| change.cells["id"].as_deref() == Some("1004")), "what is rolled back is in no file");
    let copied: BTreeSet<i64> = changes.iter().filter(|change| change.op == "INSERT" && change.seq > 1).map(|change| change.seq).collect();
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
async fn holes_are_refused_and_resnapshot_mends_them() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("INSERT INTO donaciones VALUES (1, 'a')").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    for (says, sql) in [
        ("is missing", "SELECT pg_drop_replication_slot('huella')"),
        (
            "beyond the lake's watermark",
            "INSERT INTO donaciones VALUES (20, 'x'); SELECT pg_replication_slot_advance('huella', pg_current_wal_lsn())",
        ),
        ("is gone", "DROP PUBLICATION huella"),
        (
            "was dropped and created again",
            "DROP PUBLICATION huella; INSERT INTO donaciones VALUES (40, 'x'); CREATE PUBLICATION huella FOR TABLE donaciones",
        ),
        ("does not publish all operations", "ALTER PUBLICATION huella SET (publish = 'insert')"),
    ] {
        w.sql(sql).await;
        w.refused(&[says, "huella run --resnapshot"]);
        w.mended_by_resnapshot(&format!("UPDATE donaciones SET donante = $${says}$$")).await;
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
async fn a_copy_that_waits_for_a_transaction_does_not_hold_up_an_alter() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("CREATE TABLE ruido (x int); INSERT INTO donaciones VALUES (1, 'a')").await;
    let open = w.server.connect().await;
    open.batch_execute("BEGIN; INSERT INTO public.ruido VALUES (1)").await.unwrap();
    let run = w.start(&["run"], &[]);
    w.wait("the wait for the transaction", || w.log().contains("waits for an open transaction"));
    let alter = w.sql("ALTER TABLE donaciones ADD nota text");
    tokio::time::timeout(Duration::from_secs(20), alter).await.expect("the table is free again");
    w.sql("INSERT INTO donaciones (id, nota) VALUES (2, 'n')").await;
    open.batch_execute("COMMIT").await.unwrap();
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

/// Each of these writes into rows that are there already, and sends nothing. `Some`: a copy must follow.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_change_without_a_message_are_copied_anew() {
    let w = World::new().await;
    w.sql("CREATE TABLE t (id int PRIMARY KEY, n int, v varchar(10)); INSERT INTO t SELECT i, i, i FROM generate_series(1, 20) i").await;
    w.sql("CREATE TABLE raiz (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE raiz_a PARTITION OF raiz FOR VALUES FROM (0) TO (10); CREATE TABLE raiz_b PARTITION OF raiz FOR VALUES FROM (10) TO (20); INSERT INTO raiz SELECT generate_series(0, 19)").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let snapshot = |table: &str| w.watermark().unwrap()["tables"][table]["snapshot"].clone();
    for (sql, table, copied) in [
        ("ALTER TABLE t ADD momento timestamptz DEFAULT clock_timestamp()", "public.t", true),
        ("ALTER TABLE t ADD azar float8 DEFAULT random(); ALTER TABLE t ALTER azar DROP DEFAULT", "public.t", true),
        ("ALTER TABLE t ADD fijo int DEFAULT 7", "public.t", true),
        ("ALTER TABLE t ALTER n TYPE int8 USING n * 2", "public.t", true),
        ("ALTER TABLE t ALTER n TYPE int8 USING n + 1", "public.t", true),
        ("ALTER TABLE t ALTER v TYPE varchar(20)", "public.t", false),
        ("VACUUM FULL t", "public.t", false),
        ("TRUNCATE t; INSERT INTO t (id) VALUES (1), (2)", "public.t", false),
        ("TRUNCATE raiz_a", "public.raiz", true),
        ("ALTER TABLE raiz DETACH PARTITION raiz_b", "public.raiz", true),
    ] {
        let before = snapshot(table);
        w.sql(sql).await;
        if copied {
            w.wait(sql, || snapshot(table) != before);
        }
        // A row more: the shape on the wire is looked at as well.
        w.sql("INSERT INTO t (id) SELECT max(id) + 1 FROM t; UPDATE t SET v = 'x' WHERE id = 2").await;
        w.caught_up().await;
        tokio::time::sleep(Duration::from_millis(1500)).await; // a heartbeat: a look at the catalogue
        w.caught_up().await;
        assert_eq!(snapshot(table) != before, copied, "{sql}\n{}", w.log());
        w.true_in_the_lake().await;
    }
    assert_eq!(w.watermark().unwrap()["tables"]["public.t"]["version"], 1);
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_that_came_and_went_while_huella_was_away_are_decoded_as_they_were() {
    let w = World::new().await;
    w.sql("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    for (round, sql) in [
        "ALTER TABLE t ADD c text; INSERT INTO t VALUES (10, 1, 'vino y se fue'); ALTER TABLE t DROP c; INSERT INTO t VALUES (11, 1)",
        "ALTER TABLE t ADD d text; INSERT INTO t VALUES (20, 1, 'd'); ALTER TABLE t RENAME d TO e; INSERT INTO t VALUES (21, 1, 'e')",
        "ALTER TABLE t ALTER n TYPE text; INSERT INTO t VALUES (30, 'texto', 'x'); ALTER TABLE t ALTER n TYPE int USING length(n); UPDATE t SET e = 'y'",
        "ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET n = 5; ALTER TABLE t ADD z int[] DEFAULT '{7}'; UPDATE t SET n = 6; ALTER TABLE t DROP z; ALTER TABLE t REPLICA IDENTITY DEFAULT; DELETE FROM t WHERE id = 1",
    ]
    .into_iter()
    .enumerate()
    {
        w.sql(sql).await;
        if round % 2 == 0 {
            // Killed with the shape's rows in files and before their commit: decoded again.
            w.start(&["run"], &[("HUELLA_FAILPOINT", "commit.after_manifest=abort")]).wait();
        }
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{sql}\n{}", w.log());
        w.true_in_the_lake().await;
    }
    let history = |text: &str| {
        let lake = w.read();
        let mut files = lake.commits.iter().flat_map(|m| m["files"].as_array().unwrap());
        files.any(|f| {
            changes_in(&w.lake().join(f["path"].as_str().unwrap())).iter().any(|c| c.cells.values().any(|v| v.as_deref() == Some(text)))
        })
    };
    assert!(history("vino y se fue") && history("texto"), "the history has what was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_lake_gets_positions_and_no_files() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("CREATE TABLE ruido (x int)").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let (before, commits) = (w.through(), w.read().commits.len());
    w.sql("INSERT INTO ruido SELECT generate_series(1, 1000)").await;
    w.caught_up().await;
    assert!(w.through() > before, "WAL of an unpublished table moves the position");
    let added: usize = w.read().commits[commits..].iter().map(|m| m["files"].as_array().unwrap().len()).sum();
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
                    keyed.extend(changes_in(&file.path()).into_iter().map(|change| (table, change.op, change.lsn, change.seq)));
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
    let lake = w.read();
    for file in lake.live("public.donantes") {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(7).any(|b| b == b"SECRETA"), "{}", file.display());
    }
    for change in lake.changes("public.donantes") {
        assert!(!change.cells.contains_key("notas"));
        hashes.extend(change.cells["cedula"].clone());
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
    let commits: Vec<usize> = w.read().commits.iter().map(|m| m["files"].as_array().unwrap().len()).filter(|n| *n > 1).collect();
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
    assert_eq!(other.read().commits.iter().filter(|m| m["reset"] == true).count(), 1);
    other.true_in_the_lake().await;
}
