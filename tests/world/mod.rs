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
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) client: Client,
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(&[]).await
    }

    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        let mut all = vec![("wal_level", "logical"), ("wal_sender_timeout", "3s")];
        all.extend_from_slice(settings);
        let server = Server::start(&all).unwrap();
        let client = server.connect().await;
        client.batch_execute("SET search_path = public").await.unwrap();
        Self { server, client, dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    pub(crate) fn lake(&self) -> PathBuf {
        self.dir.path().join("lake")
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
            .env("HUELLA_SOURCE_URL", format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.server.port))
            .env("HUELLA_LAKE_URL", self.lake())
            .env("HUELLA_HTTP_LISTEN", "")
            .env("HUELLA_BATCH_MAX_AGE", "150ms")
            .env("HUELLA_BATCH_HEARTBEAT", "1s");
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

    /// Both oracles.
    pub(crate) async fn true_in_the_lake(&self) {
        let (code, out) = self.run(&["verify"]);
        assert_eq!(code, 0, "{out}\n{}", self.log());
        let row =
            self.client.query_one("SELECT confirmed_flush_lsn::text FROM pg_catalog.pg_replication_slots WHERE slot_name = 'huella'", &[]);
        let confirmed = lsn(row.await.unwrap().get(0));
        let through = self.through();
        assert!(confirmed <= through, "the slot was acknowledged beyond the watermark");
        let lake = self.read();
        lake.assert_exactly_once();
        for table in lake.tables() {
            lake.assert_equals_source(&self.client, &table, &[]).await;
        }
    }

    /// The lake as it is now, read apart.
    pub(crate) fn read(&self) -> Lake {
        Lake::read(&self.lake()).expect("there is a commit")
    }
}

pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and not yet reaped.
        unsafe { libc::kill(self.0.id() as i32, signal) };
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
