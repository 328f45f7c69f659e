//! `huella publish` and `huella dataform generate`: what a warehouse is told of the lake.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod aged_lake;
mod lake_reader;
mod private_server;
mod world;

use aged_lake::{Synthetic, age, huella, measured};
use huella::lake::{Cut, FileKind};
use lake_reader::lsn;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Repetition;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use world::World;

const DONACIONES: &str = "CREATE TABLE donaciones (id_donacion int PRIMARY KEY, monto numeric(12,2), creado timestamp, momento timestamptz, datos jsonb, \"año\" date);
    CREATE TABLE \"Casos\" (id int PRIMARY KEY, r float4, b bytea, g numeric(60,30), ok bool)";

fn cut(lake: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(lake.join("published/cut.json")).unwrap()).unwrap()
}

/// Everything that is published, with the time of its last change.
fn published(lake: &Path) -> BTreeMap<String, SystemTime> {
    let mut found = BTreeMap::new();
    let mut folders = vec![lake.join("published"), lake.join("tables")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if folder.ends_with("published") || entry.file_name().to_string_lossy().starts_with("_published.") {
                found.insert(entry.path().display().to_string(), entry.metadata().unwrap().modified().unwrap());
            }
        }
    }
    found
}

fn lines(path: &str) -> BTreeSet<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cut_names_the_live_files_of_current_versions_and_an_unchanged_lake_writes_nothing() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("INSERT INTO donaciones VALUES (1, 1, now(), now(), '{}', now())").await;
    assert_eq!(w.run(&["publish"]).0, 5, "there is no lake yet");
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    let (first, watermark) = (cut(&w.lake()), w.watermark().unwrap());
    for field in ["through", "commit", "commit_time"] {
        assert_eq!(first[field], watermark[field], "{field}");
    }
    let table = &first["tables"]["public.donaciones"];
    assert_eq!(table["snapshot"], watermark["tables"]["public.donaciones"]["snapshot"]);
    assert_eq!((&table["version"], &table["from_dt"]), (&json!(1), &json!({})));
    assert_eq!(lines(table["manifest"].as_str().unwrap()), w.run(&["files", "public.donaciones"]).1.lines().map(str::to_owned).collect());
    let reference = w.lake().join("tables/public.donaciones/v1/_published.schema.parquet");
    assert_eq!(table["schema"].as_str(), reference.to_str());
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(reference).unwrap()).unwrap();
    assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
    let columns = reader.parquet_schema().columns();
    assert_eq!(columns.len(), 6 + 8);
    assert!(columns.iter().all(|column| column.self_type().get_basic_info().repetition() == Repetition::OPTIONAL));

    let before = published(&w.lake());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    assert_eq!(published(&w.lake()), before, "nothing moved, nothing is written");
    // One table changes: the other's manifest stays as it is.
    w.sql("INSERT INTO donaciones VALUES (2)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    let after = published(&w.lake());
    let changed: Vec<&str> =
        after.iter().filter(|(path, at)| before.get(*path) != Some(at)).map(|(path, _)| path.rsplit('/').next().unwrap()).collect();
    assert_eq!(changed, ["cut.json", "_published.manifest"]);
    let second = cut(&w.lake());
    assert_eq!(second["former"], json!([first["through"]]));
    // A new version: its own manifest; the former one still names files that are there.
    w.sql("ALTER TABLE donaciones ALTER monto TYPE text").await;
    w.sql("INSERT INTO donaciones VALUES (3, 'x')").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    let table = &cut(&w.lake())["tables"]["public.donaciones"];
    assert_eq!(table["version"], 2);
    assert!(table["manifest"].as_str().unwrap().ends_with("/tables/public.donaciones/v2/_published.manifest"));
    assert!(
        lines(w.lake().join("tables/public.donaciones/v1/_published.manifest").to_str().unwrap())
            .iter()
            .all(|file| Path::new(file).exists())
    );
    Cut::parse(&std::fs::read(w.lake().join("published/cut.json")).unwrap()).unwrap();
}

