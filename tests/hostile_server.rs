//! Claims about a source that lies, floods or breaks off: nothing of it reaches the lake or the slot.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test, in its helpers too")]

mod hostile;
mod lake_reader;
mod private_server;
mod world;

use hostile::fake::{Fake, Peer, READY, Start, described, message, row};
use hostile::{Lie, Position, Proxy, copy_data, streamed};
use lake_reader::lsn;
use std::time::{Duration, Instant};
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
        proxy.tell(lie.clone());
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

const PASSWORD: &str = "S3cr3t-pw";

/// A program that was run against a peer.
struct Ran {
    code: Option<i32>,
    /// Its most, in MiB.
    memory: u64,
    took: Duration,
    output: String,
}

/// Runs the program against a peer of this URL until it ends, or until `enough` is true.
fn run_against(url: &str, args: &[&str], mut enough: impl FnMut() -> bool) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_huella"));
    for (key, _) in std::env::vars().filter(|(k, _)| k.starts_with("HUELLA_") || k.starts_with("PG")) {
        command.env_remove(key);
    }
    let begun = Instant::now();
    let mut child = command
        .args(["--log-format", "text"])
        .args(args)
        .current_dir(dir.path())
        .env("HUELLA_SOURCE_URL", url)
        .env("HUELLA_LAKE_URL", dir.path().join("lake"))
        .env("HUELLA_HTTP_LISTEN", "")
        .env("HUELLA_BATCH_MEMORY", "32MiB")
        .env("HUELLA_BATCH_MAX_BYTES", "4MiB")
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut memory = 0;
    let code = loop {
        memory = memory.max(peak_mib(child.id()));
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if enough() => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "the program neither ends nor comes to what is waited for");
    };
    Ran { code, memory, took: begun.elapsed(), output: std::fs::read_to_string(dir.path().join("log")).unwrap() }
}

/// The most memory that a process has held.
fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// The budget of `run_against`, and what the program takes itself.
const MEMORY_MIB: u64 = 32 + 96;

#[test]
fn no_peer_gets_the_password_by_asking() {
    fn ask(peer: &mut Peer, how: &[u8]) -> std::io::Result<()> {
        peer.say(&message(b'R', how))?;
        let (tag, _) = peer.hear()?;
        assert_ne!(tag, b'p', "a password was sent");
        Ok(())
    }
    const CLEAR: &[u8] = &[0, 0, 0, 3];
    const MD5: &[u8] = &[0, 0, 0, 5, 1, 2, 3, 4];
    for (method, how) in [("password", CLEAR), ("md5", MD5)] {
        for stripped in [&b"N"[..], b"S", b""] {
            // No TLS; a broken handshake; an end, and then no TLS.
            let fake = Fake::start(move |peer| match peer.start()? {
                Start::Tls if stripped == b"N" => {
                    peer.say(stripped)?;
                    peer.start()?;
                    ask(peer, how)
                }
                Start::Tls => peer.say(stripped),
                _ => ask(peer, how),
            });
            for (mode, args) in
                [("", &["check"][..]), ("?sslmode=prefer", &["teardown", "--yes"]), ("?sslmode=disable", &["check"]), ("", &["run"])]
            {
                let url = format!("postgresql://ana:{PASSWORD}@127.0.0.1:{}/d{mode}", fake.port);
                let before = fake.connections();
                let ran = run_against(&url, args, || fake.connections() > before + 4);
                assert!(fake.connections() > before, "{mode} {args:?}");
                assert!(!fake.heard(PASSWORD.as_bytes()) && !ran.output.contains(PASSWORD), "{mode} {args:?}: {}", ran.output);
            }
            if stripped == b"N" {
                let url = format!("postgresql://ana:{PASSWORD}@127.0.0.1:{}/d?sslmode=disable", fake.port);
                let ran = run_against(&url, &["run"], || false);
                let says = ran.output.contains("sslmode=verify-full") && ran.output.contains(&format!("require_auth={method}"));
                assert!(ran.code == Some(4) && says, "{:?} {}", ran.code, ran.output);
                // A host that is not of this machine has to prove itself, unless the URL says otherwise.
                let url = format!("postgresql://ana:{PASSWORD}@db.example:{}/d?hostaddr=127.0.0.1", fake.port);
                let ran = run_against(&url, &["run"], || false);
                assert!(ran.code == Some(4) || ran.code == Some(3), "{:?} {}", ran.code, ran.output);
            }
        }
    }
}

