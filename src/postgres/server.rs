//! The server: its version, limits and positions, this session's role, and who stands in the way.
//!
//! Owns: settings, counts, WAL positions, waiting sessions. Does not own: slots, what is refused (`check`).
//! Invariant: another session's query text is never read: it can hold cells.

use super::rows::{SqlRow, one, rows};
use super::slot::lsn;
use super::sql_error::{failed, is};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use std::time::{Duration, Instant};
use tokio_postgres::GenericClient;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

/// What matters of the server and of this session's role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// `server_version_num`: 150018 is 15.18.
    pub version_num: i32,
    /// `minimal`, `replica` or `logical`.
    pub wal_level: String,
    /// Limit of slots.
    pub max_replication_slots: i64,
    /// Slots there are, of all databases and kinds.
    pub slots_used: i64,
    /// Limit of streaming sessions.
    pub max_wal_senders: i64,
    /// Streaming sessions there are.
    pub senders_used: i64,
    /// How much WAL a slot may hold back, MB; -1: no limit.
    pub max_slot_wal_keep_size_mb: i64,
    /// How long the server waits for a status update, ms; 0: for ever.
    pub wal_sender_timeout_ms: i64,
    /// Where WAL ends: written, or on a standby replayed.
    pub current_wal_lsn: Lsn,
    /// A standby.
    pub in_recovery: bool,
    /// `synchronous_standby_names`: whom a commit waits for.
    pub synchronous_standby_names: String,
    /// `application_name` of this program's sessions.
    pub application_name: String,
    /// Sessions and prepared transactions that there may be; the server has `max_locks_per_transaction` locks for each, which all share.
    pub lock_holders: i64,
    /// `max_locks_per_transaction`.
    pub locks_each: i64,
    /// `synchronized_standby_slots`: the stream of a failover slot does not run ahead of these (17+).
    pub synchronized_standby_slots: Option<String>,
    /// The cluster's identity, as IDENTIFY_SYSTEM gives it; `None` if the role may not read it by SQL.
    pub system_identifier: Option<String>,
    /// Database of this session.
    pub database: String,
    /// Role of this session.
    pub role: Role,
}

impl ServerInfo {
    /// Why a commit at the server may wait for this program, which in turn waits for the commit to become visible: nobody would ever go on.
    /// `None`: it does not.
    pub fn waits_for_us(&self) -> Option<String> {
        let names = self.synchronous_standby_names.split([',', '(', ')', ' ', '\t', '\n']).map(|name| name.trim_matches('"'));
        let ours = |name: &str| name == "*" || name.eq_ignore_ascii_case(&self.application_name);
        names.filter(|name| !name.is_empty()).any(ours).then(|| {
            format!(
                "synchronous_standby_names = '{}' makes this program a synchronous standby: commits would wait for it, and it for them",
                self.synchronous_standby_names
            )
        })
    }
}

/// What to do about [`ServerInfo::waits_for_us`].
pub const NOT_A_STANDBY: &str = "name the standbys by their application_name (ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (standby1)', \
     then SELECT pg_reload_conf()), or give source.url an application_name= that the list does not have";

/// A role's attributes that matter. They are not inherited from roles that it is a member of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Name.
    pub name: String,
    /// SUPERUSER.
    pub superuser: bool,
    /// REPLICATION.
    pub replication: bool,
    /// BYPASSRLS.
    pub bypass_rls: bool,
    /// May make a publication in this database (CREATE).
    pub create_in_database: bool,
}

/// A session (or a prepared transaction) that others wait for.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocker {
    /// Process; `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// `application_name`, or a prepared transaction's name.
    pub application: String,
    /// `active`, `idle in transaction`, `prepared`, …; `None` if the role may not see it.
    pub state: Option<String>,
    /// Age of its transaction.
    pub transaction_secs: Option<f64>,
    /// Time since its present or last statement began.
    pub query_secs: Option<f64>,
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid}")?,
            None => write!(f, "prepared transaction")?,
        }
        write!(f, " ({} in {}, {:?}", self.user, self.database, self.application)?;
        if let Some(state) = &self.state {
            write!(f, ", {state}")?;
        }
        if let Some(secs) = self.transaction_secs {
            write!(f, ", transaction open for {secs:.0} s")?;
        }
        f.write_str(")")
    }
}

/// `server_version_num`.
pub async fn version(client: &(impl GenericClient + Sync)) -> Result<i32> {
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4";
    one(client, "reading the server's version", sql, &[]).await?.get(0)
}

