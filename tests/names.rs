//! Names that are hard to write: of schemas, tables and columns; in paths, in columns, in documents and back.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use world::World;

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Schemas and tables, and the name that the lake knows the table by.
const TABLES: [(&str, &str, &str); 18] = [
    ("public", "Casos", "public.Casos"),
    ("public", "casos", "public.casos"),
    ("public", "mis donaciones", "public.mis donaciones"),
    ("public", "año", "public.año"),
    ("public", "con.punto", "public.con.punto"),
    ("public", "\"entre comillas\"", "public.\"\"\"entre comillas\"\"\""),
    ("public", "barra/../x", "public.barra/../x"),
    ("public", "select", "public.select"),
    ("public", "~41", "public.~41"),
    ("public", "A", "public.A"),
    ("public", "100%", "public.100%"),
    ("public", " ", "public. "),
    ("mi esquema", "t", "mi esquema.t"),
    ("a.b", "c", "\"a.b\".c"),
    ("a", "b.c", "a.b.c"),
    ("Ñandú \"x\"", "línea\nnueva", "Ñandú \"x\".línea\nnueva"),
    ("ñññññññññññññññññññññññññññññññ", "語", "ñññññññññññññññññññññññññññññññ.語"),
    ("public", "日本語日本語日本語日本語日本語日本語日本語", "public.日本語日本語日本語日本語日本語日本語日本語"),
];

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_any_name_are_apart_in_the_lake_and_found_again() {
    let w = World::new().await;
    let mut config = String::new();
    for (n, (schema, table, lake)) in TABLES.iter().enumerate() {
        let name = format!("{}.{}", quoted(schema), quoted(table));
        w.sql(&format!(
            "CREATE SCHEMA IF NOT EXISTS {}; CREATE TABLE {name} (id int PRIMARY KEY, v text); INSERT INTO {name} VALUES (1, 'tabla {n}')",
            quoted(schema)
        ))
        .await;
        config.push_str(&format!("[[table]]\nname = {}\n", serde_json::to_string(lake).unwrap()));
    }
    std::fs::write(w.dir.path().join("huella.toml"), config).unwrap();
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    for (n, (schema, table, _)) in TABLES.iter().enumerate() {
        let name = format!("{}.{}", quoted(schema), quoted(table));
        w.sql(&format!("INSERT INTO {name} VALUES (2, 'viva {n}'); UPDATE {name} SET id = 3 WHERE id = 1")).await;
    }
    w.sql("ALTER TABLE \"a.b\".c RENAME v TO \"la v\"; INSERT INTO \"a.b\".c VALUES (5, 'x'); TRUNCATE public.\"Casos\"").await;
    w.caught_up().await;
    run.stop();
    w.true_in_the_lake().await;
    let lake = w.read();
    let names: BTreeSet<String> = lake.tables().into_iter().collect();
    assert_eq!(names, TABLES.iter().map(|t| t.2.to_owned()).collect());
    let mut folders = BTreeMap::new();
    for (schema, table, name) in TABLES {
        // A folder for each, whose name can be undone: `~XX` for every byte but letters, digits and underscores.
        let file = lake.live(name)[0].strip_prefix(w.lake()).unwrap().to_str().unwrap().to_owned();
        let folder = file.split('/').nth(1).unwrap().to_owned();
        assert!(folder.bytes().all(|b| b.is_ascii_alphanumeric() || b"_~.".contains(&b)), "{folder}");
        let parts: Vec<String> = folder.split('.').map(unescaped).collect();
        assert_eq!(parts, [schema, table]);
        assert!(folders.insert(folder, name).is_none(), "{name} shares its folder");
        // `files` and `verify` take the name as it stands in the lake.
        let (code, out) = w.run(&["files", name]);
        assert!(
            code == 0 && out.lines().all(|line| line.contains(&file.split('/').take(2).collect::<Vec<_>>().join("/"))),
            "{name}: {out}"
        );
        assert_eq!(w.run(&["verify", name]).0, 0, "{name}");
    }
    let (code, status) = w.run(&["status", "--json"]);
    assert_eq!(code, 0);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let told: BTreeSet<String> = status["tables"].as_array().unwrap().iter().map(|t| t["table"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told, names);
}

/// A directory holds names of 255 bytes: a longer one is cut and told apart by a digest, and the table is replicated like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_too_long_for_a_directory_is_cut_and_its_table_replicated() {
    let w = World::new().await;
    w.sql("CREATE SCHEMA ñññññññññññññññññññññññññññññññ; CREATE TABLE ñññññññññññññññññññññññññññññññ.日本語日本語日本語日本語日本語日本語日本語 (id int PRIMARY KEY)").await;
    let name = "ñññññññññññññññññññññññññññññññ.日本語日本語日本語日本語日本語日本語日本語";
    std::fs::write(w.dir.path().join("huella.toml"), format!("[[table]]\nname = \"{name}\"\n")).unwrap();
    w.sql("INSERT INTO ñññññññññññññññññññññññññññññññ.日本語日本語日本語日本語日本語日本語日本語 VALUES (1)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["verify", name]).0, 0, "{}", w.log());
    let folders: Vec<String> =
        std::fs::read_dir(w.lake().join("tables")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(folders.len() == 1 && folders[0].len() == 240, "{folders:?}");
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        if *first == b'~' {
            bytes.push(u8::from_str_radix(std::str::from_utf8(&behind[..2]).unwrap(), 16).unwrap());
            rest = &behind[2..];
        } else {
            bytes.push(*first);
            rest = behind;
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Columns whose names a warehouse refuses, that are twins in its eyes, or that look like ours.
const COLUMNS: [&str; 40] = [
    "Nombre",
    "nombre",
    "NOMBRE",
    "nomBre",
    "año",
    "Año",
    "fecha de pago",
    "1ro",
    "a-b",
    "a_x2D_b",
    "\"comillas\"",
    "punto.",
    "_op",
    "_seq",
    "_OP",
    "_commit_lsn",
    "_commit_ts",
    "_xid",
    "_unchanged",
    "_old_key",
    "_exceptions",
    "dt",
    "DT",
    "_TABLE_SUFFIX",
    "_file_name",
    "_PARTITIONTIME",
    "_partitiondate",
    "_ROW_TIMESTAMP",
    "__root__",
    "_COLIDENTIFIER_1",
    "_change_type",
    "select",
    "order",
    " ",
    "tab\taquí",
    "_x20_",
    "_x5F_op",
    "ñññññññññññññññññññññññññññññññ",
    "日本語日本語日本語日本語日本語日本語日本語",
    "100%",
];

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_any_name_have_one_that_a_warehouse_takes_and_that_can_be_undone() {
    let w = World::new().await;
    let list: Vec<String> = COLUMNS.iter().map(|c| format!("{} text", quoted(c))).collect();
    for (table, identity) in [("raras", "DEFAULT"), ("raras_enteras", "FULL")] {
        w.sql(&format!(
            "CREATE TABLE {table} ({}, \"el id\" int, \"El Id\" numeric, PRIMARY KEY (\"el id\", \"El Id\")); ALTER TABLE {table} REPLICA IDENTITY {identity}",
            list.join(", ")
        ))
        .await;
        let values: Vec<String> = (0..COLUMNS.len()).map(|n| format!("'v{n}'")).collect();
        w.sql(&format!("INSERT INTO {table} VALUES ({}, 1, 1), ({}, 2, 'NaN')", values.join(", "), values.join(", "))).await;
    }
    // Twins that come later, and one whose elder is gone.
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    for table in ["raras", "raras_enteras"] {
        let long = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 3200) i)";
        w.sql(&format!(
            "UPDATE {table} SET \"_op\" = {long}, \"año\" = {long} WHERE \"el id\" = 1; UPDATE {table} SET \"dt\" = 'x' WHERE \"el id\" = 1"
        ))
        .await;
        w.sql(&format!(
            "UPDATE {table} SET \"el id\" = 10 WHERE \"el id\" = 1; UPDATE {table} SET \"El Id\" = 'Infinity' WHERE \"el id\" = 2"
        ))
        .await;
        w.sql(&format!("ALTER TABLE {table} ADD \"EL ID\" date, ADD \"_Seq\" int; INSERT INTO {table} (\"el id\", \"El Id\", \"EL ID\", \"_Seq\") VALUES (3, 3, 'infinity', 7)")).await;
        w.sql(&format!("ALTER TABLE {table} DROP \"nombre\"; INSERT INTO {table} (\"el id\", \"El Id\", \"Nombre\", \"NOMBRE\") VALUES (4, 4, 'N', 'NN')")).await;
    }
    w.caught_up().await;
    run.stop();
    w.true_in_the_lake().await;
    let lake = w.read();
    let schema = lake_reader::schema_of(&lake.live("public.raras")[0]);
    let reserved = ["_table_", "_file_", "_partition", "_row_timestamp", "__root__", "_colidentifier", "_change_"];
    let own = ["_op", "_commit_lsn", "_seq", "_commit_ts", "_xid", "_unchanged", "_old_key", "_exceptions", "dt"];
    let mut taken: BTreeSet<String> = own.iter().map(|&name| name.to_owned()).collect();
    for column in schema["columns"].as_array().unwrap() {
        let (name, source) = (column["name"].as_str().unwrap(), column["source"].as_str().unwrap());
        let lower = name.to_ascii_lowercase();
        assert!(
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.as_bytes()[0].is_ascii_digit() && name.len() <= 300,
            "{name}"
        );
        assert!(!reserved.iter().any(|prefix| lower.starts_with(prefix)), "{name}");
        assert!(taken.insert(lower), "{name} stands twice");
        assert_eq!(huella::schema::names::source_name(name), source);
    }
    // Names in the rows' own documents are the lake's.
    let name_of =
        |source: &str| schema["columns"].as_array().unwrap().iter().find(|c| c["source"] == source).unwrap()["name"].as_str().unwrap();
    let changes = lake.changes("public.raras");
    let moved = changes.iter().find(|change| change.old_key.is_some()).unwrap();
    assert_eq!(
        moved.unchanged,
        ["año", "_op"].iter().filter(|c| moved.unchanged.contains(&(**c).to_owned())).map(|c| (*c).to_owned()).collect::<Vec<_>>()
    );
    assert_eq!(moved.unchanged.len(), 2);
    assert_eq!(moved.old_key.as_ref().unwrap().as_object().unwrap().keys().collect::<Vec<_>>(), [name_of("El Id"), name_of("el id")]);
    let (code, found) = w.run(&["check"]);
    assert!(found.contains(&format!("fecha de pago → {}", name_of("fecha de pago"))), "{code} {found}");
}
