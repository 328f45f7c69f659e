//! What is excluded or hashed appears nowhere: in no cell, statistic or footer of any file, in no log at any level, in no output.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod hidden;
mod lake_reader;
mod private_server;
mod world;

use hidden::{KEY, MARK, NUMBER, assert_hidden, lake_files, output, shows};
use std::collections::BTreeSet;
use world::World;

const TABLES: &str = "[{name = 'public.donantes', exclude = ['notas', 'firma'], hash = ['cedula', 'correo', 'saldo', 'nacido', 'anio']}, \
                      {name = 'public.visitas', hash = ['quien']}]";

#[tokio::test(flavor = "multi_thread")]
async fn private_values_are_nowhere() {
    let w = World::new().await;
    // A private part of the key, values that their types' lake types could not hold, large ones, and a table without a key.
    w.sql("CREATE TABLE donantes (id int, cedula text, correo text, notas text, firma bytea, saldo numeric, nacido date, anio int, ciudad text, PRIMARY KEY (id, cedula));
           CREATE TABLE visitas (quien text, cuando date); ALTER TABLE visitas REPLICA IDENTITY FULL").await;
    let row = |id: u32| {
        format!(
            "INSERT INTO donantes VALUES ({id}, '{MARK}{id}', repeat('{MARK}', 4000), '{MARK}', '{MARK}', {NUMBER}.{NUMBER}{NUMBER}, 'infinity', {NUMBER}, 'Tunja');
             INSERT INTO visitas VALUES ('{MARK}{id}', '2024-01-01');"
        )
    };
    w.sql(&(row(1) + &row(2) + "ALTER TABLE donantes ALTER correo SET STORAGE EXTERNAL")).await;
    let env = [("HUELLA_TABLE", TABLES), ("HUELLA_HASH_KEY", KEY), ("HUELLA_LOG", "trace")];
    let run = w.start(&["run"], &env);
    w.caught_up().await;
    w.sql(&(row(3) + &row(4) + &row(5))).await;
    w.sql(&format!("UPDATE donantes SET cedula = '{MARK}otra' WHERE id = 3; UPDATE donantes SET ciudad = 'Cali' WHERE id = 4; DELETE FROM donantes WHERE id = 1"))
        .await;
    w.sql(&format!("UPDATE visitas SET cuando = NULL WHERE quien = '{MARK}2'; DELETE FROM visitas WHERE quien = '{MARK}3'")).await;
    w.sql("ALTER TABLE donantes REPLICA IDENTITY FULL").await;
    w.sql(&(row(6) + &format!("UPDATE donantes SET id = 60 WHERE id = 6; UPDATE donantes SET notas = '{MARK}x'"))).await;
    w.caught_up().await;
    let (code, equal) = output(&w, &["verify"], &env);
    assert_eq!(code, 0, "{equal}");
    // Differences, too, are shown by hashes.
    w.sql(&format!("ALTER PUBLICATION huella SET (publish = 'truncate'); UPDATE donantes SET correo = '{MARK}y' WHERE id = 2; DELETE FROM donantes WHERE id = 4; {}", row(7)))
        .await;
    run.signal(libc::SIGKILL);
    run.wait();
    let (code, different) = output(&w, &["verify", "--values"], &env);
    assert_eq!(code, 7, "{different}");
    for part in [
        "column correo: lake",
        "not at the source: id = \"4\", cedula = \"",
        "missing in the lake: id = \"7\"",
        "public.visitas: missing in the lake: quien = \"",
    ] {
        assert!(different.contains(part), "{part}: {different}");
    }
    let mut said = w.log() + &different + &equal;
    for args in
        [vec!["status"], vec!["status", "--json"], vec!["check"], vec!["check", "--json"], vec!["files"], vec!["run", "--until-caught-up"]]
    {
        said += &output(&w, &args, &env).1;
    }
    assert!(!shows(said.as_bytes()), "{}", said.lines().find(|line| shows(line.as_bytes())).unwrap());
    let files = lake_files(&w);
    assert!(files.iter().filter(|path| path.extension().is_some_and(|e| e == "parquet")).count() >= 4, "{files:?}");
    files.iter().for_each(|path| assert_hidden(path));
    let hashes: BTreeSet<_> = w.read().changes("public.donantes").into_iter().filter_map(|change| change.cells["anio"].clone()).collect();
    assert!(hashes.len() == 1 && hashes.iter().all(|hash| hash.len() == 64), "one value, one hash, in copy and stream: {hashes:?}");
}

/// The rows that came before the change of the configuration, but are read after it, included.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_excluded_or_hashed_later_is_in_no_file_written_from_then_on() {
    let w = World::new().await;
    w.sql(
        "CREATE TABLE donantes (id int PRIMARY KEY, cedula text, notas text, ciudad text); INSERT INTO donantes VALUES (1, 'a', 'b', 'c')",
    )
    .await;
    let plain = [("HUELLA_TABLE", "[{name = 'public.donantes'}]")];
    assert_eq!(output(&w, &["run", "--until-caught-up"], &plain).0, 0);
    w.sql(&format!("INSERT INTO donantes VALUES (2, '{MARK}', '{MARK}', 'Tunja'); UPDATE donantes SET cedula = '{MARK}1'")).await;
    // With another shape behind them, those rows belong to the version of before.
    w.sql(&format!(
        "ALTER TABLE donantes ALTER ciudad TYPE bytea USING ciudad::bytea; INSERT INTO donantes VALUES (3, '{MARK}3', '{MARK}', 'x')"
    ))
    .await;
    let before = lake_files(&w);
    let private = [("HUELLA_TABLE", "[{name = 'public.donantes', exclude = ['notas'], hash = ['cedula']}]"), ("HUELLA_HASH_KEY", KEY)];
    let (code, said) = output(&w, &["run", "--until-caught-up"], &private);
    assert!(code == 0 && !shows(said.as_bytes()), "{said}");
    for args in [["verify"], ["check"]] {
        let (code, said) = output(&w, &args, &private);
        assert!(code == 0 && !shows(said.as_bytes()), "{said}");
    }
    let written: Vec<_> = lake_files(&w).difference(&before).cloned().collect();
    assert!(written.iter().any(|path| path.extension().is_some_and(|e| e == "parquet")));
    written.iter().for_each(|path| assert_hidden(path));
    assert_eq!(w.read().state("public.donantes").len(), 3);

    // Taken back: everything is there again, the rows of before included.
    assert_eq!(output(&w, &["run", "--until-caught-up"], &plain).0, 0);
    w.sql("INSERT INTO donantes VALUES (4, 'd', 'e', 'f')").await;
    assert_eq!(output(&w, &["run", "--until-caught-up"], &plain).0, 0);
    let lake = w.read();
    lake.assert_exactly_once();
    lake.assert_equals_source(&w.client, "public.donantes", &[]).await;
    assert_eq!(output(&w, &["verify"], &plain).0, 0);
}