/// Server, limits, role.
pub async fn info(client: &(impl GenericClient + Sync)) -> Result<ServerInfo> {
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4, pg_catalog.current_setting('wal_level'),
                      pg_catalog.current_setting('max_replication_slots')::pg_catalog.int8,
                      (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots),
                      pg_catalog.current_setting('max_wal_senders')::pg_catalog.int8,
                      (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication),
                      (SELECT setting::pg_catalog.int8 FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'),
                      (SELECT setting::pg_catalog.int8 FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'),
                      CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                           ELSE pg_catalog.pg_current_wal_lsn() END::text,
                      pg_catalog.pg_is_in_recovery(), pg_catalog.current_database()::text, r.rolname::text,
                      r.rolsuper, r.rolreplication, r.rolbypassrls,
                      pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
                      pg_catalog.current_setting('synchronized_standby_slots', true),
                      pg_catalog.current_setting('synchronous_standby_names'), pg_catalog.current_setting('application_name'),
                      pg_catalog.current_setting('max_connections')::pg_catalog.int8
                      + pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int8,
                      pg_catalog.current_setting('max_locks_per_transaction')::pg_catalog.int8
                 FROM pg_catalog.pg_roles r WHERE r.rolname = CURRENT_USER";
    let row = one(client, "reading the server's settings", sql, &[]).await?;
    Ok(ServerInfo {
        version_num: row.get(0)?,
        wal_level: row.get(1)?,
        max_replication_slots: row.get(2)?,
        slots_used: row.get(3)?,
        max_wal_senders: row.get(4)?,
        senders_used: row.get(5)?,
        max_slot_wal_keep_size_mb: row.get(6)?,
        wal_sender_timeout_ms: row.get(7)?,
        current_wal_lsn: lsn(row.get(8)?)?.unwrap_or_default(),
        in_recovery: row.get(9)?,
        system_identifier: system_identifier(client).await?,
        database: row.get(10)?,
        role: Role {
            name: row.get(11)?,
            superuser: row.get(12)?,
            replication: row.get(13)?,
            bypass_rls: row.get(14)?,
            create_in_database: row.get(15)?,
        },
        synchronized_standby_slots: row.get(16)?,
        synchronous_standby_names: row.get(17)?,
        application_name: row.get(18)?,
        lock_holders: row.get(19)?,
        locks_each: row.get(20)?,
    })
}

/// The cluster's identity; `None` if the role may not read it.
pub async fn system_identifier(client: &(impl GenericClient + Sync)) -> Result<Option<String>> {
    // The server prints it without a sign, SQL knows only signed numbers.
    let (sql, doing) = ("SELECT system_identifier FROM pg_catalog.pg_control_system()", "reading the cluster's identity");
    match client.query_typed(sql, &[]).await {
        Ok(rows) => {
            let first = rows.into_iter().next().map(|row| SqlRow::new(row, doing).get::<i64>(0)).transpose()?;
            Ok(first.map(|identifier| identifier.cast_unsigned().to_string()))
        }
        Err(e) if is(&e, &SqlState::INSUFFICIENT_PRIVILEGE) => Ok(None),
        Err(e) => Err(failed(doing, e)),
    }
}

/// Where WAL that is safe on the server's disk ends (on a standby: is replayed): what is committed before this call lies below, and no
/// walsender has sent more.
pub async fn flush_lsn(client: &(impl GenericClient + Sync)) -> Result<Lsn> {
    let sql = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                            ELSE pg_catalog.pg_current_wal_flush_lsn() END)::text";
    position(client, sql).await
}

/// Where the next WAL record will be. On the boundary of a page that is where the page begins, not where its header ends: a server that writes
/// nothing more says the former in its keepalives, and no record lies between.
pub async fn insert_lsn(client: &(impl GenericClient + Sync)) -> Result<Lsn> {
    let sql = "SELECT pg_catalog.pg_current_wal_insert_lsn()::text, pg_catalog.current_setting('wal_block_size')::pg_catalog.int8";
    let doing = "reading the position of the WAL";
    let row = one(client, doing, sql, &[]).await?;
    let at = lsn(row.get(0)?)?.ok_or_else(|| Error::retry(format!("{doing}: there is none")))?;
    let page = u64::try_from(row.get::<i64>(1)?).ok().filter(|size| size.is_power_of_two());
    Ok(page.map_or(at, |page| before_header(at, page)))
}

/// Sizes of the header of a page, and of the first page of a WAL file.
const PAGE_HEADERS: [u64; 2] = [24, 40];

fn before_header(at: Lsn, page: u64) -> Lsn {
    let into = at.0 & (page - 1);
    if PAGE_HEADERS.contains(&into) { Lsn(at.0 - into) } else { at }
}

/// Which transactions had ended at a moment (`pg_current_snapshot`): queries after it see what those have committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The first transaction id that had not been given out.
    next: u64,
    /// Those below it that were running.
    running: Vec<u64>,
}