#[test]
fn few_rounds_of_the_password_exchange_are_refused() {
    let fake = Fake::start(|peer| {
        peer.start()?;
        peer.say(&message(b'R', b"\0\0\0\x0ASCRAM-SHA-256\0\0"))?;
        let (_, first) = peer.hear()?;
        let nonce = String::from_utf8_lossy(&first).rsplit_once("r=").unwrap().1.to_owned();
        peer.say(&message(b'R', format!("\0\0\0\x0Br={nonce}x,s=c2FsdHNhbHQ=,i=1").as_bytes()))?;
        let answered = peer.hear().is_ok();
        assert!(!answered, "the exchange went on");
        Ok(())
    });
    let ran = run_against(&format!("postgresql://ana:{PASSWORD}@127.0.0.1:{}/d?sslmode=disable", fake.port), &["run"], || false);
    assert!(ran.code == Some(4) && ran.output.contains("4096"), "{:?} {}", ran.code, ran.output);
}

/// How a fake breaks.
type Break = fn(&mut Peer) -> std::io::Result<()>;

/// Answers the settings of a session, and begins the answer to its first query.
fn to_the_first_query(peer: &mut Peer) -> std::io::Result<()> {
    peer.log_in()?;
    loop {
        match peer.hear()? {
            (b'Q', _) => peer.say(&[&message(b'C', b"SET\0"), READY].concat())?,
            (b'S', _) => break,
            _ => {}
        }
    }
    peer.say(&[message(b'1', b""), message(b't', b"\0\0"), described(), message(b'2', b"")].concat())
}

