//! Why a session could not be opened, each reason with its own mend.
//!
//! Owns: sorting a failed connection by its SQLSTATE, its causes and its text; knowing poolers. Does not own: connecting.
//! Invariant: what cannot be sorted is shown as it was said.

use super::Finding;
use crate::error::Error;
use crate::postgres::{ConnectOptions, SslMode};
use std::io;

/// Which session was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// SQL.
    Sql,
    /// `replication=database`, with IDENTIFY_SYSTEM as its first command.
    Replication,
}

/// Why it was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The host's name has no address.
    Unresolved,
    /// Nobody listens there.
    Refused,
    /// No way to the address.
    NoRoute,
    /// No answer in time.
    TimedOut,
    /// The server has no TLS.
    NoTls,
    /// The server's certificate is not accepted.
    Certificate,
    /// The password is wrong or missing.
    Password,
    /// The server asks for the password in a way that gives it away, and does not prove who it is.
    Unproven,
    /// No such role, or it may not log in.
    NoRole,
    /// `pg_hba.conf` has no line for it.
    NoHbaLine,
    /// No such database.
    NoDatabase,
    /// The role may not replicate.
    NoReplicationRight,
    /// No connection is left.
    Full,
    /// The server is starting, or is being shut down.
    NotReady,
    /// A connection pooler answered.
    Pooler,
    /// Something else.
    Other,
}

impl Cause {
    /// Whether the host was not reached at all: another session would fare the same.
    pub(super) fn is_of_the_network(self) -> bool {
        matches!(self, Cause::Unresolved | Cause::Refused | Cause::NoRoute | Cause::TimedOut)
    }

    /// Its finding's code.
    fn code(self) -> &'static str {
        match self {
            Cause::Unresolved => "connection-unresolved",
            Cause::Refused => "connection-refused",
            Cause::NoRoute => "connection-no-route",
            Cause::TimedOut => "connection-timeout",
            Cause::NoTls => "connection-no-tls",
            Cause::Certificate => "connection-certificate",
            Cause::Password => "connection-password",
            Cause::Unproven => "connection-unproven",
            Cause::NoRole => "connection-role",
            Cause::NoHbaLine => "connection-hba",
            Cause::NoDatabase => "connection-database",
            Cause::NoReplicationRight => "role-replication",
            Cause::Full => "connection-full",
            Cause::NotReady => "connection-not-ready",
            Cause::Pooler => "connection-pooler",
            Cause::Other => "connection",
        }
    }
}

/// A session that could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectFailure {
    /// Which one.
    pub session: Session,
    /// Host, as configured.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Why.
    pub cause: Cause,
    /// What was said, all causes in one line.
    pub text: String,
}

impl ConnectFailure {
    /// Sorts a failed attempt. `sqlstate` is the server's, if it was the server that refused.
    pub fn new(session: Session, host: &str, port: u16, error: &Error, sqlstate: Option<&str>) -> Self {
        let text = error.full();
        let cause = cause(session, &text.to_ascii_lowercase(), io_kind(error), sqlstate);
        Self { session, host: host.to_owned(), port, cause, text }
    }
}

/// What a pooler says and a server does not: pgbouncer, Supavisor.
const POOLER_SAYS: [&str; 6] =
    ["unsupported startup parameter", "tenant or user not found", "tenant/user", "pgbouncer", "supavisor", "max clients reached"];

fn cause(session: Session, text: &str, io: Option<io::ErrorKind>, sqlstate: Option<&str>) -> Cause {
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&POOLER_SAYS) {
        return Cause::Pooler;
    }
    match sqlstate {
        Some("28P01") => Cause::Password,
        // The server's own words: ours, around them, name the file for every 28000.
        Some("28000") if says(&["no pg_hba.conf entry", "pg_hba.conf rejects"]) => Cause::NoHbaLine,
        Some("28000") => Cause::NoRole,
        Some("3D000") => Cause::NoDatabase,
        Some("42501") if session == Session::Replication => Cause::NoReplicationRight,
        // A pooler that overlooks the request for a replication session hands IDENTIFY_SYSTEM to a SQL session.
        Some("42601") if session == Session::Replication => Cause::Pooler,
        Some("53300") => Cause::Full,
        Some("57P03" | "57P01" | "57P02") => Cause::NotReady,
        Some(_) => Cause::Other,
        None => unanswered(text, io, says),
    }
}

