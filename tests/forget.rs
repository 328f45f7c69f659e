//! `huella forget`: of a person who is deleted at the source no byte is left in the lake, and nothing else changes.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod aged_lake;
mod lake_reader;
mod private_server;
mod world;

use aged_lake::age;
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use lake_reader::{Cells, Lake};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use world::World;

/// Every text of the person holds this one, every number of hers is one of these.
const MARK: &str = "MARCADEELLA";
const NUMBERS: [i64; 4] = [987_654_321, 987_654_322, 987_654_323, 987_654_324];
const KEY: &str = "una clave bastante larga";
const SHORT: (&str, &str) = ("HUELLA_COMPACT_GRACE", "1s");
/// Long enough that no step of a slow machine outlasts it.
const LONG: (&str, &str) = ("HUELLA_COMPACT_GRACE", "1h");

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Whether a file holds one of the values: as it lies on disk (statistics, dictionaries, footers), or in a decoded cell.
fn holds(path: &Path, texts: &[&str], numbers: &[i64]) -> bool {
    let bytes = std::fs::read(path).unwrap();
    let raw = texts.iter().any(|text| has(&bytes, text.as_bytes()))
        || numbers.iter().any(|number| has(&bytes, number.to_string().as_bytes()) || has(&bytes, &number.to_le_bytes()));
    if raw || path.extension().is_none_or(|extension| extension != "parquet") {
        return raw;
    }
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap().build().unwrap();
    reader.flat_map(|batch| batch.unwrap().columns().to_vec()).any(|array| {
        if let Some(cells) = array.as_string_opt::<i32>() {
            cells
                .iter()
                .flatten()
                .any(|cell| texts.iter().any(|text| cell.contains(text)) || numbers.iter().any(|n| cell.contains(&n.to_string())))
        } else if let Some(cells) = array.as_primitive_opt::<Int64Type>() {
            cells.iter().flatten().any(|cell| numbers.contains(&cell))
        } else {
            array.is_empty()
        }
    })
}

/// Files that hold her. Her first number is somebody else's by now in two of the tables.
fn holders(w: &World, texts: &[&str]) -> Vec<PathBuf> {
    let shared = |path: &Path| ["public.simple", "public.entera"].iter().any(|table| path.to_string_lossy().contains(table));
    files(&w.lake()).into_iter().filter(|path| holds(path, texts, if shared(path) { &NUMBERS[1..] } else { &NUMBERS })).collect()
}

fn forget(w: &World, args: &[&str], env: &[(&str, &str)]) -> Option<i32> {
    w.start(&[&["forget"], args].concat(), env).wait()
}

async fn streamed(w: &World, sql: &str) {
    w.sql(sql).await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
}

/// Compacts until what may go is gone. A grace of a second may be over before a slow machine is through (exit code 1).
fn sweep(w: &World) {
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1100));
        let code = (0..10).map(|_| w.start(&["compact"], &[SHORT]).wait()).find(|code| *code != Some(1));
        assert_eq!(code, Some(Some(0)), "{}", w.log());
    }
}

fn receipts(w: &World) -> Vec<Value> {
    let folder = w.lake().join("state/forgotten");
    let all = if folder.exists() { files(&folder) } else { Vec::new() };
    all.iter().map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
}

fn states(lake: &Lake) -> Vec<Vec<Cells>> {
    lake.tables().iter().map(|table| lake.state(table)).collect()
}

const TABLES: &str = "CREATE TABLE simple (id int PRIMARY KEY, nombre text, notas text, n int);
    CREATE TABLE entera (id int PRIMARY KEY, nombre text, notas text, n int);
    CREATE TABLE doble (region text, id int, nombre text, n int, PRIMARY KEY (region, id));
    CREATE TABLE cifrada (cedula text PRIMARY KEY, nombre text, n int);
    CREATE TABLE sin_clave (id int, nombre text, n int);
    CREATE TABLE catalogo (id int PRIMARY KEY, nombre text);
    ALTER TABLE simple ALTER notas SET STORAGE EXTERNAL;
    ALTER TABLE entera REPLICA IDENTITY FULL; ALTER TABLE sin_clave REPLICA IDENTITY FULL";

