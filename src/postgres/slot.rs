//! The replication slot: its state, and the statements that copy it, drop it and free it.
//!
//! Owns: `pg_replication_slots` and the slot functions. Does not own: creating a slot with a snapshot and streaming from it
//! (the replication connection), what a state means (`check`, `replicate`).
//! Invariant: only an inactive slot is dropped, only the slot's present holder is terminated.

use super::rows::{SqlRow, rows};
use super::sql_error::{failed, is};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use std::time::Duration;
use tokio_postgres::GenericClient;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Name.
    pub name: String,
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Database; `None` for a physical slot.
    pub database: Option<String>,
    /// Somebody streams from it.
    pub active: bool,
    /// Who.
    pub active_pid: Option<i32>,
    /// Up to where its consumer has confirmed.
    pub confirmed_flush: Option<Lsn>,
    /// From where it keeps WAL; `None` once it is lost.
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Bytes of WAL that may still be written before it is in danger of being lost; `None`: no limit, or lost.
    pub safe_wal_size: Option<i64>,
    /// Why it is invalid (17+).
    pub invalidation_reason: Option<String>,
    /// Ends with its session.
    pub temporary: bool,
    /// Decodes prepared transactions at PREPARE.
    pub two_phase: bool,
    /// Kept in step on standbys (17+).
    pub failover: bool,
    /// A standby's copy of a slot of the primary (17+).
    pub synced: bool,
    /// For how long nobody has streamed from it (17+).
    pub inactive_for: Option<Duration>,
}

impl Slot {
    /// Whether its WAL, and so the changes since `confirmed_flush`, are gone for good.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation_reason.is_some()
    }
}

/// What became of an attempt to drop a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It is gone.
    Gone,
    /// Somebody streams from it; it is still there.
    Active,
    /// There was none.
    Absent,
}

/// The slot of this name, if there is one.
pub async fn read(client: &(impl GenericClient + Sync), name: &str) -> Result<Option<Slot>> {
    // Columns that came after 14 are read through JSON, so that one query serves every version. What 16 says of a standby's
    // conflict is for logical slots what 17 calls an invalidation; it says so as well of one whose WAL was removed.
    let sql = "SELECT s.slot_name::text, s.plugin::text, s.database::text, s.active, s.active_pid, s.confirmed_flush_lsn::text,
                      s.restart_lsn::text, s.wal_status, s.safe_wal_size, s.temporary, s.two_phase,
                      COALESCE(j.row ->> 'invalidation_reason', CASE WHEN j.row ->> 'conflicting' = 'true' AND s.wal_status <> 'lost' THEN 'conflict' END),
                      COALESCE((j.row ->> 'failover')::pg_catalog.bool, false), COALESCE((j.row ->> 'synced')::pg_catalog.bool, false),
                      pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - (j.row ->> 'inactive_since')::pg_catalog.timestamptz)
                 FROM pg_catalog.pg_replication_slots s CROSS JOIN LATERAL (SELECT pg_catalog.to_jsonb(s) AS row) j
                WHERE s.slot_name = $1";
    let rows = rows(client, format!("reading replication slot {name:?}"), sql, &[(&name, Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Slot {
        name: row.get(0)?,
        plugin: row.get(1)?,
        database: row.get(2)?,
        active: row.get(3)?,
        active_pid: row.get(4)?,
        confirmed_flush: lsn(row.get(5)?)?,
        restart_lsn: lsn(row.get(6)?)?,
        wal_status: row.get(7)?,
        safe_wal_size: row.get(8)?,
        temporary: row.get(9)?,
        two_phase: row.get(10)?,
        invalidation_reason: row.get(11)?,
        failover: row.get(12)?,
        synced: row.get(13)?,
        inactive_for: row.get::<Option<f64>>(14)?.and_then(|secs| Duration::try_from_secs_f64(secs.max(0.0)).ok()),
    }))
}

/// The oldest transaction whose changes of the catalog a logical slot may still need (`catalog_xmin`): older ones lie before its position.
pub async fn catalog_xmin(client: &(impl GenericClient + Sync), name: &str) -> Result<Option<u32>> {
    let sql = "SELECT s.catalog_xmin::text FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1";
    let doing = format!("reading replication slot {name:?}");
    let rows = rows(client, doing, sql, &[(&name, Type::TEXT)]).await?;
    let xid = rows.first().map(|row| row.get::<Option<String>>(0)).transpose()?;
    Ok(xid.flatten().and_then(|xid| xid.parse().ok()))
}

/// An LSN from its text, if there is one.
pub(super) fn lsn(text: Option<String>) -> Result<Option<Lsn>> {
    let parse = |text: String| text.parse().map_err(|e| Error::retry("the server gave a position that is none").with_source(e));
    text.map(parse).transpose()
}

