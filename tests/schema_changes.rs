//! Shapes that change: running, while nothing runs, and in a transaction that is sent twice. Nothing is lost, what is
//! compatible stays in its version, everything else begins the next one, and a person can read what happened.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use serde_json::Value;
use world::{Running, World};

/// A change of table `T`, with rows before and after it.
struct Case {
    name: &'static str,
    sql: &'static [&'static str],
    /// The version that the table must have afterwards; `None`: either is right.
    version: Option<u64>,
    /// What log and status say, in part.
    said: &'static str,
}

const fn case(name: &'static str, version: Option<u64>, said: &'static str, sql: &'static [&'static str]) -> Case {
    Case { name, sql, version, said }
}

/// Every table begins like this.
const TABLE: &str = "CREATE TABLE T (id int PRIMARY KEY, a int, b text, c varchar(10), n numeric(10,2), f float4, s int2, d date DEFAULT '2024-01-01', z text NOT NULL DEFAULT 'z');
    INSERT INTO T (id, a, b, c, n, f, s) SELECT i, i, 'b' || i, 'c' || i, i + 0.5, i + 0.1, i FROM generate_series(1, 5) i";

const CASES: &[Case] = &[
    case("nullable", Some(1), "column x added", &["ALTER TABLE T ADD x text", "INSERT INTO T (id, x) VALUES (6, 'x')"]),
    case("predeterminada", Some(1), "column x added", &["ALTER TABLE T ADD x int DEFAULT 7"]),
    case(
        "predeterminada_filas",
        Some(1),
        "column x added",
        &["ALTER TABLE T ADD x int NOT NULL DEFAULT 7", "INSERT INTO T (id, x) VALUES (6, 8)", "UPDATE T SET a = 9 WHERE id = 2"],
    ),
    case("serial", Some(1), "column x added", &["ALTER TABLE T ADD x serial", "INSERT INTO T (id) VALUES (6)"]),
    case(
        "identidad",
        Some(1),
        "column x added",
        &["ALTER TABLE T ADD x int GENERATED ALWAYS AS IDENTITY", "INSERT INTO T (id) VALUES (6)"],
    ),
    case(
        "quitada",
        Some(1),
        "column b dropped",
        &["UPDATE T SET b = 'antes' WHERE id = 1", "ALTER TABLE T DROP b", "INSERT INTO T (id) VALUES (6)"],
    ),
    case(
        "nombre_nuevo",
        Some(2),
        "column b was renamed to bb",
        &["ALTER TABLE T RENAME b TO bb", "INSERT INTO T (id, bb) VALUES (6, 'x')"],
    ),
    case(
        "otra_de_igual_tipo",
        Some(1),
        "column bb added",
        &["ALTER TABLE T DROP b, ADD bb text", "INSERT INTO T (id, bb) VALUES (6, 'x')"],
    ),
    case(
        "puesta_otra_vez",
        Some(2),
        "added again",
        &["ALTER TABLE T DROP b", "ALTER TABLE T ADD b text", "INSERT INTO T (id, b) VALUES (6, 'x')"],
    ),
    case(
        "larga",
        Some(1),
        "int4 became int8",
        &[
            "ALTER TABLE T ALTER a TYPE int8",
            "INSERT INTO T (id, a) VALUES (6, 1099511627776)",
            "UPDATE T SET a = 1099511627777 WHERE id = 1",
        ],
    ),
    case(
        "clave_larga",
        Some(1),
        "int4 became int8",
        &["ALTER TABLE T ALTER id TYPE int8", "INSERT INTO T (id) VALUES (1099511627776)", "UPDATE T SET id = 1099511627777 WHERE id = 1"],
    ),
    case("corta_a_larga", Some(1), "int2 became int4", &["ALTER TABLE T ALTER s TYPE int4", "INSERT INTO T (id, s) VALUES (6, 70000)"]),
    case(
        "texto_a_numero",
        Some(2),
        "text became int4",
        &["UPDATE T SET b = '12'", "ALTER TABLE T ALTER b TYPE int USING b::int", "INSERT INTO T (id, b) VALUES (6, 77)"],
    ),
    case("numero_a_texto", Some(2), "int4 became text", &["ALTER TABLE T ALTER a TYPE text", "INSERT INTO T (id, a) VALUES (6, 'mucho')"]),
    case(
        "ida_y_vuelta",
        None,
        "",
        &[
            "ALTER TABLE T ALTER a TYPE text",
            "INSERT INTO T (id, a) VALUES (6, '60')",
            "ALTER TABLE T ALTER a TYPE int USING a::int",
            "INSERT INTO T (id, a) VALUES (7, 70)",
        ],
    ),
    case("nula_permitida", Some(1), "", &["ALTER TABLE T ALTER z DROP NOT NULL", "INSERT INTO T (id, z) VALUES (6, NULL)"]),
    case("ancha", Some(1), "became", &["ALTER TABLE T ALTER c TYPE varchar(20)", "INSERT INTO T (id, c) VALUES (6, 'doce letras.')"]),
    case(
        "sin_limite",
        Some(1),
        "varchar(10) became text",
        &["ALTER TABLE T ALTER c TYPE text", "INSERT INTO T (id, c) VALUES (6, 'doce letras.')"],
    ),
    case("angosta", Some(2), "became", &["ALTER TABLE T ALTER c TYPE varchar(5)", "INSERT INTO T (id, c) VALUES (6, 'cinco')"]),
    case(
        "numeric_ancha",
        Some(1),
        "became",
        &["ALTER TABLE T ALTER n TYPE numeric(14,4)", "INSERT INTO T (id, n) VALUES (6, 1234567890.1234)"],
    ),
    case(
        "numeric_otra",
        Some(2),
        "became",
        &[
            "ALTER TABLE T ALTER n TYPE numeric(60,30)",
            "INSERT INTO T (id, n) VALUES (6, '123456789012345678901234567890.000000000000000000000000000001')",
        ],
    ),
    case("doble", Some(2), "float4 became float8", &["ALTER TABLE T ALTER f TYPE float8", "INSERT INTO T (id, f) VALUES (6, 5e-324)"]),
    case(
        "otra_clave",
        Some(2),
        "the key changed",
        &[
            "ALTER TABLE T ALTER a SET NOT NULL, DROP CONSTRAINT T_pkey, ADD PRIMARY KEY (a, id)",
            "INSERT INTO T (id, a) VALUES (1, 6)",
            "UPDATE T SET a = 60 WHERE a = 6",
        ],
    ),
    case(
        "nombres_cruzados",
        Some(2),
        "column",
        &[
            "ALTER TABLE T RENAME b TO tmp",
            "ALTER TABLE T RENAME z TO b",
            "ALTER TABLE T RENAME tmp TO z",
            "INSERT INTO T (id, b, z) VALUES (6, 'b', 'z')",
        ],
    ),
    case(
        "nombre_ida_y_vuelta",
        None,
        "",
        &[
            "ALTER TABLE T RENAME b TO x",
            "UPDATE T SET x = 'x' WHERE id = 1",
            "INSERT INTO T (id, x) VALUES (6, 'x')",
            "ALTER TABLE T RENAME x TO b",
        ],
    ),
    case(
        "efimera",
        None,
        "",
        &[
            "ALTER TABLE T ADD tmp int",
            "UPDATE T SET tmp = 1, b = 'con tmp'",
            "INSERT INTO T (id, tmp) VALUES (6, 1)",
            "ALTER TABLE T DROP tmp",
            "INSERT INTO T (id) VALUES (7)",
        ],
    ),
    case(
        "efimera_en_clave",
        None,
        "",
        &[
            "ALTER TABLE T ADD k int DEFAULT 1, DROP CONSTRAINT T_pkey, ADD PRIMARY KEY (k, id)",
            "UPDATE T SET b = 'con k', k = 2 WHERE id = 1",
            "ALTER TABLE T DROP CONSTRAINT T_pkey, DROP k, ADD PRIMARY KEY (id)",
            "UPDATE T SET id = 9 WHERE id = 1",
        ],
    ),
    case(
        "hecha_otra_vez",
        Some(2),
        "dropped and created again",
        &[
            "INSERT INTO T (id) VALUES (6)",
            "DROP TABLE T; CREATE TABLE T (id int PRIMARY KEY, b text)",
            "INSERT INTO T VALUES (1, 'nueva')",
        ],
    ),
    case(
        "cambiada_y_hecha_otra_vez",
        Some(2),
        "dropped and created again",
        &[
            "ALTER TABLE T ADD x int",
            "INSERT INTO T (id, x) VALUES (6, 1)",
            "DROP TABLE T; CREATE TABLE T (id int PRIMARY KEY, a text)",
            "INSERT INTO T VALUES (1, 'nueva')",
        ],
    ),
    case(
        "todo_junto",
        Some(2),
        "",
        &[
            "ALTER TABLE T DROP b, ADD x int DEFAULT 3, ALTER a TYPE int8, ALTER c TYPE date USING NULL, ALTER z DROP NOT NULL",
            "ALTER TABLE T RENAME n TO monto",
            "INSERT INTO T (id, monto, x, c) VALUES (6, 1.5, NULL, '2024-01-01')",
            "DELETE FROM T WHERE id = 2",
        ],
    ),
    case("vaciada", None, "", &["TRUNCATE T", "ALTER TABLE T ADD x int NOT NULL", "INSERT INTO T (id, x) VALUES (1, 2)"]),
];