async fn world() -> World {
    let mut w = World::new().await;
    let names = ["simple", "entera", "doble", "sin_clave"].map(|table| format!("{{name = 'public.{table}'}}"));
    let tables =
        format!("[{}, {{name = 'public.cifrada', hash = ['cedula']}}, {{name = 'public.catalogo', mode = 'snapshot'}}]", names.join(", "));
    w.env = vec![("HUELLA_TABLE".to_owned(), tables), ("HUELLA_HASH_KEY".to_owned(), KEY.to_owned())];
    w.sql(TABLES).await;
    for table in ["simple", "entera"] {
        w.sql(&format!("INSERT INTO {table} SELECT i, 'otra ' || i, repeat(md5(i::text), 200), 0 FROM generate_series(1, 40) i")).await;
    }
    w.sql("INSERT INTO doble SELECT 'sur', i, 'otra', 0 FROM generate_series(1, 40) i; INSERT INTO cifrada SELECT 'c' || i, 'otra', 0 FROM generate_series(1, 40) i").await;
    w.sql("INSERT INTO sin_clave SELECT i % 5, 'otra', 0 FROM generate_series(1, 40) i; INSERT INTO catalogo SELECT i, 'otra' FROM generate_series(1, 9) i").await;
    w
}

/// Her rows, of all tables, from beginning to end; each step has commits of its own. `moved`: with changes of key.
fn life(step: u32) -> String {
    let [a, b, c, _] = NUMBERS;
    let long = format!("'{MARK}' || (SELECT string_agg(md5((i + {step})::text), '{MARK}') FROM generate_series(1, 200) i)");
    let every = |sql: &str| ["simple", "entera"].map(|table| sql.replace(" T ", &format!(" {table} "))).join(";");
    match step {
        0 => format!(
            "{}; INSERT INTO doble VALUES ('{MARK}', {a}, '{MARK}', 0); INSERT INTO cifrada VALUES ('{MARK} 1', '{MARK}', 0);
             INSERT INTO sin_clave VALUES ({a}, '{MARK}', 0), ({a}, '{MARK}', 0); INSERT INTO catalogo VALUES ({a}, '{MARK}')",
            every(&format!("INSERT INTO T VALUES ({a}, '{MARK}', {long}, 0)"))
        ),
        1 => format!(
            "{}; UPDATE doble SET n = 1; UPDATE cifrada SET n = 1; UPDATE sin_clave SET n = 1 WHERE id = {a}",
            every("UPDATE T SET n = 1")
        ),
        2 => format!(
            "{}; UPDATE doble SET id = {b} WHERE id = {a}; UPDATE cifrada SET cedula = '{MARK} 2' WHERE cedula = '{MARK} 1'",
            every(&format!("UPDATE T SET id = {b} WHERE id = {a}; UPDATE T SET n = n + 1 WHERE id = {b}"))
        ),
        // Somebody else has the key now that was hers.
        3 => format!("{}; DELETE FROM doble WHERE n = 77", every(&format!("INSERT INTO T VALUES ({a}, 'de otra', NULL, 5)"))),
        4 => format!(
            "{}; UPDATE doble SET region = '{MARK} dos', id = {c} WHERE id = {b}; UPDATE cifrada SET cedula = '{MARK} 3' WHERE cedula = '{MARK} 2'",
            every(&format!("UPDATE T SET id = {c} WHERE id = {b}"))
        ),
        _ => format!(
            "{}; DELETE FROM doble WHERE id = {c}; DELETE FROM cifrada WHERE cedula = '{MARK} 3'; DELETE FROM sin_clave WHERE id = {a}; DELETE FROM catalogo WHERE id = {a}",
            // The other one takes another number too, so that a search for hers finds nothing.
            every(&format!("DELETE FROM T WHERE id = {c}; UPDATE T SET id = 7000 WHERE id = {a}"))
        ),
    }
}