/// Who streams from a slot, as the server sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    /// Its process at the server.
    pub pid: i32,
    /// Its address; `None` for a Unix socket, and where this role may not see it.
    pub address: Option<String>,
    /// Its `application_name`, where this role may see it.
    pub application: Option<String>,
    /// Time since it last answered, or since it connected. `None`: this role may not see it (`pg_read_all_stats` may), or it is no
    /// streaming session.
    pub silent: Option<Duration>,
    /// Where WAL ended at this look.
    pub flushed: Lsn,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "server process {}", self.pid)?;
        if let Some(address) = &self.address {
            write!(f, ", from {address}")?;
        }
        if let Some(application) = self.application.as_ref().filter(|name| !name.is_empty()) {
            write!(f, ", {application:?}")?;
        }
        match self.silent {
            Some(silent) => write!(f, ", answered {} s ago", silent.as_secs()),
            None => Ok(()),
        }
    }
}

/// Who streams from the slot of this name; `None` if nobody does, or it is not there. Not for a server in recovery.
pub async fn holder(client: &(impl GenericClient + Sync), name: &str) -> Result<Option<Holder>> {
    // A role without pg_read_all_stats sees of pg_stat_replication, even of its own sessions, neither state nor reply_time.
    let sql = "SELECT s.active_pid, pg_catalog.host(r.client_addr), r.application_name,
                      CASE WHEN r.state IS NOT NULL THEN pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() -
                          GREATEST(r.reply_time, r.backend_start)) END,
                      pg_catalog.pg_current_wal_flush_lsn()::text
                 FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid
                WHERE s.slot_name = $1 AND s.active_pid IS NOT NULL";
    let rows = rows(client, format!("looking for who holds replication slot {name:?}"), sql, &[(&name, Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let silent: Option<f64> = row.get(3)?;
    Ok(Some(Holder {
        pid: row.get(0)?,
        address: row.get(1)?,
        application: row.get(2)?,
        silent: silent.and_then(|secs| Duration::try_from_secs_f64(secs.max(0.0)).ok()),
        flushed: lsn(row.get(4)?)?.unwrap_or_default(),
    }))
}

/// Makes the permanent slot `to` from the temporary slot `from`, at the same position; to be called from another session
/// than the one that exported the temporary slot's snapshot. Returns the position from which the copy will stream.
pub async fn copy(client: &(impl GenericClient + Sync), from: &str, to: &str) -> Result<Lsn> {
    let sql = "SELECT s.confirmed_flush_lsn::text FROM pg_catalog.pg_copy_logical_replication_slot($1, $2, false) c
                 LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = c.slot_name";
    let doing = format!("making replication slot {to:?} from {from:?}");
    let params: [(&(dyn ToSql + Sync), Type); 2] = [(&from, Type::NAME), (&to, Type::NAME)];
    let rows = match client.query_typed(sql, &params).await {
        Ok(rows) => rows,
        Err(e) if is(&e, &SqlState::CONFIGURATION_LIMIT_EXCEEDED) => {
            let text = "all replication slots are in use: raise max_replication_slots (needs a restart), or drop a slot that nobody uses";
            return Err(Error::source_refused(format!("{doing}: {text}")));
        }
        Err(e) => return Err(failed(doing, e)),
    };
    let text = rows.into_iter().next().map(|row| SqlRow::new(row, &doing).get(0)).transpose()?;
    lsn(text.flatten())?.ok_or_else(|| Error::retry(format!("{doing}: the new slot has no position")))
}

/// Drops the slot unless somebody streams from it.
pub async fn drop_if_inactive(client: &(impl GenericClient + Sync), name: &str) -> Result<Dropped> {
    let sql = "SELECT pg_catalog.pg_drop_replication_slot($1)";
    match client.query_typed(sql, &[(&name, Type::NAME)]).await {
        Ok(_) => Ok(Dropped::Gone),
        Err(e) if is(&e, &SqlState::OBJECT_IN_USE) => Ok(Dropped::Active),
        Err(e) if is(&e, &SqlState::UNDEFINED_OBJECT) => Ok(Dropped::Absent),
        Err(e) => Err(failed(format!("dropping replication slot {name:?}"), e)),
    }
}

/// Ends the session `pid`, but only while it holds the slot. Returns whether a signal was sent; the slot is free some time later.
pub async fn terminate_holder(client: &(impl GenericClient + Sync), slot: &str, pid: i32) -> Result<bool> {
    let sql = "SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots
                WHERE slot_name = $1 AND active_pid = $2";
    let params: [(&(dyn ToSql + Sync), Type); 2] = [(&slot, Type::TEXT), (&pid, Type::INT4)];
    let doing = format!("ending the session {pid} that holds replication slot {slot:?}");
    let rows = rows(client, doing, sql, &params).await?;
    rows.first().map_or(Ok(false), |row| row.get(0))
}
