//! From table names to sessions that all see the database at one consistent point.
//!
//! Owns: ACCESS SHARE locks, the temporary slot, importing. Invariants: the order lock, slot, import; without the
//! locks a rewriting ALTER between S and COPY gives no rows, silently; who copies never asks for a lock that it does not hold already.
//! The session that exports the snapshot has no way to be sent a command: whoever has it can end it, no more.

use crate::error::{Error, Result};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::postgres::catalogue::{self, Table};
use crate::postgres::error::screened;
use crate::postgres::{self, ConnectOptions, CopySession, ExportedSlot, Replication, connect_sql, publication, server, slot};
use crate::table_name::TableName;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// How long locks are waited for before the attempt is given up and begun anew: a waiting lock makes others wait behind it.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How often whoever is waited for is named.
const REPORT_EVERY: Duration = Duration::from_secs(3);

/// How often it is asked whether somebody waits for the locks while the slot is made.
const WAITERS_EVERY: Duration = Duration::from_millis(500);

/// How long somebody may wait for a copy's locks: what a person would call a hiccup.
const GIVE_WAY_AFTER: Duration = Duration::from_secs(3);

/// Sessions at one consistent point.
pub struct Prepared {
    /// Consistent point S.
    pub point: Lsn,
    /// When, microseconds since 1970-01-01 UTC.
    pub time_us: i64,
    /// The tables as they were under the lock.
    pub tables: Vec<Table>,
    /// Name of the temporary slot.
    pub slot: String,
    /// Sessions that have imported the snapshot.
    pub(super) workers: Vec<CopySession>,
    /// Holds the locks until it is dropped.
    pub(super) locker: Client,
    /// Looks at who waits for them.
    pub(super) watcher: Client,
    exporter: Option<Replication>,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared at {} with {} tables", self.point, self.tables.len())
    }
}

impl Prepared {
    /// Sessions that share a snapshot which no slot stands at.
    pub(super) fn without_slot(
        point: Lsn,
        time_us: i64,
        tables: Vec<Table>,
        workers: Vec<CopySession>,
        sessions: (Client, Client),
    ) -> Self {
        let (locker, watcher) = sessions;
        Self { point, time_us, tables, slot: String::new(), workers, locker, watcher, exporter: None }
    }

    /// The publication's row filters of the locked tables, by oid. Read behind the consistent point: a filter that changes later has a
    /// publication row that changed later, and so asks for a copy behind this one. Read by the session that holds the locks, because
    /// printing a filter takes the table's lock again, and behind a waiting ALTER only its holder gets that.
    pub async fn filters(&self, publication: &str) -> Result<BTreeMap<u32, String>> {
        let oids: Vec<u32> = self.tables.iter().map(|table| table.oid).collect();
        publication::filters(&self.locker, publication, &oids).await
    }

    /// Ends the temporary slot; the workers keep what they see.
    pub async fn release_slot(&mut self) {
        if let Some(exporter) = self.exporter.take() {
            exporter.terminate().await;
        }
    }
}

/// Locks the tables, makes a temporary slot and lets `workers` sessions import its snapshot.
pub async fn prepare(options: &ConnectOptions, names: &[TableName], workers: usize) -> Result<Prepared> {
    let aux = connect_sql(options).await?;
    let locker = connect_sql(options).await?;
    let mut sessions = Vec::with_capacity(workers);
    for _ in 0..workers.max(1) {
        sessions.push(CopySession::connect(options).await?);
    }
    lock(&locker, &aux, names, "BEGIN READ ONLY").await?;
    for session in &mut sessions {
        lock_worker(session, names).await?;
    }
    let tables = catalogue::tables(&locker, names).await?;
    let mut exporter = Replication::connect(options).await?;
    let name = format!("huella_copy_{}_{:08x}", std::process::id(), crate::commit::random() as u32);
    let slot = make_slot(&mut exporter, &name, &locker, &aux).await?;
    let written = server::insert_lsn(&aux).await?;
    if slot.consistent_point > written {
        let point = slot.consistent_point;
        return Err(Error::retry(format!(
            "the server broke the protocol: a consistent point at {point}, beyond the end of its WAL at {written}"
        )));
    }
    failpoint::hit("start.after_slot");
    for session in &mut sessions {
        import(session, &slot.snapshot).await?;
    }
    failpoint::hit("start.after_import");
    let time_us = clock_us(&locker).await?;
    let (workers, exporter) = (sessions, Some(exporter));
    Ok(Prepared { point: slot.consistent_point, time_us, tables, slot: name, workers, locker, watcher: aux, exporter })
}

/// Ends when another session has waited for the locks for a while: who that is. Behind an ALTER that waits, every query of its table waits.
pub(super) async fn in_the_way(locker: &Client, watcher: &Client) -> Result<String> {
    let pid = backend_pid(locker).await?;
    let mut since: BTreeMap<Option<i32>, Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(WAITERS_EVERY).await;
        let waiting = server::lock_waiters(watcher, pid).await?;
        since.retain(|pid, _| waiting.iter().any(|waiter| waiter.pid == *pid));
        for waiter in &waiting {
            if since.entry(waiter.pid).or_insert_with(Instant::now).elapsed() >= GIVE_WAY_AFTER {
                return Ok(waiter.to_string());
            }
        }
    }
}