fn sql_of(text: &str, table: &str) -> String {
    text.replace(" T ", &format!(" {table} "))
        .replace("T_pkey", &format!("{table}_pkey"))
        .replace("TRUNCATE T", &format!("TRUNCATE {table}"))
        .replace("DROP TABLE T;", &format!("DROP TABLE {table};"))
}

async fn make(w: &World) {
    for case in CASES {
        w.sql(&sql_of(TABLE, case.name)).await;
    }
}

fn mark(w: &World, table: &str) -> Value {
    w.watermark().unwrap()["tables"][&format!("public.{table}")].clone()
}

/// All tables are right, in the versions that they should be in, and log and status say why. `at_once`: no look at the source
/// can have come between two statements of a case.
async fn assert_all(w: &World, at_once: bool) {
    let (code, status) = w.run(&["status", "--json"]);
    assert_eq!(code, 0);
    let status: Value = serde_json::from_str(&status).unwrap();
    let (log, text) = (w.log(), w.run(&["status"]).1);
    for case in CASES {
        let name = format!("public.{}", case.name);
        let of_table = status["tables"].as_array().unwrap().iter().find(|t| t["table"] == name.as_str()).unwrap();
        if let Some(version) = case.version {
            let is = mark(w, case.name)["version"].as_u64().unwrap();
            assert!(is == version || (!at_once && is > version && version > 1), "{name}: {of_table}\n{log}");
        }
        // A look between DROP and CREATE sees the table go, and then another one join: right as well, and said so.
        let joined = |line: &str| line.contains(&format!("\"{name}\"")) && line.contains("a table joins");
        if !at_once && case.said == "dropped and created again" && log.lines().any(joined) {
            continue;
        }
        let in_log = log.lines().any(|line| line.contains(&format!("\"{name}\"")) && line.contains(case.said));
        assert!(in_log, "{name}: no line of the log says {:?}\n{log}", case.said);
        let changes = of_table["changes"].to_string();
        // What a killed process, or a session that ended before its commit, had put into schema.json is found there.
        let found = ["have it already", "rows may have changed"].into_iter().find(|found| changes.contains(found));
        let said = found.filter(|_| !changes.contains(case.said)).unwrap_or(case.said);
        assert!(changes.contains(said), "{name}: status does not say {said:?}: {of_table}");
        assert!(text.contains(said), "{text}");
    }
    w.true_in_the_lake().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_that_change_while_it_runs() {
    let w = World::new().await;
    make(&w).await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    for case in CASES {
        for sql in case.sql {
            w.sql(&sql_of(sql, case.name)).await;
        }
    }
    // A change without rows is seen at a heartbeat.
    for case in CASES.iter().filter(|case| case.version == Some(2)) {
        w.wait(case.name, || mark(&w, case.name)["version"].as_u64() > Some(1));
    }
    w.wait("a default's copy", || !mark(&w, "predeterminada")["changes"].is_null());
    w.caught_up().await;
    assert_all(&w, false).await;
    go_on(&w, run).await;
}

/// All shapes go on, and are true in the end.
async fn go_on(w: &World, run: Running) {
    for case in CASES {
        w.sql(&format!("DELETE FROM {0} WHERE id = 1; UPDATE {0} SET id = 100 WHERE id = 3", case.name)).await;
    }
    w.caught_up().await;
    run.stop();
    w.true_in_the_lake().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_that_change_while_nothing_runs_and_rows_that_follow() {
    let w = World::new().await;
    make(&w).await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    for case in CASES {
        for sql in case.sql {
            w.sql(&sql_of(sql, case.name)).await;
        }
    }
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    assert_all(&w, true).await;
    go_on(&w, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_and_rows_in_one_transaction_that_is_sent_twice() {
    let w = World::new().await;
    make(&w).await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    for point in ["commit.after_data", "commit.after_manifest", "commit.before_ack"] {
        let killed = w.start(&["run"], &[("HUELLA_FAILPOINT", &format!("{point}=abort"))]);
        if point == "commit.after_data" {
            let epoch = w.watermark().unwrap()["epoch"].clone();
            w.wait("the claim", || w.watermark().is_some_and(|m| m["epoch"] != epoch));
            let all: Vec<String> = CASES.iter().flat_map(|case| case.sql.iter().map(|sql| sql_of(sql, case.name))).collect();
            w.sql(&format!("BEGIN; {}; COMMIT", all.join("; "))).await;
        }
        w.sql(&format!("INSERT INTO nullable (id) VALUES ({})", 1000 + w.log().len())).await;
        assert_eq!(killed.wait(), None, "{point} must be passed\n{}", w.log());
    }
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    run.stop();
    assert_all(&w, true).await;
}

/// New names for old tables, old names for new ones, other schemas.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_change_their_names_lose_no_row() {
    let w = World::new().await;
    for table in ["vieja", "turno", "relevo", "mudada", "a_b", "b_a"] {
        w.sql(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, v text); INSERT INTO {table} SELECT i, '{table}' FROM generate_series(1, 100) i"
        ))
        .await;
    }
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("INSERT INTO vieja VALUES (200, 'antes'); ALTER TABLE vieja RENAME TO moderna; INSERT INTO moderna VALUES (201, 'después')")
        .await;
    w.sql("UPDATE moderna SET v = 'x' WHERE id < 5").await;
    // The usual way to rebuild a table: fill another, then change places.
    w.sql("BEGIN; ALTER TABLE turno RENAME TO turno_viejo; ALTER TABLE relevo RENAME TO turno; COMMIT").await;
    w.sql("CREATE SCHEMA otro; ALTER TABLE mudada SET SCHEMA otro; INSERT INTO otro.mudada VALUES (300, 'fuera')").await;
    w.sql("BEGIN; ALTER TABLE a_b RENAME TO tmp; ALTER TABLE b_a RENAME TO a_b; ALTER TABLE tmp RENAME TO b_a; COMMIT").await;
    for n in 0..40 {
        for table in ["moderna", "turno", "turno_viejo", "a_b", "b_a"] {
            w.sql(&format!("INSERT INTO {table} VALUES ({}, 'n'); UPDATE {table} SET v = 'u{n}' WHERE id % 40 = {n}; DELETE FROM {table} WHERE id = {}", 1000 + n, 50 + n)).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await; // load over the time in which it is noticed, not an event
    }
    w.wait("the new names", || {
        let tables = w.watermark().unwrap()["tables"].clone();
        ["moderna", "turno", "turno_viejo", "a_b", "b_a"].iter().all(|t| tables[format!("public.{t}")]["version"].is_number())
            && tables["public.vieja"].is_null()
            && tables["public.mudada"].is_null()
    });
    w.caught_up().await;
    for table in ["moderna", "turno", "turno_viejo", "a_b", "b_a"] {
        w.sql(&format!("UPDATE {table} SET v = 'fin' WHERE id = 1")).await;
    }
    w.caught_up().await;
    run.stop();
    w.true_in_the_lake().await;
    assert_eq!(w.read().tables().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_come_and_go_bring_their_rows() {
    let w = World::new().await;
    w.sql("CREATE TABLE raiz (id int, k text, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE raiz_a PARTITION OF raiz FOR VALUES IN ('a')").await;
    w.sql("CREATE TABLE suelta (v text, k text NOT NULL, id int NOT NULL, PRIMARY KEY (id, k))").await; // its columns in another order
    w.sql("INSERT INTO raiz SELECT i, 'a', 'v' FROM generate_series(1, 10) i; INSERT INTO suelta SELECT 's', 'b', i FROM generate_series(1, 10) i").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    assert_eq!(w.read().tables(), ["public.raiz", "public.suelta"]);
    w.sql("ALTER TABLE raiz ATTACH PARTITION suelta FOR VALUES IN ('b'); INSERT INTO raiz VALUES (11, 'b', 'x')").await;
    w.sql("UPDATE raiz SET v = 'y' WHERE k = 'b' AND id < 3; DELETE FROM suelta WHERE id = 4; UPDATE raiz SET k = 'b', id = 500 WHERE id = 5 AND k = 'a'").await;
    w.wait("one table", || w.read().tables() == ["public.raiz"]);
    w.caught_up().await;
    w.true_in_the_lake().await;
    w.sql("CREATE TABLE raiz_c PARTITION OF raiz FOR VALUES IN ('c') PARTITION BY RANGE (id); CREATE TABLE raiz_c1 PARTITION OF raiz_c DEFAULT; INSERT INTO raiz SELECT i, 'c', 'nueva' FROM generate_series(1, 5) i").await;
    w.sql("ALTER TABLE raiz ADD x int DEFAULT 4; UPDATE raiz SET x = 5 WHERE id = 1; ALTER TABLE raiz DETACH PARTITION suelta; INSERT INTO suelta VALUES ('sola', 'b', 900, 1)").await;
    w.wait("two tables", || w.read().tables() == ["public.raiz", "public.suelta"]);
    w.caught_up().await;
    w.sql("UPDATE suelta SET v = 'sola' WHERE id < 900; UPDATE raiz SET v = 'fin' WHERE id = 2; ALTER TABLE raiz ALTER v TYPE varchar(5) USING left(v, 5); INSERT INTO raiz VALUES (77, 'c', 'corta', 1)").await;
    w.caught_up().await;
    w.wait("a new version", || mark(&w, "raiz")["version"] == 2);
    w.caught_up().await;
    run.stop();
    w.true_in_the_lake().await;
}

/// At night: which table stands still, since what, and who holds it up.
#[tokio::test(flavor = "multi_thread")]
async fn status_names_what_a_table_waits_for() {
    let w = World::new().await;
    w.sql("CREATE TABLE donaciones (id int PRIMARY KEY, monto int); CREATE TABLE ruido (x int); INSERT INTO donaciones VALUES (1, 1)")
        .await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let open = w.server.connect().await;
    open.batch_execute("BEGIN; INSERT INTO public.ruido VALUES (1)").await.unwrap();
    w.sql("ALTER TABLE donaciones ALTER monto TYPE text; INSERT INTO donaciones VALUES (2, 'mucho')").await;
    w.wait("the new version", || mark(&w, "donaciones")["pending"].is_array());
    let (_, text) = w.run(&["status"]);
    assert!(text.contains("version 2 is pending") && text.contains("column monto changed its type: int4 became text"), "{text}");
    w.wait("the blocker", || w.run(&["status"]).1.contains("blocker"));
    let status: Value = serde_json::from_str(&w.run(&["status", "--json"]).1).unwrap();
    let table = &status["tables"][0];
    assert_eq!(table["reason"], "column monto changed its type: int4 became text", "{status}");
    assert_eq!(table["pending"], serde_json::json!([2]));
    assert_eq!(table["version"], 1);
    open.batch_execute("COMMIT").await.unwrap();
    w.caught_up().await;
    let status: Value = serde_json::from_str(&w.run(&["status", "--json"]).1).unwrap();
    let table = &status["tables"][0];
    assert!(table["reason"].is_null() && table["version"] == 2, "{status}");
    assert_eq!(table["changes"][0]["version"], 2, "{status}");
    assert!(table["changes"][0]["at"].is_string(), "{status}");
    run.stop();
    w.true_in_the_lake().await;
}
