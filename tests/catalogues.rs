//! Catalogues and copies on demand: `huella snapshot` beside a running replicator and without one.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use world::World;

const CATALOGUES: &str = "
CREATE TABLE donaciones (id int PRIMARY KEY, monto numeric);
CREATE TABLE proveedores (id_proveedor int PRIMARY KEY, nombre_proveedor varchar, nit varchar);
CREATE TABLE sin_clave (ciudad text, n int);
INSERT INTO donaciones VALUES (1, 10.5);
INSERT INTO proveedores SELECT i, 'proveedor ' || i, 'NITSECRETO' || i FROM generate_series(1, 200) i;
INSERT INTO sin_clave VALUES ('Lima', 1), ('Lima', 1), ('Quito', NULL)";

const CONFIG: &str = r#"
[[table]]
name = "public.donaciones"
[[table]]
name = "public.proveedores"
mode = "snapshot"
hash = ["nit"]
[[table]]
name = "public.sin_clave"
mode = "snapshot"
"#;

async fn world() -> World {
    let mut w = World::new().await;
    w.env.push(("HUELLA_HASH_KEY".to_owned(), "una clave bastante larga".to_owned()));
    w.sql(CATALOGUES).await;
    std::fs::write(w.dir.path().join("huella.toml"), CONFIG).unwrap();
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    w
}

/// The watermark's word on a table.
fn mark(w: &World, table: &str) -> Value {
    w.watermark().unwrap()["tables"][table].clone()
}

/// Both catalogues are what the source has now.
async fn catalogues_are_true(w: &World) {
    let lake = w.read();
    lake.assert_equals_source(&w.client, "public.proveedores", &["nit"]).await;
    lake.assert_equals_source(&w.client, "public.sin_clave", &[]).await;
    let (code, out) = w.run(&["verify", "public.proveedores", "public.sin_clave"]);
    assert_eq!(code, 0, "{out}\n{}", w.log());
}

fn proposals(w: &World) -> usize {
    std::fs::read_dir(w.lake().join("state/proposals")).map(|d| d.flatten().filter(|f| f.path().extension().is_some()).count()).unwrap_or(0)
}

