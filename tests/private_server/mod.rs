//! A PostgreSQL server of the test's own: made in a temporary directory, loopback only, ended with the value.

mod programs;

use programs::bin_dir;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

pub(crate) struct Server {
    process: Child,
    pub(crate) port: u16,
    _dir: tempfile::TempDir,
}

/// The server's programs refuse root.
fn command(program: &Path) -> Command {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=QUIT"]).arg(program);
    command
}

impl Server {
    /// Starts a server with these settings.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Option<Self> {
        let bin = bin_dir().expect("no PostgreSQL server programs: run tests/setup.sh (make test does), or set HUELLA_PG_BIN");
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), nobody(), None).unwrap();
        let data = dir.path().join("data");
        let quiet = |command: &mut Command| assert!(command.stdout(Stdio::null()).status().unwrap().success());
        quiet(command(&bin.join("initdb")).args(["-N", "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "-D"]).arg(&data));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut conf = std::fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).unwrap();
        writeln!(conf, "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off").unwrap();
        for (key, value) in settings {
            writeln!(conf, "{key} = '{value}'").unwrap();
        }
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = command(&bin.join("postgres")).arg("-D").arg(&data).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Some(Self { process, port, _dir: dir })
    }

    /// A session as `postgres`, once the server answers.
    pub(crate) async fn connect(&self) -> Client {
        self.connect_as("postgres").await
    }

    /// A session as `user`, with the settings that the program pins.
    pub(crate) async fn connect_as(&self, user: &str) -> Client {
        let text = format!("host=127.0.0.1 port={} user={user} dbname=postgres", self.port);
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            match tokio_postgres::connect(&text, NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    client.batch_execute("SET search_path = ''; SET row_security = off").await.unwrap();
                    return client;
                }
                Err(error) if Instant::now() > limit => panic!("the server does not answer: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

fn nobody() -> Option<u32> {
    // SAFETY: geteuid has no preconditions; getpwnam's answer is read at once.
    unsafe {
        if libc::geteuid() != 0 {
            return None;
        }
        let entry = libc::getpwnam(c"nobody".as_ptr());
        assert!(!entry.is_null(), "no user nobody");
        Some((*entry).pw_uid)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Immediate shutdown (SIGQUIT); nothing of it is kept. setpriv has become the server: the pid is the same.
        // SAFETY: the child is ours and not yet reaped.
        unsafe { libc::kill(self.process.id() as i32, libc::SIGQUIT) };
        let _ = self.process.wait();
    }
}
