//! Whether the source still has a row, asked at one position.
//!
//! Owns: the questions. Does not own: the position, and waiting until the lake has come to it (`verify::point`).
//! Invariants: the source is only read; no value is in a message; a value is compared by its column's type, and goes on as the source prints it.

use super::target::Given;
use crate::error::{Error, Result};
use crate::postgres::catalogue::{Table, TableKind};
use crate::postgres::error::from_sql;
use crate::schema::HashKey;
use crate::table_name::quote_ident;
use futures_util::TryStreamExt;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row};

/// Refuses while the table has such a row. Returns what was given as the source prints it.
pub(super) async fn refuse_present(client: &Client, table: &Table, given: &[Given], hash: Option<&HashKey>) -> Result<Vec<Given>> {
    // A policy must be an error here, never a filter.
    client.batch_execute("SET LOCAL row_security = off").await.map_err(|e| from_sql(e, "asking the source"))?;
    let mut printed = Vec::with_capacity(given.len());
    let mut conditions = Vec::new();
    for one in given {
        if one.hashed {
            printed.push(one.clone());
            continue;
        }
        let (with_limit, without) = types(client, table, &one.column).await?;
        printed.push(Given { text: print(client, table, one, &with_limit, &without).await?, ..one.clone() });
        conditions.push((one, format!("{} = CAST(${}::pg_catalog.text AS {without})", quote_ident(&one.column), conditions.len() + 1)));
    }
    let only = if table.kind == TableKind::Partitioned { "" } else { "ONLY " };
    let from = format!(
        "FROM {only}{} WHERE {}",
        table.name.sql(),
        match conditions.len() {
            0 => "true".to_owned(),
            _ => conditions.iter().map(|(_, sql)| sql.as_str()).collect::<Vec<_>>().join(" AND "),
        }
    );
    let values: Vec<(&(dyn ToSql + Sync), Type)> =
        conditions.iter().map(|(one, _)| (&one.text as &(dyn ToSql + Sync), Type::TEXT)).collect();
    let hashed: Vec<&Given> = given.iter().filter(|one| one.hashed).collect();
    let present = if hashed.is_empty() {
        let row = client.query_typed(&format!("SELECT EXISTS (SELECT {from})"), &values).await;
        let row = row.map_err(|e| failed(e, table, "looking for the row"))?;
        cell(row.first(), 0, table)?
    } else if let Some(hash) = hash {
        let columns: Vec<String> = hashed.iter().map(|one| format!("pg_catalog.format('%s', {})", quote_ident(&one.column))).collect();
        has_hash(client, table, &format!("SELECT {} {from}", columns.join(", ")), &values, &hashed, hash).await?
    } else {
        tracing::warn!(table = %table.name, "without HUELLA_HASH_KEY the source cannot be asked for a hash: only the lake says that the row is gone");
        false
    };
    if present {
        return Err(Error::source_refused(format!(
            "{}: the source still has a row of this key, and it would come back with its next change: delete it there, let `huella run` \
             bring the deletion, then forget it",
            table.name
        )));
    }
    Ok(printed)
}

/// Whether a row's hashed columns have these hashes. There is no other way than to hash them all.
async fn has_hash(
    client: &Client,
    table: &Table,
    sql: &str,
    values: &[(&(dyn ToSql + Sync), Type)],
    hashed: &[&Given],
    hash: &HashKey,
) -> Result<bool> {
    let doing = "comparing the hashes of the source's rows";
    let values: Vec<(&(dyn ToSql + Sync), Type)> = values.to_vec();
    let rows = client.query_typed_raw(sql, values).await.map_err(|e| failed(e, table, doing))?;
    let mut rows = std::pin::pin!(rows);
    while let Some(row) = rows.try_next().await.map_err(|e| failed(e, table, doing))? {
        let equal = |(at, one): (usize, &&Given)| {
            row.try_get::<_, Option<&str>>(at).ok().flatten().is_some_and(|text| hash.hex(text.as_bytes()) == one.text.as_bytes())
        };
        if hashed.iter().enumerate().all(equal) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The column's type with its length or scale, and without.
async fn types(client: &Client, table: &Table, column: &str) -> Result<(String, String)> {
    let sql = "SELECT pg_catalog.format_type(atttypid, atttypmod), pg_catalog.format_type(atttypid, NULL)
                 FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attname = $2 AND NOT attisdropped";
    let found = client.query_typed(sql, &[(&table.oid, Type::OID), (&column, Type::TEXT)]).await;
    let found = found.map_err(|e| from_sql(e, format!("{}: reading the type of column {column}", table.name)))?;
    if found.is_empty() {
        return Err(Error::source_refused(format!("{}: column {column} is not at the source any more", table.name)));
    }
    Ok((cell(found.first(), 0, table)?, cell(found.first(), 1, table)?))
}

/// A value as the source prints it in the column, which is how the lake has it.
async fn print(client: &Client, table: &Table, one: &Given, with_limit: &str, without: &str) -> Result<String> {
    // Cast to the column's own type a text is cut to its length, and would name another row.
    let sql = format!(
        "SELECT pg_catalog.format('%s', cut), cut = whole FROM (SELECT CAST($1::pg_catalog.text AS {with_limit}) AS cut, CAST($1::pg_catalog.text AS {without}) AS whole) AS v"
    );
    let found = client.query_typed(&sql, &[(&one.text, Type::TEXT)]).await;
    let found = found.map_err(|e| failed(e, table, &format!("reading the value of column {} as {without}", one.column)))?;
    match cell::<Option<bool>>(found.first(), 1, table)? {
        Some(true) => cell(found.first(), 0, table),
        _ => Err(Error::usage(format!("{}: the value given for column {} does not fit {with_limit}", table.name, one.column))),
    }
}

/// What the server says of a value quotes it.
fn failed(error: tokio_postgres::Error, table: &Table, doing: &str) -> Error {
    match error.code().map(|code| code.code()) {
        Some(code) if code.starts_with("22") => {
            Error::usage(format!("{}: {doing}: a value given is none of its column's type (SQLSTATE {code})", table.name))
        }
        _ => from_sql(error, format!("{}: {doing}", table.name)),
    }
}

/// Copies under way at the source, which may have read the row before it was deleted. A copy of several tables lets go of the table's lock before it
/// is handed over, so one of any table counts.
pub(super) async fn copies_under_way(client: &Client, table: &Table) -> Result<Vec<i32>> {
    let sql = "SELECT DISTINCT l.pid FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
                WHERE l.locktype = 'relation' AND l.relation >= 16384 AND l.granted AND l.mode = 'AccessShareLock' AND a.xact_start IS NOT NULL
                  AND a.application_name = (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'application_name') AND l.pid <> pg_catalog.pg_backend_pid()
                  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";
    let rows = client.query_typed(sql, &[]).await;
    let rows = rows.map_err(|e| from_sql(e, format!("{}: looking for copies under way", table.name)))?;
    rows.iter().map(|row| cell(Some(row), 0, table)).collect()
}

fn cell<'a, T: FromSql<'a>>(row: Option<&'a Row>, at: usize, table: &Table) -> Result<T> {
    let unreadable = || Error::retry(format!("{}: the server's answer cannot be read", table.name));
    row.ok_or_else(unreadable)?.try_get(at).map_err(|e| unreadable().with_source(e))
}
