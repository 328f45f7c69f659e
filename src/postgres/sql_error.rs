//! What a failed SQL statement means for the caller.
//!
//! Owns: the table from SQLSTATE to `Kind`. Invariant: a server's DETAIL is never printed, it can hold cells.

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
    Error::new(kind, format!("{doing}: {} (SQLSTATE {})", db.message(), code.code()))
}

/// Whether a statement failed with this SQLSTATE.
pub(super) fn is(error: &tokio_postgres::Error, state: &SqlState) -> bool {
    error.code() == Some(state)
}
