//! `check`'s source half against a real server: the facts that it gathers, each spoiled in turn, and what it finds.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod private_server;

use huella::check::{self, ConnectFailure, Finding, Known, Reached, Session, Severity, Wanted, WantedTable};
use huella::error::Error;
use huella::lsn::Lsn;
use huella::postgres::{publication, server};
use huella::table_name::TableName;
use private_server::Server;
use tokio_postgres::Client;

const LOGICAL: (&str, &str) = ("wal_level", "logical");
const LIMITED: (&str, &str) = ("max_slot_wal_keep_size", "4GB");

fn public(name: &str) -> TableName {
    TableName::new("public", name)
}

fn wanted(names: &[&str]) -> Wanted {
    let tables = names.iter().map(|name| public(name).into()).collect();
    Wanted {
        slot: "huella".into(),
        publication: "huella".into(),
        tables: Some(tables),
        initial: true,
        failover: false,
        workers: 2,
        ignore_new: false,
    }
}

async fn found(client: &Client, wanted: &Wanted, known: Option<Known>) -> Vec<Finding> {
    let reached = Reached { host: "127.0.0.1", port: 5432, sql: Ok(client), replication: None };
    check::source(&reached, wanted, async { known }).await.findings
}

fn not_ok(findings: &[Finding]) -> Vec<String> {
    findings.iter().filter(|f| f.severity != Severity::Ok).map(ToString::to_string).collect()
}

/// Exactly these findings that are not fine, each by a part of its line.
fn assert_found(findings: &[Finding], parts: &[&str]) {
    let lines = not_ok(findings);
    assert_eq!(lines.len(), parts.len(), "{lines:#?}");
    for part in parts {
        assert!(lines.iter().any(|line| line.contains(part)), "{part}: {lines:#?}");
    }
}

const SCHEMA: &str = "
CREATE TABLE public.a (id int PRIMARY KEY, note text, g int GENERATED ALWAYS AS (id + 1) STORED);
CREATE TABLE public.root (id int PRIMARY KEY) PARTITION BY HASH (id);
CREATE TABLE public.root_0 PARTITION OF public.root FOR VALUES WITH (MODULUS 1, REMAINDER 0);
CREATE TABLE public.no_key (x int);
CREATE TABLE public.nothing (x int PRIMARY KEY); ALTER TABLE public.nothing REPLICA IDENTITY NOTHING;
CREATE TABLE public.bag (x int); ALTER TABLE public.bag REPLICA IDENTITY FULL;
CREATE UNLOGGED TABLE public.fleeting (x int PRIMARY KEY);
CREATE VIEW public.seen AS SELECT 1 AS x;
CREATE TABLE public.guarded (id int PRIMARY KEY); ALTER TABLE public.guarded ENABLE ROW LEVEL SECURITY;
CREATE TABLE public.partly (id int PRIMARY KEY, open text, closed text);
CREATE ROLE reader LOGIN;
GRANT SELECT ON public.guarded, public.root TO reader; GRANT SELECT (id, open) ON public.partly TO reader;
";

#[tokio::test]
async fn a_good_source_has_only_good_findings_and_is_left_as_it_was() {
    let Some(server) = Server::start(&[LOGICAL, LIMITED]) else { return };
    let client = server.connect().await;
    client.batch_execute(SCHEMA).await.unwrap();
    let before = server::insert_lsn(&client).await.unwrap();
    let findings = found(&client, &wanted(&["a", "root"]), None).await;
    assert_found(&findings, &[]);
    let text = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    for part in ["PostgreSQL 1", "slots", "the first start makes it, with 2 tables", "public.a: streamed, key id", "left out: g"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Nothing was written but what the server writes by itself (a running-xacts record, some hundred bytes).
    assert!(server::insert_lsn(&client).await.unwrap().0 - before.0 < 4096);
    assert_eq!(server::info(&client).await.unwrap().slots_used, 0);
    assert_eq!(publication::read(&client, "huella").await.unwrap(), None);
}

#[tokio::test]
async fn each_kind_of_table_has_its_finding() {
    let Some(server) = Server::start(&[LOGICAL, LIMITED]) else { return };
    let client = server.connect().await;
    client.batch_execute(SCHEMA).await.unwrap();
    let mut wanted = wanted(&["no_key", "nothing", "bag", "fleeting", "seen", "absent"]);
    wanted.tables.as_mut().unwrap().push(TableName::new("information_schema", "sql_features").into());
    assert_found(
        &found(&client, &wanted, None).await,
        &[
            "public.no_key: it has no primary key",
            "public.nothing: its replica identity is NOTHING",
            "public.bag: it has no key",
            "public.fleeting: public.fleeting is unlogged",
            "public.seen: it is a view",
            "public.absent: there is no such table",
            "information_schema.sql_features: it is in a schema of the system",
        ],
    );
    let every = Wanted { tables: None, ..wanted };
    assert_found(
        &found(&client, &every, None).await,
        &["public.no_key: left out", "public.nothing: left out", "public.fleeting: left out", "public.bag: it has no key"],
    );
}

#[tokio::test]
async fn rights_that_are_missing_are_named_with_their_grants() {
    let Some(server) = Server::start(&[LOGICAL, LIMITED]) else { return };
    let admin = server.connect().await;
    admin.batch_execute(SCHEMA).await.unwrap();
    let client = server.connect_as("reader").await;
    let found_as_reader = found(&client, &wanted(&["a", "root", "guarded", "partly"]), None).await;
    assert_found(
        &found_as_reader,
        &[
            "ALTER ROLE \"reader\" REPLICATION",
            "role reader does not own public.a, public.root, public.guarded, public.partly",
            "role reader has no SELECT on it → GRANT SELECT ON \"public\".\"a\" TO \"reader\"",
            "role reader may not read its partitions, which are copied one by one: public.root_0",
            "row level security hides rows from role reader",
            "role reader has no SELECT on closed",
        ],
    );
    // The statement shown for the owner is the one that mends it.
    let shown = found_as_reader.iter().find(|f| f.subject == "publication huella").unwrap().mend.clone().unwrap();
    admin.batch_execute(shown.strip_prefix("the owner, or a superuser, runs: ").unwrap()).await.unwrap();
    admin.batch_execute("ALTER ROLE reader REPLICATION BYPASSRLS; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader").await.unwrap();
    assert_found(&found(&client, &wanted(&["a", "root", "guarded", "partly"]), None).await, &[]);

    // Column rights do not suffice for the lock that guards a copy.
    admin.batch_execute("REVOKE SELECT ON public.partly FROM reader; GRANT SELECT (id, open) ON public.partly TO reader").await.unwrap();
    let mut some = wanted(&["a"]);
    some.tables = Some(vec![WantedTable { exclude: vec!["closed".into()], ..public("partly").into() }]);
    assert_found(&found(&client, &some, None).await, &["LOCK TABLE"]);
    let refused = client.batch_execute("BEGIN; LOCK TABLE public.partly IN ACCESS SHARE MODE").await.unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("42501"));
}

