//! Errors of the server and of the way to it: typed, and sorted by what the caller must do.
//!
//! Owns: [`DbError`], the one table from SQLSTATE to [`Kind`], the same for I/O errors.
//! Does not own: retries. Invariant: no secret and no cell's value gets into a text; the message and detail of
//! SQLSTATE classes that can quote data are withheld (all but those listed), as is the detail everywhere else but where it names
//! sessions or settings.

use crate::error::{Error, Kind};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;
use std::{fmt, io};

/// An ErrorResponse or NoticeResponse of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbError {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, `NOTICE`…, never localised.
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    /// The primary message; empty for SQLSTATE classes whose messages quote data.
    pub message: String,
    /// The detail, where it can only name sessions, roles or settings.
    pub detail: Option<String>,
    /// What the server advises.
    pub hint: Option<String>,
}

impl DbError {
    /// Reads the fields of an ErrorResponse or NoticeResponse.
    pub(super) fn read(mut fields: ErrorFields<'_>) -> io::Result<Self> {
        let (mut plain, mut localised) = (None, None);
        let (mut code, mut message, mut detail, mut hint) = (None, None, None, None);
        while let Some(field) = fields.next()? {
            let value = || Some(String::from_utf8_lossy(field.value_bytes()).into_owned());
            match field.type_() {
                b'V' => plain = value(),
                b'S' => localised = value(),
                b'C' => code = value(),
                b'M' => message = value(),
                b'D' => detail = value(),
                b'H' => hint = value(),
                _ => {}
            }
        }
        // Whatever says none is no answer of PostgreSQL's: nothing can be decided by it.
        let is_code = |code: &String| code.len() == 5 && code.bytes().all(|b| b.is_ascii_alphanumeric());
        let code = code.filter(is_code).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an error without its SQLSTATE"))?;
        let severity = plain.or(localised).unwrap_or_else(|| "ERROR".to_owned());
        Ok(Self::screened(severity, code, message.unwrap_or_default(), detail, hint))
    }

    /// Drops what can quote data.
    fn screened(severity: String, code: String, message: String, detail: Option<String>, hint: Option<String>) -> Self {
        let quotes_data = quotes_data(&code);
        let harmless_detail = ["08", "28", "3D", "40P01", "42501", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class));
        Self {
            severity,
            message: if quotes_data { String::new() } else { message },
            detail: detail.filter(|_| harmless_detail),
            hint: hint.filter(|_| !quotes_data),
            code,
        }
    }

    fn from_tokio(error: &tokio_postgres::error::DbError) -> Self {
        let text = |t: Option<&str>| t.map(str::to_owned);
        Self::screened(
            error.severity().to_owned(),
            error.code().code().to_owned(),
            error.message().to_owned(),
            text(error.detail()),
            text(error.hint()),
        )
    }

    /// What the caller must do, by SQLSTATE; see [`kind_of`].
    pub fn kind(&self) -> Kind {
        kind_of(&self.code)
    }

    /// This error as the crate's, with the mend where one is known.
    pub(super) fn into_error(self, doing: impl fmt::Display) -> Error {
        let mend = mend_of(&self.code).map(|mend| format!(" ({mend})")).unwrap_or_default();
        Error::new(self.kind(), format!("{doing}: the server refused{mend}")).with_source(self)
    }
}

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.severity, self.code)?;
        f.write_str(if self.message.is_empty() { "(message withheld, it may quote data)" } else { &self.message })?;
        if let Some(detail) = &self.detail {
            write!(f, " [{detail}]")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, " [hint: {hint}]")?;
        }
        Ok(())
    }
}

impl std::error::Error for DbError {}

/// The one table from SQLSTATE to what the caller must do. The longest prefix decides; what is not listed is
/// `Source`: a command that the server refuses once it will refuse again.
const KINDS: &[(&str, Kind)] = &[
    ("08", Kind::Retry),    // connection exceptions
    ("25P03", Kind::Retry), // idle_in_transaction_session_timeout
    ("25P04", Kind::Retry), // transaction_timeout
    ("40", Kind::Retry),    // serialization failure, deadlock
    ("53", Kind::Retry),    // too many connections, out of memory, disk full, all slots in use
    ("55006", Kind::Retry), // the slot is held by another session: an expected state of a rollover
    ("55P03", Kind::Retry), // lock_timeout
    ("57", Kind::Retry),    // shutdown, crash, starting up, statement cancelled or timed out
    ("58030", Kind::Retry), // I/O error of the server
    ("XX000", Kind::Retry), // internal: mostly two commands that met ("tuple concurrently updated")
];

fn kind_of(code: &str) -> Kind {
    let found = KINDS.iter().filter(|(prefix, _)| code.starts_with(prefix)).max_by_key(|(prefix, _)| prefix.len());
    found.map_or(Kind::Source, |(_, kind)| *kind)
}

