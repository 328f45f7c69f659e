//! What a publication leaves out, rows or columns, stays out of the lake; and nothing else does.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use std::process::Stdio;
use world::{Running, World};

const TABLE: &str = "CREATE TABLE donaciones (id int, estado text NOT NULL, monto numeric(12,2), nota text, PRIMARY KEY (id, estado)); \
     INSERT INTO donaciones SELECT i, CASE WHEN i % 2 = 0 THEN 'ok' ELSE 'no' END, i, 'n' || i FROM generate_series(1, 20) i";

/// Row filters and column lists came with PostgreSQL 15.
async fn world_since_15() -> Option<World> {
    let w = World::new().await;
    if huella::postgres::server::version(&w.client).await.unwrap() >= 150_000 {
        return Some(w);
    }
    eprintln!("SKIPPED: row filters and column lists came with PostgreSQL 15, and this server is older");
    None
}

/// Exit code and log of a command that ends by itself.
fn ended(w: &World, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let output = w.command(args).envs(env.iter().copied()).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

async fn true_where(w: &World, filter: &str, except: &[&str]) {
    let (code, out) = w.run(&["verify"]);
    assert_eq!(code, 0, "{out}\n{}", w.log());
    let lake = w.read();
    lake.assert_exactly_once();
    lake.assert_equals_rows(&w.client, "public.donaciones", filter, except).await;
}

fn snapshot(w: &World) -> serde_json::Value {
    w.watermark().map_or(serde_json::Value::Null, |m| m["tables"]["public.donaciones"]["snapshot"].clone())
}

/// Runs what changes the publication, and waits for the copy that must follow.
async fn copied_after(w: &World, sql: &str) {
    let before = snapshot(w);
    w.sql(sql).await;
    w.wait(&format!("a new copy after {sql}"), || snapshot(w) != before);
    w.caught_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_filter_is_honoured_by_copy_stream_and_verify() {
    let Some(w) = world_since_15().await else { return };
    w.sql(TABLE).await;
    w.sql("CREATE PUBLICATION huella FOR TABLE donaciones WHERE (estado = 'ok' AND id < 1000)").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let filter = "estado = 'ok' AND id < 1000";
    true_where(&w, filter, &[]).await;
    assert_eq!(w.read().state("public.donaciones").len(), 10, "the copy brought the filter's rows alone");
    w.sql("UPDATE donaciones SET estado = 'ok' WHERE id = 1; UPDATE donaciones SET estado = 'no' WHERE id = 2").await;
    w.sql("UPDATE donaciones SET monto = 99 WHERE id IN (3, 4); DELETE FROM donaciones WHERE id IN (5, 6)").await;
    w.sql("INSERT INTO donaciones VALUES (30, 'ok', 1, 'x'), (31, 'no', 1, 'x'), (1000, 'ok', 1, 'x'); UPDATE donaciones SET id = 40 WHERE id = 8")
        .await;
    w.caught_up().await;
    true_where(&w, filter, &[]).await;
    let changes = w.read().changes("public.donaciones");
    let op = |id: &str| changes.iter().rfind(|c| c.cells["id"].as_deref() == Some(id)).map(|c| c.op.as_str());
    assert_eq!((op("1"), op("2"), op("31"), op("1000")), (Some("INSERT"), Some("DELETE"), None, None));
    // verify looks at the same rows: one that the lake should not have is found.
    w.sql("TRUNCATE donaciones; INSERT INTO donaciones VALUES (1, 'ok', 2, NULL), (2, 'no', 2, NULL)").await;
    w.caught_up().await;
    true_where(&w, filter, &[]).await;

    // Another filter is another publication row: copied anew.
    copied_after(&w, "ALTER PUBLICATION huella SET TABLE donaciones WHERE (estado IN ('no', 'pagado'))").await;
    w.sql("INSERT INTO donaciones VALUES (3, 'pagado', 1, NULL); UPDATE donaciones SET estado = 'ok' WHERE id = 2").await;
    w.caught_up().await;
    true_where(&w, "estado IN ('no', 'pagado')", &[]).await;
    copied_after(&w, "ALTER PUBLICATION huella SET TABLE donaciones").await;
    true_where(&w, "true", &[]).await;
    run.stop();
}

/// What is sent between the copy's consistent point and the edit is chosen by the old rule, the copy's rows by the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_edited_while_a_copy_is_prepared_loses_nothing() {
    let Some(w) = world_since_15().await else { return };
    w.sql(TABLE).await;
    w.sql("CREATE PUBLICATION huella FOR TABLE donaciones WHERE (estado = 'ok')").await;
    let stopping = [("HUELLA_FAILPOINT", "start.after_import=stop")];
    for (rule, edit) in [("no", "first start"), ("ok", "new copy")] {
        let run = w.start(&["run"], &stopping);
        if edit == "new copy" {
            w.sql("ALTER PUBLICATION huella SET TABLE donaciones WHERE (id > 0)").await; // asks for a copy
        }
        w.wait("the consistent point", || run.is_stopped());
        w.sql("INSERT INTO donaciones SELECT max(id) + 1, 'ok', 1, 'x' FROM donaciones; INSERT INTO donaciones SELECT max(id) + 1, 'no', 1, 'x' FROM donaciones").await;
        w.sql(&format!("ALTER PUBLICATION huella SET TABLE donaciones WHERE (estado = '{rule}')")).await;
        w.sql("INSERT INTO donaciones SELECT max(id) + 1, 'ok', 1, 'y' FROM donaciones; INSERT INTO donaciones SELECT max(id) + 1, 'no', 1, 'y' FROM donaciones").await;
        run.signal(libc::SIGCONT);
        w.caught_up().await;
        true_where(&w, &format!("estado = '{rule}'"), &[]).await;
        run.stop();
    }
}

/// The server sends an UPDATE that brings its row into the filter as an INSERT, without the large values that did not change.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_enters_the_filter_without_its_large_values_gets_them_by_a_copy() {
    let Some(w) = world_since_15().await else { return };
    w.sql(TABLE).await;
    w.sql("ALTER TABLE donaciones ALTER nota SET STORAGE EXTERNAL; UPDATE donaciones SET nota = repeat('larga', 4000)").await;
    w.sql("CREATE PUBLICATION huella FOR TABLE donaciones WHERE (estado = 'ok')").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    copied_after(&w, "UPDATE donaciones SET estado = 'ok' WHERE id = 1; INSERT INTO donaciones VALUES (50, 'ok', 1, 'corta')").await;
    true_where(&w, "estado = 'ok'", &[]).await;
    // Many of them ask for one copy, which lies behind the last.
    copied_after(&w, "UPDATE donaciones SET estado = 'ok' WHERE id = 3; UPDATE donaciones SET estado = 'ok' WHERE estado = 'no'").await;
    true_where(&w, "estado = 'ok'", &[]).await;
    let asked = w.log().matches("brought a row into the publication's row filter").count();
    assert!((1..=3).contains(&asked), "{asked} times");
    // Under FULL they are sent.
    copied_after(&w, "ALTER TABLE donaciones REPLICA IDENTITY FULL; ALTER PUBLICATION huella SET TABLE donaciones WHERE (estado = 'no')")
        .await;
    let copied = snapshot(&w);
    w.sql("UPDATE donaciones SET estado = 'no' WHERE id = 1").await;
    w.caught_up().await;
    true_where(&w, "estado = 'no'", &[]).await;
    assert_eq!(snapshot(&w), copied, "no copy was needed");
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_beside_the_key_counts_nulls_as_the_server_does() {
    let Some(w) = world_since_15().await else { return };
    w.sql(TABLE).await;
    w.sql("ALTER TABLE donaciones REPLICA IDENTITY FULL; UPDATE donaciones SET monto = NULL WHERE id < 5").await;
    w.sql("CREATE PUBLICATION huella FOR TABLE donaciones WHERE (monto > 5 OR nota LIKE '%''x')").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("UPDATE donaciones SET monto = NULL WHERE id = 10; UPDATE donaciones SET monto = 7 WHERE id = 1; UPDATE donaciones SET nota = 'ho''x' WHERE id = 2")
        .await;
    w.caught_up().await;
    true_where(&w, "monto > 5 OR nota LIKE '%''x'", &[]).await;
    run.stop();
}

/// With the root option the root's filter counts and the leaf's is ignored; without it a leaf's own filter could not be copied.
#[tokio::test(flavor = "multi_thread")]
async fn the_roots_filter_counts_and_a_leafs_own_is_refused_where_it_would_count() {
    let Some(w) = world_since_15().await else { return };
    w.sql(
        "CREATE TABLE donaciones (id int PRIMARY KEY, nota text) PARTITION BY RANGE (id);
         CREATE TABLE d_a PARTITION OF donaciones FOR VALUES FROM (0) TO (10); CREATE TABLE d_b PARTITION OF donaciones FOR VALUES FROM (10) TO (20);
         INSERT INTO donaciones SELECT generate_series(0, 19), 'n';
         CREATE PUBLICATION huella FOR TABLE donaciones WHERE (id % 3 <> 0), d_a WHERE (id > 7) WITH (publish_via_partition_root = true)",
    )
    .await;
    let env = [("HUELLA_TABLE", "[{name = 'public.donaciones'}]")];
    let run = w.start(&["run"], &env);
    w.caught_up().await;
    w.sql("DELETE FROM donaciones WHERE id = 4; UPDATE donaciones SET id = 5 + 10 WHERE id = 15; UPDATE donaciones SET nota = 'm' WHERE id < 9").await;
    w.caught_up().await;
    true_where(&w, "id % 3 <> 0", &[]).await;
    run.stop();
    w.sql("ALTER PUBLICATION huella SET TABLE donaciones, d_a WHERE (id > 7); ALTER PUBLICATION huella SET (publish_via_partition_root = false)").await;
    let (code, _, log) = ended(&w, &["run", "--until-caught-up"], &env);
    assert!(code == 4 && log.contains("public.d_a, a partition of public.donaciones"), "{code} {log}");
}

/// A part of a partition tree is a table of its own only as long as no table above it is published in its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_partition_tree_is_replicated_whole_or_refused() {
    let w = World::new().await;
    w.sql(
        "CREATE TABLE raiz (id int PRIMARY KEY, nota text) PARTITION BY RANGE (id);
         CREATE TABLE donaciones PARTITION OF raiz FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);
         CREATE TABLE d_a PARTITION OF donaciones FOR VALUES FROM (0) TO (50); CREATE TABLE d_b PARTITION OF donaciones FOR VALUES FROM (50) TO (100);
         INSERT INTO raiz SELECT generate_series(0, 99), 'n'",
    )
    .await;
    let env = [("HUELLA_TABLE", "[{name = 'public.donaciones'}]")];
    let run = w.start(&["run"], &env);
    w.caught_up().await;
    w.sql("UPDATE raiz SET nota = 'm' WHERE id % 2 = 0; DELETE FROM d_a WHERE id = 1").await;
    w.caught_up().await;
    true_where(&w, "true", &[]).await;
    assert_eq!(w.read().state("public.donaciones").len(), 99);
    run.stop();
    w.sql("ALTER PUBLICATION huella ADD TABLE raiz").await;
    let (code, _, log) = ended(&w, &["run", "--until-caught-up"], &env);
    assert!(code == 4 && log.contains("under the name of public.raiz"), "{code} {log}");
    let (code, out, _) = ended(&w, &["check"], &env);
    assert!(code == 7 && out.contains("under the name of public.raiz"), "{code} {out}");
}

