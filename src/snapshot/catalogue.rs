//! Catalogues: tables that are copied whole, at one point of their own, without a slot.
//!
//! Owns: the sessions that see all of them at once, the digest that tells whether one changed. Invariants: the tables are locked before
//! the snapshot is taken and until the last file is durable; S is read after the snapshot, so that a later copy's S is greater
//! whenever its rows differ; the digest depends on what reaches the lake, not on the rows' order.

use super::job::CopyJob;
use super::prepare::{BEGIN, Prepared, clock_us, import, lock, lock_worker};
use crate::error::{Error, Result};
use crate::postgres::catalogue::{self, TableKind};
use crate::postgres::error::screened;
use crate::postgres::{self, ConnectOptions, CopySession, connect_sql, server};
use crate::schema::HashKey;
use crate::table_name::{TableName, quote_ident};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio_postgres::Client;

/// Locks the catalogues and lets `workers` sessions see them in one REPEATABLE READ snapshot.
///
/// # Errors
/// `Kind::Retry` if a lock is not granted in time; the blocker's pid is logged.
pub async fn prepare_catalogues(options: &ConnectOptions, names: &[TableName], workers: usize) -> Result<Prepared> {
    let aux = connect_sql(options).await?;
    let locker = connect_sql(options).await?;
    // LOCK TABLE needs no snapshot: the first query, with the locks in hand, takes it.
    lock(&locker, &aux, names, BEGIN).await?;
    let doing = "taking the catalogues' snapshot";
    let snapshot: String = postgres::one(&locker, doing, "SELECT pg_catalog.pg_export_snapshot()", &[]).await?.get(0)?;
    let mut sessions = Vec::with_capacity(workers);
    for _ in 0..workers.max(1) {
        let mut session = CopySession::connect(options).await?;
        lock_worker(&mut session, names).await?;
        import(&mut session, &snapshot).await?;
        sessions.push(session);
    }
    // The snapshot exists by now: everything that it sees was written below this position.
    let point = server::insert_lsn(&aux).await?;
    let time_us = clock_us(&aux).await?;
    let tables = catalogue::tables(&aux, names).await?;
    Ok(Prepared::without_slot(point, time_us, tables, sessions, (locker, aux)))
}

/// A digest of the rows that a job would copy, whatever their order, as hex; read by the session that holds the locks.
///
/// With hashed columns it is keyed like them: a digest of few rows must not be a way to guess their plain values, and another key
/// must give another digest, because it gives other cells.
pub async fn content(prepared: &Prepared, job: &CopyJob, key: Option<&HashKey>) -> Result<String> {
    let keyed = key.filter(|_| job.schema.columns.iter().any(|c| c.hashed));
    digest(&prepared.locker, &select(job), keyed).await.map_err(|e| e.context(format!("reading {}", job.schema.table)))
}

async fn digest(client: &Client, query: &str, key: Option<&HashKey>) -> Result<String> {
    let stream = client.copy_out(&format!("COPY ({query}) TO STDOUT")).await.map_err(refused)?;
    tokio::pin!(stream);
    let mut sum = Sum::default();
    while let Some(line) = stream.next().await {
        let line = line.map_err(refused)?;
        sum.add(&match key {
            Some(key) => Sha256::digest(key.hex(&line)).into(),
            None => Sha256::digest(&line).into(),
        });
    }
    Ok(sum.hex())
}

/// The rows that reach the lake.
fn select(job: &CopyJob) -> String {
    let columns: Vec<String> = job.schema.columns.iter().filter(|c| !c.dropped).map(|c| quote_ident(&c.source)).collect();
    let only = if job.kind == TableKind::Partitioned { "" } else { "ONLY " };
    format!("SELECT {} FROM {only}{}", columns.join(", "), job.schema.table.sql())
}

/// What the server refuses for the role's rights it will refuse again; everything else may pass.
fn refused(error: tokio_postgres::Error) -> Error {
    match error.code().map(|c| c.code()) {
        Some("42501") => {
            Error::source_refused("reading the table was refused: grant SELECT on it, and BYPASSRLS if it has row level security")
        }
        _ => Error::retry("reading the table was interrupted"),
    }
    .with_source(screened(error))
}

/// The sum of digests, in four lanes: the same for every order, another for a row more, less or twice.
#[derive(Debug, Default)]
struct Sum {
    lanes: [u64; 4],
    rows: u64,
}

impl Sum {
    fn add(&mut self, digest: &[u8; 32]) {
        for (lane, bytes) in self.lanes.iter_mut().zip(digest.as_chunks::<8>().0) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*bytes));
        }
        self.rows += 1;
    }

    fn hex(&self) -> String {
        let [a, b, c, d] = self.lanes;
        format!("{:x}-{a:016x}{b:016x}{c:016x}{d:016x}", self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(rows: &[&str]) -> String {
        let mut sum = Sum::default();
        rows.iter().for_each(|row| sum.add(&Sha256::digest(row).into()));
        sum.hex()
    }

    #[test]
    fn a_digest_depends_on_the_rows_and_not_on_their_order() {
        assert_eq!(sum(&["a", "b", "b"]), sum(&["b", "a", "b"]));
        let different = [sum(&[]), sum(&["a"]), sum(&["a", "a"]), sum(&["b"]), sum(&["a", "b"]), sum(&["ab"])];
        let distinct: std::collections::BTreeSet<_> = different.iter().collect();
        assert_eq!(distinct.len(), different.len());
    }
}