/// Forgets her in every table, by her last key.
fn forget_everywhere(w: &World, env: &[(&str, &str)]) {
    let [a, _, c, _] = NUMBERS.map(|number| number.to_string());
    for args in [
        &["public.simple", c.as_str()][..],
        &["public.entera", &format!("id={c}")],
        &["public.doble", &format!("{MARK} dos"), &c],
        &["public.cifrada", &format!("{MARK} 3")],
        &["public.sin_clave", &format!("id={a}"), &format!("nombre={MARK}")],
        &["public.catalogo", &a],
    ] {
        assert_eq!(forget(w, args, env), Some(0), "{args:?}\n{}", w.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_in_no_object_afterwards() {
    let w = world().await;
    streamed(&w, &life(0)).await;
    assert_eq!(w.run(&["snapshot"]).0, 0, "{}", w.log());
    for step in 1..3 {
        streamed(&w, &life(step)).await;
    }
    // A part of it compacted, days that are over; and a copy of everything in the middle of her life.
    age(&w.lake(), |seq| format!("2026-11-{:02}", 10 + seq % 3));
    assert_eq!(w.start(&["compact"], &[LONG]).wait(), Some(0), "{}", w.log());
    for step in 3..5 {
        streamed(&w, &life(step)).await;
    }
    assert_eq!(w.run(&["run", "--until-caught-up", "--resnapshot"]).0, 0, "{}", w.log());
    // Another version of two tables, whose rows it copies again.
    streamed(
        &w,
        "ALTER TABLE simple ALTER n TYPE text; ALTER TABLE entera ALTER n TYPE text; UPDATE simple SET n = '9'; UPDATE entera SET n = '9'",
    )
    .await;
    // The source has her.
    let [a, _, c, _] = NUMBERS.map(|number| number.to_string());
    assert_eq!(forget(&w, &["public.simple", &c], &[SHORT]), Some(4), "{}", w.log());
    assert_eq!(forget(&w, &["public.cifrada", &format!("{MARK} 3")], &[SHORT]), Some(4), "{}", w.log());
    assert_eq!(forget(&w, &["public.catalogo", &a], &[SHORT]), Some(4), "{}", w.log());
    // The lake has not come to the deletion.
    w.sql(&life(5)).await;
    assert_eq!(forget(&w, &["public.simple", &c], &[SHORT]), Some(4), "{}", w.log());
    assert!(holders(&w, &[MARK]).len() > 20);
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(forget(&w, &["public.catalogo", &a], &[SHORT]), Some(4), "its copy is of before\n{}", w.log());
    assert_eq!(w.run(&["snapshot"]).0, 0, "{}", w.log());
    let state = states(&w.read());
    forget_everywhere(&w, &[SHORT]);
    assert_eq!(states(&w.read()), state);
    w.true_in_the_lake_without(&["cedula"], &["public.cifrada"]).await;
    sweep(&w);
    assert_eq!(holders(&w, &[MARK]), Vec::<PathBuf>::new());
    assert_eq!(states(&w.read()), state);
    assert_eq!(receipts(&w).len(), 6);
    assert!(receipts(&w).iter().all(|receipt| receipt["gone"].is_string() && receipt.get("waiting").is_none()), "{:?}", receipts(&w));
    assert!(!w.log().contains(MARK) && NUMBERS.iter().all(|number| !w.log().contains(&number.to_string())), "{}", w.log());
    // Others who had one of her keys are there with their history.
    let others: Vec<_> =
        w.read().changes("public.simple").into_iter().filter(|change| change.cells["id"].as_deref() == Some("7000")).collect();
    assert!(!others.is_empty());
    // Everything goes on from there.
    streamed(&w, &life(0)).await;
    w.true_in_the_lake_without(&["cedula"], &["public.cifrada"]).await;
    assert_eq!(w.start(&["compact"], &[SHORT, ("HUELLA_COMPACT_FOLD_AFTER", "1d")]).wait(), Some(0), "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    w.true_in_the_lake_without(&["cedula"], &["public.cifrada"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_nobody_has_merged_keeps_its_key_until_then() {
    let w = world().await;
    for step in 0..2 {
        streamed(&w, &life(step)).await;
    }
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    for step in 2..6 {
        streamed(&w, &life(step)).await;
    }
    assert_eq!(forget(&w, &["public.entera", &NUMBERS[2].to_string()], &[SHORT]), Some(0), "{}", w.log());
    let hers = |w: &World| {
        let all = w.read().changes("public.entera").into_iter();
        all.filter(|change| NUMBERS.iter().any(|number| change.cells["id"].as_deref() == Some(&number.to_string()))).collect::<Vec<_>>()
    };
    // Whoever stands at the published cut learns that each of her keys is gone; of her there is nothing else.
    let left = hers(&w);
    let deletes = left.iter().filter(|change| change.op == "DELETE").count();
    assert_eq!(deletes, 4, "three of hers, and one of who had her first key");
    for change in left.iter().filter(|change| change.op == "DELETE" && change.cells["id"].as_deref() != Some(&NUMBERS[0].to_string())) {
        assert!(change.cells.iter().all(|(name, cell)| name == "id" || cell.is_none()), "{change:?}");
    }
    assert!(left.iter().all(|change| change.op == "DELETE" || change.cells["nombre"].as_deref() == Some("de otra")));
    // The published manifests name none of the files that held her.
    let published: Vec<String> = files(&w.lake())
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "manifest"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let entera: Vec<PathBuf> =
        published.iter().flat_map(|text| text.lines()).filter(|line| line.contains("entera")).map(PathBuf::from).collect();
    assert!(!entera.is_empty() && entera.iter().all(|path| !holds(path, &[MARK], &[])));
    // Again: nothing more to do yet.
    assert_eq!(forget(&w, &["public.entera", &NUMBERS[2].to_string()], &[SHORT]), Some(0), "{}", w.log());
    sweep(&w);
    assert_eq!(receipts(&w).len(), 2);
    let mut waiting: Vec<usize> = receipts(&w).iter().map(|receipt| receipt["waiting"].as_array().unwrap().len()).collect();
    waiting.sort_unstable();
    assert_eq!(waiting, [1, 3], "without her other rows the second one knows of her last key alone");
    assert_eq!(hers(&w).len(), left.len());
    // The next cut follows the one that has the deletions: they were merged.
    streamed(&w, "UPDATE entera SET n = 3 WHERE id < 9").await;
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    sweep(&w);
    assert!(receipts(&w).iter().all(|receipt| receipt.get("waiting").is_none()), "{:?}", receipts(&w));
    assert!(hers(&w).iter().all(|change| change.cells["id"].as_deref() == Some(&NUMBERS[0].to_string())), "only who had her first key");
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    sweep(&w);
    assert!(receipts(&w).iter().all(|receipt| receipt["gone"].is_string()), "{:?}", receipts(&w));
    assert!(!holders(&w, &[MARK]).iter().any(|path| path.to_string_lossy().contains("entera")));
    w.true_in_the_lake_without(&["cedula"], &["public.cifrada"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_it_changes_nothing_and_goes_on() {
    let w = world().await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
    let points = [
        "compact.after_checkpoint@1",
        "compact.after_record@1",
        "forget.after_receipt@1",
        "compact.after_file@1",
        "compact.after_checkpoint@2",
        "compact.after_record@2",
        "forget.after_swap@1",
        "publish.after_manifest@1",
        "publish.after_cut@1",
        "forget.after_publish@1",
        "compact.after_marks@1",
    ];
    for point in points {
        for step in 0..6 {
            streamed(&w, &life(step)).await;
        }
        w.sql("DELETE FROM entera WHERE id = 7000; DELETE FROM simple WHERE id = 7000").await;
        streamed(&w, "UPDATE entera SET n = n + 1 WHERE id < 9").await;
        let state = states(&w.read());
        let (name, nth) = point.split_once('@').unwrap();
        let key = NUMBERS[2].to_string();
        let killed = forget(&w, &["public.entera", &key], &[LONG, ("HUELLA_FAILPOINT", &format!("{name}=abort@{nth}"))]);
        assert_eq!(killed, None, "{point} must be passed\n{}", w.log());
        assert_eq!(states(&w.read()), state, "{point}");
        w.read().assert_exactly_once();
        assert_eq!(forget(&w, &["public.entera", &key], &[LONG]), Some(0), "{point}\n{}", w.log());
        assert_eq!(states(&w.read()), state, "{point}");
        let live = w.read().live("public.entera");
        assert!(!live.iter().any(|path| holds(path, &[MARK], &[])), "{point}");
        w.true_in_the_lake_without(&["cedula"], &["public.cifrada"]).await;
    }
    // Two more cuts, and nothing is left anywhere.
    for _ in 0..2 {
        streamed(&w, "UPDATE entera SET n = n + 1 WHERE id < 9").await;
        assert_eq!(w.run(&["publish"]).0, 0, "{}", w.log());
        sweep(&w);
    }
    assert!(!holders(&w, &[MARK]).iter().any(|path| path.to_string_lossy().contains("entera")));
    assert!(receipts(&w).iter().all(|receipt| receipt["gone"].is_string()), "{:?}", receipts(&w));
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_writer_and_a_compaction_it_takes_out_her_rows_and_no_others() {
    let w = world().await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    for step in 0..6 {
        w.sql(&life(step)).await;
        w.caught_up().await;
    }
    age(&w.lake(), |seq| format!("2026-11-{:02}", 10 + seq % 3));
    let key = NUMBERS[2].to_string();
    // It stops itself with its new files written and its list not yet, and goes on when a compaction has replaced the same files.
    let first = w.start(&["forget", "public.entera", &key], &[LONG, ("HUELLA_FAILPOINT", "compact.after_checkpoint=stop@2")]);
    w.wait("its second checkpoint", || first.is_stopped());
    assert_eq!(w.start(&["compact"], &[LONG]).wait(), Some(0), "{}", w.log());
    first.signal(libc::SIGCONT);
    assert_eq!(first.wait(), Some(0), "{}", w.log());
    assert!(w.log().contains("looking again"), "{}", w.log());
    assert!(!w.read().live("public.entera").iter().any(|path| holds(path, &[MARK], &[])));
    assert_eq!(receipts(&w).len(), 1, "none for what came too late");
    // The other way round: the compaction's files hold her, and come too late.
    for n in 7..9 {
        w.sql(&format!("UPDATE simple SET n = {n} WHERE id < 9")).await;
        w.caught_up().await;
    }
    age(&w.lake(), |_| "2026-11-14".to_owned());
    let compaction =
        w.start(&["compact"], &[LONG, ("HUELLA_FAILPOINT", "compact.after_file=stop@1"), ("HUELLA_COMPACT_FILE_SIZE", "1GiB")]);
    w.wait("its first file", || compaction.is_stopped());
    let both = [w.start(&["forget", "public.simple", &key], &[LONG]), w.start(&["forget", "public.simple", &key], &[LONG])];
    w.sql("UPDATE simple SET n = 9 WHERE id < 9; UPDATE doble SET n = n + 1").await;
    both.into_iter().for_each(|one| assert_eq!(one.wait(), Some(0), "{}", w.log()));
    compaction.signal(libc::SIGCONT);
    assert_eq!(compaction.wait(), Some(0), "{}", w.log());
    assert!(!w.read().live("public.simple").iter().any(|path| holds(path, &[MARK], &[])));
    w.caught_up().await;
    run.stop();
    w.true_in_the_lake_without(&["cedula"], &["public.cifrada"]).await;
    sweep(&w);
    assert!(!holders(&w, &[MARK]).iter().any(|path| ["entera", "simple"].iter().any(|t| path.to_string_lossy().contains(t))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_forgotten_is_refused_and_says_why() {
    let w = world().await;
    streamed(&w, &life(0)).await;
    let before = files(&w.lake());
    let refused = |code: i32, args: &[&str], says: &str| {
        let from = w.log().len();
        assert_eq!(forget(&w, args, &[]), Some(code), "{args:?}\n{}", w.log());
        let log = w.log().split_off(from);
        assert!(log.contains(says), "{says:?} is not in {log}");
        assert!(!log.contains(MARK) && !log.contains("987654321"), "{log}");
    };
    refused(2, &["public.nada", "1"], "no rows of public.nada");
    refused(2, &["public.simple", "1", "2"], "its key is (id)");
    refused(2, &["public.doble", MARK], "2 values");
    refused(2, &["public.simple", MARK], "SQLSTATE 22P02");
    refused(2, &["public.sin_clave", MARK], "has no key");
    refused(2, &["public.simple", "987654321", "--hashed"], "--hashed");
    refused(4, &["public.simple", "987654321"], "still has a row");
    refused(4, &["public.doble", &format!("region={MARK}"), "id=987654321"], "still has a row");
    refused(4, &["public.sin_clave", "nombre=MARCADEELLA"], "still has a row");
    let hash = {
        let row = w.read().changes("public.cifrada").into_iter().find(|change| change.cells["nombre"].as_deref() == Some(MARK)).unwrap();
        row.cells["cedula"].clone().unwrap()
    };
    refused(4, &["public.cifrada", &hash, "--hashed"], "still has a row");
    assert_eq!(files(&w.lake()), before, "nothing is written before it is allowed");
    // Her row under a key that she had before: she is still there, under another.
    streamed(&w, &format!("UPDATE simple SET id = {} WHERE id = {}", NUMBERS[1], NUMBERS[0])).await;
    refused(4, &["public.simple", "987654321"], "given since");
    // By the hash alone.
    streamed(&w, "DELETE FROM cifrada WHERE n = 0 AND nombre <> 'otra'").await;
    assert_eq!(forget(&w, &["public.cifrada", &hash.to_uppercase(), "--hashed"], &[SHORT]), Some(0), "{}", w.log());
    sweep(&w);
    assert!(!holders(&w, &[&hash]).iter().any(|path| path.to_string_lossy().contains("cifrada")));
    // One who never was.
    assert_eq!(forget(&w, &["public.simple", "-5"], &[SHORT]), Some(0), "{}", w.log());
    w.true_in_the_lake_without(&["cedula"], &["public.cifrada"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_before_a_truncate_are_forgotten_too() {
    let w = world().await;
    streamed(&w, &life(0)).await;
    streamed(&w, "TRUNCATE simple, entera, sin_clave; DELETE FROM doble; DELETE FROM cifrada; DELETE FROM catalogo").await;
    streamed(&w, "INSERT INTO simple VALUES (1, 'otra', NULL, 1); INSERT INTO entera VALUES (1, 'otra', NULL, 1)").await;
    let a = NUMBERS[0].to_string();
    for args in [&["public.simple", a.as_str()][..], &["public.entera", &a], &["public.sin_clave", &format!("id={a}")]] {
        assert_eq!(forget(&w, args, &[SHORT]), Some(0), "{args:?}\n{}", w.log());
    }
    sweep(&w);
    let left = holders(&w, &[MARK]);
    assert!(!left.iter().any(|path| ["simple", "entera", "sin_clave"].iter().any(|t| path.to_string_lossy().contains(t))), "{left:?}");
    w.true_in_the_lake_without(&["cedula"], &["public.cifrada"]).await;
}
