//! A configuration of privacy that does not fit what is there is refused, before anything is written by it.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod hidden;
mod lake_reader;
mod private_server;
mod world;

use hidden::{KEY, MARK, assert_lake_hidden, data_files, ends, shows};
use std::collections::BTreeSet;
use world::World;

const UNTIL: [&str; 2] = ["run", "--until-caught-up"];

fn tables(private: &str) -> String {
    format!("[{{name = 'public.donantes', {private}}}]")
}

fn keyed(tables: &str) -> [(&'static str, &str); 3] {
    [("HUELLA_TABLE", tables), ("HUELLA_HASH_KEY", KEY), ("HUELLA_LOG", "trace")]
}

/// `create` is the whole of the schema; every private value holds the mark.
const DONANTES: &str = "CREATE TABLE donantes (id int PRIMARY KEY, cedula text, notas text, ciudad text);";

fn donante(id: u32) -> String {
    format!("INSERT INTO donantes VALUES ({id}, '{MARK}{id}', '{MARK}', 'Tunja');")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_fits_no_column_is_refused_at_the_start() {
    let server = World::server();
    for (n, (private, says)) in [
        ("exclude = ['nota', 'cedula']", "exclude names \\\"nota\\\""),
        ("exclude = ['Notas', 'cedula']", "there is \\\"notas\\\""),
        ("exclude = ['\"notas\"', 'cedula']", "no quotes are needed"),
        ("exclude = ['notas'], hash = ['cedulas']", "hash names \\\"cedulas\\\""),
        ("include = ['ciudad', 'pais']", "include names \\\"pais\\\""),
        ("include = ['ciudad'], hash = ['cedula']", "hash names \\\"cedula\\\", which include leaves out"),
        ("exclude = ['notas', 'id'], hash = ['cedula']", "belongs to the key"),
    ]
    .into_iter()
    .enumerate()
    {
        let w = World::on(&server, &format!("start{n}")).await;
        w.sql(&(DONANTES.to_owned() + &donante(1))).await;
        let streamed = tables(private);
        let said = ends(&w, &UNTIL, &keyed(&streamed), 3);
        assert!(said.contains(says), "{private}: {said}");
        assert!(data_files(&w).is_empty(), "{private}");
        let said = ends(&w, &["check"], &keyed(&streamed), 7);
        assert!(said.contains("problem  public.donantes"), "{private}: {said}");
        // A snapshot table beside a streamed one.
        w.sql("CREATE TABLE otra (id int PRIMARY KEY)").await;
        let copied = format!("[{{name = 'public.otra'}}, {{name = 'public.donantes', mode = 'snapshot', {private}}}]");
        ends(&w, &UNTIL, &keyed(&copied), 0);
        for command in [vec!["snapshot"], vec!["snapshot", "public.donantes"], vec!["daily"]] {
            let said = ends(&w, &command, &keyed(&copied), 3);
            assert!(said.contains(says), "{private}: {said}");
        }
        assert_lake_hidden(&w);
    }
}

/// The names go on to fit, or not: `to` makes the private values come under another name.
struct Disguise {
    private: &'static str,
    to: &'static str,
    /// What the configuration must say afterwards.
    corrected: &'static str,
}

impl Disguise {
    /// The name is known for another column, so it must leave the list before it can stand there again.
    fn takes_a_published_name(&self) -> bool {
        self.private == "include = ['ciudad']"
    }
}

const NEW_COLUMN: &str = "ALTER TABLE donantes ADD observaciones text; UPDATE donantes SET observaciones = notas; ALTER TABLE donantes DROP notas; \
                          INSERT INTO donantes (id, observaciones) VALUES (7, 'MARCAPRIVADA')";

const DISGUISES: [Disguise; 9] = [
    Disguise { private: "exclude = ['notas', 'cedula']", to: NEW_COLUMN, corrected: "exclude = ['observaciones', 'cedula']" },
    Disguise { private: "hash = ['notas', 'cedula']", to: NEW_COLUMN, corrected: "hash = ['observaciones', 'cedula']" },
    Disguise { private: "include = ['ciudad', 'notas'], hash = ['notas']", to: NEW_COLUMN, corrected: "include = ['ciudad']" },
    Disguise {
        private: "exclude = ['notas', 'cedula']",
        to: "ALTER TABLE donantes RENAME notas TO \"Notas\"; INSERT INTO donantes VALUES (7, 'MARCAPRIVADA', 'MARCAPRIVADA', 'x')",
        corrected: "exclude = ['Notas', 'cedula']",
    },
    Disguise {
        private: "exclude = ['notas', 'cedula']",
        to: "DROP TABLE donantes; CREATE TABLE donantes (id int PRIMARY KEY, cedula text, otra text); \
             INSERT INTO donantes VALUES (7, 'MARCAPRIVADA', 'MARCAPRIVADA')",
        corrected: "exclude = ['otra', 'cedula']",
    },
    // The name that is published goes to what was not.
    Disguise {
        private: "include = ['ciudad']",
        to: "ALTER TABLE donantes RENAME ciudad TO otra; ALTER TABLE donantes RENAME notas TO ciudad; \
             INSERT INTO donantes VALUES (7, 'MARCAPRIVADA', 'MARCAPRIVADA', 'x')",
        corrected: "include = ['otra']",
    },
    Disguise {
        private: "include = ['ciudad']",
        to: "ALTER TABLE donantes DROP ciudad; ALTER TABLE donantes RENAME notas TO ciudad; \
             INSERT INTO donantes VALUES (7, 'MARCAPRIVADA', 'MARCAPRIVADA')",
        corrected: "include = []",
    },
    Disguise {
        private: "exclude = ['notas'], hash = ['cedula']",
        to: "ALTER TABLE donantes RENAME notas TO otra; ALTER TABLE donantes RENAME cedula TO notas; ALTER TABLE donantes RENAME otra TO cedula; \
             INSERT INTO donantes VALUES (7, 'MARCAPRIVADA', 'MARCAPRIVADA', 'x')",
        corrected: "exclude = ['notas', 'cedula']",
    },
    // Excluded, and then of the key.
    Disguise {
        private: "exclude = ['notas', 'cedula']",
        to: "UPDATE donantes SET notas = notas || id; ALTER TABLE donantes DROP CONSTRAINT donantes_pkey, ADD PRIMARY KEY (id, notas); \
             INSERT INTO donantes VALUES (7, 'MARCAPRIVADA', 'MARCAPRIVADA', 'x')",
        corrected: "exclude = ['cedula'], hash = ['notas']",
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn private_values_under_another_name_end_the_program_before_they_are_written() {
    let server = World::server();
    for (n, disguise) in DISGUISES.iter().enumerate() {
        for running in [true, false] {
            let w = World::on(&server, &format!("disguise{n}{running}")).await;
            w.sql(&(DONANTES.to_owned() + &donante(1) + &donante(2))).await;
            let (before, after) = (tables(disguise.private), tables(disguise.corrected));
            let run = w.start(&["run"], &keyed(&before));
            w.caught_up().await;
            let code = if running {
                w.sql(disguise.to).await;
                run.wait()
            } else {
                run.stop();
                w.sql(disguise.to).await;
                w.start(&UNTIL, &keyed(&before)).wait()
            };
            assert_eq!(code, Some(3), "{} running {running}\n{}", disguise.to, w.log());
            assert!(!shows(w.log().as_bytes()));
            assert_lake_hidden(&w);
            ends(&w, &UNTIL, &keyed(&before), 3);
            // A new slot is no way around it, unless the table is another one.
            if !disguise.to.contains("DROP TABLE") {
                ends(&w, &["run", "--until-caught-up", "--resnapshot"], &keyed(&before), 3);
            }
            if disguise.takes_a_published_name() {
                ends(&w, &UNTIL, &keyed(&tables("include = []")), 0);
            }
            ends(&w, &UNTIL, &keyed(&after), 0);
            ends(&w, &["verify"], &keyed(&after), 0);
            assert_lake_hidden(&w);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_table_whose_names_moved_is_not_copied() {
    let server = World::server();
    for (n, disguise) in DISGUISES.iter().enumerate() {
        // Another table under the name is copied as it is, if the names fit; a private key needs no row's identity here.
        let w = World::on(&server, &format!("copied{n}")).await;
        w.sql(&format!("CREATE TABLE otra (id int PRIMARY KEY); {DONANTES} {}", donante(1))).await;
        let configured = |private: &str| format!("[{{name = 'public.otra'}}, {{name = 'public.donantes', mode = 'snapshot', {private}}}]");
        let (before, after) = (configured(disguise.private), configured(disguise.corrected));
        ends(&w, &UNTIL, &keyed(&before), 0);
        ends(&w, &["snapshot"], &keyed(&before), 0);
        w.sql(disguise.to).await;
        ends(&w, &["snapshot"], &keyed(&before), 3);
        assert_lake_hidden(&w);
        if disguise.takes_a_published_name() {
            ends(&w, &["snapshot"], &keyed(&configured("include = []")), 0);
        }
        w.sql("INSERT INTO otra VALUES (1)").await; // a copy lies at a position of its own
        ends(&w, &["snapshot"], &keyed(&after), 0);
        assert_lake_hidden(&w);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_and_column_lists_at_the_source_are_refused_alike() {
    let server = World::server();
    for (n, (private, needs, to)) in [
        ("exclude = ['notas', 'cedula']", 0, NEW_COLUMN),
        ("include = ['ciudad']", 0, "ALTER TABLE donantes RENAME ciudad TO otra; ALTER TABLE donantes RENAME notas TO ciudad; INSERT INTO donantes VALUES (7, 'MARCAPRIVADA', 'MARCAPRIVADA', 'x')"),
        ("exclude = ['notas', 'cedula'], exclude_at_source = true", 150_000, "ALTER TABLE donantes RENAME notas TO otra; INSERT INTO donantes VALUES (7, 'MARCAPRIVADA', 'MARCAPRIVADA', 'x')"),
    ]
    .into_iter()
    .enumerate()
    {
        let w = World::on(&server, &format!("parts{n}")).await;
        if huella::postgres::server::version(&w.client).await.unwrap() < needs {
            eprintln!("SKIPPED: column lists came with PostgreSQL 15");
            continue;
        }
        w.sql(&format!(
            "CREATE TABLE donantes (id int PRIMARY KEY, cedula text, notas text, ciudad text) PARTITION BY RANGE (id); \
             CREATE TABLE d_a PARTITION OF donantes FOR VALUES FROM (0) TO (5); CREATE TABLE d_b PARTITION OF donantes FOR VALUES FROM (5) TO (10); {}",
            donante(1)
        ))
        .await;
        let configured = tables(private);
        let run = w.start(&["run"], &keyed(&configured));
        w.caught_up().await;
        w.sql(to).await;
        assert_eq!(run.wait(), Some(3), "{private}\n{}", w.log());
        ends(&w, &UNTIL, &keyed(&configured), 3);
        assert!(!shows(w.log().as_bytes()));
        assert_lake_hidden(&w);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn include_publishes_what_it_names_and_the_key_and_nothing_that_comes_later() {
    let w = World::new().await;
    w.sql(&format!("CREATE TABLE donantes (id int, cedula text, notas text, ciudad text, PRIMARY KEY (id, cedula)); {}", donante(1))).await;
    let included = tables("include = ['ciudad'], hash = ['cedula']");
    let run = w.start(&["run"], &keyed(&included));
    w.caught_up().await;
    w.sql(&donante(2)).await;
    w.sql(&format!(
        "ALTER TABLE donantes ADD nueva text DEFAULT '{MARK}', ADD vieja text; UPDATE donantes SET vieja = '{MARK}' WHERE id = 1"
    ))
    .await;
    w.sql("ALTER TABLE donantes REPLICA IDENTITY FULL").await;
    w.sql(&format!(
        "UPDATE donantes SET ciudad = 'Cali', nueva = '{MARK}2'; ALTER TABLE donantes ALTER nueva TYPE varchar(90), DROP vieja"
    ))
    .await;
    w.sql(&format!("INSERT INTO donantes VALUES (3, '{MARK}3', '{MARK}', 'Neiva', '{MARK}'); DELETE FROM donantes WHERE id = 2")).await;
    w.caught_up().await;
    let said = ends(&w, &["verify"], &keyed(&included), 0) + &ends(&w, &["check"], &keyed(&included), 0);
    assert!(!said.contains("nueva: "), "{said}");
    run.stop();
    assert_lake_hidden(&w);
    assert!(!shows(w.log().as_bytes()));
    let state = w.read().state("public.donantes");
    assert_eq!(state.len(), 2);
    let columns: BTreeSet<String> = w.read().changes("public.donantes").iter().flat_map(|change| change.cells.keys().cloned()).collect();
    assert_eq!(columns.iter().map(String::as_str).collect::<Vec<_>>(), ["cedula", "ciudad", "id"]);

    // One more is let in, with the values that the rows have.
    w.sql("UPDATE donantes SET nueva = 'x'").await;
    let more = tables("include = ['ciudad', 'nueva'], hash = ['cedula']");
    ends(&w, &UNTIL, &keyed(&more), 0);
    ends(&w, &["verify"], &keyed(&more), 0);
    let cells: Vec<_> =
        w.read().changes("public.donantes").into_iter().filter_map(|change| change.cells.get("nueva").cloned().flatten()).collect();
    assert!(cells.iter().any(|cell| cell == "x"), "{cells:?}");
}

/// Rows of before, whose private columns are neither at the source nor in the configuration any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_private_and_is_gone_stays_out_of_the_rows_of_before() {
    let w = World::new().await;
    w.sql(&(DONANTES.to_owned() + &donante(1))).await;
    ends(&w, &UNTIL, &keyed(&tables("exclude = ['notas'], hash = ['cedula']")), 0);
    w.sql(&donante(2)).await;
    // Another shape beside: those rows get a version of their own.
    w.sql("ALTER TABLE donantes ALTER ciudad TYPE bytea USING ciudad::bytea").await;
    w.sql(&donante(3)).await;
    w.sql("ALTER TABLE donantes DROP notas, DROP cedula, ALTER ciudad TYPE text USING 'x'").await;
    w.sql("INSERT INTO donantes VALUES (4, 'y')").await;
    let plain = tables("mode = 'stream'");
    ends(&w, &UNTIL, &[("HUELLA_TABLE", plain.as_str())], 0);
    ends(&w, &["verify"], &[("HUELLA_TABLE", plain.as_str())], 0);
    assert_lake_hidden(&w);
}

/// What the configuration says since the writer last ran is not written by `snapshot` in its stead.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_asked_for_waits_until_the_configuration_is_followed() {
    let w = World::new().await;
    w.sql(&(DONANTES.to_owned() + "INSERT INTO donantes VALUES (1, 'a', 'b', 'c')")).await;
    ends(&w, &UNTIL, &[("HUELLA_TABLE", tables("mode = 'stream'").as_str())], 0);
    w.sql(&donante(2)).await;
    for private in ["exclude = ['notas', 'cedula']", "hash = ['notas', 'cedula']", "include = []"] {
        let said = ends(&w, &["snapshot", "public.donantes"], &keyed(&tables(private)), 1);
        assert!(said.contains("has another exclude, hash or include"), "{said}");
        assert_lake_hidden(&w);
    }
}

const OTHER_KEY: &str = "otra clave bastante larga";

/// Each hash of the file's columns `cedula`.
fn hashes(w: &World, table: &str) -> BTreeSet<String> {
    w.read().state(table).into_iter().filter_map(|row| row["cedula"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_hash_key_is_refused_by_every_command_that_hashes_until_new_versions_are_asked_for() {
    let w = World::new().await;
    w.sql(&format!(
        "CREATE TABLE donantes (cedula text PRIMARY KEY, ciudad text); CREATE TABLE copia (id int PRIMARY KEY, cedula text);
         INSERT INTO donantes VALUES ('{MARK}1', 'a'), ('{MARK}2', 'b'); INSERT INTO copia VALUES (1, '{MARK}1')"
    ))
    .await;
    let tables = "[{name = 'public.donantes', hash = ['cedula']}, {name = 'public.copia', mode = 'snapshot', hash = ['cedula']}]";
    let env = |key: &'static str| [("HUELLA_TABLE", tables), ("HUELLA_HASH_KEY", key)];
    ends(&w, &UNTIL, &env(KEY), 0);
    ends(&w, &["snapshot"], &env(KEY), 0);
    let first = (hashes(&w, "public.donantes"), hashes(&w, "public.copia"));
    assert!(first.0.len() == 2 && first.1.len() == 1 && first.1.is_subset(&first.0), "{first:?}");
    w.sql(&format!(
        "UPDATE donantes SET ciudad = 'c'; DELETE FROM donantes WHERE cedula = '{MARK}2'; INSERT INTO copia VALUES (2, '{MARK}2')"
    ))
    .await;
    let before = data_files(&w);
    let commands = [
        vec!["run", "--until-caught-up"],
        vec!["run", "--until-caught-up", "--resnapshot"],
        vec!["snapshot"],
        vec!["snapshot", "public.donantes"],
        vec!["daily"],
        vec!["verify"],
    ];
    for command in &commands {
        let said = ends(&w, command, &env(OTHER_KEY), 3);
        assert!(
            said.contains("HUELLA_HASH_KEY is another") && said.contains("--rehash") && !said.contains(OTHER_KEY),
            "{command:?} {said}"
        );
        let said = ends(&w, command, &[("HUELLA_TABLE", tables)], 3);
        assert!(said.contains("HUELLA_HASH_KEY"), "{command:?} {said}");
    }
    assert_eq!(w.start(&["run"], &env(OTHER_KEY)).wait(), Some(3), "{}", w.log());
    assert_eq!(data_files(&w), before, "nothing was written");

    // The former key goes on where it stood (the slot of --resnapshot was not made).
    ends(&w, &UNTIL, &env(KEY), 0);
    assert_eq!(hashes(&w, "public.donantes").len(), 1);
    ends(&w, &["verify"], &env(KEY), 0);

    w.sql(&format!("INSERT INTO donantes VALUES ('{MARK}3', 'd'); UPDATE donantes SET ciudad = 'e' WHERE cedula = '{MARK}1'")).await;
    ends(&w, &["run", "--until-caught-up", "--rehash"], &env(OTHER_KEY), 0);
    let second = hashes(&w, "public.donantes");
    assert!(second.len() == 2 && second.is_disjoint(&first.0), "{second:?}");
    ends(&w, &["snapshot"], &env(OTHER_KEY), 3);
    w.sql("INSERT INTO copia VALUES (3, NULL)").await;
    ends(&w, &["snapshot", "--rehash"], &env(OTHER_KEY), 0);
    assert!(hashes(&w, "public.copia").is_disjoint(&first.0));
    for command in &commands {
        if !command.contains(&"daily") {
            ends(&w, command, &env(OTHER_KEY), 0);
        }
        ends(&w, command, &env(KEY), 3);
    }
    assert!(hashes(&w, "public.donantes").is_disjoint(&first.0));
    w.read().assert_exactly_once();
    assert!(!String::from_utf8_lossy(&std::fs::read(w.lake().join("watermark.json")).unwrap()).contains(OTHER_KEY));
}
