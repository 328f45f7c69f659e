//! Connection options: what a `postgresql://` URL says, as libpq would read it.
//!
//! Owns: the URL's grammar, the parameters it may carry, and where the password comes from.
//! Does not own: connecting (`transport`), the password file's format (`passfile`).
//! Invariants: an unknown parameter is an error that names it; neither `Debug` nor an error text has the password.

use super::passfile;
use crate::error::{Error, Result};
use percent_encoding::percent_decode_str;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bound for one whole connection attempt: all resolved addresses, TLS and authentication.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound for the first attempt of a process that may run on Cloud Run, whose first connection through a VPC may take a minute or more.
pub const FIRST_CONNECTION: Duration = Duration::from_secs(75);
/// Longest `connect_timeout` that is taken at its word.
const CONNECT_TIMEOUT_MAX_SECS: u64 = 3600;
const DEFAULT_PORT: u16 = 5432;
const APPLICATION_NAME: &str = "huella";

const MEND: &str = "special characters in user and password must be percent-encoded";

/// The parameters that a URL may carry, for the error that names an unknown one.
const PARAMETERS: &str = "application_name, channel_binding, connect_timeout, dbname, host, hostaddr, options, passfile, password, port, \
     require_auth, sslmode, sslrootcert, user";

/// How far TLS is insisted upon, with libpq's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server has it, unverified; without it otherwise.
    Prefer,
    /// TLS, unverified unless a CA is given (then as `verify-ca`).
    Require,
    /// TLS, the certificate is signed by the given CA.
    VerifyCa,
    /// TLS, the certificate is signed by a trusted CA and names the host.
    VerifyFull,
}

impl SslMode {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "disable" => SslMode::Disable,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => return Err(bad("sslmode", text, "one of disable, prefer, require, verify-ca, verify-full")),
        })
    }
}

/// How a server logs somebody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// It asks for nothing.
    Trust,
    /// The password in clear text.
    Password,
    /// Its md5 hash, which is as good as the password.
    Md5,
    /// SCRAM-SHA-256: the password stays here.
    Scram,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Trust => "none",
            Method::Password => "password",
            Method::Md5 => "md5",
            Method::Scram => "scram-sha-256",
        })
    }
}

/// `require_auth`, with libpq's grammar: methods to accept, or each with a `!`, to refuse. Without it whatever keeps the password from who is
/// not proven to be the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RequireAuth {
    listed: Vec<Method>,
    refused: bool,
}

impl RequireAuth {
    fn parse(text: &str) -> Result<Self> {
        let rule = "a list of none, password, md5, scram-sha-256, or of the same with a ! before each";
        let refused = text.starts_with('!');
        let mut listed = Vec::new();
        for name in text.split(',') {
            let name = if refused { name.strip_prefix('!') } else { Some(name) };
            listed.push(match name {
                Some("none") => Method::Trust,
                Some("password") => Method::Password,
                Some("md5") => Method::Md5,
                Some("scram-sha-256") => Method::Scram,
                _ => return Err(bad("require_auth", text, rule)),
            });
        }
        Ok(Self { listed, refused })
    }

    /// Nothing was asked for by name.
    pub(super) fn is_default(&self) -> bool {
        self.listed.is_empty()
    }

    /// Whether a server may log us in so; `verified`: it is proven to be the one that is meant.
    pub(super) fn allows(&self, method: Method, verified: bool) -> bool {
        let keeps_password = matches!(method, Method::Trust | Method::Scram);
        let listed = self.listed.contains(&method);
        if self.refused || self.is_default() { !listed && (keeps_password || verified) } else { listed }
    }
}

/// Whether the SCRAM exchange is bound to the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// A name or an address.
    Tcp(String),
    /// The directory of the server's Unix socket.
    Unix(PathBuf),
}

impl Host {
    fn is_local(&self, hostaddr: Option<IpAddr>) -> bool {
        match self {
            Host::Unix(_) => true,
            Host::Tcp(name) => match hostaddr.or_else(|| name.parse().ok()) {
                Some(address) => address.to_canonical().is_loopback(),
                None => name.eq_ignore_ascii_case("localhost"),
            },
        }
    }
}

/// Everything needed to open a connection, parsed and checked.
#[derive(Clone)]
pub struct ConnectOptions {
    pub(super) host: Host,
    host_text: String,
    pub(super) hostaddr: Option<IpAddr>,
    port: u16,
    user: String,
    database: String,
    pub(super) password: Option<String>,
    sslmode: SslMode,
    pub(super) ca_files: Vec<PathBuf>,
    pub(super) system_roots: bool,
    pub(super) channel_binding: ChannelBinding,
    pub(super) require_auth: RequireAuth,
    pub(super) application_name: String,
    pub(super) options: Option<String>,
    pub(super) connect_timeout: Duration,
    /// The URL says it.
    connect_timeout_given: bool,
}