/// The server did not refuse; the way to it did, or our own checks.
fn unanswered(text: &str, io: Option<io::ErrorKind>, says: impl Fn(&[&str]) -> bool) -> Cause {
    if says(&["cannot resolve", "failed to lookup address", "name or service not known"]) {
        return Cause::Unresolved;
    }
    match io {
        Some(io::ErrorKind::ConnectionRefused) => return Cause::Refused,
        Some(io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => return Cause::NoRoute,
        Some(io::ErrorKind::TimedOut) => return Cause::TimedOut,
        _ => {}
    }
    if says(&["does not prove who it is"]) {
        Cause::Unproven
    } else if says(&["certificate"]) {
        Cause::Certificate
    } else if says(&["has no tls", "does not support tls", "does not support ssl"]) {
        Cause::NoTls
    } else if says(&["password"]) {
        Cause::Password
    } else if says(&["connection refused"]) {
        Cause::Refused
    } else if says(&["no connection within", "timed out", "timeout"]) {
        Cause::TimedOut
    } else if text.contains("unreachable") {
        Cause::NoRoute
    } else {
        Cause::Other
    }
}

fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    let mut cause = std::error::Error::source(error);
    while let Some(one) = cause {
        if let Some(io) = one.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        cause = one.source();
    }
    None
}

/// Whether this is the address of a pooler, by name.
pub(super) fn is_pooler(host: &str) -> bool {
    host.to_ascii_lowercase().ends_with(".pooler.supabase.com")
}

/// Port of Supabase's transaction pooler.
const POOLER_PORT: u16 = 6543;

impl From<&ConnectFailure> for Finding {
    fn from(failure: &ConnectFailure) -> Self {
        let ConnectFailure { session, host, port, cause, text } = failure;
        let what = match session {
            Session::Sql => "a SQL session",
            Session::Replication => "a replication session",
        };
        let pooler = is_pooler(host) || *cause == Cause::Pooler || (*port == POOLER_PORT && *session == Session::Replication);
        let (means, mend) = match cause {
            _ if pooler => ("a connection pooler is there, and none can carry replication", POOLER_MEND),
            Cause::Unresolved => ("the host's name has no address", "check the host in source.url, and this machine's DNS"),
            Cause::Refused => (
                "connection refused, no server at this host and port",
                "check host and port in source.url, and that the server runs and listens on that address",
            ),
            Cause::NoRoute => (
                "there is no way to that address",
                "Supabase's direct host has only an IPv6 address: give this machine IPv6, or buy the IPv4 add-on",
            ),
            Cause::TimedOut => (
                "no answer",
                "check host and port, firewalls, the allow-list of addresses, and IPv6 (Supabase's direct host has nothing else; a paused project has to be resumed)",
            ),
            Cause::NoTls => {
                ("the server has no TLS", "turn ssl on at the server, or, inside a trusted network, put sslmode=disable into source.url")
            }
            Cause::Certificate => (
                "the server's certificate is not accepted",
                "set source.tls_ca to the server's root certificate (Supabase: the dashboard's prod-ca-2021.crt), and use the host name that the certificate has",
            ),
            Cause::Password => (
                "the password is wrong or missing",
                "check the password in source.url or PGPASSWORD; special characters must be percent-encoded",
            ),
            Cause::Unproven => (
                "it asks for the password on a connection that does not prove who it is, and was not given it",
                "put sslmode=verify-full into source.url and set source.tls_ca, or let the server ask for scram-sha-256",
            ),
            Cause::NoRole => ("the role does not exist or may not log in", "check the user in source.url; the role needs LOGIN"),
            Cause::NoHbaLine => (
                "the server's pg_hba.conf does not let this role in from here",
                "add a line to pg_hba.conf (for replication too) and reload, or use TLS if only hostssl lines are there",
            ),
            Cause::NoDatabase => ("there is no such database", "check the database in source.url"),
            Cause::NoReplicationRight => ("the role may not replicate", "as a superuser: ALTER ROLE … REPLICATION"),
            Cause::Full => ("no connection is left", "close some, or raise max_connections and max_wal_senders"),
            Cause::NotReady => ("the server is starting or stopping", "try again in a moment"),
            Cause::Pooler | Cause::Other => ("it was refused", "see what was said"),
        };
        let code = if pooler { Cause::Pooler.code() } else { cause.code() };
        Finding::problem(code, format!("connection {host}:{port}"), format!("{what} cannot be opened: {means} ({text})")).mend(mend)
    }
}

const POOLER_MEND: &str = "use the direct host and port, on Supabase db.<ref>.supabase.co:5432 (IPv6 unless the IPv4 add-on is bought)";

/// A pooler's address whose SQL session works: what is wrong is known before replication is tried.
pub fn address(host: &str, port: u16) -> Option<Finding> {
    let text = "this is a connection pooler, and none can carry replication";
    is_pooler(host).then(|| Finding::problem(Cause::Pooler.code(), format!("connection {host}:{port}"), text).mend(POOLER_MEND))
}

