//! Corners of the contract's list, end to end: names, partitions, heirs, rights, first starts and what happens to a table while it is copied.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use lake_reader::lsn;
use world::World;

const CASOS: &str = "CREATE TABLE casos (id int PRIMARY KEY, estado text)";

fn configure(w: &World, tables: &[&str]) {
    let listed: String = tables.iter().map(|name| format!("[[table]]\nname = '{name}'\n")).collect();
    std::fs::write(w.dir.path().join("huella.toml"), listed).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_go_the_whole_way() {
    let w = World::new().await;
    let tables = [
        (r#"Mi Esquema."Año" 2026 / ..\%"#, r#""Mi Esquema"."""Año"" 2026 / ..\%""#),
        (r#""a.b".c.d"#, r#""a.b"."c.d""#),
        (r#"a."b"#, r#"a."""b""#),
        ("public.Donaciones", r#""Donaciones""#),
        ("public.donaciones", "donaciones"),
        ("public.ñandú 🦙", r#""ñandú 🦙""#),
        ("select.select", r#""select"."select""#),
    ];
    w.sql(r#"CREATE SCHEMA "Mi Esquema"; CREATE SCHEMA "a.b"; CREATE SCHEMA a; CREATE SCHEMA "select""#).await;
    let columns = r#"("Id ""1""" int, "a.b" int, "select" text, "_op" text, "Nombre" text, nombre text, "año nuevo" text, "🦙" text, "_TABLE_x" text, PRIMARY KEY ("a.b", "Id ""1"""))"#;
    for (_, sql) in tables {
        w.sql(&format!(r#"CREATE TABLE {sql} {columns}; INSERT INTO {sql} SELECT i, i, 's', 'o', 'N', 'n', 'a', NULL, 't' FROM generate_series(1, 20) i"#)).await;
    }
    // A part that begins with a quote is written as in SQL.
    let names: Vec<String> = tables.iter().map(|(name, _)| (*name).to_owned()).collect();
    let names: Vec<String> = names
        .iter()
        .map(|n| {
            if n == r#"a."b"# {
                r#"a."""b""#.to_owned()
            } else if n.starts_with("Mi ") {
                r#"Mi Esquema."""Año"" 2026 / ..\%""#.to_owned()
            } else {
                n.clone()
            }
        })
        .collect();
    configure(&w, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    for (_, sql) in tables {
        w.sql(&format!(r#"UPDATE {sql} SET "_op" = 'cambió', "🦙" = 'llama' WHERE "a.b" < 5; UPDATE {sql} SET "Id ""1""" = -1 WHERE "a.b" = 7; DELETE FROM {sql} WHERE "a.b" = 8"#)).await;
        w.sql(&format!(
            r#"ALTER TABLE {sql} ADD "Ça 'va'" text; INSERT INTO {sql} ("a.b", "Id ""1""", "Ça 'va'") VALUES (100, 100, 'oui')"#
        ))
        .await;
    }
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
    assert_eq!(w.read().tables().len(), tables.len());
    for name in &names {
        let (code, files) = w.run(&["files", name]);
        let live = w.read().live(name);
        assert_eq!(code, 0);
        assert_eq!(files.lines().count(), live.len(), "{name}");
        assert!(!live.is_empty() && live.iter().all(|path| path.is_file()), "{name}");
        let (code, said) = w.run(&["verify", name]);
        assert!(code == 0 && said.contains("equal"), "{name}: {said}");
        // A folder of its own, without a byte that a bucket or a shell would mind.
        let folder = live[0].strip_prefix(w.lake()).unwrap().to_str().unwrap().split('/').nth(1).unwrap().to_owned();
        assert!(folder.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.~".contains(&b)), "{folder}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_one_table_with_and_without_their_root_in_the_publication() {
    for via_root in [true, false] {
        let w = World::new().await;
        w.sql("CREATE TABLE raiz (id int, zona int, v text, PRIMARY KEY (id, zona)) PARTITION BY RANGE (id)").await;
        w.sql("CREATE TABLE baja PARTITION OF raiz FOR VALUES FROM (0) TO (100); CREATE TABLE alta PARTITION OF raiz FOR VALUES FROM (100) TO (200) PARTITION BY LIST (zona)").await;
        w.sql("CREATE TABLE alta_1 PARTITION OF alta FOR VALUES IN (1); CREATE TABLE alta_resto PARTITION OF alta DEFAULT").await;
        w.sql("INSERT INTO raiz SELECT i, i % 3, 'a' FROM generate_series(0, 199) i").await;
        w.sql(&format!("CREATE PUBLICATION huella FOR TABLE raiz WITH (publish_via_partition_root = {via_root})")).await;
        configure(&w, &["public.raiz"]);
        let run = w.start(&["run"], &[]);
        w.caught_up().await;
        let snapshot = || w.watermark().unwrap()["tables"]["public.raiz"]["snapshot"].clone();
        w.sql("UPDATE raiz SET v = 'b' WHERE id % 2 = 0; UPDATE raiz SET id = id + 100 WHERE id = 7; UPDATE raiz SET zona = 1 WHERE id = 102; DELETE FROM raiz WHERE id % 10 = 9; INSERT INTO baja VALUES (9, 9, 'hoja')").await;
        w.caught_up().await;
        w.true_in_the_lake().await;
        assert_eq!(w.read().tables(), ["public.raiz"], "leaves are no tables of their own");
        // Filled before it is attached, and a new one: rows that no message tells of, and rows that one does.
        w.sql("CREATE TABLE nueva (v text, zona int NOT NULL, id int NOT NULL, PRIMARY KEY (id, zona)); INSERT INTO nueva SELECT 'n', 1, i FROM generate_series(200, 250) i").await;
        let before = snapshot();
        w.sql("ALTER TABLE raiz ATTACH PARTITION nueva FOR VALUES FROM (200) TO (300); INSERT INTO raiz VALUES (299, 1, 'z'); UPDATE raiz SET v = 'y' WHERE id = 201").await;
        w.wait("a copy with the new partition", || snapshot() != before);
        w.caught_up().await;
        w.true_in_the_lake().await;
        for sql in [
            "TRUNCATE baja",
            "TRUNCATE alta",
            "TRUNCATE raiz; INSERT INTO raiz VALUES (1, 1, 'otra vez'), (150, 1, 'x'), (250, 0, 'y')",
            "ALTER TABLE raiz ADD nota text; UPDATE raiz SET nota = 'n'",
        ] {
            let before = snapshot();
            w.sql(sql).await;
            if sql.starts_with("TRUNCATE") {
                w.wait(sql, || snapshot() != before);
                let streamed = w.read().changes("public.raiz").iter().any(|change| change.op == "TRUNCATE" && change.seq > 0);
                assert_eq!(streamed, sql.starts_with("TRUNCATE raiz"), "{sql}: the other partitions' rows are there all the time");
            }
            w.caught_up().await;
            w.true_in_the_lake().await;
        }
        run.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heirs_are_tables_of_their_own() {
    let w = World::new().await;
    w.sql("CREATE TABLE base (id int PRIMARY KEY, v text); CREATE TABLE heredera (extra text, PRIMARY KEY (id)) INHERITS (base)").await;
    w.sql("INSERT INTO base SELECT i, 'b' FROM generate_series(1, 10) i; INSERT INTO heredera SELECT i, 'h', 'e' FROM generate_series(1, 10) i").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("UPDATE base SET v = 'c' WHERE id < 4; DELETE FROM ONLY base WHERE id = 5; INSERT INTO heredera VALUES (20, 'x', 'y'); UPDATE base SET id = id + 100 WHERE id = 7").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    w.sql("TRUNCATE ONLY base; INSERT INTO base VALUES (1, 'sola')").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    assert_eq!(w.read().tables(), ["public.base", "public.heredera"]);
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_is_refused_by_name_and_never_a_filter() {
    let w = World::new().await;
    w.sql(&format!("{CASOS}; INSERT INTO casos VALUES (1, 'a'), (2, 'b'); CREATE ROLE lectora LOGIN REPLICATION; GRANT SELECT ON casos TO lectora; CREATE PUBLICATION huella FOR TABLE casos")).await;
    w.sql("ALTER TABLE casos ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON casos USING (id = 1)").await;
    let url = w.url().replace("postgres@", "lectora@");
    let as_reader = [("HUELLA_SOURCE_URL", url.as_str())];
    let says = ["public.casos", "ow level security", "BYPASSRLS"];
    let refused = || {
        let before = w.log().len();
        assert_eq!(w.start(&["run"], &as_reader).wait(), Some(4), "{}", w.log());
        w.last_error_says(before, &says);
    };
    refused();
    assert!(w.watermark().is_none());
    w.sql("ALTER ROLE lectora BYPASSRLS").await;
    let run = w.start(&["run"], &as_reader);
    w.caught_up().await;
    w.sql("INSERT INTO casos VALUES (3, 'c')").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    // The right is taken away while it runs: no copy may be made with it.
    let before = w.log().len();
    w.sql("ALTER ROLE lectora NOBYPASSRLS; INSERT INTO casos VALUES (4, 'd')").await;
    assert_eq!(run.wait(), Some(4), "{}", w.log());
    w.last_error_says(before, &says);
    refused();
    w.sql("ALTER ROLE lectora BYPASSRLS").await;
    let run = w.start(&["run"], &as_reader);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_first_starts_one_waits_and_the_slots_name_may_have_63_characters() {
    let mut w = World::new().await;
    w.slot = format!("huella_{}", "x".repeat(56));
    w.sql(&format!("{CASOS}; INSERT INTO casos SELECT i, 'a' FROM generate_series(1, 3000) i")).await;
    let (mut one, mut two) = (w.start(&["run"], &[]), w.start(&["run"], &[]));
    w.sql("UPDATE casos SET estado = 'b' WHERE id < 100").await;
    w.caught_up().await;
    w.wait("the other to wait", || w.log().contains("another process makes the first start") || w.log().contains("the slot is in use"));
    assert!(one.lives() && two.lives());
    w.true_in_the_lake().await;
    let slots: Vec<String> =
        w.client.query("SELECT slot_name::text FROM pg_replication_slots", &[]).await.unwrap().iter().map(|r| r.get(0)).collect();
    assert_eq!(slots, [w.slot.clone()], "nothing temporary is left");
    one.stop();
    w.sql("UPDATE casos SET estado = 'c' WHERE id < 200").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    two.stop();
    let (code, out) = w.run(&["teardown", "--yes"]);
    assert_eq!(code, 0, "{out}\n{}", w.log());
    assert!(w.client.query("SELECT 1 FROM pg_replication_slots", &[]).await.unwrap().is_empty());
}

/// Between the consistent point and COPY these would give no rows, silently; the locks make them wait.
#[tokio::test(flavor = "multi_thread")]
async fn statements_that_rewrite_a_table_wait_until_it_is_copied() {
    for (point, rewrite) in [
        ("start.after_import", "ALTER TABLE casos ALTER estado TYPE varchar(500)"),
        ("start.after_import", "ALTER TABLE casos ALTER id TYPE int8 USING id + 1"),
        ("start.after_import", "TRUNCATE casos"),
        ("start.after_ready", "VACUUM FULL casos"),
        ("snapshot.after_first_file", "CLUSTER casos USING casos_pkey"),
        (
            "snapshot.after_first_file",
            "DROP TABLE casos; CREATE TABLE casos (id int PRIMARY KEY, otra text); INSERT INTO casos VALUES (1, 'nueva')",
        ),
    ] {
        let w = World::new().await;
        w.sql(&format!("{CASOS}; INSERT INTO casos SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i; CREATE PUBLICATION huella FOR TABLE casos")).await;
        let run = w.start(&["run"], &[("HUELLA_BATCH_MAX_BYTES", "128KiB"), ("HUELLA_FAILPOINT", &format!("{point}=stop"))]);
        w.wait(point, || run.halted());
        let other = w.connect().await;
        let statement = tokio::spawn(async move { other.batch_execute(rewrite).await });
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'casos'::regclass AND mode = 'AccessExclusiveLock'";
        while w.client.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            assert!(!statement.is_finished(), "{rewrite} did not wait for the copy");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        run.signal(libc::SIGCONT);
        statement.await.unwrap().unwrap();
        w.sql("DELETE FROM casos WHERE id = 7; INSERT INTO casos VALUES (-1, 'después')").await;
        w.caught_up().await;
        w.comes_true_in_the_lake().await;
        assert_eq!(w.read().state("public.casos").iter().filter(|row| row["id"].as_deref() == Some("-1")).count(), 1);
        run.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_first_copy_holds_no_wal() {
    let w = World::with(&[("max_slot_wal_keep_size", "112MB")]).await;
    w.sql(&format!("{CASOS}; INSERT INTO casos SELECT i, 'a' FROM generate_series(1, 100) i; CREATE TABLE ruido (x text)")).await;
    let run = w.start(&["run"], &[("HUELLA_FAULTS", "put_new:.parquet@1=slow(15s)")]);
    w.wait("the slot", || w.watermark().is_some_and(|m| m["slot_state"] == "ready"));
    let first = w.through();
    for _ in 0..10 {
        // A segment of 16 MB at a time.
        w.sql("INSERT INTO ruido VALUES ('x'); SELECT pg_switch_wal(); CHECKPOINT").await;
        let now = lsn(w.client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0));
        w.wait("the stream", || w.through() >= now);
    }
    assert!(w.through() - first > 144 << 20);
    let pending = w.watermark().unwrap()["tables"]["public.casos"]["pending"].as_array().map_or(0, Vec::len);
    assert_eq!(pending, 1, "the copy still runs");
    w.caught_up().await;
    let row = w.client.query_one("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'huella'", &[]).await.unwrap();
    assert_ne!(row.get::<_, Option<&str>>(0), Some("lost"));
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_stays_open_holds_up_nobody_else() {
    let w = World::new().await;
    w.sql(CASOS).await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let open = w.connect().await;
    open.batch_execute("BEGIN; INSERT INTO casos SELECT i, repeat('y', 200) FROM generate_series(100001, 130000) i").await.unwrap();
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", run.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let before = memory();
    for n in 0..50 {
        w.sql(&format!("INSERT INTO casos VALUES ({n}, 'z')")).await;
    }
    w.caught_up().await;
    assert_eq!(w.read().state("public.casos").len(), 50, "others are in the lake, and nothing of the open one");
    // What is not committed is not sent: the program holds nothing of it.
    assert!(memory() < before + 32, "{before} MB, then {} MB", memory());
    let status: serde_json::Value = serde_json::from_str(&w.run(&["status", "--json"]).1).unwrap();
    assert!(status["lag_bytes"].is_u64(), "{status}");
    // `verify` needs a slot for a moment, and making one waits for whoever has written.
    w.slot_is_not_ahead().await;
    w.read().assert_exactly_once();
    open.batch_execute("COMMIT").await.unwrap();
    w.caught_up().await;
    assert_eq!(w.read().state("public.casos").len(), 30_050);
    w.true_in_the_lake().await;
    run.stop();
}

/// One table's end is no reason to stop the others, while it runs; at the next start the configuration is refused until it is corrected.
#[tokio::test(flavor = "multi_thread")]
async fn a_listed_table_that_is_dropped_ends_nothing_while_it_runs() {
    let mut w = World::new().await;
    w.env.push(("HUELLA_TABLE".to_owned(), "[{name = 'public.a'}, {name = 'public.b'}]".to_owned()));
    w.sql("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)").await;
    let mut run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("DROP TABLE a").await;
    w.wait("a to be forgotten", || w.watermark().unwrap()["tables"]["public.a"].is_null());
    // More looks, one at each of these new sessions' beginnings: what is not there any more is not asked for again.
    for id in 2..4 {
        let epoch = w.log().matches("reconnecting after a pause").count();
        w.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL").await;
        w.wait("another session", || run.ended() || w.log().matches("reconnecting after a pause").count() > epoch);
        w.sql(&format!("INSERT INTO b VALUES ({id})")).await;
        w.caught_up().await;
    }
    assert!(!run.ended(), "{}", w.log());
    run.stop();
    w.refused(&["public.a does not exist", "[[table]]"]);
}