/// What each session that copies begins with.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Lets a worker, locks in hand, see what an exported snapshot sees.
pub(super) async fn import(session: &mut CopySession, snapshot: &str) -> Result<()> {
    let import = format!("SET TRANSACTION SNAPSHOT '{}'", snapshot.replace('\'', "''"));
    let doing = "importing the snapshot";
    session.rows(&import, doing).await.map(drop).map_err(|e| Error::retry(doing).with_source(e))
}

/// The server's clock, microseconds since 1970-01-01 UTC.
pub(super) async fn clock_us(client: &Client) -> Result<i64> {
    let sql = "SELECT (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8";
    postgres::one(client, "reading the server's clock", sql, &[]).await?.get(0)
}

/// Makes the temporary slot, which waits for every transaction that has written. One of those may in turn wait for our locks
/// (an ALTER takes its transaction id before its lock), a circle that the server cannot see; and while any statement waits
/// for an exclusive lock, all others on its table wait behind it. So the locks are given up as soon as somebody waits for them.
async fn make_slot(exporter: &mut Replication, name: &str, locker: &Client, aux: &Client) -> Result<ExportedSlot> {
    let pid = backend_pid(locker).await?;
    let mut reported = Instant::now();
    let waited = {
        let making = exporter.create_temporary_slot(name);
        tokio::pin!(making);
        loop {
            tokio::select! {
                biased;
                made = &mut making => return made,
                () = tokio::time::sleep(WAITERS_EVERY) => {}
            }
            if let Some(waiting) = server::lock_waiters(aux, pid).await?.first() {
                break waiting.to_string();
            }
            if reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                for blocker in server::blockers_of_slot_creation(aux).await? {
                    tracing::warn!(blocker = %blocker, "making a slot waits for an open transaction");
                }
            }
        }
    };
    // A server process that waits for a transaction does not see its client leave.
    if let Some(holder) = slot::read(aux, name).await?.and_then(|slot| slot.active_pid) {
        slot::terminate_holder(aux, name, holder).await?;
    }
    Err(Error::retry(format!(
        "making a slot waits for open transactions, and {waited} waits for the tables' locks: they are given up for now"
    )))
}

/// Begins a worker's transaction with locks of its own. If it took them only with its first COPY, a statement that waits by then
/// for the exclusive lock would stand between: it behind the locker, the worker behind it, the locker behind the worker, for
/// ever, since the server sees no circle through our process.
pub(super) async fn lock_worker(session: &mut CopySession, names: &[TableName]) -> Result<()> {
    let doing = "locking the tables for a worker (ACCESS SHARE)";
    let mut sql = format!("SET lock_timeout = '{}ms'; {BEGIN}", LOCK_WAIT.as_millis());
    if !names.is_empty() {
        let list: Vec<String> = names.iter().map(TableName::sql).collect();
        sql.push_str(&format!("; LOCK TABLE {} IN ACCESS SHARE MODE", list.join(", ")));
    }
    session.rows(&sql, doing).await.map(drop)
}

async fn backend_pid(client: &Client) -> Result<i32> {
    postgres::one(client, "reading the session's pid", "SELECT pg_catalog.pg_backend_pid()", &[]).await?.get(0)
}

/// Begins a transaction that holds the locks.
pub(super) async fn lock(locker: &Client, aux: &Client, names: &[TableName], begin: &str) -> Result<()> {
    let doing = "locking the tables to be copied (ACCESS SHARE)";
    let pid = backend_pid(locker).await?;
    let list: Vec<String> = names.iter().map(TableName::sql).collect();
    if list.is_empty() {
        return locker
            .batch_execute(&format!("SET statement_timeout = 0; {begin}"))
            .await
            .map_err(|e| Error::retry(doing).with_source(screened(e)));
    }
    // What the role or the database sets would end a long read of a table.
    let sql = format!(
        "SET statement_timeout = 0; SET lock_timeout = '{}ms'; {begin}; LOCK TABLE {} IN ACCESS SHARE MODE",
        LOCK_WAIT.as_millis(),
        list.join(", ")
    );
    let locking = locker.batch_execute(&sql);
    tokio::pin!(locking);
    let mut blockers = Vec::new();
    loop {
        tokio::select! {
            biased;
            done = &mut locking => return done.map_err(|e| {
                let state = e.code().map(|c| c.code().to_owned()).unwrap_or_default();
                match state.as_str() {
                    "55P03" => Error::retry(format!("{doing}: waited {} s for {}", LOCK_WAIT.as_secs(), blockers.join("; "))),
                    "42P01" | "3F000" => Error::retry(format!("{doing}: one of them has gone or has another name")).with_source(screened(e)),
                    "42501" => Error::source_refused(format!("{doing} was refused; grant SELECT on them to the role")).with_source(screened(e)),
                    _ => Error::retry(doing).with_source(screened(e)),
                }
            }),
            () = tokio::time::sleep(REPORT_EVERY) => {
                let found = server::lock_blockers(aux, pid).await?;
                blockers = found.iter().map(ToString::to_string).collect();
                for blocker in &blockers {
                    tracing::warn!(%blocker, "a copy waits for a lock");
                }
            }
        }
    }
}
