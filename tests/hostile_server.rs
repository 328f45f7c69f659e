//! Claims about a source that lies, floods or breaks off: nothing of it reaches the lake or the slot.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test, in its helpers too")]

mod hostile;
mod lake_reader;
mod private_server;
mod world;

use hostile::{Lie, Position, Proxy};
use lake_reader::lsn;
use world::World;

/// The position that a server can never reach.
const END: Position = Position::At(u64::MAX);
/// More than any server of these tests writes.
const GIGABYTE: Position = Position::Ahead(1 << 30);

async fn flushed(world: &World) -> u64 {
    lsn(world.client.query_one("SELECT pg_catalog.pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0))
}

#[tokio::test]
async fn positions_beyond_the_servers_wal_move_neither_lake_nor_slot() {
    let world = World::new().await;
    world.sql("CREATE TABLE t (id serial PRIMARY KEY, body text); INSERT INTO t (body) SELECT 'x' FROM generate_series(1, 20)").await;
    let proxy = Proxy::start(world.server.port);
    let url = format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", proxy.port);
    let mut running = world.start(&["run"], &[("HUELLA_SOURCE_URL", &url)]);
    world.caught_up().await;
    let lies = [
        Lie::IdleKeepalive(END),
        Lie::IdleKeepalive(GIGABYTE),
        Lie::KeepaliveInTransaction(END),
        Lie::KeepaliveInTransaction(GIGABYTE),
        Lie::CommitEnd(END),
        Lie::CommitEnd(GIGABYTE),
        Lie::CommitEnd(Position::At(1)),
        Lie::CommitAlone(Position::At(1)),
        Lie::CommitAlone(GIGABYTE),
        Lie::Transaction(END),
        Lie::Transaction(GIGABYTE),
        Lie::Transaction(Position::At(1)),
    ];
    for lie in lies {
        let told = proxy.told();
        proxy.tell(lie);
        world.sql("INSERT INTO t (body) SELECT 'y' FROM generate_series(1, 3); UPDATE t SET body = 'z' WHERE id < 5").await;
        world.wait("the lie to be told", || proxy.told() > told);
        world.sql("INSERT INTO t (body) VALUES ('after')").await;
        world.caught_up().await;
        assert!(world.through() <= flushed(&world).await, "{lie:?}: the lake went beyond the server's WAL");
        world.slot_is_not_ahead().await;
        assert!(running.lives(), "{lie:?}");
    }
    running.stop();
    world.true_in_the_lake().await;
    assert!(world.log().contains("beyond the end of its WAL"), "{}", world.log());
}
