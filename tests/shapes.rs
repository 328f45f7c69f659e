//! Migrations as people write them, quickly and in one transaction, with rows in between: whatever the catalog went through between two looks, the
//! lake comes to be equal to the source, and what was harmless is not copied again.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use serde_json::Value;
use std::sync::Arc;
use world::World;

const ROWS: &str = "CREATE TABLE t (a int PRIMARY KEY, x text); INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three')";

impl World {
    /// A migration while `run` streams, as one transaction and as single statements without a pause; the lake comes to be equal.
    async fn migrated(server: &Arc<private_server::Server>, name: &str, before: &str, migration: &[&str]) {
        for (form, script) in [("one", format!("BEGIN; {}; COMMIT", migration.join("; "))), ("each", migration.join("; COMMIT; BEGIN; "))] {
            let w = World::on(server, &format!("{name}_{form}")).await;
            w.sql(before).await;
            let run = w.start(&["run"], &[]);
            w.caught_up().await;
            if form == "one" {
                w.sql(&script).await;
            } else {
                for statement in migration {
                    w.sql(statement).await;
                }
            }
            w.comes_true_in_the_lake().await;
            run.stop();
            w.true_in_the_lake().await;
        }
    }

    fn mark(&self, table: &str) -> Value {
        self.watermark().unwrap()["tables"][table].clone()
    }

    /// What a copy changes.
    fn copied(&self, table: &str) -> (Value, Value) {
        let mark = self.mark(table);
        (mark["version"].clone(), mark["snapshot"].clone())
    }

