//! `verify`, `files` and `status` as a person runs them, against a real server and a lake that `run` made.

#![allow(clippy::unwrap_used)]

mod private_server;

use private_server::Server;
use std::path::Path;
use std::process::{Command, Output};

/// Every kind of conversion, with values that fit and values that do not.
const TABLES: &str = r#"
    CREATE TABLE public.wide (k date, id int8, b bool, f4 float4, f8 float8, n numeric, n2 numeric(10,2), n3 numeric(60,30),
        ts timestamp, tz timestamptz, by bytea, j jsonb, a int4[], t text[], iv interval, r int4range, secret text, cedula text,
        "año nuevo" text, g int4 GENERATED ALWAYS AS (1) STORED, PRIMARY KEY (k, id));
    INSERT INTO public.wide VALUES ('infinity', 1, true, 'NaN', '-0', 'NaN', 1.5, '123456789.000000000000000000000000000001', 'infinity',
        '0044-03-15 10:00:00+00 BC', '\xdeadbeef', '{"a": 1}', '[0:1]={1,2}', '{a,NULL,"x y"}', '1 day 02:03:04', '[1,5)', 's', '8001', 'ñ'),
        ('2024-02-29', 2, false, 1.1, 5e-324, 1e29, 0, -1, '1969-12-31 23:59:59.999999', '2024-01-01 00:00:00.1+00', '\x', 'null',
        '{{1,2},{3,4}}', '{}', '-1 mon', NULL, NULL, NULL, E'tab\tline\nback\\N');
    CREATE TABLE public.keyed (id int4 PRIMARY KEY, name text, toast text);
    ALTER TABLE public.keyed ALTER toast SET STORAGE EXTERNAL;
    INSERT INTO public.keyed SELECT g, 'n' || g, pg_catalog.repeat(pg_catalog.md5(g::text), 100) FROM pg_catalog.generate_series(1, 200) g;
    CREATE TABLE public.bag (a int4, b text);
    ALTER TABLE public.bag REPLICA IDENTITY FULL;
    INSERT INTO public.bag SELECT g % 5, 'x' FROM pg_catalog.generate_series(1, 50) g;
    CREATE TABLE public.parts (id int4 PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE public.part_low PARTITION OF public.parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE public.part_high PARTITION OF public.parts FOR VALUES FROM (100) TO (1000);
    INSERT INTO public.parts SELECT g, 'p' FROM pg_catalog.generate_series(1, 150) g;"#;

const CHURN: &str = r#"
    UPDATE public.keyed SET name = name || 'u' WHERE id % 3 = 0;
    UPDATE public.keyed SET id = id + 10000 WHERE id % 7 = 0;
    UPDATE public.keyed SET id = id + 10000, name = 'moved twice' WHERE id > 10100;
    DELETE FROM public.keyed WHERE id % 13 = 0;
    UPDATE public.wide SET k = '0044-03-15 BC', n = 'Infinity' WHERE id = 1;
    UPDATE public.wide SET cedula = '77', t = '{"q\"uote",NULL}' WHERE id = 2;
    UPDATE public.bag SET b = 'y' WHERE a = 2;
    DELETE FROM public.bag WHERE a = 3;
    INSERT INTO public.bag VALUES (NULL, NULL), (NULL, NULL);
    UPDATE public.parts SET id = id + 600 WHERE id < 50;
    TRUNCATE public.parts;
    INSERT INTO public.parts SELECT g, 'again' FROM pg_catalog.generate_series(90, 110) g;"#;

struct Lake {
    dir: tempfile::TempDir,
}

impl Lake {
    fn of(server: &Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "[source]\nurl = 'postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable'\n[lake]\nurl = './lake'\n[http]\nlisten = ''\n\
             [batch]\nmax_age = '1s'\nheartbeat = '1s'\n[[table]]\nname = 'public.wide'\nexclude = ['secret']\nhash = ['cedula']\n\
             [[table]]\nname = 'public.keyed'\n[[table]]\nname = 'public.bag'\n[[table]]\nname = 'public.parts'\n",
            server.port
        );
        std::fs::write(dir.path().join("huella.toml"), config).unwrap();
        Self { dir }
    }

    fn huella(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_huella"));
        command.current_dir(self.dir.path()).env("HUELLA_HASH_KEY", "a key of twenty bytes").args(arguments.split(' '));
        command.output().unwrap()
    }

    /// The command ends with `code`; returns what it printed.
    fn ends(&self, arguments: &str, code: i32) -> String {
        let output = self.huella(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments}\n{out}\n{err}");
        out.into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_run_brings_is_equal_and_every_deviation_is_found() {
    let Some(server) = Server::start(&[("wal_level", "logical")]) else { return };
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let lake = Lake::of(&server);
    for command in ["files", "status", "verify"] {
        lake.ends(command, 5);
    }
    lake.ends("run --until-caught-up", 0);
    assert!(lake.ends("verify", 0).contains("source and lake are equal at"));

    client.batch_execute(CHURN).await.unwrap();
    lake.ends("verify", 1); // nobody brings the changes
    lake.ends("run --until-caught-up", 0);
    let equal = lake.ends("verify", 0);
    for table in ["bag: equal, 42 rows", "keyed: equal", "parts: equal, 21 rows", "wide: equal, 2 rows"] {
        assert!(equal.contains(&format!("public.{table}")), "{equal}");
    }

    let files = lake.ends("files public.parts", 0);
    let file = Path::new(files.lines().last().unwrap());
    let body = std::fs::read(file).unwrap();
    std::fs::write(file, &body[1..]).unwrap();
    let damaged = lake.ends("verify", 7);
    assert!(damaged.contains("CRC-32C") && damaged.contains("public.wide: equal"), "{damaged}");
    std::fs::write(file, &body).unwrap();
    assert!(lake.ends("files --json public.parts", 0).contains("\"kind\": \"stream\""));
    lake.ends("files public.absent", 2);
    lake.ends("verify public.absent", 2);

    // Changes that the publication hides are a hole that only a comparison sees.
    let hidden = "ALTER PUBLICATION huella SET (publish = 'truncate'); UPDATE public.keyed SET name = 'hidden' WHERE id = 1;
        DELETE FROM public.keyed WHERE id = 2; INSERT INTO public.keyed VALUES (-1, 'new', NULL); INSERT INTO public.bag VALUES (9, 'new');";
    client.batch_execute(hidden).await.unwrap();
    let different = lake.ends("verify --values", 7);
    for line in [
        r#"public.keyed: id = "1", column name: lake "n1", source "hidden""#,
        r#"public.keyed: not at the source: id = "2""#,
        r#"public.keyed: missing in the lake: id = "-1""#,
        r#"public.bag: missing in the lake: a = "9", b = "new""#,
        "public.parts: equal, 21 rows",
    ] {
        assert!(different.contains(line), "{line}\n{different}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_the_lakes_half_when_the_source_is_gone() {
    let Some(server) = Server::start(&[("wal_level", "logical")]) else { return };
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let lake = Lake::of(&server);
    lake.ends("run --until-caught-up", 0);
    let there: serde_json::Value = serde_json::from_str(&lake.ends("status --json", 0)).unwrap();
    assert_eq!(there["slot"]["wal_status"], "reserved");
    assert!(there["lag_bytes"].is_u64() && there["warning"].is_null(), "{there}");
    drop((client, server));
    // A source that cannot be reached needs a person; the lake's half is told all the same.
    let gone: serde_json::Value = serde_json::from_str(&lake.ends("status --json", 7)).unwrap();
    assert_eq!((&gone["through"], &gone["attention"][0]["code"]), (&there["through"], &"source-unreachable".into()));
    assert!(gone["warning"].as_str().unwrap().contains("cannot be reached"), "{gone}");
    assert!(lake.ends("status", 7).contains("public.keyed: version 1, 1 files, 201 rows"));
}
