//! Partitions that come, go and change together with other things. PostgreSQL 14 announces a partition, for the whole life of a session,
//! as what it was at its first change there: these tests mean most on it.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use world::World;

const ROOT: &str = "CREATE TABLE raiz (id int, k text, v text, n int, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
    CREATE TABLE raiz_a PARTITION OF raiz FOR VALUES IN ('a');
    CREATE TABLE suelta (v text, k text NOT NULL, id int NOT NULL, n int, PRIMARY KEY (id, k));
    INSERT INTO raiz SELECT i, 'a', 'v', i FROM generate_series(1, 10) i; INSERT INTO suelta SELECT 's', 'b', i, i FROM generate_series(1, 10) i;";

/// A look that finds both must not take the column for all that there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_comes_between_two_looks_with_a_new_column_brings_its_rows() {
    let w = World::new().await;
    w.sql(ROOT).await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    w.sql("ALTER TABLE raiz ADD x int; ALTER TABLE suelta ADD x int; ALTER TABLE raiz ATTACH PARTITION suelta FOR VALUES IN ('b')").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    w.true_in_the_lake().await;
    // The same, found when the rows behind it arrive.
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("ALTER TABLE raiz ADD y int; ALTER TABLE raiz DETACH PARTITION suelta; INSERT INTO raiz VALUES (20, 'a', 'x', 1, 2, 3)").await;
    w.comes_true_in_the_lake().await;
    run.stop();
    assert_eq!(w.read().tables(), ["public.raiz", "public.suelta"]);
}

/// It is the same partition as before, but not with the same rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_away_between_two_looks_brings_what_changed_meanwhile() {
    let w = World::new().await;
    w.sql(ROOT).await;
    w.sql("CREATE TABLE raiz_c PARTITION OF raiz FOR VALUES IN ('c') PARTITION BY RANGE (id); CREATE TABLE raiz_c1 PARTITION OF raiz_c DEFAULT; INSERT INTO raiz VALUES (1, 'c', 'v', 1)").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    for (partition, values) in [("raiz_a", "'a'"), ("raiz_c", "'c'")] {
        w.sql(&format!("ALTER TABLE raiz DETACH PARTITION {partition}; UPDATE {partition} SET v = 'fuera'; DELETE FROM {partition} WHERE id = 5; ALTER TABLE raiz ATTACH PARTITION {partition} FOR VALUES IN ({values})")).await;
        assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
        w.true_in_the_lake().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wider_type_with_other_values_is_copied_from_all_partitions() {
    let w = World::new().await;
    w.sql(ROOT).await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    w.sql("ALTER TABLE raiz ALTER n TYPE bigint USING n * 2").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    w.true_in_the_lake().await;
}

/// On 14 the announcement of before cannot even be made of its rows any more: the server ends the stream there, each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_detached_partition_may_lose_a_column() {
    let w = World::new().await;
    w.sql(ROOT).await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("ALTER TABLE raiz ATTACH PARTITION suelta FOR VALUES IN ('b')").await;
    w.wait("one table", || w.read().tables() == ["public.raiz"]);
    w.caught_up().await;
    run.stop();
    w.sql("INSERT INTO raiz VALUES (30, 'b', 'x', 1)").await;
    w.sql("ALTER TABLE raiz DETACH PARTITION suelta; ALTER TABLE suelta DROP v; INSERT INTO suelta VALUES ('b', 31, 2)").await;
    w.sql("INSERT INTO suelta VALUES ('b', 32, 2); INSERT INTO raiz VALUES (33, 'a', 'z', 1)").await;
    if huella::postgres::server::version(&w.client).await.unwrap() < 150_000 {
        w.refused(&["detached", "lost a column", "--resnapshot"]);
        w.mended_by_resnapshot("INSERT INTO suelta VALUES ('b', 40, 2)").await;
    }
    let run = w.start(&["run"], &[]);
    w.comes_true_in_the_lake().await;
    run.stop();
    assert_eq!(w.read().tables(), ["public.raiz", "public.suelta"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_partitions_come_and_go_with_their_rows() {
    let w = World::new().await;
    w.sql(ROOT).await;
    w.sql("CREATE TABLE rama (id int, k text, v text, n int, PRIMARY KEY (id, k)) PARTITION BY RANGE (id); CREATE TABLE rama_1 PARTITION OF rama FOR VALUES FROM (0) TO (100);
           CREATE TABLE rama_2 PARTITION OF rama DEFAULT; INSERT INTO rama SELECT i, 'c', 'r', i FROM generate_series(90, 110) i").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    for round in 0..2 {
        w.sql(&format!("INSERT INTO rama VALUES ({}, 'c', 'antes', 1), ({}, 'c', 'antes', 1)", 20 + round, 220 + round)).await;
        w.sql("ALTER TABLE raiz ATTACH PARTITION rama FOR VALUES IN ('c'); UPDATE raiz SET v = 'dentro' WHERE id IN (95, 105)").await;
        w.wait("rama to go", || w.read().tables() == ["public.raiz", "public.suelta"]);
        w.sql("UPDATE raiz SET v = 'dentro' WHERE k = 'c' AND id % 3 = 0; DELETE FROM rama_1 WHERE id = 91").await;
        w.comes_true_in_the_lake().await;
        w.sql("INSERT INTO raiz VALUES (40, 'c', 'x', 1), (140, 'c', 'x', 1) ON CONFLICT DO NOTHING").await;
        w.sql("ALTER TABLE raiz DETACH PARTITION rama; UPDATE rama SET v = 'fuera' WHERE id % 2 = 0; INSERT INTO raiz VALUES (500, 'a', 'x', 1) ON CONFLICT DO NOTHING").await;
        w.wait("rama to come", || w.read().tables() == ["public.raiz", "public.rama", "public.suelta"]);
        w.sql("UPDATE rama SET v = 'otra vez' WHERE id % 5 = 0; DELETE FROM rama WHERE id = 106; UPDATE raiz SET v = 'raíz' WHERE id = 2")
            .await;
        w.comes_true_in_the_lake().await;
    }
    w.sql("TRUNCATE rama_2; DROP TABLE raiz_a").await;
    w.comes_true_in_the_lake().await;
    run.stop();
}
