//! A source, a lake and the program between them, for tests of the whole.
//!
//! Owns: starting, signalling, waiting for the program; the two oracles. `huella verify` compares the state with the source
//! as its user would; `lake_reader` does it again and apart, and proves that the chain has no gap and no change stands twice.

#![allow(dead_code)] // each test crate uses a part

use crate::lake_reader::{Lake, lsn};
use crate::private_server::Server;
use serde_json::Value;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) server: Arc<Server>,
    pub(crate) client: Client,
    pub(crate) dir: tempfile::TempDir,
    /// For every command of this world.
    pub(crate) env: Vec<(String, String)>,
    database: String,
    pub(crate) slot: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(&[]).await
    }

    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        let mut all = vec![("wal_level", "logical"), ("wal_sender_timeout", "3s")];
        all.extend_from_slice(settings);
        Self::of(Arc::new(Server::start(&all).unwrap()), "postgres", "huella").await
    }

    /// A server for several worlds at a time.
    pub(crate) fn server() -> Arc<Server> {
        let room = [("max_connections", "300"), ("max_replication_slots", "60"), ("max_wal_senders", "60")];
        let settings = [("wal_level", "logical"), ("wal_sender_timeout", "3s")].into_iter().chain(room);
        Arc::new(Server::start(&settings.collect::<Vec<_>>()).unwrap())
    }

    /// A world with a database, a slot and a lake of its own in a server that others use too.
    pub(crate) async fn on(server: &Arc<Server>, name: &str) -> Self {
        server.connect().await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        Self::of(Arc::clone(server), name, &format!("huella_{name}")).await
    }

    async fn of(server: Arc<Server>, database: &str, slot: &str) -> Self {
        let (database, slot) = (database.to_owned(), slot.to_owned());
        let client = open(&server, &database).await;
        Self { server, client, dir: tempfile::tempdir().unwrap(), env: Vec::new(), database, slot }
    }

    /// Another session of this world's database.
    pub(crate) async fn connect(&self) -> Client {
        open(&self.server, &self.database).await
    }

    /// The server was restarted: a new session instead of the old.
    pub(crate) async fn reconnect(&mut self) {
        self.client = self.connect().await;
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    pub(crate) fn lake(&self) -> PathBuf {
        self.dir.path().join("lake")
    }

    pub(crate) fn url(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{}?sslmode=disable", self.server.port, self.database)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_huella"));
        for (key, _) in std::env::vars().filter(|(k, _)| k.starts_with("HUELLA_") || k.starts_with("PG")) {
            command.env_remove(key);
        }
        command
            .args(["--log-format", "json"])
            .args(args)
            .current_dir(self.dir.path())
            .env("HUELLA_SOURCE_URL", self.url())
            .env("HUELLA_SOURCE_SLOT", &self.slot)
            .env("HUELLA_LAKE_URL", self.lake())
            .env("HUELLA_HTTP_LISTEN", "")
            .env("HUELLA_BATCH_MAX_AGE", "150ms")
            .env("HUELLA_BATCH_HEARTBEAT", "1s")
            .envs(self.env.iter().map(|(key, value)| (key, value)));
        // A test that is killed must not leave it behind.
        // SAFETY: prctl is async-signal-safe and concerns the child alone.
        unsafe {
            command.pre_exec(|| {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            })
        };
        command
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn start(&self, args: &[&str], env: &[(&str, &str)]) -> Running {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = self.command(args).envs(env.iter().copied()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Running(child)
    }

    /// Runs to the end; exit code and standard output.
    pub(crate) fn run(&self, args: &[&str]) -> (i32, String) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let output = self.command(args).stderr(log).output().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `run` ends with exit code 4 and one message that says all of `parts`.
    pub(crate) fn refused(&self, parts: &[&str]) {
        let before = self.log().len();
        assert_eq!(self.run(&["run", "--until-caught-up"]).0, 4, "{parts:?}\n{}", self.log());
        self.last_error_says(before, parts);
    }

    /// The last error logged after the first `before` bytes of the log says all of `parts`.
    pub(crate) fn last_error_says(&self, before: usize, parts: &[&str]) {
        let log = self.log();
        let said = log[before..].lines().rfind(|line| line.contains("\"ERROR\"")).unwrap_or_else(|| panic!("no error in {log}"));
        let said = said.replace("\\\"", "\"");
        parts.iter().for_each(|part| assert!(said.contains(part), "{part:?} is not in {said}"));
    }

    /// `run --resnapshot` mends what was refused; from then on both oracles hold again.
    pub(crate) async fn mended_by_resnapshot(&self, change: &str) {
        assert_eq!(self.run(&["run", "--until-caught-up", "--resnapshot"]).0, 0, "{}", self.log());
        self.true_in_the_lake().await;
        self.sql(change).await;
        assert_eq!(self.run(&["run", "--until-caught-up"]).0, 0, "{}", self.log());
        self.true_in_the_lake().await;
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.watermark().and_then(|w| w["epoch"].as_u64()).unwrap_or(0)
    }

    pub(crate) fn watermark(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.lake().join("watermark.json")).ok()?).ok()
    }

    pub(crate) fn through(&self) -> u64 {
        self.watermark().and_then(|w| Some(lsn(w["through"].as_str()?))).unwrap_or(0)
    }

    /// Waits until all that is committed now is in the lake and no table waits for a copy.
    pub(crate) async fn caught_up(&self) {
        let row = self.client.query_one("SELECT pg_catalog.pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
        let target = lsn(row.get(0));
        self.wait("the lake to catch up", || {
            let pending = self.watermark().is_some_and(|w| w["tables"].as_object().unwrap().values().any(|t| t.get("pending").is_some()));
            self.through() >= target && !pending
        });
    }

    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < limit, "waited for {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// As `true_in_the_lake`, once the copies are made that a look at the catalogue will ask for.
    pub(crate) async fn comes_true_in_the_lake(&self) {
        self.wait("the lake to be true", || self.run(&["verify"]).0 == 0);
        self.caught_up().await;
        self.true_in_the_lake().await;
    }

    /// Both oracles.
    pub(crate) async fn true_in_the_lake(&self) {
        self.true_in_the_lake_without(&[], &[]).await;
    }

    /// Both oracles; `columns` of `tables` (hashed ones: the reader of lakes has no hash key) are compared by `verify` alone.
    pub(crate) async fn true_in_the_lake_without(&self, columns: &[&str], tables: &[&str]) {
        let mut verified = self.run(&["verify"]);
        // Exit code 1: a table was copied anew meanwhile, and a second look helps.
        for _ in 0..5 {
            if verified.0 == 1 {
                verified = self.run(&["verify"]);
            }
        }
        let (code, out) = verified;
        assert_eq!(code, 0, "{out}\n{}", self.log());
        self.slot_is_not_ahead().await;
        let lake = self.read();
        lake.assert_exactly_once();
        for table in lake.streamed() {
            let except = if tables.contains(&table.as_str()) { columns } else { &[] };
            lake.assert_equals_source(&self.client, &table, except).await;
        }
    }

    /// The slot first, the watermark second: it only grows.
    pub(crate) async fn slot_is_not_ahead(&self) {
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
        let confirmed = lsn(self.client.query_one(sql, &[&self.slot]).await.unwrap().get(0));
        assert!(confirmed <= self.through(), "the slot was acknowledged beyond the watermark");
    }

    /// The lake as it is now, read apart.
    pub(crate) fn read(&self) -> Lake {
        Lake::read(&self.lake()).expect("there is a commit")
    }
}

async fn open(server: &Server, database: &str) -> Client {
    let client = server.connect_to(database, "postgres").await;
    client.batch_execute("SET search_path = public").await.unwrap();
    client
}

pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// It has not ended.
    pub(crate) fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// It has stopped itself at a failpoint (state T of Linux's /proc).
    pub(crate) fn halted(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and not yet reaped.
        unsafe { libc::kill(self.0.id() as i32, signal) };
    }

    pub(crate) fn ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Whether it has stopped itself (failpoint `…=stop`).
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|behind| behind.trim_start().starts_with('T'))
    }

    pub(crate) fn wait(mut self) -> Option<i32> {
        let limit = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < limit, "the process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn stop(self) {
        self.signal(libc::SIGTERM);
        assert_eq!(self.wait(), Some(0), "SIGTERM ends with 0");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
