//! Claims about replication commands and the stream, against a real server.

use super::server::Server;
use super::{admin, one, options};
use huella::error::Kind;
use huella::lsn::Lsn;
use huella::postgres::{ConnectOptions, Event, Replication, ReplicationStream, StreamSetup, sqlstate};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

const HBA: &str = "host all postgres 127.0.0.1/32 trust";
const SOON: Duration = Duration::from_secs(20);

/// A server with table `t`, publication `p "q"` and slot `s`.
async fn prepared(settings: &str) -> (Server, Client, ConnectOptions) {
    let server = Server::start(HBA, settings);
    let admin = admin(&server).await;
    admin
        .batch_execute("CREATE TABLE public.t (id int PRIMARY KEY, body text); CREATE PUBLICATION \"p \"\"'q\" FOR TABLE public.t")
        .await
        .unwrap();
    one(&admin, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await;
    let options = options(&server.url("postgres", "sslmode=require"));
    (server, admin, options)
}

async fn start(options: &ConnectOptions) -> huella::error::Result<ReplicationStream> {
    Replication::connect(options).await?.start("s", "p \"'q", Lsn::ZERO, StreamSetup::default()).await
}

async fn insert(admin: &Client, from: u32, to: u32, bytes: u32) {
    admin
        .batch_execute(&format!("INSERT INTO public.t SELECT i, repeat('x', {bytes}) FROM generate_series({from}, {to}) i"))
        .await
        .unwrap();
}

/// Reads until `rows` inserts and the commit behind them have come; the commit's end, and the inserts' bytes.
async fn read_inserts(stream: &mut ReplicationStream, rows: usize) -> (Lsn, usize) {
    let (mut seen, mut bytes) = (0, 0);
    let reading = async {
        loop {
            let Some(Event::Frames(frames)) = stream.next().await.unwrap() else { panic!("no frames") };
            for frame in frames.iter().filter(|frame| frame[0] == b'w') {
                match frame[25] {
                    b'I' => (seen, bytes) = (seen + 1, bytes + frame.len()),
                    b'C' if seen >= rows => return (Lsn(u64::from_be_bytes(frame[35..43].try_into().unwrap())), bytes),
                    _ => {}
                }
            }
        }
    };
    timeout(SOON, reading).await.expect("the inserts in time")
}

/// Waits for a query to give `wanted`.
async fn becomes(admin: &Client, sql: &str, wanted: &str) {
    for _ in 0..500 {
        if one(admin, sql).await == wanted {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("{sql} is {:?}, not {wanted:?}", one(admin, sql).await);
}

#[tokio::test]
async fn commands_are_answered() {
    let (_server, admin, options) = prepared("").await;
    let mut replication = Replication::connect(&options).await.unwrap();
    let version: u32 = one(&admin, "SHOW server_version_num").await.parse().unwrap();
    assert_eq!(replication.server_version(), version);
    let system = replication.identify_system().await.unwrap();
    assert_eq!(system.identifier, one(&admin, "SELECT system_identifier FROM pg_control_system()").await);
    assert_eq!((system.timeline, system.database.as_deref()), (1, Some("postgres")));
    assert!(system.xlogpos > Lsn::ZERO);
    let error = replication.timeline_history(1).await.unwrap_err();
    assert!(error.full().contains("TIMELINE_HISTORY 1"), "{}", error.full());
    // A refused command leaves the connection in order.
    assert_eq!(replication.identify_system().await.unwrap().identifier, system.identifier);
    replication.terminate().await;
    becomes(&admin, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'", "0").await;
}

#[tokio::test]
async fn a_temporary_slots_snapshot_can_be_imported_while_its_connection_is_silent() {
    let (_server, admin, options) = prepared("").await;
    insert(&admin, 1, 3, 1).await;
    let mut replication = Replication::connect(&options).await.unwrap();
    let slot = replication.create_temporary_slot("tmp_x").await.unwrap();
    insert(&admin, 4, 9, 1).await;
    let worker = huella::postgres::connect_sql(&options).await.unwrap();
    let import = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'", slot.snapshot);
    worker.batch_execute(&import).await.unwrap();
    assert_eq!(one(&worker, "SELECT count(*) FROM public.t").await, "3");
    assert_eq!(
        one(&admin, "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'tmp_x'").await,
        slot.consistent_point.to_string()
    );
    let error = replication.create_temporary_slot("tmp_x").await.unwrap_err();
    assert_eq!(sqlstate(&error), Some("42710"), "{}", error.full());
    replication.terminate().await;
    becomes(&admin, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'tmp_x'", "0").await;
}

#[tokio::test]
async fn an_abandoned_slot_creation_is_cancelled_at_the_server() {
    let (server, admin, options) = prepared("").await;
    let writer = super::admin(&server).await;
    writer.batch_execute("BEGIN; INSERT INTO public.t VALUES (1, 'open')").await.unwrap();
    let mut replication = Replication::connect(&options).await.unwrap();
    let waiting = timeout(Duration::from_millis(500), replication.create_temporary_slot("tmp_x")).await;
    assert!(waiting.is_err(), "creation waits for the open transaction");
    assert_eq!(replication.identify_system().await.unwrap_err().kind(), Kind::Bug);
    replication.terminate().await;
    becomes(&admin, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'", "0").await;
}

#[tokio::test]
async fn inserts_arrive_and_only_the_acknowledged_position_reaches_the_slot() {
    let (_server, admin, options) = prepared("").await;
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 's'";
    let before = one(&admin, confirmed).await;
    let mut stream = start(&options).await.unwrap();
    insert(&admin, 1, 100, 10).await;
    let (end, _) = read_inserts(&mut stream, 100).await;
    stream.request_keepalive();
    let keepalive = timeout(SOON, stream.next()).await.unwrap().unwrap();
    assert!(matches!(&keepalive, Some(Event::Frames(frames)) if frames.iter().any(|frame| frame[0] == b'k')), "{keepalive:?}");
    let reported = "SELECT write_lsn >= sent_lsn FROM pg_stat_replication";
    becomes(&admin, reported, "t").await;
    assert_eq!(one(&admin, confirmed).await, before, "received is not acknowledged");
    stream.acknowledge(end);
    becomes(&admin, confirmed, &end.to_string()).await;

    insert(&admin, 101, 101, 10).await;
    let (end, _) = read_inserts(&mut stream, 1).await;
    stream.acknowledge(end);
    stream.finish().await.unwrap();
    assert_eq!(one(&admin, confirmed).await, end.to_string(), "the last acknowledgement always goes out");
    assert_eq!(one(&admin, "SELECT active FROM pg_replication_slots WHERE slot_name = 's'").await, "f");

    // What was acknowledged does not come again.
    let mut stream = start(&options).await.unwrap();
    insert(&admin, 102, 102, 10).await;
    assert!(read_inserts(&mut stream, 1).await.0 > end);
    drop(stream);
    becomes(&admin, "SELECT active FROM pg_replication_slots WHERE slot_name = 's'", "f").await;
}

#[tokio::test]
async fn rows_larger_than_a_chunk_arrive_whole() {
    let (_server, admin, options) = prepared("").await;
    let mut stream = start(&options).await.unwrap();
    insert(&admin, 1, 4, 9_000_000).await;
    insert(&admin, 5, 2004, 1000).await;
    let (_, bytes) = read_inserts(&mut stream, 2004).await;
    assert!(bytes > 4 * 9_000_000 + 2000 * 1000, "{bytes}");
}

#[tokio::test]
async fn a_consumer_that_stalls_longer_than_wal_sender_timeout_keeps_its_connection() {
    let (_server, admin, options) = prepared("wal_sender_timeout = '2s'").await;
    let mut stream = start(&options).await.unwrap();
    insert(&admin, 1, 60_000, 1000).await;
    let Some(Event::Frames(first)) = timeout(SOON, stream.next()).await.unwrap().unwrap() else { panic!("no frames") };
    let first = first.iter().filter(|frame| frame.get(25) == Some(&b'I')).count();
    sleep(Duration::from_secs(6)).await;
    assert_eq!(one(&admin, "SELECT count(*) FROM pg_stat_replication").await, "1");
    let (end, _) = read_inserts(&mut stream, 60_000 - first).await;
    // Idle for as long: keepalives are answered though nobody asks for events.
    sleep(Duration::from_secs(4)).await;
    stream.acknowledge(end);
    stream.finish().await.unwrap();
}

#[tokio::test]
async fn a_stalled_stream_can_be_finished() {
    let (_server, admin, options) = prepared("").await;
    let stream = start(&options).await.unwrap();
    insert(&admin, 1, 60_000, 1000).await;
    becomes(&admin, "SELECT active FROM pg_replication_slots WHERE slot_name = 's'", "t").await;
    sleep(Duration::from_millis(500)).await;
    stream.finish().await.unwrap();
    assert_eq!(one(&admin, "SELECT active FROM pg_replication_slots WHERE slot_name = 's'").await, "f");
}

#[tokio::test]
async fn a_slot_in_use_is_worth_a_retry_and_an_absent_one_is_not() {
    let (_server, admin, options) = prepared("").await;
    let holder = start(&options).await.unwrap();
    let error = start(&options).await.unwrap_err();
    assert_eq!((sqlstate(&error), error.kind()), (Some("55006"), Kind::Retry), "{}", error.full());
    holder.finish().await.unwrap();
    one(&admin, "SELECT pg_drop_replication_slot('s')").await;
    let error = start(&options).await.unwrap_err();
    assert_eq!((sqlstate(&error), error.kind()), (Some("42704"), Kind::Source), "{}", error.full());
}

#[tokio::test]
async fn a_terminated_walsender_and_a_killed_server_are_worth_a_retry() {
    let (mut server, admin, options) = prepared("").await;
    let mut stream = start(&options).await.unwrap();
    one(&admin, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 's'").await;
    let error = ended(&mut stream).await;
    assert_eq!((sqlstate(&error), error.kind()), (Some("57P01"), Kind::Retry), "{}", error.full());
    becomes(&admin, "SELECT active FROM pg_replication_slots WHERE slot_name = 's'", "f").await;
    let mut stream = start(&options).await.unwrap();
    server.kill();
    let error = ended(&mut stream).await;
    assert!(error.is_retry(), "{}", error.full());
    assert!(stream.finish().await.is_err());
}

/// The error that ends the stream.
async fn ended(stream: &mut ReplicationStream) -> huella::error::Error {
    loop {
        if let Err(error) = timeout(SOON, stream.next()).await.expect("an end in time") {
            return error;
        }
    }
}