#[tokio::test]
async fn a_publication_that_lacks_something_is_mended_by_what_is_shown() {
    let Some(server) = Server::start(&[LOGICAL, LIMITED]) else { return };
    let client = server.connect().await;
    client.batch_execute(SCHEMA).await.unwrap();
    client.batch_execute("CREATE PUBLICATION huella FOR TABLE public.a, public.root WITH (publish = 'insert')").await.unwrap();
    let wanted = wanted(&["a", "root"]);
    let findings = found(&client, &wanted, None).await;
    assert_found(&findings, &["does not publish UPDATE, DELETE, TRUNCATE", "publish_via_partition_root is off"]);
    for finding in findings.iter().filter(|f| f.severity == Severity::Problem) {
        client.batch_execute(finding.mend.as_ref().unwrap()).await.unwrap();
    }
    assert_found(&found(&client, &wanted, None).await, &[]);
    if server::version(&client).await.unwrap() < 150_000 {
        return;
    }
    client
        .batch_execute("ALTER PUBLICATION huella DROP TABLE public.a; ALTER PUBLICATION huella ADD TABLE public.a (id) WHERE (id > 5)")
        .await
        .unwrap();
    assert_found(&found(&client, &wanted, None).await, &["has a row filter", "leaves out note"]);
}

#[tokio::test]
async fn the_slot_is_judged_against_the_lake() {
    let Some(server) = Server::start(&[LOGICAL, LIMITED, ("max_replication_slots", "2")]) else { return };
    let client = server.connect().await;
    client.batch_execute(SCHEMA).await.unwrap();
    let wanted = wanted(&["a"]);
    let identifier = server::system_identifier(&client).await.unwrap().unwrap();
    let known = |through: Lsn| Some(Known { through: Some(through), system_identifier: identifier.clone(), ..Known::default() });
    let begun = known(server::flush_lsn(&client).await.unwrap());
    assert_found(&found(&client, &wanted, begun.clone()).await, &["slot huella: it is missing", "publication huella: it is missing"]);

    publication::create(&client, "huella", &[public("a").into()]).await.unwrap();
    client.batch_execute("SELECT pg_catalog.pg_create_logical_replication_slot('huella', 'pgoutput')").await.unwrap();
    assert_found(&found(&client, &wanted, begun).await, &["ahead of the lake's watermark"]);
    let now = server::flush_lsn(&client).await.unwrap();
    assert_found(&found(&client, &wanted, known(now)).await, &[]);
    assert_found(&found(&client, &wanted, known(Lsn(now.0 + (1 << 40)))).await, &["restored to an earlier point"]);
    assert_found(&found(&client, &wanted, None).await, &["the lake has not begun"]);
    let foreign = Some(Known { through: Some(now), system_identifier: "1".into(), ..Known::default() });
    assert_found(&found(&client, &wanted, foreign).await, &["another cluster"]);
    client.batch_execute("SELECT pg_catalog.pg_create_logical_replication_slot('other', 'pgoutput')").await.unwrap();
    assert_found(&found(&client, &wanted, known(now)).await, &["0 of 2 replication slots are free"]);
}

#[tokio::test]
async fn settings_of_the_server_are_judged() {
    let settings = [("wal_level", "replica"), ("max_slot_wal_keep_size", "512MB"), ("wal_sender_timeout", "2s"), ("max_wal_senders", "1")];
    let Some(server) = Server::start(&settings) else { return };
    let client = server.connect().await;
    client.batch_execute(SCHEMA).await.unwrap();
    assert_found(
        &found(&client, &wanted(&["a"]), None).await,
        &["wal_level is replica", "outlives a stop of 8 minutes", "wal_sender_timeout is 2000 ms", "1 of 1 streaming sessions"],
    );
}

#[tokio::test]
async fn a_session_that_was_not_opened_is_told_once() {
    let failure = |session| ConnectFailure::new(session, "db.example.org", 5432, &Error::retry("no connection within 10 s"), None);
    let reached =
        Reached { host: "db.example.org", port: 5432, sql: Err(failure(Session::Sql)), replication: Some(failure(Session::Replication)) };
    let findings = check::source(&reached, &wanted(&["a"]), async { None }).await.findings;
    assert_found(&findings, &["a SQL session cannot be opened: no answer"]);
}