/// Beside its schema's membership a table's row filter has no effect at the server, so it must have none in the copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_beside_the_membership_of_the_schema_is_void() {
    let Some(w) = world_since_15().await else { return };
    w.sql(TABLE).await;
    w.sql("CREATE PUBLICATION huella FOR TABLES IN SCHEMA public, TABLE donaciones WHERE (estado = 'ok')").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("INSERT INTO donaciones VALUES (51, 'no', 1, 'x'), (52, 'ok', 1, 'x')").await;
    w.caught_up().await;
    true_where(&w, "true", &[]).await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_outside_the_owners_list_are_in_no_file_until_they_are_listed() {
    let Some(w) = world_since_15().await else { return };
    w.sql(TABLE).await;
    w.sql("CREATE PUBLICATION huella FOR TABLE donaciones (id, estado, monto)").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("INSERT INTO donaciones VALUES (60, 'ok', 1, 'privada'); UPDATE donaciones SET nota = 'otra', monto = 0 WHERE id = 2; DELETE FROM donaciones WHERE id = 3").await;
    w.caught_up().await;
    true_where(&w, "true", &["nota"]).await;
    let lake = w.read();
    assert!(lake.changes("public.donaciones").iter().all(|change| !change.cells.contains_key("nota")));
    assert!(w.log().contains("leaves columns out"));
    copied_after(&w, "ALTER PUBLICATION huella SET TABLE donaciones (id, estado, monto, nota)").await;
    w.sql("INSERT INTO donaciones VALUES (61, 'ok', 1, 'ya no'); UPDATE donaciones SET nota = 'y' WHERE id = 4").await;
    w.caught_up().await;
    true_where(&w, "true", &[]).await;
    // And out again.
    copied_after(&w, "ALTER PUBLICATION huella SET TABLE donaciones (id, estado, nota)").await;
    w.sql("INSERT INTO donaciones VALUES (62, 'ok', 7, 'z')").await;
    w.caught_up().await;
    true_where(&w, "true", &["monto"]).await;
    run.stop();
    // A list without a part of the key would let rows fall together.
    w.sql("ALTER PUBLICATION huella SET TABLE donaciones (id, nota)").await;
    let (code, _, log) = ended(&w, &["run", "--until-caught-up"], &[]);
    assert!(code == 4 && log.contains("leaves out estado, which belongs to its key"), "{code} {log}");
}