#[test]
fn no_flood_takes_the_memory_and_no_garbage_is_a_bug() {
    let breaks: [(&str, Break); 14] = [
        ("settings without end", |peer| {
            peer.say(&message(b'R', &[0; 4]))?;
            let mut n = 0_u64;
            loop {
                n += 1;
                peer.say(&message(b'S', format!("setting_{n}\0{}\0", "x".repeat(1000)).as_bytes()))?;
            }
        }),
        ("notices before anything", |peer| peer.flood(&message(b'N', b"SNOTICE\0C00000\0Mhush\0\0"))),
        ("a giant instead of a log-in", |peer| {
            peer.say(b"R\x7F\xFF\xFF\xFF")?;
            peer.flood(&[0; 1024])
        }),
        ("a message shorter than its length", |peer| peer.say(b"R\0\0\0\x03")),
        ("no message at all", |peer| peer.flood(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        ("an unknown way to log in", |peer| peer.say(&message(b'R', &[0, 0, 0, 99]))),
        ("ready without a version", |peer| peer.say(&[&message(b'R', &[0; 4]), READY].concat())),
        ("rows without end in the set-up", |peer| {
            peer.log_in()?;
            peer.hear()?;
            peer.flood(&row(b"7"))
        }),
        ("a giant row in the set-up", |peer| {
            peer.log_in()?;
            peer.hear()?;
            peer.say(b"D\x40\0\0\0")?;
            peer.flood(&[0; 1024])
        }),
        ("rows without end", |peer| {
            to_the_first_query(peer)?;
            peer.flood(&row(b"7"))
        }),
        ("large rows without end", |peer| {
            to_the_first_query(peer)?;
            peer.flood(&row(&[b'x'; 100_000]))
        }),
        ("a giant row", |peer| {
            to_the_first_query(peer)?;
            peer.say(b"D\x7F\xFF\xFF\xFF")?;
            peer.flood(&[0; 1024])
        }),
        ("settings without end in an answer", |peer| {
            to_the_first_query(peer)?;
            let mut n = 0_u64;
            loop {
                n += 1;
                peer.say(&message(b'S', format!("setting_{n}\0{}\0", "x".repeat(1000)).as_bytes()))?;
            }
        }),
        ("rows of another kind", |peer| {
            to_the_first_query(peer)?;
            peer.say(&[row(b"\xF1\xFF"), message(b'C', b"SELECT 1\0"), READY.to_vec()].concat())?;
            std::thread::sleep(Duration::from_secs(1));
            Ok(())
        }),
    ];
    for (name, broken) in breaks {
        let fake = Fake::start(move |peer| {
            peer.start()?;
            broken(peer)
        });
        let url = format!("postgresql://ana@127.0.0.1:{}/d?sslmode=disable", fake.port);
        for (args, codes) in [(&["check"][..], [7, 7]), (&["teardown", "--yes"], [1, 4])] {
            let ran = run_against(&url, args, || false);
            assert!(ran.code.is_some_and(|code| codes.contains(&code)), "{name}: {args:?} {:?}\n{}", ran.code, ran.output);
            assert!(ran.memory < MEMORY_MIB, "{name}: {args:?} took {} MiB", ran.memory);
            assert!(ran.took < Duration::from_secs(60), "{name}: {args:?} took {:?}", ran.took);
            assert!(!ran.output.contains("hush") && !ran.output.contains("panic"), "{name}: {}", ran.output);
        }
        let before = fake.connections();
        let ran = run_against(&url, &["run"], || fake.connections() > before + 2);
        assert!(ran.code.is_none_or(|code| code == 4), "{name}: run {:?}\n{}", ran.code, ran.output);
        assert!(ran.memory < MEMORY_MIB, "{name}: run took {} MiB", ran.memory);
        assert!(name.starts_with("a message") || fake.said() > 0, "{name}");
    }
}

/// xorshift64: the same seed, the same garbage.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        for shift in [13, -7, 17] {
            self.0 ^= if shift > 0 { self.0 << shift } else { self.0 >> -shift };
        }
        self.0
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.next() % most).map(|_| self.next() as u8).collect()
    }

    /// Frames that no server sends: cut, mistagged, with positions from nowhere. Each has its right length.
    fn garbage(&mut self) -> Vec<u8> {
        let tags = b"BCIUDTRYOMSEcAbPKrpZ?";
        let tag = tags[(self.next() % tags.len() as u64) as usize];
        let far = (self.next() | 1 << 62).to_be_bytes();
        match self.next() % 5 {
            0 => copy_data(&self.bytes(200)),
            1 => streamed(&[&[tag][..], &self.bytes(300)].concat()),
            2 => copy_data(&[&b"k"[..], &far, &[0; 8], &[1]].concat()),
            3 => streamed(&[&b"B"[..], &far, &self.bytes(40)].concat()),
            _ => message(tag, &self.bytes(100)),
        }
    }
}