/// What the person can do about a refusal whose text does not say so itself.
fn mend_of(code: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" => "wrong password for this role: check the source URL, PGPASSWORD and the password file",
        "28000" => "the role does not exist, may not log in or replicate, or pg_hba.conf has no line for it",
        "3D000" => "no such database: check the source URL",
        "42501" => "the role lacks a right; `huella check` names it",
        "53300" => "no connection is left: raise max_connections or max_wal_senders, or wait",
        "53400" => "a limit is reached: drop an unused slot or raise max_replication_slots",
        "55006" => "another session holds it",
        _ => return None,
    })
}

/// The SQLSTATE of an error, wherever in its chain of causes the server's answer stands.
pub fn sqlstate(error: &Error) -> Option<&str> {
    let mut cause = std::error::Error::source(error);
    while let Some(one) = cause {
        if let Some(ours) = one.downcast_ref::<DbError>() {
            return Some(&ours.code);
        }
        if let Some(theirs) = one.downcast_ref::<tokio_postgres::error::DbError>() {
            return Some(theirs.code().code());
        }
        if let Some(code) = one.downcast_ref::<tokio_postgres::Error>().and_then(|theirs| theirs.code()) {
            return Some(code.code());
        }
        cause = one.source();
    }
    None
}

/// An error of a SQL session as a cause that may be printed: a server's answer without what can quote data. (tokio-postgres
/// prints message and detail as they came.)
pub fn screened(error: tokio_postgres::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error.as_db_error() {
        Some(db) => Box::new(DbError::from_tokio(db)),
        None => Box::new(error),
    }
}

/// SQLSTATE classes whose messages are the server's own words about sessions, statements, names and resources. All others can quote data: what
/// could not be converted, computed or stored (22, 23), what a function of the database says (P0, 00, 01), what another system says (HV).
const SPEAKABLE: [&str; 14] = ["08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX"];

/// Whether messages of this SQLSTATE's class can quote data.
pub(super) fn quotes_data(code: &str) -> bool {
    !SPEAKABLE.iter().any(|class| code.starts_with(class))
}

/// Turns an error of a SQL session into ours; `doing` says what was attempted.
///
/// The server's answer is sorted by the table above; a broken connection is `Retry`; what is left (a value of
/// an unexpected type, a failed password exchange) is `Source`.
pub fn from_sql(error: tokio_postgres::Error, doing: impl fmt::Display) -> Error {
    if let Some(db) = error.as_db_error() {
        return DbError::from_tokio(db).into_error(doing);
    }
    if error.is_closed() {
        return Error::retry(format!("{doing}: the server closed the connection")).with_source(error);
    }
    let broken = std::error::Error::source(&error).is_some_and(|cause| cause.is::<io::Error>());
    // A failed SCRAM exchange is an io::Error as well, and would fail the same way again.
    let authentication = error.to_string().starts_with("authentication");
    let kind = if broken && !authentication { Kind::Retry } else { Kind::Source };
    Error::new(kind, doing.to_string()).with_source(error)
}

/// Turns an I/O error of the connection into ours: passing trouble, but for rights on a socket file.
pub(super) fn from_io(error: io::Error, doing: impl fmt::Display) -> Error {
    let kind = if error.kind() == io::ErrorKind::PermissionDenied { Kind::Source } else { Kind::Retry };
    Error::new(kind, doing.to_string()).with_source(error)
}

/// The server sent something that the protocol does not allow here.
pub(super) fn protocol(what: impl fmt::Display) -> Error {
    Error::retry(format!("the server broke the protocol: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn db(code: &str) -> DbError {
        DbError::screened("ERROR".into(), code.into(), "the message".into(), Some("the detail".into()), Some("the hint".into()))
    }

    #[test]
    fn the_table_decides_the_kind_and_the_rest_is_refused() {
        for code in ["08006", "53300", "53400", "55006", "55P03", "57P01", "57P03", "57014", "40P01", "25P03", "58030", "XX000"] {
            assert_eq!(kind_of(code), Kind::Retry, "{code}");
        }
        for code in ["28P01", "28000", "3D000", "42501", "42704", "55000", "58P01", "XX001", "0A000", ""] {
            assert_eq!(kind_of(code), Kind::Source, "{code}");
        }
    }

    #[test]
    fn sqlstate_is_found_behind_contexts() {
        let error = db("55006").into_error("taking slot \"s\"").context("starting");
        assert_eq!(sqlstate(&error), Some("55006"));
        assert!(error.full().contains("the detail") && error.full().contains("the hint"), "{}", error.full());
        assert_eq!(sqlstate(&Error::retry("x").with_source(io::Error::other("y"))), None);
    }

    #[test]
    fn messages_that_quote_data_are_withheld() {
        let text = db("22P02").into_error("copying").full();
        assert!(!text.contains("the message") && !text.contains("the detail") && text.contains("22P02"), "{text}");
        for code in ["23505", "P0001", "00000", "01000", "HV000", "", "zzzzz"] {
            let text = db(code).into_error("copying").full();
            assert!(!text.contains("the message") && !text.contains("the detail") && !text.contains("the hint"), "{text}");
        }
        assert!(!db("42P10").into_error("copying").full().contains("the detail"));
    }
}