impl Snapshot {
    /// Reads the server's form, `xmin:xmax:running,…`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':').skip(1);
        let next = parts.next()?.parse().ok()?;
        let running = parts.next()?.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
        Some(Self { next, running })
    }

    /// Whether a transaction of the stream, which has 32 bits of its id, had ended.
    pub fn has_seen(&self, xid: u32) -> bool {
        let precedes = (xid.wrapping_sub(self.next as u32) as i32) < 0;
        precedes && !self.running.iter().any(|running| *running as u32 == xid)
    }
}

/// Which transactions have ended by now.
pub async fn snapshot(client: &(impl GenericClient + Sync)) -> Result<Snapshot> {
    let row = one(client, "reading which transactions are running", "SELECT pg_catalog.pg_current_snapshot()::text", &[]).await?;
    let text: String = row.get(0)?;
    Snapshot::parse(&text).ok_or_else(|| Error::retry(format!("the server gave the snapshot {text:?}")))
}

/// Longest wait for a committed transaction to become visible: it takes microseconds, on a starved server milliseconds.
const VISIBLE_WITHIN: Duration = Duration::from_secs(30);
/// Pause between two looks.
const VISIBLE_PAUSE: Duration = Duration::from_millis(5);

/// Waits until a transaction that the stream has sent is visible to queries. The server streams a commit as soon as its WAL is written,
/// which is before it leaves the list of running transactions: until then the catalogue still shows what was before it.
///
/// # Errors
/// `Kind::Retry` if it does not become visible.
pub async fn await_visible(client: &(impl GenericClient + Sync), xid: u32) -> Result<()> {
    // The stream has 32 bits of the id; it lies less than 2^31 transactions from the newest that has ended: behind it, or before it
    // while it has not ended itself.
    let sql = "SELECT pg_catalog.pg_xact_status((CASE WHEN near.id > near.next + 2147483648 THEN near.id - 4294967296
                                                      WHEN near.id < near.next - 2147483648 THEN near.id + 4294967296
                                                      ELSE near.id END)::text::pg_catalog.xid8)
                 FROM (SELECT (now.next >> 32 << 32) | $1 AS id, now.next
                         FROM (SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::pg_catalog.int8 AS next) now) near";
    let begun = Instant::now();
    loop {
        let doing = "waiting for a streamed transaction to become visible";
        let status: Option<String> = one(client, doing, sql, &[(&i64::from(xid), Type::INT8)]).await?.get(0)?;
        if status.as_deref() != Some("in progress") {
            return Ok(());
        }
        if begun.elapsed() >= VISIBLE_WITHIN {
            return Err(Error::retry(format!(
                "transaction {xid} was streamed and is still not visible after {} s: its commit waits, for a synchronous standby that does not \
                 answer perhaps (pg_stat_activity, wait_event SyncRep)",
                VISIBLE_WITHIN.as_secs()
            )));
        }
        tokio::time::sleep(VISIBLE_PAUSE).await;
    }
}

/// Session that holds the advisory lock of `huella` and `name`, which one first start at a time takes.
pub async fn advisory_holder(client: &(impl GenericClient + Sync), name: &str) -> Result<Option<i32>> {
    let sql = "SELECT l.pid FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database
                WHERE l.locktype = 'advisory' AND l.granted AND d.datname = pg_catalog.current_database() AND l.objsubid = 2
                  AND l.classid = pg_catalog.int8(pg_catalog.hashtext('huella'))::pg_catalog.bit(32)::pg_catalog.int8::pg_catalog.oid
                  AND l.objid = pg_catalog.int8(pg_catalog.hashtext($1))::pg_catalog.bit(32)::pg_catalog.int8::pg_catalog.oid";
    let params: [(&(dyn ToSql + Sync), Type); 1] = [(&name, Type::TEXT)];
    let rows = rows(client, "looking for who makes the first start", sql, &params).await?;
    rows.first().map(|row| row.get(0)).transpose()
}

/// Ends a session of this role's.
pub async fn terminate(client: &(impl GenericClient + Sync), pid: i32) -> Result<()> {
    let params: [(&(dyn ToSql + Sync), Type); 1] = [(&pid, Type::INT4)];
    let ended = client.query_typed("SELECT pg_catalog.pg_terminate_backend($1)", &params).await;
    ended.map(|_| ()).map_err(|e| failed(format!("ending session {pid}"), e))
}