/// The configuration goes by names: a private column must not slip in under a new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_column_that_is_renamed_ends_the_program_before_it_is_written() {
    for (column, private) in [("notas", "exclude = ['notas']"), ("cedula", "hash = ['cedula']")] {
        let w = World::new().await;
        w.sql("CREATE TABLE donantes (id int PRIMARY KEY, cedula text, notas text)").await;
        let tables = format!("[{{name = 'public.donantes', {private}}}]");
        let env = [("HUELLA_TABLE", tables.as_str()), ("HUELLA_HASH_KEY", KEY)];
        let run = w.start(&["run"], &env);
        w.caught_up().await;
        w.sql(&format!("INSERT INTO donantes (id) VALUES (1); ALTER TABLE donantes RENAME {column} TO otra; INSERT INTO donantes (id, otra) VALUES (2, '{MARK}')"))
            .await;
        assert_eq!(run.wait(), Some(3), "{}", w.log());
        let (code, said) = output(&w, &["run", "--until-caught-up"], &env);
        let names = format!("names \\\"{column}\\\", which is no column of the table");
        assert!(code == 3 && said.contains(&names) && !shows(said.as_bytes()), "{said}");
        lake_files(&w).iter().for_each(|path| assert_hidden(path));
        let corrected = tables.replace(column, "otra");
        let env = [("HUELLA_TABLE", corrected.as_str()), ("HUELLA_HASH_KEY", KEY)];
        for command in [vec!["run", "--until-caught-up"], vec!["verify"]] {
            let (code, said) = output(&w, &command, &env);
            assert!(code == 0 && !shows(said.as_bytes()), "{said}");
        }
        lake_files(&w).iter().for_each(|path| assert_hidden(path));
        assert_eq!(w.read().state("public.donantes").len(), 2);
    }
}