#[tokio::test]
async fn garbage_in_the_stream_costs_a_session_and_nothing_else() {
    let mut world = World::new().await;
    world.env.extend([("HUELLA_BATCH_MEMORY".into(), "32MiB".into()), ("HUELLA_BATCH_MAX_BYTES".into(), "4MiB".into())]);
    world.sql("CREATE TABLE t (id serial PRIMARY KEY, body text); INSERT INTO t (body) SELECT 'x' FROM generate_series(1, 20)").await;
    let proxy = Proxy::start(world.server.port);
    let url = format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", proxy.port);
    let mut running = world.start(&["run"], &[("HUELLA_SOURCE_URL", &url)]);
    world.caught_up().await;
    let relation = |id: u32, columns: u16| {
        let column = b"\0c\0\0\0\0\x17\xFF\xFF\xFF\xFF".repeat(columns.into());
        streamed(&[&b"R"[..], &id.to_be_bytes(), b"elsewhere\0t\0d", &columns.to_be_bytes(), &column].concat())
    };
    let begin = |lsn: u64| streamed(&[&b"B"[..], &lsn.to_be_bytes(), &[0; 8], &[0, 0, 0, 9]].concat());
    let far = u64::MAX / 2;
    let many: Vec<u8> = (100_000..400_000).flat_map(|id| relation(id, 1)).collect();
    let garbage: Vec<(&str, Vec<u8>)> = vec![
        ("a message of nobody's", streamed(b"?")),
        ("an empty message", streamed(b"")),
        ("a message of another protocol", streamed(b"S\0\0\0\x01\x01")),
        ("a change outside a transaction", [relation(7, 1), streamed(b"I\0\0\0\x07N\0\x01n")].concat()),
        ("a change of an unknown relation", [begin(far), streamed(b"I\0\0\xFF\x07N\0\x01n")].concat()),
        ("a commit outside a transaction", streamed(&[&b"C\0"[..], &[0; 24]].concat())),
        ("two transactions in each other", [begin(far), begin(far)].concat()),
        ("a tuple that ends early", [begin(far), streamed(b"I\0\0\0\x07N\xFF\xFFt")].concat()),
        ("an envelope of nobody's", copy_data(b"?")),
        ("an empty envelope", copy_data(b"")),
        ("a short keepalive", copy_data(b"k\0\0")),
        ("a frame of an impossible length", b"d\0\0\0\x03".to_vec()),
        ("a giant frame", b"d\x7F\xFF\xFF\xFF".to_vec()),
        ("a giant notice", b"N\x7F\xFF\xFF\xFF".to_vec()),
        ("notices without end", message(b'N', b"SWARNING\0VWARNING\0C01000\0Mhush\0\0").repeat(100_000)),
        ("a relation of 65,535 columns", [begin(far), relation(7, 65_535)].concat()),
        ("300,000 relations", [begin(far), many].concat()),
        ("an error of the server's that quotes data", message(b'E', b"SERROR\0VERROR\0CXX000\0Dhush\0Mgone\0\0")),
    ];
    for (name, bytes) in garbage {
        let told = proxy.told();
        proxy.tell(Lie::Idle(bytes));
        world.wait("the garbage to be sent", || proxy.told() > told);
        world.sql("INSERT INTO t (body) VALUES ('after'); UPDATE t SET body = 'z' WHERE id < 5").await;
        world.caught_up().await;
        assert!(running.lives(), "{name}\n{}", world.log());
        assert!(world.through() <= flushed(&world).await, "{name}");
        world.slot_is_not_ahead().await;
        let memory = peak_mib(running.id());
        assert!(memory < MEMORY_MIB, "{name}: {memory} MiB");
    }
    // At random, for as long as is asked for: HUELLA_HOSTILE_SECS=600 by hand.
    let seconds = std::env::var("HUELLA_HOSTILE_SECS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let (begun, mut random) = (Instant::now(), Random(0x9E37_79B9_7F4A_7C15));
    while begun.elapsed() < Duration::from_secs(seconds) {
        let (seed, told) = (random.0, proxy.told());
        proxy.tell(Lie::Idle(random.garbage()));
        world.wait("the garbage to be sent", || proxy.told() > told);
        world.sql("INSERT INTO t (body) VALUES ('random')").await;
        world.caught_up().await;
        assert!(running.lives(), "seed {seed:x}\n{}", world.log());
        assert!(world.through() <= flushed(&world).await, "seed {seed:x}");
        let memory = peak_mib(running.id());
        assert!(memory < MEMORY_MIB, "seed {seed:x}: {memory} MiB");
    }
    running.stop();
    world.true_in_the_lake().await;
    assert!(!world.log().contains("hush"));
}

#[tokio::test]
async fn a_main_loop_that_hangs_is_ended_in_time_by_sigterm() {
    let world = World::new().await;
    world.sql("CREATE TABLE t (id serial PRIMARY KEY)").await;
    let running = world.start(&["run"], &[("HUELLA_FAILPOINT", "commit.after_ack=hang")]);
    world.wait("the first commit", || world.log().contains("\"committed\""));
    let asked = Instant::now();
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(), Some(1), "{}", world.log());
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
}