async fn position(client: &(impl GenericClient + Sync), sql: &str) -> Result<Lsn> {
    let doing = "reading the position of the WAL";
    lsn(one(client, doing, sql, &[]).await?.get(0)?)?.ok_or_else(|| Error::retry(format!("{doing}: there is none")))
}

const BLOCKER: &str = "a.pid, COALESCE(a.usename::text, ''), COALESCE(a.datname::text, ''), COALESCE(a.application_name, ''), a.state,
    pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - a.xact_start),
    pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - a.query_start)";

/// Open transactions that have written, of all databases, oldest first, prepared ones included: creating a slot waits for them.
pub async fn blockers_of_slot_creation(client: &(impl GenericClient + Sync)) -> Result<Vec<Blocker>> {
    let sql = format!(
        "SELECT {BLOCKER} FROM pg_catalog.pg_stat_activity a
          WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_catalog.pg_backend_pid()
         UNION ALL
         SELECT NULL, p.owner::text, p.database::text, p.gid, 'prepared',
                pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - p.prepared), NULL
           FROM pg_catalog.pg_prepared_xacts p
          ORDER BY 6 DESC NULLS LAST"
    );
    let rows = rows(client, "looking for open transactions", &sql, &[]).await?;
    rows.iter().map(blocker).collect()
}

/// Who holds the locks that session `pid` waits for, oldest transaction first.
pub async fn lock_blockers(client: &(impl GenericClient + Sync), pid: i32) -> Result<Vec<Blocker>> {
    let sql = format!(
        "SELECT NULLIF(b.pid, 0), {} FROM (SELECT DISTINCT pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) AS pid) b
           LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid ORDER BY 6 DESC NULLS LAST",
        BLOCKER.strip_prefix("a.pid, ").expect("the list begins with the pid")
    );
    let params: [(&(dyn ToSql + Sync), Type); 1] = [(&pid, Type::INT4)];
    let rows = rows(client, "looking for who holds a lock", &sql, &params).await?;
    rows.iter().map(blocker).collect()
}

/// Sessions that wait for a lock that session `pid` holds or waits for, longest transaction first.
pub async fn lock_waiters(client: &(impl GenericClient + Sync), pid: i32) -> Result<Vec<Blocker>> {
    let sql = format!(
        "SELECT {BLOCKER} FROM pg_catalog.pg_stat_activity a
          WHERE a.wait_event_type = 'Lock' AND $1 = ANY (pg_catalog.pg_blocking_pids(a.pid)) ORDER BY 6 DESC NULLS LAST"
    );
    let params: [(&(dyn ToSql + Sync), Type); 1] = [(&pid, Type::INT4)];
    let rows = rows(client, "looking for who waits for a lock", &sql, &params).await?;
    rows.iter().map(blocker).collect()
}

fn blocker(row: &SqlRow) -> Result<Blocker> {
    Ok(Blocker {
        pid: row.get(0)?,
        user: row.get(1)?,
        database: row.get(2)?,
        application: row.get(3)?,
        state: row.get(4)?,
        transaction_secs: row.get(5)?,
        query_secs: row.get(6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_after_a_pages_header_is_the_pages_beginning() {
        for (at, is) in [(0x2000028, 0x2000000), (0x2002018, 0x2002000), (0x2002020, 0x2002020), (0x2002000, 0x2002000)] {
            assert_eq!(before_header(Lsn(at), 8192), Lsn(is));
        }
    }

    #[test]
    fn a_snapshot_knows_what_had_ended() {
        let snapshot = Snapshot::parse("8589934592:8589934602:8589934592,8589934597").expect("the server's form");
        assert_eq!([0, 1, 5, 9, 10, 11].map(|xid| snapshot.has_seen(xid)), [false, true, false, true, false, false]);
        assert!(snapshot.has_seen(u32::MAX), "of the epoch before");
        assert!(Snapshot::parse("5:7:").is_some_and(|s| s.has_seen(6) && !s.has_seen(7)));
        assert!(Snapshot::parse("5").is_none() && Snapshot::parse("5:x:").is_none());
    }

    #[test]
    fn a_blocker_is_named_by_pid_and_age() {
        let blocker = Blocker {
            pid: Some(7),
            user: "ana".into(),
            database: "postgres".into(),
            application: "psql".into(),
            state: Some("idle in transaction".into()),
            transaction_secs: Some(61.4),
            query_secs: None,
        };
        assert_eq!(blocker.to_string(), "pid 7 (ana in postgres, \"psql\", idle in transaction, transaction open for 61 s)");
    }
}
