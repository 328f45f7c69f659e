//! `huella check` as a person and as a program run it: each thing that can be wrong is a finding with its own code and mend.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use world::World;

const GOOD: [(&str, &str); 2] = [("max_slot_wal_keep_size", "4GB"), ("wal_sender_timeout", "60s")];
const TABLES: &str = "CREATE TABLE donantes (id int PRIMARY KEY, cedula text, notas text, monto numeric, \"año\" int, ip inet, doble int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE TABLE eventos (x int); ALTER TABLE eventos REPLICA IDENTITY FULL; CREATE ROLE lector LOGIN REPLICATION";

/// Exit code and document of `check --json`.
fn check(w: &World, env: &[(&str, &str)]) -> (i32, Value) {
    let output = w.command(&["check", "--json"]).envs(env.iter().copied()).output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code().unwrap_or(-1), document)
}

fn url(w: &World, user: &str, port: u16) -> String {
    let _ = w;
    format!("postgresql://{user}@127.0.0.1:{port}/postgres?sslmode=disable")
}

fn problems(document: &Value) -> Vec<(&str, &Value)> {
    let findings = document["findings"].as_array().unwrap();
    findings.iter().filter(|f| f["severity"] == "problem").map(|f| (f["code"].as_str().unwrap(), f)).collect()
}