/// Another column bears the configured name now, so that nothing seems to be amiss.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_column_whose_name_goes_to_another_is_not_written_either() {
    for (column, private) in [("notas", "exclude = ['notas']"), ("cedula", "hash = ['cedula']")] {
        for disguise in [
            "RENAME @ TO otra; ALTER TABLE donantes ADD @ text",
            "RENAME @ TO tmp; ALTER TABLE donantes RENAME ciudad TO @; ALTER TABLE donantes RENAME tmp TO ciudad",
        ] {
            for running in [true, false] {
                let w = World::new().await;
                w.sql(&format!("CREATE TABLE donantes (id int PRIMARY KEY, cedula text, notas text, ciudad text); INSERT INTO donantes (id, {column}) VALUES (1, '{MARK}')")).await;
                let tables = format!("[{{name = 'public.donantes', {private}}}]");
                let env = [("HUELLA_TABLE", tables.as_str()), ("HUELLA_HASH_KEY", KEY), ("HUELLA_LOG", "trace")];
                let run = w.start(&["run"], &env);
                w.caught_up().await;
                let run = if running {
                    Some(run)
                } else {
                    run.stop();
                    None
                };
                let disguised = if disguise.contains("otra") { "otra" } else { "ciudad" };
                w.sql(&format!(
                    "ALTER TABLE donantes {}; INSERT INTO donantes (id, {disguised}) VALUES (2, '{MARK}2')",
                    disguise.replace('@', column)
                ))
                .await;
                let code = match run {
                    Some(run) => run.wait(),
                    None => w.start(&["run", "--until-caught-up"], &env).wait(),
                };
                assert_eq!(code, Some(3), "{private} {disguise} {running}\n{}", w.log());
                assert!(!shows(w.log().as_bytes()));
                lake_files(&w).iter().for_each(|path| assert_hidden(path));
                let corrected = tables.replace(&format!("'{column}']"), &format!("'{column}', '{disguised}']"));
                let env = [("HUELLA_TABLE", corrected.as_str()), ("HUELLA_HASH_KEY", KEY)];
                for command in [vec!["run", "--until-caught-up"], vec!["verify"]] {
                    let (code, said) = output(&w, &command, &env);
                    assert!(code == 0 && !shows(said.as_bytes()), "{said}");
                }
                lake_files(&w).iter().for_each(|path| assert_hidden(path));
            }
        }
    }
}

