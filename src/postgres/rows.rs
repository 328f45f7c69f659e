//! The rows of an answer, read without trusting the server.
//!
//! Owns: running a query, reading a cell. Does not own: any query. Invariants: a column that is missing, NULL, or of another type is an
//! error that names the query's purpose, never a panic; text comes whatever its bytes are: names in a database without an encoding, and
//! roles made elsewhere, need not be UTF-8, and are shown with [`UNREADABLE`] in place of what is not.

use super::sql_error::failed;
use crate::error::{Error, Result};
use std::sync::Arc;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{GenericClient, Row};

/// Stands in a text for bytes that are not UTF-8.
pub(super) const UNREADABLE: char = char::REPLACEMENT_CHARACTER;

/// One row of an answer.
#[derive(Debug)]
pub struct SqlRow {
    row: Row,
    doing: Arc<str>,
}

impl SqlRow {
    pub(super) fn new(row: Row, doing: &str) -> Self {
        Self { row, doing: doing.into() }
    }

    /// The value of the column at `at`, counted from 0.
    pub fn get<T: Cell>(&self, at: usize) -> Result<T> {
        T::read(&self.row, at).map_err(|e| Error::retry(format!("{}: the server's answer cannot be read", self.doing)).with_source(e))
    }
}

/// Runs a query with typed parameters; all its rows.
pub(super) async fn rows(
    client: &(impl GenericClient + Sync),
    doing: impl AsRef<str>,
    sql: &str,
    params: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Vec<SqlRow>> {
    let doing: Arc<str> = doing.as_ref().into();
    let rows = client.query_typed(sql, params).await.map_err(|e| failed(&doing, e))?;
    Ok(rows.into_iter().map(|row| SqlRow { row, doing: Arc::clone(&doing) }).collect())
}

/// As [`rows`], where there is one row.
pub async fn one(
    client: &(impl GenericClient + Sync),
    doing: impl AsRef<str>,
    sql: &str,
    params: &[(&(dyn ToSql + Sync), Type)],
) -> Result<SqlRow> {
    let first = rows(client, doing.as_ref(), sql, params).await?.into_iter().next();
    first.ok_or_else(|| Error::retry(format!("{}: the server gave no row", doing.as_ref())))
}

/// What a column can be read as.
pub trait Cell: Sized {
    /// Reads it.
    fn read(row: &Row, at: usize) -> Result<Self, tokio_postgres::Error>;
}

macro_rules! plain {
    ($($type:ty),*) => {
        $(impl Cell for $type {
            fn read(row: &Row, at: usize) -> Result<Self, tokio_postgres::Error> {
                row.try_get(at)
            }
        })*
    };
}

plain!(bool, i8, i16, i32, i64, u32, f64, Vec<i16>, Vec<u32>, Option<bool>, Option<i32>, Option<i64>, Option<u32>, Option<f64>);

macro_rules! text {
    ($($type:ty, $shown:ty, $text:expr;)*) => {
        $(impl Cell for $type {
            fn read(row: &Row, at: usize) -> Result<Self, tokio_postgres::Error> {
                row.try_get::<_, $shown>(at).map($text)
            }
        })*
    };
}

text! {
    String, Shown, |text| text.0;
    Option<String>, Option<Shown>, |text| text.map(|text| text.0);
    Vec<String>, Vec<Shown>, |texts| texts.into_iter().map(|text| text.0).collect();
    Option<Vec<String>>, Option<Vec<Shown>>, |texts| texts.map(|texts| texts.into_iter().map(|text| text.0).collect());
}

/// Text of any bytes.
struct Shown(String);

impl<'a> FromSql<'a> for Shown {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(raw).into_owned()))
    }

    fn accepts(ty: &Type) -> bool {
        <String as FromSql>::accepts(ty)
    }
}
