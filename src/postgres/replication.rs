//! The replication connection in command mode: IDENTIFY_SYSTEM, slots, START_REPLICATION.
//!
//! Owns: the commands and their answers. Does not own: the stream after START_REPLICATION (`stream`), which
//! slot is right (`slot`). Invariants: a command is sent only when the one before has been answered in full;
//! after a temporary slot exported its snapshot nothing is sent, not even a keepalive query.

use super::auth::{Session, Takes, log_in};
use super::error::{DbError, protocol};
use super::options::ConnectOptions;
use super::reader::StreamSetup;
use super::stream::ReplicationStream;
use super::transport::{Tls, Transport, attempt};
use super::wire::{Backend, Wire};
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// Bound for commands that wait for nothing on the server but themselves.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Bound for saying goodbye.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(2);

/// Answer to IDENTIFY_SYSTEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The cluster's identifier, unchanged by physical copies and restores.
    pub identifier: String,
    /// The timeline that the server writes.
    pub timeline: u32,
    /// The end of the WAL that is flushed.
    pub xlogpos: Lsn,
    /// The database of this connection.
    pub database: Option<String>,
}

/// A fresh temporary slot and the snapshot that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedSlot {
    /// The stream of this slot begins here: earlier commits are in the snapshot, later ones are not.
    pub consistent_point: Lsn,
    /// Name for SET TRANSACTION SNAPSHOT; dies with the connection, or with its next command.
    pub snapshot: String,
}

/// A `replication=database` connection that takes commands.
#[derive(Debug)]
pub struct Replication {
    session: Session,
    options: ConnectOptions,
    version: u32,
    /// The server's `wal_sender_timeout` for this session; `None` if it is off.
    wal_sender_timeout: Option<Duration>,
    /// A command is under way (its future may have been dropped).
    busy: bool,
}

/// A row of an answer, as text.
pub(super) type Row = Vec<Option<String>>;

impl Replication {
    /// Connects, logs in and pins the session's settings.
    pub async fn connect(options: &ConnectOptions) -> Result<Self> {
        attempt(options, |tls| Self::open(options, tls)).await
    }

    async fn open(options: &ConnectOptions, tls: Tls) -> Result<Self> {
        let session = log_in(Transport::connect(options, tls).await?, options, Takes::Replication).await?;
        let (version, pins) = (session.version()?, session.pins()?);
        let mut this = Self { session, options: options.clone(), version, wal_sender_timeout: None, busy: false };
        let sql = format!(
            "{pins} SET statement_timeout = 0; SET lock_timeout = 0; \
             SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'"
        );
        let rows = this.command(&sql, "setting up the session").await?;
        let millis = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok()).filter(|millis| *millis > 0);
        this.wal_sender_timeout = millis.map(Duration::from_millis);
        Ok(this)
    }

    /// The server's version as a number: 150018 is 15.18.
    pub fn server_version(&self) -> u32 {
        self.version
    }

    /// Which cluster this is and how far its WAL goes.
    pub async fn identify_system(&mut self) -> Result<System> {
        let doing = "IDENTIFY_SYSTEM";
        let rows = timed(self.command(doing, doing), doing).await?;
        let row = only_row(&rows, doing)?;
        Ok(System {
            identifier: cell(row, 0, doing)?.to_owned(),
            timeline: parsed(row, 1, doing)?,
            xlogpos: parsed(row, 2, doing)?,
            database: row.get(3).cloned().flatten(),
        })
    }

    /// The history file of `timeline`: a line for each ancestor, `timeline<TAB>switch LSN<TAB>reason`.
    /// Timeline 1 has none, which the server answers with an error.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<String> {
        let doing = format!("TIMELINE_HISTORY {timeline}");
        let rows = timed(self.command(&doing, &doing), &doing).await?;
        Ok(cell(only_row(&rows, &doing)?, 1, &doing)?.to_owned())
    }

    /// Creates a temporary slot and exports its snapshot; both live until this connection ends or gets its
    /// next command, so leave it alone while the snapshot is needed.
    ///
    /// Waits, without limit, for the transactions that write at this moment: select on it. If the future is
    /// dropped the connection is of no use any more; [`terminate`](Self::terminate) then cancels the command.
    pub async fn create_temporary_slot(&mut self, name: &str) -> Result<ExportedSlot> {
        let sql = format!("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT", escape_identifier(name));
        let doing = format!("creating the temporary slot {name:?}");
        let rows = self.command(&sql, &doing).await?;
        let row = only_row(&rows, &doing)?;
        Ok(ExportedSlot { consistent_point: parsed(row, 1, &doing)?, snapshot: cell(row, 2, &doing)?.to_owned() })
    }

    /// Has standbys keep `slot` in step (17+), so that one that is promoted can be streamed from. The slot in use is a `Retry` error with
    /// SQLSTATE 55006.
    pub async fn enable_failover(&mut self, slot: &str) -> Result<()> {
        let sql = format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", escape_identifier(slot));
        let doing = format!("turning failover on for slot {slot:?}");
        timed(self.command(&sql, &doing), &doing).await.map(|_| ())
    }

    /// Starts the stream of `slot` at `from` (`0/0`: at the slot's own position; a position below that is
    /// moved up by the server without a word). The slot in use is a `Retry` error with SQLSTATE 55006.
    pub async fn start(mut self, slot: &str, publication: &str, from: Lsn, setup: StreamSetup) -> Result<ReplicationStream> {
        // publication_names is a list of identifiers inside a string.
        let publications = escape_literal(&escape_identifier(publication));
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '1', publication_names {})",
            escape_identifier(slot),
            publications.trim_start()
        );
        let doing = format!("starting replication from slot {slot:?}");
        let begun = async {
            self.send_query(&sql).await?;
            match self.session.next_or_refusal(&doing).await? {
                Backend::CopyBoth => Ok(()),
                Backend::Message(_) => Err(protocol("no copy after START_REPLICATION")),
            }
        };
        timed(begun, &doing).await?;
        let (transport, rest) = self.session.wire.into_parts();
        Ok(ReplicationStream::begin(transport, rest, setup, self.wal_sender_timeout))
    }

    /// Ends the session, cancelling a command that is still under way. Takes at most two seconds.
    pub async fn terminate(mut self) {
        let goodbye = async {
            if self.busy {
                if let Err(error) = self.cancel().await {
                    tracing::debug!(error = %error.full(), "the cancel request did not arrive");
                }
                return;
            }
            let mut out = BytesMut::new();
            frontend::terminate(&mut out);
            // The server may be gone already; there is nothing to mend then.
            let _ = self.session.wire.send(&out).await;
            let _ = self.session.wire.transport.shutdown().await;
        };
        let _ = timeout(TERMINATE_TIMEOUT, goodbye).await;
    }

    /// Asks the server, over another connection, to cancel what this session does. A closed socket alone is
    /// not noticed by a server that waits for other transactions.
    async fn cancel(&self) -> Result<()> {
        let Some((process, key)) = self.session.cancel_key else { return Ok(()) };
        let tls = if self.session.wire.transport.is_encrypted() { Tls::AsAsked } else { Tls::Without };
        let mut wire = Wire::new(Transport::connect(&self.options, tls).await?);
        let mut out = BytesMut::new();
        frontend::cancel_request(process, key, &mut out);
        wire.send(&out).await?;
        // The server closes the connection once the request is passed on.
        let _ = wire.next().await;
        Ok(())
    }

    async fn send_query(&mut self, sql: &str) -> Result<()> {
        if self.busy {
            return Err(Error::bug("a replication command was sent while another one was under way"));
        }
        self.busy = true;
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(|e| Error::config("a name cannot be sent to the server").with_source(e))?;
        self.session.wire.send(&out).await
    }

    /// Runs one simple query and returns all its rows as text.
    async fn command(&mut self, sql: &str, doing: &str) -> Result<Vec<Row>> {
        self.send_query(sql).await.map_err(|e| e.context(doing))?;
        let (rows, ready) = self.session.answer(doing).await;
        self.busy = !ready;
        rows
    }
}