/// A database without an encoding holds names of any bytes, and a role's name is the same in every database.
#[tokio::test]
async fn names_that_are_not_utf8_stop_their_own_table_and_nothing_else() {
    let mut world = World::new().await;
    world.sql("CREATE DATABASE raw TEMPLATE template0 ENCODING SQL_ASCII LC_COLLATE 'C' LC_CTYPE 'C'").await;
    world.sql("CREATE ROLE owner LOGIN").await;
    let raw = world.server.connect_to("raw", "postgres").await;
    raw.batch_execute(
        "CREATE TABLE public.good (id int PRIMARY KEY, body text); INSERT INTO public.good VALUES (1, 'x');
         DO $$ BEGIN
           EXECUTE format('CREATE TABLE public.%I (id int PRIMARY KEY)', 'a' || chr(241) || 'o');
           EXECUTE format('CREATE TABLE public.column_of (id int PRIMARY KEY, %I int)', 'a' || chr(241) || 'o');
           EXECUTE format('CREATE TYPE public.%I AS ENUM (%L)', 'e' || chr(241), 'v' || chr(241));
           EXECUTE format('CREATE TABLE public.of_type (id int PRIMARY KEY, e public.%I)', 'e' || chr(241));
         END $$;
         CREATE PUBLICATION huella FOR ALL TABLES",
    )
    .await
    .unwrap();
    let url = format!("postgresql://postgres@127.0.0.1:{}/raw?sslmode=disable", world.server.port);
    world.env.push(("HUELLA_SOURCE_URL".into(), url));
    let (code, found) = world.run(&["check", "--json"]);
    assert!(code == 0 && found.contains("a\u{FFFD}o") && found.contains("is not UTF-8"), "{code} {found}");
    // A role whose name was changed there writes in this database, which is in UTF-8.
    let writer = world.server.connect_to("raw", "owner").await;
    let open = world.server.connect_to("postgres", "owner").await;
    world.sql("CREATE TABLE public.busy (id int); GRANT ALL ON public.busy TO owner").await;
    open.batch_execute("BEGIN; INSERT INTO public.busy VALUES (1)").await.unwrap();
    drop(writer);
    raw.batch_execute("DO $$ BEGIN EXECUTE format('ALTER ROLE owner RENAME TO %I', 'owner' || chr(241)); END $$").await.unwrap();
    let running = world.start(&["run"], &[]);
    world.wait("the copy to wait for the open transaction", || world.log().contains("owner\u{FFFD}"));
    open.batch_execute("COMMIT").await.unwrap();
    world.wait("the copies", || {
        world
            .watermark()
            .is_some_and(|w| w["tables"].as_object().is_some_and(|all| all.len() == 2 && all.values().all(|t| t.get("pending").is_none())))
    });
    raw.batch_execute(
        "INSERT INTO public.good VALUES (2, 'y');
         DO $$ BEGIN EXECUTE format('INSERT INTO public.%I VALUES (1)', 'a' || chr(241) || 'o'); END $$;
         INSERT INTO public.column_of VALUES (1, 1);
         DO $$ BEGIN EXECUTE format('INSERT INTO public.of_type VALUES (1, %L)', 'v' || chr(241)); END $$;
         INSERT INTO public.good VALUES (3, 'z')",
    )
    .await
    .unwrap();
    world.wait("the rows", || world.run(&["verify"]).0 == 0);
    let row = raw.query_one("SELECT pg_catalog.pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    let target = lsn(row.get(0));
    world.wait("the lake to catch up", || world.through() >= target);
    assert_eq!(world.run(&["verify"]).0, 0, "{}", world.log());
    running.stop();
    assert_eq!(world.run(&["status"]).0, 0, "{}", world.log());
    assert!(!world.log().contains("panic"), "{}", world.log());
}