impl ConnectOptions {
    /// Reads a `postgresql://` (or `postgres://`) URL.
    ///
    /// `tls_ca` is an extra root certificate file (PEM). The password is the URL's, else `PGPASSWORD`, else
    /// that of the password file (`passfile=`, `PGPASSFILE`, `~/.pgpass`). The user is the URL's, else
    /// `PGUSER`, else `postgres`. Errors are of kind `Config` and never repeat the URL.
    pub fn parse(url: &str, tls_ca: Option<&Path>) -> Result<Self> {
        Self::parse_in(url, tls_ca, &|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// As [`parse`](Self::parse), with the environment as a function.
    fn parse_in(url: &str, tls_ca: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let given = Given::read(url)?;
        let host_text = given.host.unwrap_or_else(|| "localhost".to_owned());
        if host_text.contains(',') {
            return Err(Error::config("the source URL names several hosts; give the one that is the primary"));
        }
        let host = match host_text.starts_with('/') {
            true => Host::Unix(PathBuf::from(&host_text)),
            false => Host::Tcp(host_text.clone()),
        };
        let port = given.port.unwrap_or(DEFAULT_PORT);
        let user = given.user.or_else(|| env("PGUSER")).unwrap_or_else(|| "postgres".to_owned());
        let database = given.database.unwrap_or_else(|| user.clone());
        let password = match given.password.or_else(|| env("PGPASSWORD")) {
            Some(password) => Some(password),
            None => {
                let file = given.passfile.or_else(|| env("PGPASSFILE").map(PathBuf::from));
                let file = file.or_else(|| env("HOME").map(|home| Path::new(&home).join(".pgpass")));
                let looked_up = passfile::Key { host: &host_text, port, database: &database, user: &user };
                file.and_then(|file| passfile::look_up(&file, &looked_up))
            }
        };
        let default = if host.is_local(given.hostaddr) { SslMode::Prefer } else { SslMode::VerifyFull };
        let roots = Roots::choose(given.sslmode, default, given.sslrootcert, tls_ca)?;
        Ok(Self {
            host,
            host_text,
            hostaddr: given.hostaddr,
            port,
            user,
            database,
            password,
            sslmode: roots.sslmode,
            ca_files: roots.ca_files,
            system_roots: roots.system,
            channel_binding: given.channel_binding.unwrap_or(ChannelBinding::Prefer),
            require_auth: given.require_auth,
            application_name: given.application_name.unwrap_or_else(|| APPLICATION_NAME.to_owned()),
            options: given.options,
            connect_timeout: given.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            connect_timeout_given: given.connect_timeout.is_some(),
        })
    }

    /// Gives each connection attempt so long, unless the URL has a `connect_timeout`.
    pub fn patient(mut self, connect_timeout: Duration) -> Self {
        if !self.connect_timeout_given {
            self.connect_timeout = connect_timeout;
        }
        self
    }

    /// Gives each connection attempt so long, whatever the URL says.
    pub fn within(mut self, connect_timeout: Duration) -> Self {
        (self.connect_timeout, self.connect_timeout_given) = (connect_timeout, true);
        self
    }

    /// The host as the URL names it (a name, an address, or a socket directory).
    pub fn host(&self) -> &str {
        &self.host_text
    }

    /// The port (part of the socket's name for a Unix socket).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The role to log in as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database to connect to.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// How far TLS is insisted upon (`require` with a CA has become `verify-ca`).
    pub fn sslmode(&self) -> SslMode {
        self.sslmode
    }

    /// `user@host:port/db`, for messages; no password.
    pub fn describe(&self) -> String {
        let (open, close) = if self.host_text.contains(':') { ("[", "]") } else { ("", "") };
        format!("{}@{open}{}{close}:{}/{}", self.user, self.host_text, self.port, self.database)
    }

    /// Whether the server is one of this machine: a Unix socket, a loopback address, `localhost`.
    pub fn is_local(&self) -> bool {
        self.host.is_local(self.hostaddr)
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("server", &self.describe())
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("sslmode", &self.sslmode)
            .finish_non_exhaustive()
    }
}

/// Which certificates are trusted, and the mode that follows.
struct Roots {
    sslmode: SslMode,
    ca_files: Vec<PathBuf>,
    system: bool,
}

impl Roots {
    /// `sslrootcert` replaces the system's roots, as in libpq; `tls_ca` adds to them. Without a look at the
    /// host's name the system's roots would let any certificate of any public CA pass, so they count for
    /// `verify-full` alone.
    ///
    /// Without `sslmode` a server of this machine may be without TLS; any other has to prove who it is.
    fn choose(sslmode: Option<SslMode>, default: SslMode, sslrootcert: Option<PathBuf>, tls_ca: Option<&Path>) -> Result<Self> {
        let named_system = sslrootcert.as_deref() == Some(Path::new("system"));
        let own = sslrootcert.filter(|_| !named_system);
        let only_own = own.is_some();
        let ca_files: Vec<PathBuf> = own.into_iter().chain(tls_ca.map(Path::to_path_buf)).collect();
        let asked = sslmode.unwrap_or(if named_system { SslMode::VerifyFull } else { default });
        let sslmode = match asked {
            SslMode::Require if !ca_files.is_empty() => SslMode::VerifyCa,
            other => other,
        };
        if named_system && sslmode != SslMode::VerifyFull {
            return Err(Error::config("sslrootcert=system needs sslmode=verify-full: any public CA's certificate would pass otherwise"));
        }
        if sslmode == SslMode::VerifyCa && ca_files.is_empty() {
            return Err(Error::config("sslmode=verify-ca needs a CA certificate: set source.tls_ca or sslrootcert=, or use verify-full"));
        }
        Ok(Self { sslmode, ca_files, system: sslmode == SslMode::VerifyFull && !only_own })
    }
}

/// What the URL says, before defaults.
#[derive(Default)]
struct Given {
    host: Option<String>,
    hostaddr: Option<IpAddr>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<String>,
    database: Option<String>,
    passfile: Option<PathBuf>,
    sslmode: Option<SslMode>,
    sslrootcert: Option<PathBuf>,
    channel_binding: Option<ChannelBinding>,
    require_auth: RequireAuth,
    application_name: Option<String>,
    options: Option<String>,
    connect_timeout: Option<Duration>,
}

impl Given {
    /// `scheme://[user[:password]@][host][:port][/database][?parameters]`, read by hand: general URL parsers
    /// refuse `user@/database?host=/socket/directory`, which libpq allows.
    fn read(text: &str) -> Result<Self> {
        let rest = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"));
        let rest = rest.ok_or_else(|| Error::config("the source URL must begin with postgresql://"))?;
        if rest.contains('#') {
            return Err(Error::config(format!("the source URL has a '#': write it as %23 ({MEND})")));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // Behind an unencoded '/' in the password the rest of it would be taken, and shown, as the database.
        if path.contains('@') {
            return Err(Error::config(format!("the source URL has an '@' behind the host: write it as %40 ({MEND})")));
        }
        let (login, server) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = match server.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
            Some((host, port)) => (host, port),
            None => server.split_at(server.find(':').unwrap_or(server.len())),
        };
        let mut given = Given {
            host: non_empty(decode("host", host)?),
            user: non_empty(decode("user", user)?),
            password: non_empty(decode("password", password)?),
            database: non_empty(decode("database", path)?),
            ..Given::default()
        };
        if given.host.as_deref().is_some_and(|host| host.contains(',')) {
            return Err(Error::config("the source URL names several hosts; give the one that is the primary"));
        }
        if !port.is_empty() && port != ":" {
            let number = port.strip_prefix(':').and_then(|port| port.parse().ok());
            // The text may be the beginning of a password, so it is not shown.
            given.port = Some(number.ok_or_else(|| Error::config(format!("the source URL's port is no port number ({MEND})")))?);
        }
        // Form decoding would turn '+' into a space, which libpq does not.
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            given.set(&decode("parameter", name)?, decode(name, value)?)?;
        }
        Ok(given)
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        match name {
            "host" => self.host = non_empty(value),
            "hostaddr" => self.hostaddr = Some(value.parse().map_err(|_| bad(name, &value, "an IP address"))?),
            "port" => self.port = Some(value.parse().map_err(|_| bad(name, &value, "a port number"))?),
            "user" => self.user = non_empty(value),
            "password" => self.password = non_empty(value),
            "dbname" => self.database = non_empty(value),
            "passfile" => self.passfile = Some(PathBuf::from(value)),
            "sslmode" => self.sslmode = Some(SslMode::parse(&value)?),
            "sslrootcert" => self.sslrootcert = non_empty(value).map(PathBuf::from),
            "channel_binding" => {
                self.channel_binding = Some(match value.as_str() {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => return Err(bad(name, &value, "one of disable, prefer, require")),
                });
            }
            "require_auth" => self.require_auth = RequireAuth::parse(&value)?,
            "application_name" => self.application_name = non_empty(value),
            "options" => self.options = non_empty(value),
            "connect_timeout" => {
                let seconds = value.parse().ok().filter(|s| (1..=CONNECT_TIMEOUT_MAX_SECS).contains(s));
                self.connect_timeout = Some(Duration::from_secs(seconds.ok_or_else(|| bad(name, &value, "1 to 3600 seconds"))?));
            }
            // What is no plain word may be the tail of a password with an unencoded '?'.
            _ if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
                return Err(Error::config(format!("the source URL cannot be read behind '?' ({MEND})")));
            }
            _ => return Err(Error::config(format!("the source URL has an unknown parameter {name:?}; known are {PARAMETERS}"))),
        }
        Ok(())
    }
}

fn bad(name: &str, value: &str, rule: &str) -> Error {
    Error::config(format!("the source URL's {name} is {value:?}, it must be {rule}"))
}

fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn decode(what: &str, text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| Error::config(format!("the source URL's {what} is not UTF-8 once percent-decoded")))?;
    // The start-up message ends every value with a zero byte.
    if decoded.contains('\0') {
        return Err(Error::config(format!("the source URL's {what} has a zero byte")));
    }
    Ok(decoded.into_owned())
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
