//! Who holds the lake, who waits, and for how long: standbys, jobs beside a live writer, claims that pass, waits that end.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use world::World;

const TABLES: &str =
    "CREATE TABLE donaciones (id int PRIMARY KEY, monto int); INSERT INTO donaciones SELECT i, i FROM generate_series(1, 50) i";
const CATALOGUE: &str = r#"
[[table]]
name = "public.donaciones"
[[table]]
name = "public.proveedores"
mode = "snapshot"
"#;

async fn world() -> World {
    let w = World::new().await;
    w.sql(TABLES).await;
    w
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

/// As `World::wait`, for what takes a minute by design.
fn wait_long(w: &World, what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(600);
    while !done() {
        assert!(Instant::now() < limit, "waited for {what}\n{}", w.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

const STANDS_BY: &str = "standing by, and taking over when the slot is free";

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_beside_an_idle_source_leave_each_other_alone_until_one_stands_still() {
    let w = world().await;
    let mut first = w.start(&["run"], &[]);
    w.caught_up().await;
    let epoch = w.epoch();
    let mut second = w.start(&["run"], &[]);
    // Told at once and every half minute; a holder that was dead would be ended after wal_sender_timeout (3 s) + 30 s.
    wait_long(&w, "a minute of standing by", || count(&w.log(), STANDS_BY) >= 3);
    assert!(first.lives() && second.lives(), "{}", w.log());
    assert_eq!((w.epoch(), count(&w.log(), "ending its session")), (epoch, 0), "{}", w.log());
    let said = w.log().lines().rfind(|line| line.contains(STANDS_BY)).unwrap().to_owned();
    assert!(said.contains(&format!("pid {} on host", first.id())), "{said}");

    first.signal(libc::SIGSTOP);
    w.wait("the first to stand still", || first.halted());
    w.sql("UPDATE donaciones SET monto = 0").await;
    w.wait("the second's claim", || w.epoch() > epoch);
    w.caught_up().await;
    first.signal(libc::SIGCONT);
    assert_eq!(first.wait(), Some(6), "{}", w.log());
    w.true_in_the_lake().await;

    // A standby takes over at once where the holder leaves.
    let third = w.start(&["run"], &[]);
    w.wait("the third to stand by", || count(&w.log(), STANDS_BY) >= 4);
    let epoch = w.epoch();
    second.stop();
    w.wait("the third's claim", || w.epoch() > epoch);
    w.sql("UPDATE donaciones SET monto = 1").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    third.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_beside_a_live_writer_waits_for_it_and_leaves_it_alone() {
    let w = world().await;
    let mut run = w.start(&["run"], &[]);
    w.caught_up().await;
    let epoch = w.epoch();
    for n in 0..3 {
        w.sql(&format!("INSERT INTO donaciones VALUES (100 + {n}, 0)")).await;
        let row = w.client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap();
        let target = lake_reader::lsn(row.get(0));
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        assert!(w.through() >= target);
    }
    assert!(run.lives() && w.epoch() == epoch && count(&w.log(), "ending its session") == 0, "{}", w.log());
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn take_over_ends_the_holder_at_once() {
    let w = world().await;
    let first = w.start(&["run"], &[]);
    w.caught_up().await;
    let epoch = w.epoch();
    // Whether a holder answers is seen by who may read the statistics; a role that merely replicates is left with the other sign.
    w.sql("CREATE ROLE lector LOGIN REPLICATION").await;
    let seen = huella::postgres::slot::holder(&w.client, "huella").await.unwrap().unwrap();
    assert!(seen.silent.is_some() && seen.address.as_deref() == Some("127.0.0.1"), "{seen:?}");
    let lector = w.server.connect_as("lector").await;
    let unseen = huella::postgres::slot::holder(&lector, "huella").await.unwrap().unwrap();
    assert_eq!((unseen.pid, unseen.silent), (seen.pid, None), "{unseen:?}");
    w.sql("GRANT pg_read_all_stats TO lector").await;
    assert!(huella::postgres::slot::holder(&lector, "huella").await.unwrap().unwrap().silent.is_some());
    let second = w.start(&["run", "--take-over"], &[]);
    assert_eq!(first.wait(), Some(6), "{}", w.log());
    assert!(w.log().contains("--take-over was asked for"), "{}", w.log());
    assert_eq!(w.epoch(), epoch + 1);
    w.sql("UPDATE donaciones SET monto = 0").await;
    w.caught_up().await;
    w.true_in_the_lake().await;
    second.stop();
}

/// A way to the server that can be cut.
struct Way {
    port: u16,
    open: Arc<AtomicBool>,
}

impl Way {
    async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, open) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(true)));
        let passable = Arc::clone(&open);
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let passable = Arc::clone(&passable);
                tokio::spawn(async move {
                    if !passable.load(Ordering::Relaxed) {
                        return;
                    }
                    let mut far = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    let cut = async {
                        while passable.load(Ordering::Relaxed) {
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut => {}
                    }
                });
            }
        });
        Self { port, open }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_cut_off_goes_on_after_a_snapshot_took_its_place() {
    let w = world().await;
    w.sql("CREATE TABLE proveedores (id int PRIMARY KEY); INSERT INTO proveedores VALUES (1), (2)").await;
    std::fs::write(w.dir.path().join("huella.toml"), CATALOGUE).unwrap();
    let way = Way::to(w.server.port).await;
    let url = format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", way.port);
    let mut run = w.start(&["run"], &[("HUELLA_SOURCE_URL", url.as_str())]);
    w.caught_up().await;
    let epoch = w.epoch();
    for (n, round) in ["snapshot", "run"].into_iter().enumerate() {
        way.open.store(false, Ordering::Relaxed);
        let active = "SELECT active FROM pg_replication_slots";
        while w.client.query_one(active, &[]).await.unwrap().get(0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        w.sql(&format!("INSERT INTO donaciones VALUES ({n} + 1000, 0); INSERT INTO proveedores VALUES ({n} + 10)")).await;
        let args: &[&str] = if round == "run" { &["run", "--until-caught-up"] } else { &["snapshot"] };
        assert_eq!(w.run(args).0, 0, "{}", w.log());
        assert!(w.epoch() > epoch && run.lives(), "{}", w.log());
        assert_eq!(w.watermark().unwrap()["tenure"], "left");
        let taken = w.epoch();
        way.open.store(true, Ordering::Relaxed);
        w.wait("the writer to begin again", || w.epoch() > taken);
        w.sql(&format!("INSERT INTO donaciones VALUES ({n} + 2000, 0)")).await;
        w.caught_up().await;
        assert!(run.lives() && w.watermark().unwrap().get("tenure").is_none(), "{}", w.log());
        w.true_in_the_lake().await;
    }
    run.stop();
    assert_eq!(w.run(&["verify", "public.proveedores"]).0, 7, "the second round's row waits for the next snapshot");
    assert_eq!(w.run(&["snapshot"]).0, 0, "{}", w.log());
    assert_eq!(w.run(&["verify", "public.proveedores"]).0, 0, "{}", w.log());
}

/// The commit task ends by itself; on a source where nothing happens nothing else would ever notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_refused_ends_the_writer_although_the_source_is_quiet() {
    let w = world().await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    let quiet = ("HUELLA_BATCH_HEARTBEAT", "1h");
    let run = w.start(&["run"], &[quiet, ("HUELLA_FAULTS", "replace_if:watermark.json@2=forbid")]);
    w.wait("the claim", || w.log().contains("took the lake over\"") && w.epoch() > 1);
    w.sql("UPDATE donaciones SET monto = 7").await;
    assert_eq!(run.wait(), Some(5), "{}", w.log());
}

/// Lost and late replies at claim and commit, on a source that is quiet afterwards: the writer ends up with everything, or ends.
#[tokio::test(flavor = "multi_thread")]
async fn replies_lost_at_claim_and_commit_do_not_leave_a_silent_writer() {
    let w = world().await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    for faults in ["lose", "late(300ms)", "refuse(timeout)", "conflict"] {
        let rules = format!("replace_if:watermark.json@1..3={faults}");
        let run = w.start(&["run"], &[("HUELLA_FAULTS", rules.as_str()), ("HUELLA_BATCH_HEARTBEAT", "1h")]);
        let epoch = w.epoch();
        w.wait("the claim", || w.epoch() > epoch);
        w.sql("ALTER TABLE donaciones ALTER monto TYPE bigint; ALTER TABLE donaciones ALTER monto TYPE int; UPDATE donaciones SET monto = monto + 1")
            .await;
        w.caught_up().await;
        run.stop();
        w.true_in_the_lake().await;
    }
}

/// A port that takes connections and never answers.
fn silent_port() -> (std::net::TcpListener, u16) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Runs to the end; exit code, what it said, and how long it took.
fn ends(w: &World, args: &[&str], env: &[(&str, &str)]) -> (i32, String, Duration) {
    let begun = Instant::now();
    let output = w.command(args).envs(env.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap_or(-1), said, begun.elapsed())
}

/// The limits are a second or two; a machine ten times slower still ends far below this.
const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_does_not_answer_ends_every_command_that_has_a_limit() {
    let w = world().await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    let (_listener, port) = silent_port();
    let url = format!("postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let env = [("HUELLA_SOURCE_URL", url.as_str())];
    for (args, code, says) in [
        (&["run", "--until-caught-up", "--timeout", "2s"][..], 1, "no progress within 2s (--timeout)"),
        (&["status", "--timeout", "2s"], 7, "source-unreachable"),
        (&["verify", "--timeout", "2s"], 1, "no connection within 2 s"),
        (&["check", "--timeout", "2s"], 7, "no answer"),
    ] {
        let (ended, said, took) = ends(&w, args, &env);
        assert!(ended == code && said.contains(says) && took < SOON, "{args:?}: {ended} after {took:?}: {said}");
    }
    // The lake needs no source.
    assert_eq!(ends(&w, &["files"], &env).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_does_not_answer_ends_every_command_that_has_a_limit() {
    let w = world().await;
    let (_listener, port) = silent_port();
    let host = format!("http://127.0.0.1:{port}");
    let env = [("HUELLA_LAKE_URL", "gs://bucket/lake"), ("STORAGE_EMULATOR_HOST", host.as_str())];
    for (args, code, says) in [
        (&["files", "--timeout", "2s"][..], 1, "no usable answer within 2s (--timeout)"),
        (&["status", "--timeout", "2s"], 1, "no usable answer within 2s (--timeout)"),
        (&["verify", "--timeout", "2s"], 1, "no usable answer within 2s (--timeout)"),
        (&["check", "--timeout", "2s"], 7, "no usable answer within 2s"),
        (&["run", "--until-caught-up", "--timeout", "2s"], 1, "no progress within 2s (--timeout)"),
        (&["daily", "--timeout", "2s"], 1, "no progress within 2s (--timeout)"),
    ] {
        let (ended, said, took) = ends(&w, args, &env);
        assert!(ended == code && said.contains(says) && took < SOON, "{args:?}: {ended} after {took:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_without_google_credentials_ends_with_the_two_ways_to_get_some() {
    let w = world().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = w.dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let mut command = w.command(&["check"]);
    command.env_remove("GOOGLE_APPLICATION_CREDENTIALS").env_remove("STORAGE_EMULATOR_HOST").env("HOME", &home);
    command.env("GCE_METADATA_HOST", nobody.to_string()).env("HUELLA_LAKE_URL", "gs://bucket/lake");
    let begun = Instant::now();
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(60), "15 s by design, took {:?}", begun.elapsed());
    for part in ["gcloud auth application-default login", "GOOGLE_APPLICATION_CREDENTIALS", "attach a service account", "PostgreSQL"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

fn status(w: &World, more: &[&str]) -> (i32, serde_json::Value) {
    let output = w.command(&[&["status", "--json"], more].concat()).output().unwrap();
    (output.status.code().unwrap_or(-1), serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}")))
}

fn codes(document: &serde_json::Value) -> Vec<&str> {
    document["attention"].as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_ends_with_seven_where_a_person_is_needed() {
    let w = world().await;
    w.sql("CREATE TABLE sin_clave (a int); CREATE UNLOGGED TABLE volatil (a int PRIMARY KEY)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    let (code, found) = status(&w, &["--max-lag", "1GB"]);
    assert_eq!((code, codes(&found)), (0, vec![]), "{found:#}");
    let left_out: Vec<&str> = found["left_out"].as_array().unwrap().iter().map(|out| out["table"].as_str().unwrap()).collect();
    assert_eq!(left_out, ["public.sin_clave", "public.volatil"], "{found:#}");
    assert!(w.run(&["status"]).1.contains("left out   public.volatil: "), "people see them too");
    for table in ["public.sin_clave", "public.volatil"] {
        assert!(w.log().lines().any(|line| line.contains("left out") && line.contains(table)), "{table}: {}", w.log());
    }

    w.sql("INSERT INTO donaciones SELECT i, 0 FROM generate_series(1000, 9000) i").await;
    let (code, found) = status(&w, &["--max-lag", "1kB"]);
    assert_eq!((code, codes(&found)), (7, vec!["lag"]), "{found:#}");
    let (code, found) = status(&w, &["--max-lag", "365d"]);
    assert_eq!((code, codes(&found)), (0, vec![]), "{found:#}");
    assert!(w.run(&["status", "--max-lag", "1kB"]).1.contains("[lag]"));

    w.sql("DROP PUBLICATION huella; CREATE PUBLICATION huella FOR TABLE donaciones").await;
    assert_eq!(codes(&status(&w, &[]).1), ["publication-missing"]);
    w.sql("SELECT pg_replication_slot_advance('huella', pg_current_wal_lsn()); DROP PUBLICATION huella").await;
    assert_eq!(codes(&status(&w, &[]).1), ["slot-ahead", "publication-missing"]);
    w.sql("SELECT pg_drop_replication_slot('huella')").await;
    let (code, found) = status(&w, &[]);
    assert_eq!((code, codes(&found)), (7, vec!["slot-missing", "publication-missing"]), "{found:#}");
    assert!(found["attention"][0]["fix"].as_str().unwrap().contains("--resnapshot"), "{found:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_waits_for_hours_is_told() {
    let w = world().await;
    let killed = w.start(&["run"], &[("HUELLA_FAILPOINT", "start.after_ready=abort")]);
    assert_eq!(killed.wait(), None);
    assert_eq!(codes(&status(&w, &[]).1), [""; 0], "a moment ago is no matter");
    let mut watermark = w.watermark().unwrap();
    watermark["pending_since"]["public.donaciones"] = "2026-01-01T00:00:00Z".into();
    std::fs::write(w.lake().join("watermark.json"), serde_json::to_vec(&watermark).unwrap()).unwrap();
    let (code, found) = status(&w, &[]);
    assert_eq!((code, codes(&found)), (7, vec!["table-pending"]), "{found:#}");
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(status(&w, &[]).0, 0);
    assert!(w.watermark().unwrap().get("pending_since").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_schema_is_waited_for_and_said() {
    let w = World::new().await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 4, "a job has nothing to do and says so");
    let mut run = w.start(&["run"], &[]);
    w.wait("the wait for a table", || w.log().contains("waiting for the first one"));
    let (_, said, _) = ends(&w, &["check"], &[]);
    assert!(said.contains("`huella run` waits for the first one"), "{said}");
    assert_eq!(w.run(&["run", "--until-caught-up", "--timeout", "2s"]).0, 1, "it waits for the first start, up to its limit");
    assert!(run.lives());
    w.sql(TABLES).await;
    w.wait("the first table", || w.through() > 0);
    w.caught_up().await;
    w.true_in_the_lake().await;
    run.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_passes_over_what_is_gone_and_waits_for_copies() {
    let w = world().await;
    w.sql("CREATE TABLE casos (id int PRIMARY KEY, n int); CREATE TABLE otros (id int PRIMARY KEY); INSERT INTO casos VALUES (1, 1)").await;
    let run = w.start(&["run"], &[("HUELLA_BATCH_HEARTBEAT", "2s")]);
    w.caught_up().await;
    // A copy waits for the end of transactions that write: this one keeps it pending.
    let writing = w.connect().await;
    writing.batch_execute("BEGIN; INSERT INTO otros VALUES (1)").await.unwrap();
    w.sql("ALTER TABLE casos ADD extra int DEFAULT 7; UPDATE casos SET n = n + 1").await;
    w.wait("the copy to be asked for", || w.watermark().is_some_and(|w| w["tables"]["public.casos"].get("pending").is_some()));
    let verify = w.start(&["verify"], &[]);
    w.wait("the wait for the copy", || w.log().contains("and the comparison for that"));
    writing.batch_execute("COMMIT").await.unwrap();
    assert_eq!(verify.wait(), Some(0), "{}", w.log());
    w.sql("DROP TABLE otros").await;
    let (code, out) = w.run(&["verify"]);
    assert!(code == 0 && out.contains("public.otros: passed over"), "{out}\n{}", w.log());
    w.sql("DROP TABLE casos; CREATE TABLE casos (id int PRIMARY KEY, t text); INSERT INTO casos VALUES (9, 'x')").await;
    let (code, out) = w.run(&["verify"]);
    assert!(code == 0 && out.contains("public.casos: equal, 1 rows"), "{out}\n{}", w.log());
    run.stop();
}

/// A slow way to the server: what comes from there passes at about 1 MB a second.
async fn slow_way(server: u16) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let (mut near_in, mut near_out) = near.into_split();
            let (mut far_in, mut far_out) = far.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut near_in, &mut far_out).await });
            tokio::spawn(async move {
                let mut part = vec![0; 20_000];
                while let Ok(length @ 1..) = far_in.read(&mut part).await {
                    if near_out.write_all(&part[..length]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_receives_a_long_transaction_says_that_it_lives() {
    let w = world().await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    let url = format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", slow_way(w.server.port).await);
    let run = w.start(&["run"], &[("HUELLA_SOURCE_URL", url.as_str())]);
    let epoch = w.epoch();
    w.wait("the claim", || w.epoch() > epoch);
    let before = w.watermark().unwrap()["commit"].clone();
    w.sql("INSERT INTO donaciones SELECT i, i FROM generate_series(1000, 120000) i").await;
    let alive = |w: &World| w.watermark().and_then(|w| w.get("alive_at").cloned());
    wait_long(&w, "a sign of life", || alive(&w).is_some() || w.log().contains("\"rows\":119001"));
    assert!(alive(&w).is_some(), "it came only with the commit\n{}", w.log());
    let first = alive(&w);
    wait_long(&w, "another", || alive(&w) != first);
    assert!(w.read().state("public.donaciones").len() == 50 && before != serde_json::Value::Null, "nothing of it is visible");
    wait_long(&w, "its commit", || w.read().state("public.donaciones").len() > 50);
    assert_eq!(alive(&w), None);
    run.stop();
    w.true_in_the_lake().await;
}