const AT_SOURCE: &str = "[{name = 'public.donaciones', exclude = ['nota'], exclude_at_source = true}]";

async fn listed(w: &World) -> Option<Vec<String>> {
    let publication = huella::postgres::publication::read(&w.client, "huella").await.unwrap().unwrap();
    publication.tables.into_values().next().unwrap().columns
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_excluded_at_the_source_never_leave_it() {
    let Some(w) = world_since_15().await else { return };
    w.sql(TABLE).await;
    // A second slot sees what is sent to whoever uses the publication.
    w.sql("SELECT pg_create_logical_replication_slot('otro', 'pgoutput')").await;
    let run = w.start(&["run"], &[("HUELLA_TABLE", AT_SOURCE)]);
    w.caught_up().await;
    w.sql("INSERT INTO donaciones VALUES (70, 'ok', 1, 'MARCAUNO'); UPDATE donaciones SET nota = 'MARCADOS', monto = 3 WHERE id = 70")
        .await;
    w.caught_up().await;
    true_where(&w, "true", &["nota"]).await;
    let sent = "SELECT string_agg(encode(data, 'escape'), '') FROM pg_logical_slot_peek_binary_changes('otro', NULL, NULL, 'proto_version', '1', 'publication_names', 'huella')";
    let sent: String = w.client.query_one(sent, &[]).await.unwrap().get(0);
    assert!(sent.contains("70") && !sent.contains("MARCA"), "{sent}");
    let drop = w.client.batch_execute("ALTER TABLE donaciones DROP COLUMN monto").await.unwrap_err();
    assert_eq!(drop.code().map(|code| code.code()), Some("2BP01"), "the limit that check tells");

    // A column that is new stays at the source, and is told with the SQL that lets it through.
    w.sql("ALTER TABLE donaciones ADD nuevo text; INSERT INTO donaciones VALUES (71, 'ok', 1, NULL, 'MARCATRES')").await;
    w.wait("the warning", || w.log().contains("the configuration does not exclude"));
    w.caught_up().await;
    assert!(!w.read().changes("public.donaciones").iter().any(|change| change.cells.contains_key("nuevo")));
    let (code, out, _) = ended(&w, &["check", "--json"], &[("HUELLA_TABLE", AT_SOURCE)]);
    let check: serde_json::Value = serde_json::from_str(&out).unwrap();
    let finding = check["findings"].as_array().unwrap().iter().find(|f| f["code"] == "column-list").expect("a finding of the new column");
    let mend = finding["mend"].as_str().unwrap();
    assert!(code == 0 && finding["message"].as_str().unwrap().contains("nuevo"), "{code} {finding}");
    let sql = mend.split_once("let them through: ").unwrap().1;
    copied_after(&w, sql).await;
    true_where(&w, "true", &["nota"]).await;
    assert!(w.read().changes("public.donaciones").iter().any(|change| change.cells.contains_key("nuevo")));

    // Somebody takes the list away: it is there again at the next look, and the table is copied anew.
    copied_after(&w, "BEGIN; ALTER PUBLICATION huella SET TABLE donaciones; COMMIT").await;
    w.wait("the list", || w.log().contains("changing the table's column list"));
    assert_eq!(listed(&w).await, Some(["id", "estado", "monto", "nuevo"].map(str::to_owned).to_vec()));
    w.caught_up().await;
    true_where(&w, "true", &["nota"]).await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn exclusion_at_the_source_can_be_turned_on_changed_and_off_for_a_lake_that_stands() {
    let Some(w) = world_since_15().await else { return };
    w.sql(TABLE).await;
    let start = |table: &'static str| -> Running { w.start(&["run"], &[("HUELLA_TABLE", table)]) };
    let run = start("[{name = 'public.donaciones', exclude = ['nota']}]");
    w.caught_up().await;
    run.stop();
    assert_eq!(listed(&w).await, None);
    for (table, columns, except) in [
        (AT_SOURCE, Some(vec!["id", "estado", "monto"]), vec!["nota"]),
        (
            "[{name = 'public.donaciones', exclude = ['nota', 'monto'], exclude_at_source = true}]",
            Some(vec!["id", "estado"]),
            vec!["nota", "monto"],
        ),
        (AT_SOURCE, Some(vec!["id", "estado", "monto"]), vec!["nota"]),
        ("[{name = 'public.donaciones', exclude = ['nota']}]", None, vec!["nota"]),
        ("[{name = 'public.donaciones'}]", None, vec![]),
    ] {
        let run = start(table);
        w.sql("INSERT INTO donaciones SELECT max(id) + 1, 'ok', 5, 'z' FROM donaciones").await;
        w.caught_up().await;
        let columns: Option<Vec<String>> = columns.map(|columns| columns.into_iter().map(str::to_owned).collect());
        assert_eq!(listed(&w).await, columns, "{table}");
        let lake = w.read();
        lake.assert_exactly_once();
        lake.assert_equals_rows(&w.client, "public.donaciones", "true", &except).await;
        let (code, out, log) = ended(&w, &["verify"], &[("HUELLA_TABLE", table)]);
        assert_eq!(code, 0, "{out}\n{log}");
        run.stop();
    }
    // A list of the owner's is not ours to take away.
    w.sql("ALTER PUBLICATION huella SET TABLE donaciones (id, estado, monto)").await;
    let run = start("[{name = 'public.donaciones'}]");
    w.caught_up().await;
    assert!(listed(&w).await.is_some());
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn exclusion_at_the_source_is_refused_where_it_cannot_be_had() {
    let w = World::new().await;
    w.sql("CREATE TABLE donaciones (id int PRIMARY KEY, nota text, otra text); CREATE ROLE lector LOGIN REPLICATION; GRANT SELECT ON donaciones TO lector").await;
    let refused = |table: &str, code: i32, why: &str| {
        let (ended_with, _, log) = ended(&w, &["run", "--until-caught-up"], &[("HUELLA_TABLE", table)]);
        assert!(ended_with == code && log.contains(why), "{table}: {ended_with}\n{log}");
    };
    if huella::postgres::server::version(&w.client).await.unwrap() < 150_000 {
        refused(AT_SOURCE, 3, "needs PostgreSQL 15");
        return;
    }
    refused("[{name = 'public.donaciones', exclude = ['id'], exclude_at_source = true}]", 3, "belongs to the key");
    w.sql("ALTER TABLE donaciones REPLICA IDENTITY FULL").await;
    refused(AT_SOURCE, 3, "42P10");
    w.sql("ALTER TABLE donaciones REPLICA IDENTITY DEFAULT; CREATE PUBLICATION huella FOR ALL TABLES").await;
    refused(AT_SOURCE, 4, "publishes all tables");
    w.sql("DROP PUBLICATION huella; CREATE PUBLICATION huella FOR TABLE donaciones WITH (publish_via_partition_root = true)").await;
    // The SQL that a role without the right is shown is the one that mends it.
    let url = format!("postgresql://lector@127.0.0.1:{}/postgres?sslmode=disable", w.server.port);
    let env = [("HUELLA_TABLE", AT_SOURCE), ("HUELLA_SOURCE_URL", url.as_str())];
    let (code, _, log) = ended(&w, &["run", "--until-caught-up"], &env);
    assert!(code == 4 && log.contains("or a superuser, run: "), "{code} {log}");
    let (code, out, _) = ended(&w, &["check", "--json"], &env);
    let check: serde_json::Value = serde_json::from_str(&out).unwrap();
    let finding = check["findings"].as_array().unwrap().iter().find(|f| f["code"] == "at-source-change").expect("a finding");
    assert!(code == 7 && finding["severity"] == "problem", "{finding}");
    w.sql(finding["mend"].as_str().unwrap().split_once("runs: ").unwrap().1).await;
    let (code, _, log) = ended(&w, &["run", "--until-caught-up"], &env);
    assert_eq!(code, 0, "{log}");
    assert_eq!(listed(&w).await, Some(vec!["id".to_owned(), "otra".to_owned()]));
}