impl Session {
    /// Runs a simple query; its rows as text. For sessions that nobody uses after an error.
    pub(super) async fn rows(&mut self, sql: &str, doing: &str) -> Result<Vec<Row>> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(|e| Error::config("a name cannot be sent to the server").with_source(e))?;
        self.wire.send(&out).await.map_err(|e| e.context(doing))?;
        self.answer(doing).await.0
    }

    /// Reads the answer to a simple query: its rows as text, and whether the session is ready for another.
    pub(super) async fn answer(&mut self, doing: &str) -> (Result<Vec<Row>>, bool) {
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            match self.wire.next().await {
                Ok(Backend::Message(Message::DataRow(body))) => match text_row(&body) {
                    Ok(row) => rows.push(row),
                    Err(error) => return (Err(error), false),
                },
                Ok(Backend::Message(Message::ErrorResponse(body))) => match DbError::read(body.fields()) {
                    Ok(error) => refused = Some(error),
                    Err(error) => return (Err(protocol(error)), false),
                },
                Ok(Backend::Message(Message::ReadyForQuery(_))) => {
                    return (refused.map_or(Ok(rows), |error| Err(error.into_error(doing))), true);
                }
                Ok(Backend::Message(_)) => {}
                Ok(Backend::CopyBoth) => return (Err(protocol("a copy that nobody asked for")), false),
                // A FATAL error is followed by the end of the connection, not by ReadyForQuery.
                Err(broken) => return (Err(refused.map_or_else(|| broken.context(doing), |error| error.into_error(doing))), false),
            }
        }
    }

    /// The next message but notices; an ErrorResponse is an error.
    pub(super) async fn next_or_refusal(&mut self, doing: &str) -> Result<Backend> {
        loop {
            match self.wire.next().await.map_err(|e| e.context(doing))? {
                Backend::Message(Message::ErrorResponse(body)) => {
                    return Err(DbError::read(body.fields()).map_err(protocol)?.into_error(doing));
                }
                Backend::Message(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => {}
                other => return Ok(other),
            }
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

async fn timed<T>(work: impl Future<Output = Result<T>>, doing: &str) -> Result<T> {
    let late = |_| Error::retry(format!("{doing}: no answer within {} s", COMMAND_TIMEOUT.as_secs()));
    timeout(COMMAND_TIMEOUT, work).await.map_err(late)?
}

fn text_row(body: &DataRowBody) -> Result<Row> {
    let text = |range: std::ops::Range<usize>| {
        let bytes = body.buffer().get(range).ok_or_else(|| std::io::Error::other("a row ends early"))?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    };
    body.ranges().map(|range| range.map(text).transpose()).collect().map_err(protocol)
}

fn only_row<'a>(rows: &'a [Row], doing: &str) -> Result<&'a Row> {
    match rows {
        [row] => Ok(row),
        _ => Err(protocol(format!("{} rows in the answer to {doing}", rows.len()))),
    }
}

fn cell<'a>(row: &'a Row, at: usize, doing: &str) -> Result<&'a str> {
    row.get(at).and_then(|cell| cell.as_deref()).ok_or_else(|| protocol(format!("no column {at} in the answer to {doing}")))
}

fn parsed<T: std::str::FromStr>(row: &Row, at: usize, doing: &str) -> Result<T> {
    cell(row, at, doing)?.parse().map_err(|_| protocol(format!("an unreadable column {at} in the answer to {doing}")))
}
