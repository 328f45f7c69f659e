//! `huella status`: where the lake stands, and how far the source is ahead of it.
//!
//! Owns: which facts are gathered. Does not own: how they are shown (`show`), which of them need a person (`attention`).
//! Invariants: the lake's half is told even if the source cannot be reached; nothing is changed on either side.

mod attention;
mod max_lag;
mod show;

pub use max_lag::MaxLag;

use crate::commit;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files::begun;
use crate::lake::{SlotState, Watermark};
use crate::lsn::Lsn;
use crate::postgres::server::{self, Blocker};
use crate::postgres::slot::{self, Slot};
use crate::postgres::unstreamable::{LeftOut, left_out};
use crate::postgres::{ConnectOptions, connect_sql, publication};
use crate::store;
use crate::table_name::TableName;
use crate::wait;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

/// A source that does not answer in this time is told as unreachable, unless the command was given another: a person waits for the lake's half.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(15);

/// The lake's half.
struct Lake {
    url: String,
    watermark: Watermark,
    /// Seconds since the last commit, if its time can be read.
    age_secs: Option<f64>,
    /// Live files of the current version of each table.
    files: BTreeMap<TableName, Files>,
}

/// The live files of a table.
#[derive(Default, Clone, Copy)]
struct Files {
    count: u64,
    rows: u64,
    bytes: u64,
}

/// The source's half.
struct Source {
    current_wal: Lsn,
    slot: Option<Slot>,
    /// Who keeps a copy waiting; looked at only while one is awaited.
    blockers: Vec<Blocker>,
    /// The cluster; `None` if the role may not read it.
    system_identifier: Option<String>,
    /// The publication that is there now, by its oid.
    publication_oid: Option<u32>,
    /// The watermark's position, read after the slot: it must not be behind that.
    through: Option<Lsn>,
    /// Without a list in the configuration: tables of schema public that cannot be streamed.
    left_out: Vec<LeftOut>,
}

/// Prints the state as text, or as one JSON document.
///
/// # Errors
/// `Kind::Found` if something needs a person, an unreachable source included; `Kind::Lake` if the lake cannot be read, `Kind::Retry` if it
/// does not answer.
pub async fn run(config: &Config, json: bool, max_lag: Option<MaxLag>) -> Result<()> {
    let lake = lake(config).await?;
    let bound = wait::limit().unwrap_or(SOURCE_TIMEOUT);
    let source = timeout(bound, source(config, &lake.watermark)).await;
    let source = source.unwrap_or_else(|_| Err(Error::retry(format!("no answer within {}", humantime::format_duration(bound)))));
    let source = source.map_err(|error| error.full());
    let found = attention::judge(&lake, &source, max_lag, chrono::Utc::now());
    if json {
        crate::stdout::json(&show::document(&lake, &source, &found))?;
    } else {
        crate::stdout::lines(show::text(&lake, &source, &found))?;
    }
    match found.as_slice() {
        [] => Ok(()),
        found => Err(Error::found(format!("a person is needed: {}", found.iter().map(|one| one.code).collect::<Vec<_>>().join(", ")))),
    }
}

async fn lake(config: &Config) -> Result<Lake> {
    let store = store::open(&config.lake.url).await?;
    let watermark = begun(store.as_ref()).await?;
    let mut files: BTreeMap<TableName, Files> = BTreeMap::new();
    for live in commit::live(store.as_ref(), &watermark, false).await? {
        let sum = files.entry(live.file.table).or_default();
        sum.count += 1;
        sum.rows += live.file.rows;
        sum.bytes += live.file.bytes;
    }
    let committed = chrono::DateTime::parse_from_rfc3339(&watermark.commit_time).ok();
    let age_secs = committed.map(|at| (chrono::Utc::now().signed_duration_since(at).num_milliseconds() as f64 / 1000.0).max(0.0));
    Ok(Lake { url: store.uri(""), watermark, age_secs, files })
}

async fn source(config: &Config, watermark: &Watermark) -> Result<Source> {
    let options = ConnectOptions::parse(config.source.url.expose(), config.source.tls_ca.as_deref())?;
    let client = connect_sql(&options).await?;
    let slot = slot::read(&client, &watermark.source.slot).await?;
    let current_wal = server::info(&client).await?.current_wal_lsn;
    let copy_awaited =
        watermark.slot_state == SlotState::Creating || watermark.tables.values().any(|t| t.version.is_none() || !t.pending.is_empty());
    let blockers = if copy_awaited { server::blockers_of_slot_creation(&client).await? } else { Vec::new() };
    let store = store::open(&config.lake.url).await?;
    let through = commit::load(store.as_ref()).await?.and_then(|(now, _)| now.through);
    let published = publication::read_of(&client, &config.source.publication, &[]).await?;
    Ok(Source {
        current_wal,
        slot,
        blockers,
        system_identifier: server::system_identifier(&client).await?,
        publication_oid: published.map(|publication| publication.oid),
        through,
        left_out: if config.tables.is_none() { left_out(&client, "public").await? } else { Vec::new() },
    })
}

/// Age of the last commit if anything was written since, else 0.
fn lag_secs(lake: &Lake, lag_bytes: Option<u64>) -> Option<f64> {
    match lag_bytes? {
        0 => Some(0.0),
        _ => lake.age_secs,
    }
}

/// A span of time for people.
fn span(secs: f64) -> String {
    let whole = Duration::from_secs(secs as u64);
    if secs < 60.0 { format!("{secs:.1} s") } else { humantime::format_duration(whole).to_string() }
}

/// WAL between two positions.
fn distance(from: Lsn, to: Lsn) -> u64 {
    to.0.saturating_sub(from.0)
}
