//! The catalogue, publication, slot and server queries against a real server.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod private_server;

use huella::error::Kind;
use huella::postgres::catalogue::{self, ReplicaIdentity, Table, TableKind};
use huella::postgres::publication::{self, Member};
use huella::postgres::{server, slot};
use huella::table_name::TableName;
use private_server::Server;
use tokio_postgres::Client;

fn public(name: &str) -> TableName {
    TableName::new("public", name)
}

async fn table(client: &Client, name: &str) -> Table {
    catalogue::tables(client, &[public(name)]).await.unwrap().pop().expect(name)
}

const SCHEMA: &str = r#"
SET search_path = public;
CREATE DOMAIN money_of AS numeric(12,2);
CREATE DOMAIN price AS money_of CHECK (VALUE > 0);
CREATE TABLE plain (b int, a text, id bigint GENERATED ALWAYS AS IDENTITY, p price, ps price[], n numeric(5,1)[],
                    v int2vector, g int GENERATED ALWAYS AS (b + 1) STORED, gone int, PRIMARY KEY (id, b) INCLUDE (a));
ALTER TABLE plain DROP COLUMN gone;
ALTER TABLE plain ADD COLUMN late int DEFAULT 7;
CREATE TABLE no_key (a int);
CREATE TABLE full_key (a int PRIMARY KEY, b int); ALTER TABLE full_key REPLICA IDENTITY FULL;
CREATE TABLE full_none (a int); ALTER TABLE full_none REPLICA IDENTITY FULL;
CREATE TABLE by_index (a int, b int NOT NULL UNIQUE); ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_b_key;
CREATE TABLE nothing (a int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
CREATE TABLE deferred (a int PRIMARY KEY DEFERRABLE);
CREATE UNLOGGED TABLE volatile_one (a int PRIMARY KEY);
CREATE TABLE root (id int, d date, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
CREATE TABLE root_a PARTITION OF root FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE root_b PARTITION OF root FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY HASH (id);
CREATE TABLE root_b0 PARTITION OF root_b FOR VALUES WITH (MODULUS 1, REMAINDER 0);
CREATE TABLE mixed (id int PRIMARY KEY) PARTITION BY HASH (id);
CREATE TABLE mixed_0 PARTITION OF mixed FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER TABLE mixed_0 REPLICA IDENTITY FULL;
CREATE TABLE parent (a int PRIMARY KEY); CREATE TABLE heir () INHERITS (parent);
CREATE VIEW seen AS SELECT 1 AS a;
CREATE SCHEMA "a.b"; CREATE TABLE "a.b"."C ""d""" ("Se lect" int PRIMARY KEY);
CREATE ROLE reader LOGIN; CREATE ROLE owner LOGIN; CREATE TABLE owned (a int PRIMARY KEY, b text, c text); ALTER TABLE owned OWNER TO owner;
GRANT SELECT (a, b) ON owned TO reader;
CREATE TABLE guarded (a int PRIMARY KEY); GRANT SELECT ON guarded TO reader; ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
"#;

async fn filled(server: &Server) -> Client {
    let client = server.connect().await;
    client.batch_execute(SCHEMA).await.unwrap();
    client.batch_execute("SET search_path = ''").await.unwrap();
    client
}

#[tokio::test]
async fn tables_are_read_as_they_are() {
    let Some(server) = Server::start(&[]) else { return };
    let client = filled(&server).await;
    let plain = table(&client, "plain").await;
    assert_eq!(
        (plain.kind, plain.identity, plain.key.clone()),
        (TableKind::Ordinary, ReplicaIdentity::Default, vec!["id".into(), "b".into()])
    );
    let names: Vec<_> = plain.columns.iter().map(|c| (c.attnum, c.name.as_str())).collect();
    assert_eq!(names, [(1, "b"), (2, "a"), (3, "id"), (4, "p"), (5, "ps"), (6, "n"), (7, "v"), (8, "g"), (10, "late")]);
    let column = |name: &str| plain.columns.iter().find(|c| c.name == name).unwrap().clone();
    let typmod = (12 << 16 | 2) + 4;
    let price = column("p").base;
    assert_eq!((price.oid, price.name.as_str(), price.typmod, price.element), (1700, "numeric", typmod, None));
    assert_eq!((column("ps").base.element, column("ps").base.element_typmod), (Some(1700), typmod));
    assert_eq!((column("n").base.element, column("n").base.element_typmod), (Some(1700), (5 << 16 | 1) + 4));
    assert_eq!(column("v").base.element, None);
    assert!(column("id").identity && column("id").not_null && !column("a").not_null);
    assert!(column("g").generated && !column("late").generated && column("late").has_missing && !column("a").has_missing);
    assert!(plain.selectable && plain.schema_usable && plain.owned && plain.permanent && !plain.row_security);
    assert_eq!(plain.rows_estimate, -1);

    for (name, key, streamable) in [
        ("no_key", vec![], false),
        ("full_key", vec!["a"], true),
        ("full_none", vec![], true),
        ("by_index", vec!["b"], true),
        ("nothing", vec!["a"], false),
        ("deferred", vec![], false),
        ("volatile_one", vec!["a"], false),
        ("root", vec!["id", "d"], true),
        ("mixed", vec!["id"], false),
        ("parent", vec!["a"], true),
        ("heir", vec![], false),
        ("seen", vec![], false),
        ("root_a", vec!["id", "d"], true),
    ] {
        let table = table(&client, name).await;
        assert_eq!(table.key, key, "{name}");
        assert_eq!(table.streamable().is_ok(), streamable, "{name}: {:?}", table.streamable());
    }
    let root = table(&client, "root").await;
    assert_eq!(root.kind, TableKind::Partitioned);
    assert_eq!(root.leaves.iter().map(|l| l.name.name.as_str()).collect::<Vec<_>>(), ["root_a", "root_b0"]);
    assert_eq!(table(&client, "root_a").await.kind, TableKind::Leaf);
    assert_eq!(table(&client, "seen").await.kind, TableKind::Other);
    assert!(table(&client, "parent").await.inherits_children && !root.inherits_children);

    let odd = TableName::new("a.b", "C \"d\"");
    let asked = [odd.clone(), public("absent"), public("plain")];
    let found: Vec<_> = catalogue::tables(&client, &asked).await.unwrap().into_iter().map(|t| t.name).collect();
    assert_eq!(found, [odd, public("plain")]);
    assert_eq!(catalogue::tables(&client, &[]).await.unwrap(), []);

    let with_key = catalogue::tables_with_key(&client, "public").await.unwrap();
    let names: Vec<_> = with_key.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["by_index", "full_key", "full_none", "guarded", "owned", "parent", "plain", "root"]);
}

#[tokio::test]
async fn rights_are_those_of_the_session() {
    let Some(server) = Server::start(&[]) else { return };
    let _admin = filled(&server).await;
    let client = server.connect_as("reader").await;
    let owned = table(&client, "owned").await;
    assert_eq!(owned.columns.iter().map(|c| c.selectable).collect::<Vec<_>>(), [true, true, false]);
    assert!(!owned.selectable && !owned.owned && owned.schema_usable);
    let guarded = table(&client, "guarded").await;
    assert!(guarded.row_security && guarded.selectable);
    let root = table(&client, "root").await;
    assert_eq!(root.leaves[0].unselectable, ["id", "d"]);
    assert!(!catalogue::tables(&client, &[TableName::new("a.b", "C \"d\"")]).await.unwrap()[0].schema_usable);
}

#[tokio::test]
async fn a_look_changes_with_the_shape_and_with_nothing_else() {
    let Some(server) = Server::start(&[]) else { return };
    let client = filled(&server).await;
    let oids: Vec<u32> = {
        let names = ["plain", "full_key", "by_index", "root"].map(public);
        catalogue::tables(&client, &names).await.unwrap().iter().map(|t| t.oid).collect()
    };
    let mut before = catalogue::looks(&client, &oids).await.unwrap();
    assert_eq!(before.len(), 4);
    assert_eq!(before[&oids[0]], table(&client, "plain").await.look);
    for (sql, changed) in [
        ("INSERT INTO public.plain (b, v) VALUES (1, '1')", None),
        ("ANALYZE public.plain", None),
        ("REINDEX TABLE CONCURRENTLY public.plain", None),
        ("GRANT SELECT ON public.plain TO reader", None),
        ("ALTER TABLE public.plain RENAME COLUMN a TO a2", Some(0)),
        ("ALTER TABLE public.plain ADD COLUMN z int", Some(0)),
        ("ALTER TABLE public.plain ADD COLUMN y int DEFAULT 5", Some(0)),
        ("ALTER TABLE public.plain ALTER COLUMN z TYPE bigint", Some(0)),
        ("ALTER TABLE public.plain DROP COLUMN z", Some(0)),
        ("ALTER TABLE public.plain REPLICA IDENTITY FULL", Some(0)),
        ("ALTER TABLE public.full_key DROP CONSTRAINT full_key_pkey", Some(1)),
        ("ALTER TABLE public.by_index DROP CONSTRAINT by_index_b_key", Some(2)),
        ("ALTER TABLE public.root DETACH PARTITION public.root_a", Some(3)),
        ("ALTER TABLE public.root_b0 REPLICA IDENTITY FULL", Some(3)),
        ("CREATE TABLE public.root_c PARTITION OF public.root FOR VALUES FROM ('2022-01-01') TO ('2023-01-01')", Some(3)),
        ("TRUNCATE public.root_c", Some(3)),
        (
            "ALTER TABLE public.root DETACH PARTITION public.root_c; ALTER TABLE public.root ATTACH PARTITION public.root_c FOR VALUES FROM ('2022-01-01') TO ('2023-01-01')",
            Some(3),
        ),
    ] {
        client.batch_execute(sql).await.unwrap();
        let after = catalogue::looks(&client, &oids).await.unwrap();
        for (i, oid) in oids.iter().enumerate() {
            assert_eq!(before[oid] != after[oid], changed == Some(i), "{sql}, table {i}");
        }
        before = after;
    }
    client.batch_execute("DROP TABLE public.plain; CREATE TABLE public.plain (a int)").await.unwrap();
    assert!(!catalogue::looks(&client, &oids).await.unwrap().contains_key(&oids[0]));
}

#[tokio::test]
async fn reading_does_not_wait_for_a_locked_table() {
    let Some(server) = Server::start(&[("wal_level", "logical")]) else { return };
    let client = filled(&server).await;
    publication::create(&client, "p", &[public("root").into(), public("plain").into()]).await.unwrap();
    // Row filters, whose text cannot be read without a lock, came with 15.
    let filter = if server::version(&client).await.unwrap() < 150_000 { "" } else { "WHERE (a > 1)" };
    client.batch_execute(&format!("ALTER PUBLICATION p ADD TABLE public.full_none {filter}")).await.unwrap();
    client.batch_execute("CREATE PUBLICATION every FOR ALL TABLES").await.unwrap();
    let other = server.connect().await;
    other
        .batch_execute("BEGIN; LOCK TABLE public.root, public.plain, public.full_none, public.root_a IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    client.batch_execute("SET lock_timeout = '200ms'").await.unwrap();
    let tables = catalogue::tables(&client, &[public("root"), public("plain")]).await.unwrap();
    assert_eq!(tables.len(), 2);
    assert_eq!(publication::read(&client, "p").await.unwrap().unwrap().tables.len(), 3);
    assert!(publication::read(&client, "every").await.unwrap().unwrap().tables.contains_key(&public("root_a")));
    catalogue::tables_with_key(&client, "public").await.unwrap();
    catalogue::looks(&client, &[tables[0].oid]).await.unwrap();
}

#[tokio::test]
async fn publication_is_made_read_and_changed() {
    let Some(server) = Server::start(&[("wal_level", "logical")]) else { return };
    let client = filled(&server).await;
    let version = server::version(&client).await.unwrap();
    assert_eq!(publication::read(&client, "hue\"lla").await.unwrap(), None);
    let odd = TableName::new("a.b", "C \"d\"");
    publication::create(&client, "hue\"lla", &[odd.clone().into(), public("parent").into(), public("root").into()]).await.unwrap();
    let made = publication::read(&client, "hue\"lla").await.unwrap().unwrap();
    assert!(made.insert && made.update && made.delete && made.truncate && made.via_root && made.owner_is_me && !made.all_tables);
    assert_eq!(made.tables.keys().cloned().collect::<Vec<_>>(), [odd, public("parent"), public("root")]);
    assert_eq!(made.tables[&public("root")].relid, table(&client, "root").await.oid);
    assert!(made.oid > 0 && made.xmin > 0 && made.tables.values().all(|t| t.oid > 0 && t.xmin > 0));
    assert_eq!(publication::read(&client, "hue\"lla").await.unwrap().unwrap(), made);

    if version >= 150_000 {
        let listed = Member { table: public("plain"), columns: Some(vec!["id".into(), "b".into()]) };
        publication::add(&client, "hue\"lla", &[listed]).await.unwrap();
        client.batch_execute("ALTER PUBLICATION \"hue\"\"lla\" ADD TABLE public.full_key WHERE (a > 1)").await.unwrap();
        let read = publication::read(&client, "hue\"lla").await.unwrap().unwrap();
        assert_eq!(read.tables[&public("plain")].columns, Some(vec!["b".to_owned(), "id".to_owned()]));
        assert!(!read.tables[&public("plain")].row_filter && read.tables[&public("full_key")].row_filter);
        assert_eq!(read.tables[&public("full_key")].columns, None);
        client.batch_execute("CREATE PUBLICATION of_schema FOR TABLES IN SCHEMA \"a.b\"").await.unwrap();
        let of_schema = publication::read(&client, "of_schema").await.unwrap().unwrap();
        assert!(of_schema.schemas["a.b"].oid > 0 && of_schema.tables.len() == 1);
        publication::remove(&client, "hue\"lla", &[public("plain"), public("full_key")]).await.unwrap();
    }
    publication::remove(&client, "hue\"lla", &[public("parent")]).await.unwrap();
    let removed = publication::read(&client, "hue\"lla").await.unwrap().unwrap();
    assert!(!removed.tables.contains_key(&public("parent")) && removed.tables[&public("root")] == made.tables[&public("root")]);
    publication::add(&client, "hue\"lla", &[public("parent").into()]).await.unwrap();
    let again = publication::read(&client, "hue\"lla").await.unwrap().unwrap();
    assert_ne!(again.tables[&public("parent")], made.tables[&public("parent")]);
    client.batch_execute("ALTER PUBLICATION \"hue\"\"lla\" SET (publish = 'insert')").await.unwrap();
    let narrowed = publication::read(&client, "hue\"lla").await.unwrap().unwrap();
    assert!(narrowed.insert && !narrowed.update && !narrowed.truncate && narrowed.xmin != made.xmin);
    publication::drop(&client, "hue\"lla").await.unwrap();
    assert_eq!(publication::read(&client, "hue\"lla").await.unwrap(), None);
}

#[tokio::test]
async fn members_of_all_tables_are_those_that_the_server_counts() {
    let Some(server) = Server::start(&[("wal_level", "logical")]) else { return };
    let client = filled(&server).await;
    for (name, with) in [("r", "WITH (publish_via_partition_root = true)"), ("l", "")] {
        client.batch_execute(&format!("CREATE PUBLICATION {name} FOR ALL TABLES {with}")).await.unwrap();
        let ours = publication::read(&client, name).await.unwrap().unwrap();
        let sql = "SELECT schemaname::text, tablename::text FROM pg_catalog.pg_publication_tables WHERE pubname = $1";
        let mut theirs: Vec<_> =
            client.query(sql, &[&name]).await.unwrap().iter().map(|r| TableName::new(r.get::<_, &str>(0), r.get::<_, &str>(1))).collect();
        theirs.sort();
        assert_eq!(ours.tables.into_keys().collect::<Vec<_>>(), theirs);
    }
}

#[tokio::test]
async fn refused_publication_hands_its_sql_to_the_owner() {
    let Some(server) = Server::start(&[("wal_level", "logical")]) else { return };
    let admin = filled(&server).await;
    admin.batch_execute("GRANT CREATE ON DATABASE postgres TO reader").await.unwrap();
    let client = server.connect_as("reader").await;
    let error = publication::create(&client, "huella", &[public("owned").into()]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Source);
    let statement = "CREATE PUBLICATION \"huella\" FOR TABLE ONLY \"public\".\"owned\" WITH (publish_via_partition_root = true)";
    assert!(error.full().contains(statement), "{}", error.full());
    admin.batch_execute(statement).await.unwrap();
    assert!(!publication::read(&client, "huella").await.unwrap().unwrap().owner_is_me);
    let missing = publication::create(&admin, "q", &[public("absent").into()]).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::Retry, "renamed or dropped since it was listed: the next look lists anew");
}

#[tokio::test]
async fn slot_is_copied_read_and_dropped() {
    let settings = [("wal_level", "logical"), ("max_replication_slots", "2"), ("max_slot_wal_keep_size", "64MB")];
    let Some(server) = Server::start(&settings) else { return };
    let client = server.connect().await;
    assert_eq!(slot::read(&client, "huella").await.unwrap(), None);
    let maker = server.connect().await;
    maker.query("SELECT pg_catalog.pg_create_logical_replication_slot('tmp', 'pgoutput', true)", &[]).await.unwrap();
    let temporary = slot::read(&client, "tmp").await.unwrap().unwrap();
    assert!(temporary.temporary && temporary.active && temporary.active_pid.is_some());
    // Writing is known to be possible from another session while the temporary slot lives.
    let at = slot::copy(&client, "tmp", "huella").await.unwrap();
    let made = slot::read(&client, "huella").await.unwrap().unwrap();
    assert_eq!((made.confirmed_flush, temporary.confirmed_flush), (Some(at), Some(at)));
    assert_eq!((made.plugin.as_deref(), made.database.as_deref()), (Some("pgoutput"), Some("postgres")));
    assert!(!made.temporary && !made.active && !made.is_lost() && made.safe_wal_size.is_some_and(|size| size > 0));
    assert!(made.restart_lsn.is_some() && made.wal_status.as_deref() == Some("reserved"));

    let full = slot::copy(&client, "tmp", "third").await.unwrap_err();
    assert!(full.kind() == Kind::Source && full.full().contains("max_replication_slots"), "{}", full.full());
    assert_eq!(slot::drop_if_inactive(&client, "tmp").await.unwrap(), slot::Dropped::Active);
    assert!(!slot::terminate_holder(&client, "tmp", 1).await.unwrap());
    assert!(slot::terminate_holder(&client, "tmp", temporary.active_pid.unwrap()).await.unwrap());
    assert_eq!(slot::drop_if_inactive(&client, "huella").await.unwrap(), slot::Dropped::Gone);
    assert_eq!(slot::drop_if_inactive(&client, "huella").await.unwrap(), slot::Dropped::Absent);
}

#[tokio::test]
async fn server_and_blockers_are_read() {
    let settings =
        [("wal_level", "logical"), ("max_slot_wal_keep_size", "1GB"), ("wal_sender_timeout", "2min"), ("max_prepared_transactions", "2")];
    let Some(server) = Server::start(&settings) else { return };
    let client = filled(&server).await;
    let info = server::info(&client).await.unwrap();
    assert_eq!((info.wal_level.as_str(), info.max_slot_wal_keep_size_mb, info.wal_sender_timeout_ms), ("logical", 1024, 120_000));
    assert_eq!((info.slots_used, info.senders_used, info.in_recovery, info.database.as_str()), (0, 0, false, "postgres"));
    assert!(info.version_num >= 140_000 && info.role.superuser && info.role.replication && info.system_identifier.is_some());
    assert!(server::insert_lsn(&client).await.unwrap() >= server::flush_lsn(&client).await.unwrap());
    let reader = server::info(&server.connect_as("reader").await).await.unwrap();
    assert!(!reader.role.replication && !reader.role.superuser && !reader.role.bypass_rls && !reader.role.create_in_database);

    assert_eq!(server::blockers_of_slot_creation(&client).await.unwrap(), []);
    let writer = server.connect().await;
    writer.batch_execute("BEGIN; INSERT INTO public.no_key VALUES (1); PREPARE TRANSACTION 'left behind'").await.unwrap();
    writer.batch_execute("BEGIN; INSERT INTO public.plain (b) VALUES (1)").await.unwrap();
    let pid: i32 = writer.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await.unwrap().get(0);
    let blockers = server::blockers_of_slot_creation(&client).await.unwrap();
    let names: Vec<_> = blockers.iter().map(|b| (b.pid, b.state.as_deref())).collect();
    assert_eq!(names, [(None, Some("prepared")), (Some(pid), Some("idle in transaction"))]);
    // A role without rights sees the pid all the same.
    let seen = server::blockers_of_slot_creation(&server.connect_as("reader").await).await.unwrap();
    assert!(seen.iter().any(|b| b.pid == Some(pid) && b.state.is_none()));

    let waiting = server.connect().await;
    let waiter: i32 = waiting.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await.unwrap().get(0);
    let task = tokio::spawn(async move { waiting.batch_execute("BEGIN; LOCK TABLE public.plain IN ACCESS EXCLUSIVE MODE").await });
    let found = loop {
        let found = server::lock_blockers(&client, waiter).await.unwrap();
        if !found.is_empty() {
            break found;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(found.iter().map(|b| b.pid).collect::<Vec<_>>(), [Some(pid)]);
    task.abort();
}

/// A transaction is waited for though older ones run, and though none as young has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_becomes_visible_when_it_ends_whatever_else_runs() {
    let Some(server) = Server::start(&[]) else { return };
    let (older, young, looking) = (server.connect().await, server.connect().await, server.connect().await);
    older.batch_execute("CREATE TABLE public.t (a int)").await.unwrap();
    older.batch_execute("BEGIN; INSERT INTO public.t VALUES (1)").await.unwrap();
    young.batch_execute("BEGIN; INSERT INTO public.t VALUES (2)").await.unwrap();
    let xid: i64 = young.query_one("SELECT (pg_current_xact_id()::text::int8) & 4294967295", &[]).await.unwrap().get(0);
    let waiting = tokio::spawn(async move { (server::await_visible(&looking, u32::try_from(xid).unwrap()).await, looking) });
    // A session of its own: within a transaction the server shows what it showed first.
    let watching = server.connect().await;
    while watching
        .query_one("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_xact_status%' AND pid <> pg_backend_pid()", &[])
        .await
        .unwrap()
        .get::<_, i64>(0)
        == 0
    {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    young.batch_execute("COMMIT").await.unwrap();
    let (waited, looking) = waiting.await.unwrap();
    waited.unwrap();
    assert_eq!(looking.query_one("SELECT count(*) FROM public.t", &[]).await.unwrap().get::<_, i64>(0), 1);
}
