//! Claims about other sessions' locks and limits at the source: nobody waits for long, on either side.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test, in its helpers too")]

mod lake_reader;
mod private_server;
mod world;

use world::World;

/// Sessions of the program that wait for a lock.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'huella' AND wait_event_type = 'Lock'";

async fn count(world: &World, sql: &str) -> i64 {
    world.client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_lock_on_a_new_table_keeps_no_other_table_from_being_streamed() {
    let world = World::new().await;
    world.sql("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    assert_eq!(world.run(&["run", "--until-caught-up"]).0, 0, "{}", world.log());
    world
        .sql("CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1); CREATE TABLE c (id int PRIMARY KEY); INSERT INTO a VALUES (2)")
        .await;
    let holder = world.connect().await;
    holder.batch_execute("BEGIN; LOCK TABLE b IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    let running = world.start(&["run"], &[]);
    let target = lake_reader::lsn(world.client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0));
    world.wait("the others to be streamed", || world.through() >= target);
    world.wait("the table that is put off to be named", || world.log().contains("at the next look"));
    let streamed = |table: &str| world.watermark().is_some_and(|w| w["tables"].get(table).is_some_and(|t| t.get("pending").is_none()));
    world.wait("the other new table", || streamed("public.c"));
    assert!(!streamed("public.b"));
    holder.batch_execute("COMMIT").await.unwrap();
    world.wait("the table that was put off", || streamed("public.b"));
    running.stop();
    world.true_in_the_lake().await;
}

#[tokio::test]
async fn a_lock_at_the_first_start_leaves_one_table_for_later() {
    let world = World::new().await;
    world
        .sql("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)")
        .await;
    let holder = world.connect().await;
    holder.batch_execute("BEGIN; LOCK TABLE b IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    let running = world.start(&["run"], &[]);
    let streamed = |table: &str| world.watermark().is_some_and(|w| w["tables"].get(table).is_some_and(|t| t.get("pending").is_none()));
    world.wait("the first table", || streamed("public.a"));
    holder.batch_execute("COMMIT").await.unwrap();
    world.wait("the second table", || streamed("public.b"));
    running.stop();
    world.true_in_the_lake().await;
}

#[tokio::test]
async fn a_server_whose_commits_would_wait_for_us_is_refused() {
    let world = World::new().await;
    world.sql("CREATE TABLE a (id int PRIMARY KEY)").await;
    world.sql("ALTER ROLE postgres SET synchronous_commit = local").await; // what this test itself commits waits for nobody
    world.sql("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    world.sql("SELECT pg_reload_conf()").await;
    let (mut code, mut found) = (0, String::new());
    world.wait("the server to read its file", || {
        (code, found) = world.run(&["check"]);
        found.contains("synchronous_standby_names")
    });
    assert!(code == 7 && found.contains("application_name"), "{found}");
    world.refused(&["synchronous standby", "ALTER SYSTEM SET synchronous_standby_names"]);
    // Another name of ours is no standby's.
    world.sql("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (huella)'").await;
    world.sql("SELECT pg_reload_conf()").await;
    let url = format!("{}&application_name=lago", world.url());
    world.wait("the run to be accepted", || world.start(&["run", "--until-caught-up"], &[("HUELLA_SOURCE_URL", &url)]).wait() == Some(0));
    world.refused(&["synchronous standby"]);
}

#[tokio::test]
async fn the_roles_statement_timeout_does_not_end_a_copy() {
    let mut world = World::new().await;
    world.sql("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE s (id int); INSERT INTO s VALUES (1)").await;
    world.env.push(("HUELLA_TABLE".into(), "[{name = 'public.a'}, {name = 'public.s', mode = 'snapshot'}]".into()));
    assert_eq!(world.run(&["run", "--until-caught-up"]).0, 0, "{}", world.log());
    world.sql("ALTER ROLE postgres SET statement_timeout = '2s'").await;
    let holder = world.connect().await;
    holder.batch_execute("SET statement_timeout = 0; BEGIN; LOCK TABLE s IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let running = world.start(&["snapshot"], &[]);
    // Longer than the role would let it.
    let waits_long = format!("{WAITING} AND query_start < clock_timestamp() - interval '3 seconds'");
    while count(&world, &waits_long).await == 0 {
        assert!(!world.log().contains("57014"), "{}", world.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(running.wait(), Some(0), "{}", world.log());
}

#[tokio::test]
async fn a_copy_gives_way_to_who_waits_for_its_locks() {
    let world = World::new().await;
    world.sql("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 50)").await;
    // The copy's first file takes an hour.
    let running = world.start(&["run"], &[("HUELLA_FAULTS", "put_new:.parquet@1=slow(3600s)")]);
    let holds = "SELECT count(*) FROM pg_locks WHERE relation = 'a'::regclass AND mode = 'AccessShareLock' AND pid <> pg_backend_pid()";
    world.wait("the slot", || world.watermark().is_some_and(|w| w["slot_state"] == "ready"));
    while count(&world, holds).await == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    world.sql("ALTER TABLE a ADD COLUMN body text").await;
    world.sql("INSERT INTO a VALUES (51, 'x')").await;
    world.caught_up().await;
    assert!(world.log().contains("given up for now"), "{}", world.log());
    running.stop();
    world.true_in_the_lake().await;
}