/// Of any type, in partitions whose columns stand elsewhere, and while its type changes.
#[tokio::test(flavor = "multi_thread")]
async fn private_values_of_any_type_stay_private_when_the_type_changes() {
    for via_root in [true, false] {
        let w = World::new().await;
        w.sql(&format!("CREATE TYPE animo AS ENUM ('{MARK}1', '{MARK}2'); CREATE DOMAIN cedula AS text CHECK (length(VALUE) < 200); CREATE TYPE par AS (a text, b int);
               CREATE TABLE r (id int, k text, e animo, d cedula, l text[], j jsonb, p par, f bytea, n bigint, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
               CREATE TABLE r_a (sobra int, n bigint, f bytea, p par, j jsonb, l text[], d cedula, e animo, k text NOT NULL, id int NOT NULL, PRIMARY KEY (id, k));
               ALTER TABLE r_a DROP sobra; ALTER TABLE r ATTACH PARTITION r_a FOR VALUES IN ('a'); CREATE TABLE r_b PARTITION OF r FOR VALUES IN ('b');
               CREATE PUBLICATION huella FOR TABLE r WITH (publish_via_partition_root = {via_root})")).await;
        let row = |id: u32, k: &str| {
            format!(
                "INSERT INTO r VALUES ({id}, '{k}', '{MARK}1', '{MARK}', ARRAY['{MARK}', NULL], '{{\"{MARK}\": {NUMBER}}}', ('{MARK}', {NUMBER}), '{MARK}', {NUMBER}); "
            )
        };
        w.sql(&(row(1, "a") + &row(2, "b"))).await;
        let tables = "[{name = 'public.r', exclude = ['j', 'f'], hash = ['e', 'd', 'l', 'p', 'n', 'k']}]";
        let env = [("HUELLA_TABLE", tables), ("HUELLA_HASH_KEY", KEY), ("HUELLA_LOG", "trace")];
        let run = w.start(&["run"], &env);
        w.caught_up().await;
        let changes = [
            format!("UPDATE r SET e = '{MARK}2', n = {NUMBER}; UPDATE r SET id = id + 10, k = CASE k WHEN 'a' THEN 'b' ELSE 'a' END"),
            "ALTER TABLE r ALTER n TYPE text USING n::text, ALTER l TYPE text USING l::text".to_owned(),
            "ALTER TABLE r ALTER e TYPE text USING e::text; ALTER TABLE r ALTER f TYPE text USING convert_from(f, 'UTF8')".to_owned(),
            "ALTER TABLE r DROP d; ALTER TABLE r ADD d text".to_owned(),
            format!("UPDATE r SET d = '{MARK}'; ALTER TABLE r ALTER j TYPE text USING j::text"),
            "ALTER TABLE r REPLICA IDENTITY FULL; ALTER TABLE r_a REPLICA IDENTITY FULL; ALTER TABLE r_b REPLICA IDENTITY FULL".to_owned(),
            format!("UPDATE r SET d = '{MARK}x' WHERE k = 'a'; DELETE FROM r WHERE k = 'b'"),
        ];
        for (n, sql) in changes.iter().enumerate() {
            w.sql(sql).await;
            w.sql(&format!("INSERT INTO r (id, k, d, p, n) VALUES ({}, 'a', '{MARK}', ('{MARK}', {NUMBER}), {NUMBER})", 100 + n)).await;
        }
        w.caught_up().await;
        w.wait("the lake to be true", || output(&w, &["verify"], &env).0 == 0);
        run.stop();
        let mut said = w.log();
        for args in [vec!["verify"], vec!["status", "--json"], vec!["check"], vec!["check", "--json"]] {
            said += &output(&w, &args, &env).1;
        }
        assert!(!shows(said.as_bytes()), "{}", said.lines().find(|line| shows(line.as_bytes())).unwrap());
        lake_files(&w).iter().for_each(|path| assert_hidden(path));
    }
}

/// A row filter that fails on a row quotes its values in the server's message, in stream, copy and comparison alike.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_messages_are_not_passed_on_where_they_quote_values() {
    let w = World::new().await;
    if huella::postgres::server::version(&w.client).await.unwrap() < 150_000 {
        eprintln!("SKIPPED: row filters, which can fail on a row, came with PostgreSQL 15");
        return;
    }
    w.sql("CREATE TABLE donantes (id int PRIMARY KEY, anio int, notas text); ALTER TABLE donantes REPLICA IDENTITY FULL; INSERT INTO donantes VALUES (1, 2001, 'x');
           CREATE PUBLICATION huella FOR TABLE donantes WHERE (make_date(anio, 1, 1) > '2000-01-01')").await;
    let env = [
        ("HUELLA_TABLE", "[{name = 'public.donantes', hash = ['anio'], exclude = ['notas']}]"),
        ("HUELLA_HASH_KEY", KEY),
        ("HUELLA_LOG", "trace"),
    ];
    let run = w.start(&["run"], &env);
    w.caught_up().await;
    w.sql(&format!("INSERT INTO donantes VALUES (2, {NUMBER}, '{MARK}')")).await;
    let direct = w.client.query_one("SELECT make_date(anio, 1, 1) FROM donantes WHERE id = 2", &[]).await.unwrap_err();
    assert!(shows(direct.as_db_error().unwrap().message().as_bytes()), "the server quotes it");
    assert_eq!(run.wait(), Some(4), "{}", w.log());
    assert!(w.log().contains("22008") && !shows(w.log().as_bytes()), "{}", w.log());
    let (code, said) = output(&w, &["verify"], &env);
    assert!(code != 0 && said.contains("22008") && !shows(said.as_bytes()), "{said}");
    let (code, said) = output(&w, &["run", "--until-caught-up", "--resnapshot"], &env);
    assert!(code == 4 && said.contains("row filter") && said.contains("22008") && !shows(said.as_bytes()), "{said}");
    lake_files(&w).iter().for_each(|path| assert_hidden(path));
}
