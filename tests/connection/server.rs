//! A private PostgreSQL server with TLS from a self-made CA, on a loopback port of its own.

use crate::programs::bin_dir;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The server refuses root, so it runs as nobody then.
const NOBODY: u32 = 65534;

pub(crate) struct Server {
    root: tempfile::TempDir,
    postgres: Option<Child>,
    pub(crate) port: u16,
}

impl Server {
    /// A running server: `hba` are the lines of pg_hba.conf, `settings` those added to postgresql.conf. The role
    /// `postgres` is trusted on the Unix socket.
    pub(crate) fn start(hba: &str, settings: &str) -> Self {
        let root = tempfile::Builder::new().prefix("huella-pg").tempdir().unwrap();
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let home = root.path().join("pg");
        std::fs::create_dir(&home).unwrap();
        make_certificates(root.path());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        own(&home);
        let mut server = Self { root, postgres: None, port };
        let mut initdb = server.program("initdb");
        run(initdb.arg("-D").arg(server.data()).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]));
        let home = server.home();
        let conf = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{0}'\nwal_level = logical\nfsync = off\nssl = on\n\
             ssl_cert_file = '{0}/server.crt'\nssl_key_file = '{0}/server.key'\nlog_min_messages = warning\n{settings}\n",
            home.display()
        );
        std::fs::write(server.data().join("postgresql.auto.conf"), conf).unwrap();
        std::fs::write(server.data().join("pg_hba.conf"), format!("local all postgres trust\n{hba}\n")).unwrap();
        server.launch();
        server
    }

    fn launch(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.root.path().join("log")).unwrap();
        let mut postgres = self.program("postgres");
        postgres.arg("-D").arg(self.data()).stdout(Stdio::null()).stderr(log);
        self.postgres = Some(postgres.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        let pid_file = self.data().join("postmaster.pid");
        while !std::fs::read_to_string(&pid_file).is_ok_and(|text| text.lines().nth(7).is_some_and(|s| s.trim() == "ready")) {
            assert!(Instant::now() < deadline, "the server did not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the server at once, without goodbye to its clients (as a crash does).
    pub(crate) fn kill(&mut self) {
        if let Some(mut postgres) = self.postgres.take() {
            // SAFETY: a signal to a child of ours that has not been waited for.
            unsafe { libc::kill(postgres.id() as libc::pid_t, libc::SIGQUIT) };
            postgres.wait().unwrap();
        }
    }

    /// The directory of the certificates, the socket and the data.
    pub(crate) fn home(&self) -> PathBuf {
        self.root.path().join("pg")
    }

    fn data(&self) -> PathBuf {
        self.home().join("data")
    }

    /// The certificate of the CA that signed the server's.
    pub(crate) fn ca(&self) -> PathBuf {
        self.root.path().join("ca.crt")
    }

    /// A CA that signed nothing.
    pub(crate) fn other_ca(&self) -> PathBuf {
        self.root.path().join("other.crt")
    }

    /// A URL for the Unix socket, as superuser.
    pub(crate) fn socket_url(&self) -> String {
        format!("postgresql://postgres@/postgres?host={}&port={}", self.home().display(), self.port)
    }

    /// A URL for TCP; `login` is `user` or `user:password`, `query` the parameters.
    pub(crate) fn url(&self, login: &str, query: &str) -> String {
        format!("postgresql://{login}@localhost:{}/postgres?hostaddr=127.0.0.1&{query}", self.port)
    }

    /// Gives the server a certificate of its own making that ends in so many days; its file.
    pub(crate) fn renew(&self, days: i64) -> PathBuf {
        let (home, file) = (self.home(), self.home().join("server.crt"));
        let date = |days: i64| {
            let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 + days * 86_400;
            chrono::DateTime::from_timestamp(time, 0).unwrap().format("%Y%m%d%H%M%SZ").to_string()
        };
        std::fs::write(
            home.join("renew.conf"),
            "[req]\ndistinguished_name = n\n[n]\n[ca]\ndefault_ca = c\n[c]\ndatabase = index\nserial = serial\nnew_certs_dir = .\n\
             default_md = sha256\npolicy = p\nx509_extensions = e\nunique_subject = no\n[p]\ncommonName = supplied\n\
             [e]\nsubjectAltName = DNS:localhost\n",
        )
        .unwrap();
        std::fs::write(home.join("index"), "").unwrap();
        std::fs::write(home.join("serial"), "01\n").unwrap();
        let openssl = |args: &[&str]| run(Command::new("openssl").current_dir(&home).args(args));
        openssl(&["req", "-new", "-key", "server.key", "-subj", "/CN=localhost", "-out", "renew.csr", "-config", "renew.conf"]);
        let (start, end) = (date(-9), date(days));
        let sign =
            ["ca", "-batch", "-config", "renew.conf", "-selfsign", "-keyfile", "server.key", "-in", "renew.csr", "-out", "server.crt"];
        openssl(&[&sign[..], &["-notext", "-startdate", &start, "-enddate", &end]].concat());
        own(&home);
        // SAFETY: a signal to a child of ours that has not been waited for.
        unsafe { libc::kill(self.postgres.as_ref().unwrap().id() as libc::pid_t, libc::SIGHUP) };
        let (port, pem) = (self.port, std::fs::read_to_string(&file).unwrap());
        let shown = || {
            let mut shown = Command::new("openssl");
            shown.args(["s_client", "-starttls", "postgres", "-connect", &format!("127.0.0.1:{port}")]).stdin(Stdio::null());
            String::from_utf8_lossy(&shown.output().unwrap().stdout).into_owned()
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !shown().contains(pem.trim()) {
            assert!(Instant::now() < deadline, "the server does not show its new certificate: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        file
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.root.path().join("log")).unwrap_or_default()
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(bin_dir().expect("PostgreSQL's programs, or HUELLA_PG_BIN").join(name));
        command.current_dir(self.home()).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid cannot fail and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

fn own(dir: &Path) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    let entries: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    for path in entries.iter().map(PathBuf::as_path).chain([dir]) {
        if is_root() {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
}

fn make_certificates(root: &Path) {
    let openssl = |args: &str| {
        let mut command = Command::new("openssl");
        run(command.current_dir(root).args(args.split(' ')));
    };
    for (name, subject) in [("ca", "/CN=huella-test-ca"), ("other", "/CN=huella-other-ca")] {
        openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -keyout {name}.key -out {name}.crt -subj {subject} \
             -addext basicConstraints=critical,CA:TRUE"
        ));
    }
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout pg/server.key -out server.csr -subj /CN=localhost \
             -addext subjectAltName=DNS:localhost,IP:127.0.0.1",
    );
    // SHA-384, so that the channel binding's hash cannot be right by its default.
    openssl("x509 -req -sha384 -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -copy_extensions copy -out pg/server.crt");
    std::fs::set_permissions(root.join("pg/server.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
