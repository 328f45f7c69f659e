//! Cases of the contract's list, end to end: order, TRUNCATE, TOAST, identities, and how batches become files.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use lake_reader::Change;
use std::collections::{BTreeMap, BTreeSet};
use world::World;

const CASOS: &str = "CREATE TABLE casos (id int PRIMARY KEY, estado text)";
const LONG: &str = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 3200) i)";

/// `(op, ordinal)` of the changes of the transaction that wrote `id` in `column` last.
fn last_transaction(changes: &[Change]) -> Vec<(&str, i64)> {
    let last = changes.iter().map(|c| c.lsn).max().unwrap();
    changes.iter().filter(|c| c.lsn == last).map(|c| (c.op.as_str(), c.seq)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn key_changes_are_two_rows_and_all_else_is_one() {
    let w = World::new().await;
    w.sql(&format!("{CASOS}; INSERT INTO casos SELECT i, 'a' FROM generate_series(1, 9) i")).await;
    let run = w.start(&["run"], &[]);
    let has_merge = huella::postgres::server::version(&w.client).await.unwrap() >= 150_000;
    for (sql, expected) in [
        ("UPDATE casos SET id = 100 WHERE id = 1", vec![("DELETE", 1), ("UPDATE", 2)]),
        ("UPDATE casos SET id = id, estado = 'b' WHERE id = 2", vec![("UPDATE", 1)]),
        ("INSERT INTO casos VALUES (3, 'c') ON CONFLICT (id) DO UPDATE SET estado = 'c'", vec![("UPDATE", 1)]),
        (
            "MERGE INTO casos USING (VALUES (4), (40)) v (id) ON casos.id = v.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (v.id, 'm')",
            vec![("DELETE", 1), ("INSERT", 2)],
        ),
        (
            "BEGIN; DELETE FROM casos WHERE id = 5; INSERT INTO casos VALUES (5, 'd'); UPDATE casos SET id = 50 WHERE id = 5; COMMIT",
            vec![("DELETE", 1), ("INSERT", 2), ("DELETE", 3), ("UPDATE", 4)],
        ),
        (
            "BEGIN; SAVEPOINT s; INSERT INTO casos VALUES (60, 'no'); ROLLBACK TO s; INSERT INTO casos VALUES (61, 'sí'); COMMIT",
            vec![("INSERT", 1)],
        ),
    ] {
        if sql.starts_with("MERGE") && !has_merge {
            eprintln!("SKIPPED on a server below 15, which has no such statement: {sql}");
            continue;
        }
        w.caught_up().await;
        w.sql(sql).await;
        w.caught_up().await;
        assert_eq!(last_transaction(&w.read().changes("public.casos")), expected, "{sql}");
    }
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_over_several_tables_is_one_commit_and_empty_ones_move_the_position() {
    let w = World::new().await;
    w.sql(&format!("{CASOS}; CREATE TABLE gastos (id int PRIMARY KEY, v text); CREATE TABLE quieta (id int PRIMARY KEY)")).await;
    w.sql("INSERT INTO quieta VALUES (1)").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    for n in 0..10 {
        w.sql(&format!(
            "BEGIN; INSERT INTO casos VALUES ({n}, 'a'); INSERT INTO gastos SELECT {n} * 100 + i, 'b' FROM generate_series(1, 50) i; COMMIT"
        ))
        .await;
    }
    w.caught_up().await;
    let lake = w.read();
    let in_commits = |table: &str| -> BTreeMap<u64, u64> {
        let of = |m: &serde_json::Value| {
            m["files"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|f| f["table"] == table && f["kind"] == "stream")
                .map(|f| f["rows"].as_u64().unwrap())
                .sum::<u64>()
        };
        lake.commits.iter().map(|m| (m["seq"].as_u64().unwrap(), of(m))).filter(|(_, rows)| *rows > 0).collect()
    };
    let (casos, gastos) = (in_commits("public.casos"), in_commits("public.gastos"));
    assert_eq!(casos.keys().collect::<Vec<_>>(), gastos.keys().collect::<Vec<_>>());
    assert!(casos.iter().all(|(seq, rows)| gastos[seq] == rows * 50), "{casos:?} {gastos:?}");
    // What writes nothing that is published moves the position as well, and the cold table holds nothing back.
    for nothing in [
        "BEGIN; INSERT INTO casos VALUES (999, 'x'); ROLLBACK",
        "CREATE TABLE aparte (x int); DROP TABLE aparte",
        "ALTER TABLE casos ADD CONSTRAINT c CHECK (id > -1)",
        "BEGIN; SELECT pg_current_xact_id(); COMMIT",
        "COMMENT ON TABLE casos IS 'c'",
    ] {
        let files = w.read().live("public.casos").len();
        w.sql(nothing).await;
        w.caught_up().await;
        assert_eq!(w.read().live("public.casos").len(), files, "{nothing}");
    }
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_is_one_row_for_each_table() {
    let w = World::new().await;
    w.sql(&format!(
        "{CASOS}; CREATE TABLE gastos (id serial PRIMARY KEY, caso int REFERENCES casos); CREATE TABLE otra (id int PRIMARY KEY)"
    ))
    .await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let tables = ["public.casos", "public.gastos", "public.otra"];
    for (truncate, touched) in [
        ("TRUNCATE casos, gastos", &tables[..2]),
        ("TRUNCATE casos CASCADE", &tables[..2]),
        ("TRUNCATE otra RESTART IDENTITY", &tables[2..]),
    ] {
        w.sql("INSERT INTO casos SELECT i, 'a' FROM generate_series(1, 5) i; INSERT INTO gastos (caso) SELECT i FROM generate_series(1, 5) i; INSERT INTO otra VALUES (1)").await;
        w.caught_up().await;
        let before = w.through();
        w.sql(&format!("BEGIN; {truncate}; COMMIT")).await;
        w.caught_up().await;
        w.true_in_the_lake().await;
        for table in tables {
            let rows = w.read().changes(table).iter().filter(|c| c.lsn >= before && c.op == "TRUNCATE" && c.seq > 0).count();
            assert_eq!(rows, usize::from(touched.contains(&table)), "{truncate} {table}");
        }
        w.sql("TRUNCATE casos, gastos, otra").await;
    }
    w.sql("BEGIN; INSERT INTO otra VALUES (2); TRUNCATE otra; INSERT INTO otra VALUES (3); COMMIT").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn values_kept_aside_are_named_when_they_are_left_out() {
    let w = World::new().await;
    w.sql("CREATE TABLE textos (id int PRIMARY KEY, n int, \"Largo\" text, lista text[], numeros int8[], datos jsonb, bytes bytea)").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql(&format!("INSERT INTO textos SELECT i, 0, {LONG}, ARRAY[{LONG}, NULL, 'x'], (SELECT array_agg(g::int8 * 1000003) FROM generate_series(1, 9000) g), to_jsonb({LONG}), decode({LONG}, 'hex') FROM generate_series(1, 3) i")).await;
    w.sql("UPDATE textos SET n = 1 WHERE id = 1").await;
    w.caught_up().await;
    let changes = w.read().changes("public.textos");
    let names: BTreeSet<&str> = changes.last().unwrap().unchanged.iter().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from(["Largo", "lista", "numeros", "datos", "bytes"]));
    for sql in [
        "UPDATE textos SET \"Largo\" = 'corto'",
        "UPDATE textos SET n = n + 1",
        &format!("UPDATE textos SET \"Largo\" = {LONG} || id"),
        "UPDATE textos SET n = n + 1, lista = NULL",
        "UPDATE textos SET id = id + 10",
        "UPDATE textos SET id = id + 10, n = n + 1, datos = NULL",
        "BEGIN; UPDATE textos SET n = 5; UPDATE textos SET id = id + 10; UPDATE textos SET n = 6; COMMIT",
        "BEGIN; UPDATE textos SET id = id + 100; UPDATE textos SET id = id - 50; COMMIT",
        "UPDATE textos SET bytes = NULL, \"Largo\" = '' WHERE id % 2 = 0",
    ] {
        w.sql(sql).await;
        w.caught_up().await;
        w.true_in_the_lake().await;
    }
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_followed_is_refused_by_name() {
    let w = World::new().await;
    w.sql(&format!(
        "{CASOS}; CREATE TABLE nada (id int PRIMARY KEY); ALTER TABLE nada REPLICA IDENTITY NOTHING; CREATE TABLE sin_clave (x int)"
    ))
    .await;
    let listed = |name: &str| std::fs::write(w.dir.path().join("huella.toml"), format!("[[table]]\nname = \"public.{name}\"\n")).unwrap();
    for (table, reason) in [("nada", "NOTHING"), ("sin_clave", "key"), ("ausente", "does not exist")] {
        listed(table);
        w.refused(&[&format!("public.{table}"), reason]);
        assert!(w.watermark().is_none(), "nothing is begun");
    }
    w.sql("ALTER TABLE sin_clave REPLICA IDENTITY FULL; INSERT INTO sin_clave VALUES (1), (1), (2), (NULL)").await;
    listed("sin_clave");
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("INSERT INTO sin_clave VALUES (2); DELETE FROM sin_clave WHERE ctid = (SELECT min(ctid) FROM sin_clave WHERE x = 1); UPDATE sin_clave SET x = 7 WHERE x = 2; UPDATE sin_clave SET x = x").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_changes_while_running_loses_nothing() {
    let w = World::new().await;
    w.sql("CREATE TABLE textos (id int PRIMARY KEY, otro int NOT NULL UNIQUE, n int, largo text)").await;
    w.sql(&format!("INSERT INTO textos SELECT i, i, 0, {LONG} FROM generate_series(1, 4) i")).await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let work =
        "UPDATE textos SET n = n + 1; UPDATE textos SET id = id + 10, otro = otro + 10 WHERE id % 2 = 0; DELETE FROM textos WHERE n > 1000";
    for identity in ["FULL", "DEFAULT", "USING INDEX textos_otro_key", "FULL", "USING INDEX textos_otro_key", "DEFAULT"] {
        w.sql(work).await;
        w.sql(&format!("ALTER TABLE textos REPLICA IDENTITY {identity}")).await;
        w.sql(work).await;
        w.caught_up().await;
        w.true_in_the_lake().await;
    }
    // Back and forth before anybody looks: the stream tells of shapes that the catalogue has no more.
    w.sql(&format!("ALTER TABLE textos REPLICA IDENTITY FULL; {work}; ALTER TABLE textos REPLICA IDENTITY DEFAULT; {work}")).await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    let before = w.log().len();
    w.sql("ALTER TABLE textos REPLICA IDENTITY NOTHING; INSERT INTO textos VALUES (900, 900, 0, 'n')").await;
    assert_eq!(run.wait(), Some(4), "{}", w.log());
    w.last_error_says(before, &["public.textos", "NOTHING", "REPLICA IDENTITY FULL"]);
    w.sql(&format!("ALTER TABLE textos REPLICA IDENTITY DEFAULT; {work}")).await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

/// Commit times as a replication origin gives them: what a server's clock says at midnight cannot be waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_over_midnight_puts_rows_into_their_own_days() {
    let w = World::new().await;
    w.sql(&format!("{CASOS}; CREATE TABLE gastos (id int PRIMARY KEY, v text)")).await;
    w.sql("SELECT pg_replication_origin_create('o'); SELECT pg_replication_origin_session_setup('o')").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    // One commit for all of it, killed before it stands.
    let slow = ("HUELLA_BATCH_MAX_AGE", "2s");
    let killed = w.start(&["run"], &[slow, ("HUELLA_FAILPOINT", "commit.after_manifest=abort")]);
    w.wait("the claim", || w.epoch() == 2);
    for (id, time) in [
        (1, "2026-02-28 23:59:59.999999+00"),
        (2, "2026-03-01 00:00:00+00"),
        (3, "2026-02-28 23:00:00+00"),
        (4, "2026-03-01 05:30:00+05:45"),
    ] {
        w.sql(&format!("BEGIN; INSERT INTO casos VALUES ({id}, 'a'); INSERT INTO gastos VALUES ({id}, 'a'); SELECT pg_replication_origin_xact_setup('0/{id}', '{time}'); COMMIT")).await;
    }
    assert_eq!(killed.wait(), None, "{}", w.log());
    let run = w.start(&["run"], &[slow]);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
    let days = |epoch: &str| {
        let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for day in std::fs::read_dir(w.lake().join("tables/public.casos/v1")).unwrap().flatten().filter(|d| d.path().is_dir()) {
            for file in std::fs::read_dir(day.path()).unwrap().flatten().filter(|f| f.file_name().to_string_lossy().contains(epoch)) {
                let written = lake_reader::changes_in(&file.path()).into_iter().filter_map(|c| c.cells["id"].clone());
                ids.entry(day.file_name().to_string_lossy().into_owned()).or_default().extend(written);
            }
        }
        ids
    };
    let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
    let expected = BTreeMap::from([("dt=2026-02-28".to_owned(), set(&["1", "3", "4"])), ("dt=2026-03-01".to_owned(), set(&["2"]))]);
    assert_eq!(days("-e000003-"), expected);
    assert_eq!(days("-e000002-"), expected, "the same days at the replay");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_limit_of_a_batch_works_alone() {
    let w = World::new().await;
    w.sql(CASOS).await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    let rows = |w: &World| w.read().changes("public.casos").iter().filter(|c| c.op == "INSERT").count();
    let never = [("HUELLA_BATCH_MAX_AGE", "24h"), ("HUELLA_BATCH_HEARTBEAT", "1h")];
    // Neither age nor heartbeat: only size cuts (a sixth of the memory, if that is less).
    for (bytes, memory) in [("64KiB", "64MiB"), ("4MiB", "8MiB")] {
        let before = rows(&w);
        let run = w.start(&["run"], &[never[0], never[1], ("HUELLA_BATCH_MAX_BYTES", bytes), ("HUELLA_BATCH_MEMORY", memory)]);
        w.sql("INSERT INTO casos VALUES (-1, 'poco')").await;
        for n in 0..10 {
            w.sql(&format!("INSERT INTO casos SELECT {n} * 4000 + i, repeat('x', 60) FROM generate_series(1, 4000) i")).await;
        }
        w.wait("a full batch", || rows(&w) > before);
        run.stop();
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        assert_eq!(rows(&w), before + 40_001, "{bytes} {memory}");
        w.true_in_the_lake().await;
        w.sql("DELETE FROM casos").await;
    }
    // Age alone.
    let before = rows(&w);
    let run = w.start(&["run"], &[("HUELLA_BATCH_MAX_AGE", "500ms"), ("HUELLA_BATCH_HEARTBEAT", "1h")]);
    w.sql("INSERT INTO casos VALUES (1, 'poco')").await;
    w.wait("the age", || rows(&w) == before + 1);
    run.stop();
}