#[test]
fn days_are_named_from_which_a_merge_must_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("lake");
    let mut lake = Synthetic::new(&root);
    let publish = || assert_eq!(measured(huella(&root, &["publish"], &[])).0, 0);
    let add = |lake: &mut Synthetic<'_>, day: &str, at: u64, through: u64| {
        let file = lake.file(day, FileKind::Stream, &[(at, 1, "INSERT", at as i64, Some("a"))]);
        lake.commit(through, vec![file]);
        lake.write();
    };
    add(&mut lake, "2026-01-20", 0x20, 0x30);
    publish();
    add(&mut lake, "2026-01-22", 0x30, 0x40); // begins exactly at the cut before
    publish();
    add(&mut lake, "2026-01-21", 0x45, 0x50); // a clock that ran backwards
    publish();
    let one = cut(&root);
    assert_eq!(one["former"], json!(["0/40", "0/30"]));
    let table = &one["tables"]["public.t"];
    assert_eq!(table["from_dt"], json!({"0/30": "2026-01-21", "0/40": "2026-01-21"}));
    assert_eq!((&table["snapshot"], &table["snapshot_dt"]), (&Value::Null, &json!("2026-01-20")));
    // The lake moves on without rows: nothing before the day of the cut has to be read.
    lake.commit(0x60, Vec::new());
    lake.write();
    publish();
    assert_eq!(cut(&root)["tables"]["public.t"]["from_dt"]["0/50"], "2026-01-31");
    // Compaction leaves every row in its day; at most fourteen former cuts are kept.
    for n in 0..16u64 {
        add(&mut lake, "2026-01-23", 0x60 + n * 16, 0x70 + n * 16);
        publish();
    }
    let before = cut(&root);
    assert_eq!(measured(huella(&root, &["compact"], &[])).0, 0);
    publish();
    assert_eq!(cut(&root), before, "the positions are the same, and so are the days");
    assert_eq!(before["former"].as_array().unwrap().len(), 14);
    let manifest = lines(before["tables"]["public.t"]["manifest"].as_str().unwrap());
    assert_eq!(manifest.len(), 4);
    let variable: Value = serde_json::from_str(&huella::dataform::huella_cut(&Cut::parse(before.to_string().as_bytes()).unwrap())).unwrap();
    assert_eq!(variable["through"], 0x160.to_string());
    assert_eq!(variable["tables"]["public.t"]["from_dt"][0x150.to_string()], "2026-01-23");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_never_names_a_file_that_is_not_there() {
    let w = World::new().await;
    w.sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    // Whatever is published has its place already: only files that nobody names are moved into other days.
    let another_day = |seq: u64| format!("2026-11-{:02}", 1 + seq % 3);
    age(&w.lake(), another_day);
    assert_eq!(w.run(&["compact"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, lake) = (Arc::clone(&stop), w.lake());
    let watcher = std::thread::spawn(move || {
        let mut looked = 0u64;
        while !stopped.load(Ordering::Relaxed) {
            let cut = cut(&lake);
            for (name, table) in cut["tables"].as_object().unwrap() {
                let manifest = table["manifest"].as_str().unwrap();
                let text = std::fs::read_to_string(manifest).unwrap();
                for file in text.lines() {
                    assert!(Path::new(file).exists(), "{file} of {name} is gone");
                }
                looked += 1;
            }
        }
        looked
    });
    let short = [("HUELLA_COMPACT_GRACE", "2s")];
    for n in 0..12 {
        for m in 0..4 {
            w.sql(&format!(
                "INSERT INTO t SELECT {n} * 100 + {m} * 20 + i, 'x' FROM generate_series(0, 9) i; INSERT INTO u VALUES ({n} * 10 + {m})"
            ))
            .await;
            w.caught_up().await;
        }
        age(&w.lake(), another_day);
        assert!(matches!(w.start(&["compact"], &short).wait(), Some(0 | 1)), "{}", w.log());
        if n % 3 != 1 {
            assert!(matches!(w.start(&["publish"], &short).wait(), Some(0 | 1)), "{}", w.log());
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(watcher.join().expect("every file was there") > 100);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
    assert!(w.log().contains("\"files_deleted\":"), "{}", w.log());
    let deleted = w
        .log()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|line| line["files_deleted"].as_u64())
        .sum::<u64>();
    assert!(deleted > 50, "{deleted} files were deleted meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_the_former_cut_stands_and_the_next_publication_mends() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    let points = ["publish.after_schema@1", "publish.after_manifest@1", "publish.after_manifest@2", "publish.after_cut@1"];
    for (id, point) in points.into_iter().enumerate() {
        w.sql(&format!("INSERT INTO donaciones VALUES ({id}); INSERT INTO \"Casos\" VALUES ({id})")).await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        let before = std::fs::read(w.lake().join("published/cut.json")).ok();
        let (name, nth) = point.split_once('@').unwrap();
        let killed = w.start(&["publish"], &[("HUELLA_FAILPOINT", &format!("{name}=abort@{nth}"))]).wait();
        assert_eq!(killed, None, "{point} must be passed\n{}", w.log());
        let after = std::fs::read(w.lake().join("published/cut.json")).ok();
        assert_eq!(before == after, name != "publish.after_cut", "{point}");
        // What the cut promises is in the manifests, whichever of them are newer.
        if let Some(after) = after {
            let after: Value = serde_json::from_slice(&after).unwrap();
            let through = lsn(after["through"].as_str().unwrap());
            for (name, table) in after["tables"].as_object().unwrap() {
                let there = lines(table["manifest"].as_str().unwrap());
                let live = w.read().live(name);
                assert!(
                    live.iter().all(|file| there.contains(&file.display().to_string()) || lake_reader::changes_in(file)[0].lsn >= through)
                );
            }
        }
        assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
        assert_eq!(cut(&w.lake())["through"], w.watermark().unwrap()["through"]);
    }
}

/// Data files of a table that no list of live files names.
fn unlisted(w: &World, table: &str) -> BTreeSet<String> {
    let live: BTreeSet<String> = w.run(&["files", "--all-versions"]).1.lines().map(str::to_owned).collect();
    let days = std::fs::read_dir(w.lake().join(format!("tables/{table}/v1"))).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let files = days.flat_map(|day| std::fs::read_dir(day.path()).unwrap().flatten()).map(|file| file.path().display().to_string());
    files.filter(|file| !live.contains(file)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_without_files_is_published_with_a_file_without_rows() {
    let mut w = World::new().await;
    w.env.push(("HUELLA_SNAPSHOT_INITIAL".to_owned(), "false".to_owned()));
    w.sql(DONACIONES).await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    // The position moves, so that there is a commit.
    w.sql("CREATE TABLE elsewhere (id int)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    for point in ["publish.after_rowless@1", "publish.after_rowless@2", "publish.after_manifest@1"] {
        let (name, nth) = point.split_once('@').unwrap();
        let killed = w.start(&["publish"], &[("HUELLA_FAILPOINT", &format!("{name}=abort@{nth}"))]).wait();
        assert_eq!(killed, None, "{point} must be passed\n{}", w.log());
    }
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    let manifest = cut(&w.lake())["tables"]["public.donaciones"]["manifest"].as_str().unwrap().to_owned();
    let named = lines(&manifest);
    assert_eq!(named.len(), 1, "BigQuery refuses an empty manifest");
    let file = named.first().unwrap().clone();
    assert!(file.starts_with(&format!("{}/tables/public.donaciones/v1/dt=20", w.lake().display())), "the hive prefix fits: {file}");
    assert_eq!(w.run(&["files"]).1, "", "it is no live file");
    let columns = |file: &str| {
        let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap();
        assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
        reader.parquet_schema().columns().len()
    };
    assert_eq!(columns(&file), 6 + 8);

    // Nothing is written again, also when the position moves without a row; and nothing is swept that the manifest names.
    let before = published(&w.lake());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    assert_eq!(published(&w.lake()), before);
    w.sql("INSERT INTO elsewhere VALUES (1)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    assert_eq!(lines(&manifest), named);
    let short = [("HUELLA_COMPACT_GRACE", "1s")];
    w.wait("what the killed ones left to be swept", || {
        assert_eq!(w.start(&["compact"], &short).wait(), Some(0), "{}", w.log());
        unlisted(&w, "public.donaciones") == named
    });

    // A column more: a file with it. A row: its file alone, and the one without rows goes, later.
    w.sql("ALTER TABLE donaciones ADD nota text; INSERT INTO \"Casos\" VALUES (1)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    let wider = lines(&manifest);
    assert_eq!((wider.len(), columns(wider.first().unwrap())), (1, 7 + 8));
    w.sql("INSERT INTO donaciones VALUES (1)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    assert_eq!(lines(&manifest), w.run(&["files", "public.donaciones"]).1.lines().map(str::to_owned).collect());
    w.wait("the files without rows to be swept", || {
        assert_eq!(w.start(&["compact"], &short).wait(), Some(0), "{}", w.log());
        unlisted(&w, "public.donaciones").is_empty()
    });
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_publications_at_once_never_leave_a_manifest_behind_its_cut() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    // The older one has read the lake, and stops before it writes.
    w.sql("INSERT INTO donaciones VALUES (1); INSERT INTO \"Casos\" VALUES (1)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    let older = w.start(&["publish"], &[("HUELLA_FAILPOINT", "publish.after_schema=stop@2")]);
    w.wait("the older publication", || {
        std::fs::read_to_string(format!("/proc/{}/stat", older.id())).is_ok_and(|stat| stat.contains(") T "))
    });
    w.sql("INSERT INTO donaciones VALUES (2)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    let newer = (cut(&w.lake()), published(&w.lake()));
    older.signal(libc::SIGCONT);
    assert_eq!(older.wait(), Some(1), "{}", w.log());
    assert_eq!((cut(&w.lake()), published(&w.lake())), newer);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_for_dataform_has_every_type_and_stays_untouched_while_nothing_changes() {
    let w = World::new().await;
    w.sql(DONACIONES).await;
    w.sql("CREATE SCHEMA ventas; CREATE TABLE ventas.pedidos (id int PRIMARY KEY)").await;
    let settings = "[[table]]\nname = \"public.donaciones\"\n[[table]]\nname = \"public.Casos\"\n[[table]]\nname = \"ventas.pedidos\"\n";
    std::fs::write(w.dir.path().join("huella.toml"), settings).unwrap();
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["dataform", "generate", "--out", "d"]).0, 3, "without [bigquery]");
    std::fs::write(w.dir.path().join("huella.toml"), format!("[bigquery]\nproject = \"p\"\nlocation = \"us-central1\"\n{settings}"))
        .unwrap();
    let generate = || {
        let (code, out) = w.run(&["dataform", "generate", "--out", "d/includes"]);
        assert_eq!(code, 0, "{}", w.log());
        out
    };
    let said = generate();
    assert!(said.contains("public.donaciones: new, as donaciones") && said.contains("ventas.pedidos: new, as ventas__pedidos"), "{said}");
    let path = w.dir.path().join("d/includes/huella_tables.json");
    let document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let lake = w.lake().display().to_string();
    assert_eq!(
        (&document["format"], &document["project"], &document["raw_dataset"], &document["silver_dataset"], &document["lake"]),
        (&json!(1), &json!("p"), &json!("raw"), &json!("silver"), &json!(lake))
    );
    let table = |name: &str| document["tables"].as_array().unwrap().iter().find(|table| table["source"] == name).unwrap().clone();
    let column = |name: &str, source: &str, postgres: &str, raw: &str, silver: &str| json!({"name": name, "source": source, "postgres": postgres, "raw": raw, "silver": silver});
    let known = table("public.donaciones")["columns_fingerprint"].clone();
    let in_the_cut = || {
        assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
        cut(&w.lake())["tables"]["public.donaciones"]["columns_fingerprint"].clone()
    };
    assert_eq!(known, in_the_cut());
    assert_eq!(
        table("public.donaciones"),
        json!({"source": "public.donaciones", "name": "donaciones", "version": 1, "mode": "stream",
            "manifest": format!("{lake}/tables/public.donaciones/v1/_published.manifest"),
            "reference_schema": format!("{lake}/tables/public.donaciones/v1/_published.schema.parquet"),
            "hive_prefix": format!("{lake}/tables/public.donaciones/v1/{{dt:DATE}}"),
            "key": ["id_donacion"], "columns_fingerprint": known, "columns": [
                column("id_donacion", "id_donacion", "integer", "INT64", "INT64"), column("monto", "monto", "numeric", "NUMERIC", "NUMERIC"),
                column("creado", "creado", "timestamp without time zone", "TIMESTAMP", "DATETIME"),
                column("momento", "momento", "timestamp with time zone", "TIMESTAMP", "TIMESTAMP"),
                column("datos", "datos", "jsonb", "STRING", "JSON"), column("a_xC3B1_o", "año", "date", "DATE", "DATE")]})
    );
    let raw: Vec<String> =
        table("public.Casos")["columns"].as_array().unwrap().iter().map(|c| c["raw"].as_str().unwrap().to_owned()).collect();
    assert_eq!(raw, ["INT64", "FLOAT64", "BYTES", "BIGNUMERIC", "BOOL"]);
    let written = std::fs::metadata(&path).unwrap().modified().unwrap();
    assert!(generate().contains("unchanged"));
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), written);
    w.sql("ALTER TABLE donaciones ADD nota text; INSERT INTO donaciones (id_donacion, nota) VALUES (9, 'n')").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_ne!(in_the_cut(), known, "the cut tells that there is a column which the file does not have");
    assert!(generate().contains("public.donaciones: column nota added (STRING)"));
    let document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let now = document["tables"].as_array().unwrap().iter().find(|table| table["source"] == "public.donaciones").unwrap();
    assert_eq!(now["columns_fingerprint"], in_the_cut());
}