/// What the sslmode is worth towards a server that is not of this machine.
pub(super) fn encryption(options: &ConnectOptions) -> Finding {
    let (code, subject) = ("connection-tls", format!("connection {}:{}", options.host(), options.port()));
    let mend = "put sslmode=verify-full into source.url, and set source.tls_ca if the server's certificate is of a CA of its own";
    let weak = |text: &str| Finding::warning(code, subject.clone(), text).mend(mend);
    match options.sslmode() {
        SslMode::VerifyFull => Finding::ok(code, subject, "encrypted, and the server proves its name (sslmode=verify-full)"),
        _ if options.is_local() => Finding::ok(code, subject, "the server is of this machine"),
        SslMode::VerifyCa => weak("sslmode=verify-ca: any server whose certificate the same CA signed can stand in for it"),
        SslMode::Require => weak("sslmode=require: encrypted, but anybody on the way can stand in for the server"),
        SslMode::Prefer => weak("sslmode=prefer: anybody on the way can turn encryption off and stand in for the server"),
        SslMode::Disable => weak("sslmode=disable: anybody on the way reads every row, and can stand in for the server"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    #[test]
    fn each_sslmode_has_its_finding() {
        let of = |url: &str, ca: Option<&std::path::Path>| encryption(&ConnectOptions::parse(url, ca).expect(url));
        let far = |mode: &str| of(&format!("postgresql://u@db.example{mode}"), Some("ca.crt".as_ref())).severity;
        assert_eq!(far(""), Severity::Ok);
        for mode in ["disable", "prefer", "require", "verify-ca"] {
            assert_eq!(far(&format!("?sslmode={mode}")), Severity::Warning, "{mode}");
        }
        for local in ["postgresql://u@localhost", "postgresql://u@127.0.0.1?sslmode=disable", "postgresql:///d?host=/run/pg"] {
            assert_eq!(of(local, None).severity, Severity::Ok, "{local}");
        }
    }

    fn failure(session: Session, error: Error, sqlstate: Option<&str>) -> ConnectFailure {
        ConnectFailure::new(session, "db.example.org", 5432, &error, sqlstate)
    }

    #[test]
    fn each_failure_has_its_own_cause_and_mend() {
        let io = |kind: io::ErrorKind| Error::retry("cannot reach the server").with_source(io::Error::from(kind));
        let said = |text: &str| Error::retry("logging in").with_source(io::Error::other(text.to_owned()));
        let cases = [
            (said("cannot resolve the host name \"x\""), None, Cause::Unresolved),
            (io(io::ErrorKind::ConnectionRefused), None, Cause::Refused),
            (io(io::ErrorKind::NetworkUnreachable), None, Cause::NoRoute),
            (io(io::ErrorKind::TimedOut), None, Cause::TimedOut),
            (Error::retry("no connection within 10 s (connect_timeout)"), None, Cause::TimedOut),
            (Error::source_refused("the server has no TLS (ssl = off), which the sslmode demands"), None, Cause::NoTls),
            (said("invalid peer certificate: UnknownIssuer"), None, Cause::Certificate),
            (said("password authentication failed for user \"x\""), Some("28P01"), Cause::Password),
            (Error::config("the server asks for a password and none is given"), None, Cause::Password),
            (Error::source_refused("it asks for password on a connection that does not prove who it is"), None, Cause::Unproven),
            (said("role \"x\" does not exist"), Some("28000"), Cause::NoRole),
            (said("no pg_hba.conf entry for host"), Some("28000"), Cause::NoHbaLine),
            (said("database \"x\" does not exist"), Some("3D000"), Cause::NoDatabase),
            (said("sorry, too many clients already"), Some("53300"), Cause::Full),
            (said("the database system is starting up"), Some("57P03"), Cause::NotReady),
            (said("whatever"), Some("XX000"), Cause::Other),
            (said("whatever"), None, Cause::Other),
        ];
        let mut texts = std::collections::BTreeSet::new();
        for (error, sqlstate, cause) in cases {
            let failure = failure(Session::Sql, error, sqlstate);
            assert_eq!(failure.cause, cause, "{}", failure.text);
            let finding = Finding::from(&failure);
            assert!(finding.text.contains(&failure.text) && finding.severity == crate::check::Severity::Problem);
            texts.insert(finding.mend.expect("every failure has a mend"));
        }
        assert_eq!(texts.len(), 14, "{texts:#?}");
    }

    #[test]
    fn a_role_without_replication_is_told_from_a_pooler() {
        let refused = Error::source_refused("must be superuser or replication role to start walsender");
        assert_eq!(failure(Session::Replication, refused, Some("42501")).cause, Cause::NoReplicationRight);
        for (text, sqlstate) in [
            ("unsupported startup parameter: replication", Some("08P01")),
            ("syntax error at or near \"IDENTIFY_SYSTEM\"", Some("42601")),
            ("Tenant or user not found", Some("XX000")),
        ] {
            let failure = failure(Session::Replication, Error::source_refused(text), sqlstate);
            assert_eq!(failure.cause, Cause::Pooler, "{text}");
            assert!(Finding::from(&failure).mend.is_some_and(|mend| mend.contains("direct host")));
        }
    }

    #[test]
    fn poolers_are_known_by_name_and_by_port() {
        assert!(address("aws-0-eu.Pooler.Supabase.com", 5432).is_some());
        assert_eq!(address("db.abc.supabase.co", 6543), None);
        let error = Error::retry("no connection within 10 s");
        let failure = ConnectFailure::new(Session::Replication, "db.abc.supabase.co", 6543, &error, None);
        assert!(Finding::from(&failure).text.contains("pooler"));
    }
}
