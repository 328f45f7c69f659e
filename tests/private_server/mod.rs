//! A PostgreSQL server of the test's own: made in a temporary directory, loopback only, ended with the value.

#![allow(dead_code)] // each test crate uses a part

mod programs;

pub(crate) use programs::bin_dir;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

pub(crate) struct Server {
    process: Mutex<Child>,
    pub(crate) port: u16,
    dir: tempfile::TempDir,
}

/// The server's programs refuse root.
pub(crate) fn command(program: &Path) -> Command {
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
        Some(Self { process: Mutex::new(spawn(dir.path())), port, dir })
    }

    /// Ends the server: SIGINT is a fast shutdown, SIGQUIT an immediate one, after which it recovers as from a crash.
    #[allow(dead_code)] // each test crate uses a part
    pub(crate) fn stop(&self, signal: i32) {
        let mut process = self.process.lock().unwrap();
        // SAFETY: the child is ours and not yet reaped.
        unsafe { libc::kill(process.id() as i32, signal) };
        let limit = Instant::now() + Duration::from_secs(60);
        while process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < limit, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the server that was stopped, on the same port.
    #[allow(dead_code)]
    pub(crate) fn begin_again(&self) {
        *self.process.lock().unwrap() = spawn(self.dir.path());
    }

    /// Copies the data directory of the stopped server aside.
    #[allow(dead_code)]
    pub(crate) fn back_up(&self) {
        let copied = Command::new("cp").arg("-a").arg(self.dir.path().join("data")).arg(self.dir.path().join("backup")).status();
        assert!(copied.unwrap().success());
    }

    /// Puts the copy in the place of the stopped server's data directory.
    #[allow(dead_code)]
    pub(crate) fn restore(&self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        std::fs::rename(self.dir.path().join("backup"), self.dir.path().join("data")).unwrap();
    }

    /// The stopped server is to begin again as a standby, which can be promoted to a new timeline.
    #[allow(dead_code)]
    pub(crate) fn become_standby(&self) {
        std::fs::write(self.dir.path().join("data/standby.signal"), "").unwrap();
    }

    /// A session as `postgres`, once the server answers.
    pub(crate) async fn connect(&self) -> Client {
        self.connect_as("postgres").await
    }

    /// A session as `user`, with the settings that the program pins.
    pub(crate) async fn connect_as(&self, user: &str) -> Client {
        self.connect_to("postgres", user).await
    }

    /// The same in another database.
    pub(crate) async fn connect_to(&self, database: &str, user: &str) -> Client {
        let text = format!("host=127.0.0.1 port={} user={user} dbname={database}", self.port);
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

fn spawn(dir: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
    let bin = bin_dir().expect("the cluster was made with it");
    command(&bin.join("postgres")).arg("-D").arg(dir.join("data")).stdout(Stdio::null()).stderr(log).spawn().unwrap()
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
        let process = self.process.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if process.try_wait().is_ok_and(|ended| ended.is_none()) {
            // SAFETY: the child is ours and not yet reaped.
            unsafe { libc::kill(process.id() as i32, libc::SIGQUIT) };
            let _ = process.wait();
        }
    }
}