/// Makes the watermark old, so that it is plain that no writer runs, without waiting for it.
fn age_the_watermark(w: &World) {
    let path = w.lake().join("watermark.json");
    let mut watermark = w.watermark().unwrap();
    watermark["commit_time"] = "2026-01-01T00:00:00.000000Z".into();
    std::fs::write(&path, serde_json::to_vec(&watermark).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn catalogues_are_copied_as_one_and_written_again_only_if_they_changed() {
    let w = world().await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let (code, out) = w.run(&["snapshot"]);
    assert_eq!(code, 0, "{out}\n{}", w.log());
    assert!(out.contains("public.proveedores: version 1, 200 rows") && out.contains("public.sin_clave: version 1, 3 rows"), "{out}");
    assert_eq!(mark(&w, "public.proveedores")["snapshot"], mark(&w, "public.sin_clave")["snapshot"], "one point");
    let naming: Vec<Value> = w.read().commits.iter().filter(|m| !m["proposals"].as_array().unwrap().is_empty()).cloned().collect();
    assert!(naming.len() == 1 && naming[0]["snapshots"].as_array().unwrap().len() == 2, "one commit: {naming:?}");
    assert_eq!(naming[0]["after"], naming[0]["through"], "the position stays");
    catalogues_are_true(&w).await;

    let files = w.read().live("public.proveedores").len();
    w.sql("UPDATE proveedores SET nit = nit; UPDATE donaciones SET monto = 11").await;
    let (code, out) = w.run(&["snapshot"]);
    assert_eq!((code, out.trim()), (0, "public.proveedores: unchanged\npublic.sin_clave: unchanged"), "{}", w.log());
    assert_eq!(w.read().live("public.proveedores").len(), files);

    w.sql("DELETE FROM proveedores WHERE id_proveedor > 50; UPDATE proveedores SET nit = 'NITSECRETOX' WHERE id_proveedor = 3").await;
    let (code, out) = w.run(&["snapshot"]);
    assert!(code == 0 && out.contains("public.proveedores: version 1, 50 rows") && out.contains("public.sin_clave: unchanged"), "{out}");
    w.sql("TRUNCATE sin_clave").await;
    assert_eq!(w.run(&["snapshot", "public.sin_clave"]).0, 0, "{}", w.log());
    catalogues_are_true(&w).await;
    assert_eq!(w.read().state("public.sin_clave").len(), 0, "an emptied catalogue is empty");
    w.caught_up().await;
    w.true_in_the_lake().await;
    w.wait("settled proposals to be removed", || proposals(&w) == 0);
    run.stop();
    for file in w.read().live("public.proveedores") {
        assert!(!std::fs::read(&file).unwrap().windows(10).any(|b| b == b"NITSECRETO"), "{}", file.display());
    }
    assert!(!std::fs::read_to_string(w.lake().join("watermark.json")).unwrap().contains("NITSECRETO"));
}

#[tokio::test(flavor = "multi_thread")]
async fn catalogues_are_copied_where_no_writer_runs_and_the_next_one_goes_on() {
    let w = world().await;
    age_the_watermark(&w);
    let (through, epoch) = (w.through(), w.watermark().unwrap()["epoch"].as_u64().unwrap());
    let (code, out) = w.run(&["snapshot"]);
    assert_eq!(code, 0, "{out}\n{}", w.log());
    let watermark = w.watermark().unwrap();
    assert_eq!((w.through(), watermark["epoch"].as_u64().unwrap()), (through, epoch + 1), "the epoch was claimed, the position left");
    catalogues_are_true(&w).await;
    assert_eq!(proposals(&w), 0);
    w.sql("INSERT INTO donaciones VALUES (2, 3)").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.true_in_the_lake().await;
    catalogues_are_true(&w).await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_table_is_copied_anew_while_its_rows_change() {
    let w = world().await;
    w.sql("INSERT INTO donaciones SELECT i, i FROM generate_series(10, 3000) i").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let before = mark(&w, "public.donaciones")["snapshot"].clone();
    let client = w.server.connect().await;
    let writing = tokio::spawn(async move {
        for i in 0..400 {
            let sql = format!(
                "UPDATE public.donaciones SET monto = {i} WHERE id % 50 = {i} % 50; DELETE FROM public.donaciones WHERE id = {}; INSERT INTO public.donaciones VALUES ({}, 1)",
                10 + i,
                10_000 + i
            );
            client.batch_execute(&sql).await.unwrap();
        }
    });
    let (code, out) = tokio::task::block_in_place(|| w.run(&["snapshot", "public.donaciones"]));
    assert_eq!(code, 0, "{out}\n{}", w.log());
    assert!(out.contains("public.donaciones: version 1"), "{out}");
    writing.await.unwrap();
    assert_ne!(mark(&w, "public.donaciones")["snapshot"], before);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_table_is_copied_anew_where_no_writer_runs() {
    let w = world().await;
    age_the_watermark(&w);
    let before = mark(&w, "public.donaciones")["snapshot"].clone();
    w.sql("INSERT INTO donaciones VALUES (5, 5)").await;
    let (code, out) = w.run(&["snapshot", "public.donaciones", "public.sin_clave"]);
    assert_eq!(code, 0, "{out}\n{}", w.log());
    assert_ne!(mark(&w, "public.donaciones")["snapshot"], before);
    assert_eq!(mark(&w, "public.sin_clave")["mode"], "snapshot");
    w.true_in_the_lake().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_killed_at_any_step_leaves_the_catalogue_whole() {
    let w = world().await;
    age_the_watermark(&w);
    assert_eq!(w.run(&["snapshot"]).0, 0, "{}", w.log());
    for (n, point) in [
        "snapshot.after_first_file",
        "snapshot.after_files",
        "snapshot.after_proposal",
        "claim.after_cas",
        "commit.after_manifest",
        "commit.after_cas",
        "snapshot.after_alone",
    ]
    .into_iter()
    .enumerate()
    {
        let state = w.read().state("public.proveedores");
        w.sql(&format!(
            "DELETE FROM proveedores WHERE id_proveedor = {n} + 1; UPDATE proveedores SET nombre_proveedor = '{n}' WHERE id_proveedor = 100"
        ))
        .await;
        age_the_watermark(&w);
        let killed = w.start(&["snapshot"], &[("HUELLA_FAILPOINT", &format!("{point}=abort"))]);
        assert_eq!(killed.wait(), None, "{point}\n{}", w.log());
        let now = w.read().state("public.proveedores");
        let committed = matches!(point, "commit.after_cas" | "snapshot.after_alone");
        assert_eq!(now != state, committed, "{point}: nothing partial is visible");
        age_the_watermark(&w);
        assert_eq!(w.run(&["snapshot"]).0, 0, "{point}\n{}", w.log());
        catalogues_are_true(&w).await;
    }
    // What a killed one left behind is taken or void; a writer clears it away.
    let run = w.start(&["run"], &[]);
    w.wait("left proposals to be settled", || proposals(&w) == 0);
    w.caught_up().await;
    catalogues_are_true(&w).await;
    w.true_in_the_lake().await;
    run.stop();
}

/// Every way in which a write's answer can fail to be its true one, at every write of the command, beside a writer and without one.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_becomes_of_a_write_the_copies_are_taken_once() {
    let w = world().await;
    let data = ["put_new:^tables/public.proveedores/v1/dt=@1", "put_new:^tables/public.sin_clave/v1/dt=@1", "put_new:^state/proposals/@1"];
    let alone = ["replace_if:watermark.json@1", "put_new:^commits/@1", "replace_if:watermark.json@2"];
    let mut n = 0;
    let mut attempt = async |w: &World, writes: &[&str], failure: &str| {
        n += 1;
        w.sql(&format!("UPDATE proveedores SET nombre_proveedor = '{n}' WHERE id_proveedor < 9; INSERT INTO sin_clave VALUES ('x', {n})"))
            .await;
        let rules: Vec<String> = writes.iter().map(|write| format!("{write}={failure}")).collect();
        let code = w.start(&["snapshot"], &[("HUELLA_FAULTS", &rules.join(";"))]).wait();
        // 1: a file's upload cannot be sent again, so the copy is made again.
        assert!(matches!(code, Some(0 | 1)), "{failure}: {code:?}\n{}", w.log());
        assert!(
            w.log().contains(&rules[0]) && (code == Some(1) || rules.iter().all(|rule| w.log().contains(rule))),
            "{rules:?}\n{}",
            w.log()
        );
        code
    };
    for failure in ["lose", "conflict", "refuse(timeout)", "refuse(429)", "late(20ms)", "late(700ms)"] {
        // All together, and the proposal alone: where a file is not sent again nobody comes to propose it.
        for writes in [&[&data[..], &alone[..]].concat()[..], &[&data[2..], &alone[..]].concat()[..]] {
            age_the_watermark(&w);
            if attempt(&w, writes, failure).await == Some(1) {
                age_the_watermark(&w);
                assert_eq!(w.run(&["snapshot"]).0, 0, "{failure}\n{}", w.log());
            }
            catalogues_are_true(&w).await;
        }
    }
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    for failure in ["lose", "conflict", "refuse(timeout)", "refuse(429)", "late(20ms)", "late(700ms)"] {
        for writes in [&data[..], &data[2..]] {
            if attempt(&w, writes, failure).await == Some(1) {
                assert_eq!(w.run(&["snapshot"]).0, 0, "{failure}\n{}", w.log());
            }
            catalogues_are_true(&w).await;
        }
    }
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_that_nobody_waits_for_is_taken_by_the_next_writer() {
    let w = world().await;
    let killed = w.start(&["snapshot"], &[("HUELLA_FAILPOINT", "snapshot.after_proposal=abort")]);
    assert_eq!(killed.wait(), None);
    assert_eq!((proposals(&w), mark(&w, "public.proveedores")), (1, Value::Null));
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    catalogues_are_true(&w).await;
    w.true_in_the_lake().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogues_shape_changes_with_its_next_copy() {
    let w = world().await;
    let run = w.start(&["run"], &[]);
    assert_eq!(w.run(&["snapshot"]).0, 0, "{}", w.log());
    for (sql, version) in [
        ("ALTER TABLE proveedores ADD pais text DEFAULT 'CL'", 1),
        ("ALTER TABLE proveedores DROP COLUMN pais", 1),
        ("ALTER TABLE proveedores ALTER id_proveedor TYPE text", 2),
        ("ALTER TABLE proveedores RENAME nombre_proveedor TO nombre", 3),
        ("DROP TABLE proveedores; CREATE TABLE proveedores (id_proveedor int PRIMARY KEY, nit varchar)", 4),
    ] {
        w.sql(sql).await;
        let (code, out) = w.run(&["snapshot"]);
        assert!(code == 0 && out.contains(&format!("public.proveedores: version {version},")), "{sql}: {out}\n{}", w.log());
        catalogues_are_true(&w).await;
    }
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_changes_its_mode_with_the_configuration() {
    let w = world().await;
    age_the_watermark(&w);
    assert_eq!(w.run(&["snapshot"]).0, 0, "{}", w.log());
    let toml = w.dir.path().join("huella.toml");
    std::fs::write(&toml, CONFIG.replacen("mode = \"snapshot\"\n", "", 1)).unwrap();
    let run = w.start(&["run"], &[]);
    w.wait("proveedores to be streamed", || mark(&w, "public.proveedores").get("mode").is_none());
    w.caught_up().await;
    w.sql("DELETE FROM proveedores WHERE id_proveedor < 20").await;
    w.caught_up().await;
    assert_eq!(mark(&w, "public.proveedores")["version"], 2);
    w.read().assert_equals_source(&w.client, "public.proveedores", &["nit"]).await;
    run.stop();
    std::fs::write(&toml, CONFIG).unwrap();
    let run = w.start(&["run"], &[]);
    assert_eq!(w.run(&["snapshot"]).0, 0, "{}", w.log());
    assert_eq!(
        (mark(&w, "public.proveedores")["mode"].clone(), mark(&w, "public.proveedores")["version"].clone()),
        ("snapshot".into(), 3.into())
    );
    catalogues_are_true(&w).await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_never_see_half_a_catalogue() {
    let w = world().await;
    let run = w.start(&["run"], &[]);
    assert_eq!(w.run(&["snapshot"]).0, 0, "{}", w.log());
    let mut seen = BTreeSet::new();
    for round in 0..4 {
        w.sql(&format!("UPDATE proveedores SET nombre_proveedor = '{round}'")).await;
        let mut taking = w.start(&["snapshot"], &[]);
        loop {
            let names: BTreeSet<Option<String>> =
                w.read().state("public.proveedores").iter().map(|row| row["nombre_proveedor"].clone()).collect();
            assert!(names.len() == 1 || round == 0, "{names:?}");
            seen.extend(names);
            if taking.ended() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(seen.len() > 4, "{seen:?}");
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_copied_is_said() {
    let w = world().await;
    let (code, _) = w.run(&["snapshot", "public.nada"]);
    assert_eq!(code, 2, "{}", w.log());
    w.sql("DROP TABLE sin_clave; CREATE VIEW sin_clave AS SELECT 1 AS uno").await;
    assert_eq!(w.run(&["snapshot"]).0, 4, "{}", w.log());
    assert!(w.log().contains("is no table"), "{}", w.log());
    w.sql("DROP VIEW sin_clave").await;
    assert_eq!(w.run(&["snapshot"]).0, 4, "{}", w.log());
    assert_eq!(proposals(&w), 0);
    let empty = tempfile::tempdir().unwrap();
    let output = w.command(&["snapshot"]).env("HUELLA_LAKE_URL", empty.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
}