/// Exactly one problem, of this code, with a mend that holds `mend`.
fn assert_problem(outcome: (i32, Value), code: &str, mend: &str) {
    let (ended, document) = outcome;
    let found = problems(&document);
    assert_eq!(found.iter().map(|(code, _)| *code).collect::<Vec<_>>(), [code], "{document:#}");
    assert!(found[0].1["mend"].as_str().is_some_and(|text| text.contains(mend)), "{mend}: {}", found[0].1);
    assert!(!found[0].1["message"].as_str().unwrap().is_empty() && ended == 7 && document["problems"] == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_source_is_told_with_the_plan_of_every_column() {
    let w = World::with(&GOOD).await;
    w.sql(TABLES).await;
    let tables = "[{name = 'public.donantes', exclude = ['notas'], hash = ['cedula']}, {name = 'public.eventos', mode = 'snapshot'}]";
    let env = [("HUELLA_TABLE", tables), ("HUELLA_HASH_KEY", "una clave bastante larga")];
    let (code, document) = check(&w, &env);
    assert_eq!((code, problems(&document).len()), (0, 0), "{document:#}");
    let donantes = &document["tables"][0];
    assert_eq!(
        (&donantes["table"], &donantes["mode"], &donantes["identity"]),
        (&"public.donantes".into(), &"stream".into(), &"default".into())
    );
    assert_eq!((&donantes["key"][0], &document["tables"][1]["mode"]), (&"id".into(), &"snapshot".into()));
    let columns: Vec<String> = donantes["columns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| format!("{} {} {} {}", c["column"], c["fate"], c["lake_column"], c["lake_type"]).replace('"', ""))
        .collect();
    assert_eq!(
        columns,
        [
            "id plain id INT64",
            "cedula hashed cedula STRING",
            "notas excluded null null",
            "monto plain monto DECIMAL(38,9)",
            "año plain a_xC3B1_o INT64",
            "ip plain ip STRING",
            "doble generated null null",
        ]
    );
    assert!(donantes["columns"][3]["exceptions"].as_str().unwrap().contains("NaN"));
    let (code, text) = {
        let output = w.command(&["check"]).envs(env).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!((code, text.lines().count()), (Some(0), document["findings"].as_array().unwrap().len()), "one line a finding");
    for part in [
        "streamed, key id, identity default, 5 columns in the lake",
        "excluded: notas; hashed: cedula",
        "año → a_xC3B1_o",
        "ip inet",
        "monto numeric (NaN",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let left = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots)";
    assert_eq!(w.client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0, "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_role_and_rights_is_a_finding() {
    let w = World::with(&GOOD).await;
    w.sql(TABLES).await;
    w.sql("CREATE PUBLICATION huella FOR TABLE donantes WITH (publish_via_partition_root = true); GRANT SELECT ON donantes TO lector")
        .await;
    let url = url(&w, "lector", w.server.port);
    let env = [("HUELLA_SOURCE_URL", url.as_str()), ("HUELLA_TABLE", "[{name = 'public.donantes'}]")];
    assert_eq!(check(&w, &env).0, 0);
    w.sql("ALTER ROLE lector NOREPLICATION").await;
    assert_problem(check(&w, &env), "role-replication", "ALTER ROLE \"lector\" REPLICATION");
    w.sql("ALTER ROLE lector REPLICATION; REVOKE SELECT ON donantes FROM lector; GRANT SELECT (id, notas, monto, \"año\", ip) ON donantes TO lector").await;
    let (code, document) = check(&w, &env);
    let found = problems(&document);
    assert!(code == 7 && found.len() == 1 && found[0].1["message"].as_str().unwrap().contains("no SELECT on cedula"), "{found:?}");
    assert_eq!(found[0].1["table"], "public.donantes");
    assert_problem((code, document), "rights-columns", "GRANT SELECT ON \"public\".\"donantes\" TO \"lector\"");
    // What is shown is what mends it.
    w.sql("GRANT SELECT ON \"public\".\"donantes\" TO \"lector\"").await;
    assert_eq!(check(&w, &env).0, 0);
    w.sql("ALTER TABLE donantes ENABLE ROW LEVEL SECURITY").await;
    assert_problem(check(&w, &env), "rights-row-security", "BYPASSRLS");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_not_to_reach_the_source_is_a_finding() {
    let w = World::with(&GOOD).await;
    w.sql(TABLES).await;
    let tables = ("HUELLA_TABLE", "[{name = 'public.donantes'}]");
    let at = |url: &str| check(&w, &[("HUELLA_SOURCE_URL", url), tables]);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_problem(at(&url(&w, "postgres", closed)), "connection-refused", "check host and port");
    assert_problem(at("postgresql://postgres@nadie.invalid:5432/postgres?sslmode=disable"), "connection-unresolved", "check the host");
    assert_problem(at(&url(&w, "nadie", w.server.port)), "connection-role", "check the user");
    assert_problem(
        at(&format!("postgresql://postgres@127.0.0.1:{}/nada?sslmode=disable", w.server.port)),
        "connection-database",
        "check the database",
    );
    assert_problem(at(&format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=require", w.server.port)), "connection-no-tls", "ssl");

    let pooler = pooler(w.server.port).await;
    let (code, document) = at(&url(&w, "postgres", pooler));
    assert!(document["tables"][0]["table"] == "public.donantes", "SQL goes through a pooler, so the rest is told as well");
    assert_problem((code, document), "connection-pooler", "direct host");

    let hba: String = w.client.query_one("SHOW hba_file", &[]).await.unwrap().get(0);
    w.sql("ALTER ROLE lector PASSWORD 'correcta'; ALTER ROLE lector SUPERUSER").await;
    std::fs::write(&hba, "host all lector all scram-sha-256\nhost replication lector all scram-sha-256\nhost all postgres all trust\n")
        .unwrap();
    w.sql("SELECT pg_reload_conf()").await;
    let with_password = |password: &str| format!("postgresql://lector:{password}@127.0.0.1:{}/postgres?sslmode=disable", w.server.port);
    let mut outcome = at(&with_password("EQUIVOCADA"));
    for _ in 0..100 {
        if outcome.0 == 7 {
            break;
        }
        outcome = at(&with_password("EQUIVOCADA")); // the server reads its file when it comes to it
    }
    assert!(!outcome.1.to_string().contains("EQUIVOCADA"));
    assert_problem(outcome, "connection-password", "check the password");
    assert_eq!(at(&with_password("correcta")).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_wal_is_a_finding() {
    let w = World::with(&[GOOD[0], GOOD[1], ("wal_level", "replica")]).await;
    w.sql(TABLES).await;
    assert_problem(check(&w, &[("HUELLA_TABLE", "[{name = 'public.donantes'}]")]), "wal-level", "wal_level = 'logical'");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_cannot_be_written_or_is_not_ours_is_a_finding() {
    let w = World::with(&GOOD).await;
    w.sql(TABLES).await;
    let tables = ("HUELLA_TABLE", "[{name = 'public.donantes'}]");
    let file = w.dir.path().join("no-folder");
    std::fs::write(&file, "").unwrap();
    let (code, document) = check(&w, &[tables, ("HUELLA_LAKE_URL", file.to_str().unwrap())]);
    assert!(code == 7 && problems(&document).iter().all(|(code, _)| code.starts_with("lake")), "{document:#}");
    std::fs::create_dir_all(w.lake()).unwrap();
    std::fs::write(w.lake().join("watermark.json"), "{}").unwrap();
    assert_problem(check(&w, &[tables]), "lake-unreadable", "another lake.url");
}

/// What a transaction pooler does: SQL goes through, the start of a replication session is answered as pgbouncer answers it.
async fn pooler(server: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let length = client.read_u32().await.unwrap();
                let mut start = vec![0; length as usize - 4];
                client.read_exact(&mut start).await.unwrap();
                if start.windows(11).any(|part| part == b"replication") {
                    let body = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: replication\0\0";
                    client.write_all(&[b"E", &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()).await.unwrap();
                    return;
                }
                let mut behind = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                behind.write_all(&[&length.to_be_bytes()[..], &start].concat()).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut behind).await;
            });
        }
    });
    port
}
