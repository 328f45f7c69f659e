//! What a failed SQL statement means for the caller.
//!
//! Owns: the table from SQLSTATE to `Kind`. Invariant: nothing that can hold cells is printed: no DETAIL, no
//! message of a class that quotes data.

use super::error::quotes_data;
use crate::error::{Error, Kind};
use tokio_postgres::error::SqlState;

/// The error of a statement, with what was being done.
pub(super) fn failed(doing: impl std::fmt::Display, error: tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        return Error::retry(format!("{doing}: the connection failed")).with_source(error);
    };
    let code = db.code();
    // Classes: 28 authentication, 42 syntax or access rule, 22 data, 3D and 3F unknown database or schema.
    let kind = match &code.code()[..2.min(code.code().len())] {
        "28" | "42" | "22" | "3D" | "3F" => Kind::Source,
        _ => Kind::Retry,
    };
    let said = if quotes_data(code.code()) { "(message withheld, it may quote data)" } else { db.message() };
    Error::new(kind, format!("{doing}: {said} (SQLSTATE {})", code.code()))
}

/// Whether a statement failed with this SQLSTATE.
pub(super) fn is(error: &tokio_postgres::Error, state: &SqlState) -> bool {
    error.code() == Some(state)
}