    /// Waits until a look that began after now was taken into account: a column that only a look brings is there.
    async fn looked_at(&self, table: &str, marker: &str) {
        self.sql(&format!("ALTER TABLE {table} ADD COLUMN {marker} int")).await;
        self.wait("a look", || {
            let mark = self.mark(&format!("public.{table}"));
            let Some(version) = mark["version"].as_u64() else { return false };
            let document = mark["schemas"][version.to_string()].as_str().unwrap_or_default().to_owned();
            let path = self.lake().join(format!("tables/public.{table}/v{version}/{document}"));
            std::fs::read_to_string(path).is_ok_and(|schema| schema.contains(&format!("\"{marker}\"")))
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_changes_with_a_row_between_them_are_both_noticed() {
    let server = World::server();
    for (name, last) in [
        ("fallback", "ALTER TABLE t ADD c int DEFAULT 7"),
        ("plain", "ALTER TABLE t ADD c int"),
        ("rename", "ALTER TABLE t RENAME x TO y"),
        ("key", "ALTER TABLE t DROP CONSTRAINT t_pkey, ALTER b SET NOT NULL, ADD PRIMARY KEY (b)"),
        ("rewrite", "ALTER TABLE t ALTER x TYPE text USING x || '!'"),
        ("volatile", "ALTER TABLE t ADD c float DEFAULT random()"),
        ("serial", "ALTER TABLE t ADD c serial"),
    ] {
        World::migrated(&server, name, ROWS, &["ALTER TABLE t ADD b int", "UPDATE t SET b = a", last]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_come_and_go_leave_nothing_behind() {
    let server = World::server();
    let histories: [(&str, &[&str]); 7] = [
        // A column that helped with the migration, and is gone before it can be looked up.
        (
            "help",
            &[
                "ALTER TABLE t ADD help int",
                "UPDATE t SET help = 1",
                "ALTER TABLE t ADD c int DEFAULT 7",
                "UPDATE t SET help = 2 WHERE a = 1",
                "ALTER TABLE t DROP help",
                "UPDATE t SET x = 'z' WHERE a = 2",
            ],
        ),
        // The same name again: the values of the first are gone at the source.
        ("again", &["ALTER TABLE t ADD help int", "UPDATE t SET help = 1", "ALTER TABLE t DROP help", "ALTER TABLE t ADD help int"]),
        (
            "again_row",
            &[
                "ALTER TABLE t ADD help int",
                "UPDATE t SET help = 1",
                "ALTER TABLE t DROP help",
                "ALTER TABLE t ADD help int",
                "UPDATE t SET help = 5 WHERE a = 2",
            ],
        ),
        // Renamed after its rows were written.
        ("renamed", &["ALTER TABLE t ADD help int", "UPDATE t SET help = 1", "ALTER TABLE t RENAME help TO aid"]),
        (
            "renamed_row",
            &[
                "ALTER TABLE t ADD help int",
                "UPDATE t SET help = 1",
                "ALTER TABLE t RENAME help TO aid",
                "UPDATE t SET aid = 9 WHERE a = 3",
            ],
        ),
        (
            "retyped",
            &[
                "ALTER TABLE t ADD help int",
                "UPDATE t SET help = 1",
                "ALTER TABLE t ALTER help TYPE text",
                "UPDATE t SET help = 'q' WHERE a = 3",
            ],
        ),
        (
            "swapped",
            &[
                "ALTER TABLE t ADD y text",
                "UPDATE t SET y = 'y' || a",
                "ALTER TABLE t RENAME x TO w",
                "ALTER TABLE t RENAME y TO x",
                "ALTER TABLE t RENAME w TO y",
            ],
        ),
    ];
    for (name, migration) in histories {
        World::migrated(&server, name, ROWS, migration).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopped_writer_has_not_read_is_read_by_the_next() {
    let server = World::server();
    for (name, migration) in [
        ("again", "ALTER TABLE t ADD help int; UPDATE t SET help = 1; ALTER TABLE t DROP help; ALTER TABLE t ADD help int"),
        (
            "late",
            "ALTER TABLE t ADD help int; UPDATE t SET help = 1; ALTER TABLE t DROP help; UPDATE t SET x = 'u'; ALTER TABLE t ADD d int DEFAULT 4",
        ),
        (
            "dropped",
            "ALTER TABLE t ADD help int; UPDATE t SET help = 1; DROP TABLE t; CREATE TABLE t (a int PRIMARY KEY, z text); INSERT INTO t VALUES (9, 'nine'); ALTER PUBLICATION huella ADD TABLE t",
        ),
        (
            "swapped",
            "CREATE TABLE u (a int PRIMARY KEY, x text); ALTER TABLE t RENAME TO w; ALTER TABLE u RENAME TO t; ALTER TABLE w RENAME TO u; INSERT INTO u VALUES (7, 'seven'); ALTER PUBLICATION huella ADD TABLE t",
        ),
    ] {
        let w = World::on(&server, &format!("stopped_{name}")).await;
        w.sql(ROWS).await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        w.sql(migration).await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        w.true_in_the_lake().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_column_that_becomes_plain_is_copied() {
    let server = World::server();
    let before = "CREATE TABLE t (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO t VALUES (3), (4)";
    World::migrated(&server, "quiet", before, &["ALTER TABLE t ALTER b DROP EXPRESSION"]).await;
    World::migrated(&server, "rows", before, &["ALTER TABLE t ALTER b DROP EXPRESSION", "INSERT INTO t VALUES (5, 50)"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_owed_survives_a_kill_at_every_write() {
    let server = World::server();
    // Killed before the commit that would note it, and another compatible change before the next start.
    for (at, point) in ["commit.after_data", "commit.after_manifest", "commit.after_cas", "commit.before_ack"].into_iter().enumerate() {
        let w = World::on(&server, &format!("owed_{at}")).await;
        w.sql(ROWS).await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        let failpoint = format!("{point}=kill");
        w.sql("ALTER TABLE t ADD d int DEFAULT 1; UPDATE t SET x = 'u' WHERE a = 1").await;
        let killed = w.start(&["run"], &[("HUELLA_FAILPOINT", failpoint.as_str())]);
        assert_ne!(killed.wait(), Some(0), "{point}");
        w.sql("ALTER TABLE t ADD e text").await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        w.true_in_the_lake().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn harmless_changes_are_not_copied() {
    let server = World::server();
    let w = World::on(&server, "harmless").await;
    w.sql(&format!(
        "{ROWS}; CREATE ROLE harmless_reader; CREATE TABLE p (d int, x text, PRIMARY KEY (d)) PARTITION BY RANGE (d);
                    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1, 'one')"
    ))
    .await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let before = (w.copied("public.t"), w.copied("public.p"));
    for (at, sql) in [
        "ALTER TABLE t ADD b int",
        "UPDATE t SET b = a",
        "ALTER TABLE t DROP b",
        "GRANT SELECT ON t TO harmless_reader",
        "ANALYZE t",
        "VACUUM FULL t",
        "CREATE INDEX ON t (x)",
        "ALTER TABLE t ADD v varchar(10); UPDATE t SET v = 'v'; ALTER TABLE t ALTER v TYPE varchar(20); UPDATE t SET v = 'wider than ten' WHERE a = 1",
        "ALTER TABLE t ALTER x SET DEFAULT 'x'; INSERT INTO t (a) VALUES (8)",
        "ALTER TABLE t ALTER x SET NOT NULL; ALTER TABLE t ALTER x DROP NOT NULL",
        "TRUNCATE t; INSERT INTO t VALUES (1, 'again')",
        // A partition that is made as one, filled at once; and one that is made apart and attached while it is empty.
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p VALUES (11, 'eleven')",
        "CREATE TABLE p3 (LIKE p INCLUDING ALL); ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (20) TO (30)",
    ].into_iter().enumerate()
    {
        w.sql(sql).await;
        w.looked_at("t", &format!("look_{at}")).await;
        w.looked_at("p", &format!("look_{at}")).await;
    }
    w.caught_up().await;
    assert_eq!((w.copied("public.t"), w.copied("public.p")), before, "{}", w.log());
    w.true_in_the_lake().await;
    // And one that is attached with rows, of a table that inserts them in the same transaction, is copied.
    w.sql("BEGIN; CREATE TABLE p4 (LIKE p INCLUDING ALL); INSERT INTO p4 (d, x) VALUES (31, 'x'); ALTER TABLE p ATTACH PARTITION p4 FOR VALUES FROM (30) TO (40); COMMIT")
        .await;
    w.comes_true_in_the_lake().await;
    assert_ne!(w.copied("public.p"), before.1);
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_comes_and_goes_takes_its_rows_with_it() {
    let server = World::server();
    let root = "CREATE TABLE p (d int PRIMARY KEY, x text) PARTITION BY RANGE (d);
                CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1, 'one')";
    let histories: [(&str, &[&str]); 4] = [
        (
            "dropped",
            &["CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)", "INSERT INTO p VALUES (11, 'x'), (2, 'two')", "DROP TABLE p2"],
        ),
        (
            "detached",
            &[
                "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)",
                "INSERT INTO p VALUES (11, 'x')",
                "ALTER TABLE p DETACH PARTITION p2",
                "INSERT INTO p VALUES (3, 'three')",
            ],
        ),
        (
            "twice",
            &[
                "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)",
                "INSERT INTO p VALUES (11, 'x')",
                "DROP TABLE p2",
                "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)",
                "INSERT INTO p VALUES (12, 'y')",
            ],
        ),
        (
            "below",
            &[
                "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (d)",
                "CREATE TABLE p21 PARTITION OF p2 FOR VALUES FROM (10) TO (15)",
                "INSERT INTO p VALUES (11, 'x')",
                "DROP TABLE p2",
            ],
        ),
    ];
    for (name, migration) in histories {
        World::migrated(&server, &format!("leaf_{name}"), root, migration).await;
        let w = World::on(&server, &format!("leaf_stopped_{name}")).await;
        w.sql(root).await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        w.sql(&migration.join("; ")).await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        w.true_in_the_lake().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_out_of_the_wal_or_of_the_publication_is_copied() {
    let server = World::server();
    let mut publications = vec![("every", "CREATE PUBLICATION huella FOR ALL TABLES WITH (publish_via_partition_root = true)")];
    let version: String = server.connect().await.query_one("SHOW server_version_num", &[]).await.unwrap().get(0);
    if version.parse::<u32>().unwrap() >= 150_000 {
        publications.push(("schema", "CREATE PUBLICATION huella FOR TABLES IN SCHEMA public WITH (publish_via_partition_root = true)"));
    } else {
        eprintln!("TABLES IN SCHEMA came with 15: left out");
    }
    for (kind, publication) in publications {
        let w = World::on(&server, &format!("away_{kind}")).await;
        w.sql(&format!("{ROWS}; CREATE TABLE n (a int PRIMARY KEY); INSERT INTO n VALUES (1); CREATE SCHEMA away; {publication}")).await;
        let run = w.start(&["run"], &[]);
        w.caught_up().await;
        w.sql("ALTER TABLE t SET UNLOGGED; INSERT INTO t VALUES (4, 'four'); DELETE FROM t WHERE a = 1; ALTER TABLE t SET LOGGED").await;
        w.sql("ALTER TABLE n SET UNLOGGED; INSERT INTO n VALUES (2); DELETE FROM n WHERE a = 1; ALTER TABLE n SET LOGGED").await;
        w.comes_true_in_the_lake().await;
        if kind == "schema" {
            w.sql("ALTER TABLE t SET SCHEMA away; INSERT INTO away.t VALUES (5, 'five'); ALTER TABLE away.t SET SCHEMA public").await;
            w.comes_true_in_the_lake().await;
        }
        // Grants and vacuums write the same rows of the catalog, and are harmless.
        w.looked_at("t", "before").await;
        w.caught_up().await;
        let before = w.copied("public.t");
        w.sql("GRANT SELECT ON t TO public; ANALYZE t; CREATE INDEX ON t (x)").await;
        w.sql("VACUUM FULL t").await;
        w.looked_at("t", "after").await;
        w.caught_up().await;
        assert_eq!(w.copied("public.t"), before, "{}", w.log());
        w.true_in_the_lake().await;
        run.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_table_that_cannot_be_replicated_is_set_aside_and_the_others_go_on() {
    let server = World::server();
    let w = World::on(&server, "aside").await;
    w.sql(&format!(
        "{ROWS}; CREATE TABLE o (a int PRIMARY KEY); CREATE TABLE k (a int PRIMARY KEY, b int UNIQUE NOT NULL); INSERT INTO k VALUES (1, 1)"
    ))
    .await;
    let mut run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("ALTER TABLE k DROP CONSTRAINT k_pkey").await;
    w.wait("the table to be set aside", || w.mark("public.k")["aside"].is_string());
    assert!(w.mark("public.k")["aside"].as_str().unwrap().contains("no primary key"), "{}", w.mark("public.k"));
    w.sql("INSERT INTO k VALUES (2, 2); INSERT INTO o VALUES (1)").await;
    w.caught_up().await;
    w.wait("the other table's row", || w.read().state("public.o").len() == 1);
    assert!(run.lives());
    // Stopped and started, it is the same.
    run.stop();
    let run = w.start(&["run"], &[]);
    w.sql("INSERT INTO o VALUES (2)").await;
    w.wait("the other table's row", || w.read().state("public.o").len() == 2);
    w.sql("ALTER TABLE k ADD PRIMARY KEY (b)").await;
    w.wait("the table to be replicated again", || w.mark("public.k")["aside"].is_null() && w.mark("public.k")["pending"].is_null());
    w.comes_true_in_the_lake().await;
    w.sql("DROP TABLE o; CREATE UNLOGGED TABLE o (a int PRIMARY KEY)").await;
    w.sql("INSERT INTO k VALUES (3, 3)").await;
    w.wait("a row of the others", || w.read().state("public.k").len() == 3);
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_exchange_their_names_exchange_their_rows() {
    let server = World::server();
    let before = "CREATE TABLE t (a int PRIMARY KEY, x text); CREATE TABLE u (a int PRIMARY KEY, x text);
                  INSERT INTO t VALUES (1, 't'); INSERT INTO u VALUES (1, 'u')";
    let swap = ["ALTER TABLE t RENAME TO w", "ALTER TABLE u RENAME TO t", "ALTER TABLE w RENAME TO u"];
    World::migrated(&server, "quiet_swap", before, &swap).await;
    let rows =
        ["INSERT INTO t VALUES (2, 'before')", swap[0], swap[1], swap[2], "INSERT INTO t VALUES (3, 'after')", "DELETE FROM u WHERE a = 1"];
    World::migrated(&server, "swap", before, &rows).await;
    let back =
        [swap[0], swap[1], swap[2], "INSERT INTO t VALUES (3, 'while')", swap[0], swap[1], swap[2], "INSERT INTO t VALUES (4, 'after')"];
    World::migrated(&server, "swap_back", before, &back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_adopted_covers_only_what_was_published_before_it() {
    let server = World::server();
    let w = World::on(&server, "adopted").await;
    w.sql("CREATE TABLE a (a int PRIMARY KEY); CREATE TABLE b (a int PRIMARY KEY); CREATE PUBLICATION huella FOR TABLE a").await;
    w.sql(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", w.slot)).await;
    w.sql("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)").await;
    let adopt = [("HUELLA_SNAPSHOT_INITIAL", "false")];
    // Interrupted once after the publication was changed: the next start must not take it for granted.
    w.sql("ALTER PUBLICATION huella ADD TABLE b").await;
    let run = w.start(&["run"], &adopt);
    w.caught_up().await;
    run.stop();
    assert!(w.mark("public.a")["snapshot"].is_null() && w.mark("public.b")["snapshot"].is_string());
    w.true_in_the_lake().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_writer_changes_nothing_of_a_shape() {
    let server = World::server();
    let w = World::on(&server, "fenced").await;
    w.sql(ROWS).await;
    let older = w.start(&["run"], &[]);
    w.caught_up().await;
    older.signal(libc::SIGSTOP);
    w.sql("ALTER TABLE t ADD c int; UPDATE t SET c = a").await;
    let newer = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("ALTER TABLE t ADD d int DEFAULT 7; UPDATE t SET x = 'u' WHERE a = 1").await;
    w.caught_up().await;
    older.signal(libc::SIGCONT);
    assert_eq!(older.wait(), Some(6), "{}", w.log());
    w.comes_true_in_the_lake().await;
    assert_eq!((w.run(&["publish"]).0, w.run(&["compact"]).0), (0, 0), "{}", w.log());
    newer.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_of_another_owner_is_left_out_and_ends_nothing() {
    let server = World::server();
    let w = World::on(&server, "owner").await;
    w.sql("DROP ROLE IF EXISTS huella_owner; CREATE ROLE huella_owner LOGIN REPLICATION; GRANT CREATE ON DATABASE owner TO huella_owner;
           GRANT ALL ON SCHEMA public TO huella_owner; SET ROLE huella_owner; CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1); RESET ROLE").await;
    let url = w.url().replace("postgres@", "huella_owner@");
    let env = [("HUELLA_SOURCE_URL", url.as_str())];
    let run = w.start(&["run"], &env);
    w.caught_up().await;
    w.sql("CREATE TABLE foreigner (a int PRIMARY KEY); GRANT SELECT ON foreigner TO huella_owner").await;
    w.wait("the table to be named", || w.log().contains("foreigner"));
    // A lock on a table that is to join holds nothing up either.
    w.sql("SET ROLE huella_owner; CREATE TABLE later (a int PRIMARY KEY); RESET ROLE").await;
    let other = w.connect().await;
    other.batch_execute("BEGIN; LOCK TABLE later IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    w.sql("SET ROLE huella_owner; INSERT INTO t VALUES (2); RESET ROLE").await;
    w.wait("a row", || w.read().state("public.t").len() == 2);
    other.batch_execute("COMMIT").await.unwrap();
    w.wait("the table to join", || w.mark("public.later")["version"].is_u64());
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_column_whose_name_a_public_one_takes_stays_out_of_older_rows() {
    let server = World::server();
    let mut w = World::on(&server, "takes_name").await;
    w.sql("CREATE TABLE t (a int PRIMARY KEY, notas text, publica text); INSERT INTO t VALUES (1, 'SECRETO-0', 'p')").await;
    w.env.push(("HUELLA_TABLE".to_owned(), r#"[{name = "public.t", exclude = ["notas"]}]"#.to_owned()));
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    w.sql("UPDATE t SET notas = 'SECRETO-1'; ALTER TABLE t RENAME notas TO reservada; ALTER TABLE t RENAME publica TO notas; UPDATE t SET notas = 'q'").await;
    w.env.clear();
    w.env.push(("HUELLA_TABLE".to_owned(), r#"[{name = "public.t", exclude = ["reservada"]}]"#.to_owned()));
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["verify"]).0, 0, "{}", w.log());
    let mut folders = vec![w.lake().join("tables")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.to_string_lossy().contains("/dt=") {
                for change in lake_reader::changes_in(&entry) {
                    assert!(!format!("{:?}", change.cells).contains("SECRETO"), "{}", entry.display());
                }
            }
        }
    }
    assert!(!w.log().contains("SECRETO"));
}
