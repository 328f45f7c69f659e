//! `huella status`: where the lake stands, and how far the source is ahead of it.
//!
//! Owns: which facts are gathered. Does not own: how they are shown (`show`), what is right or wrong (`check`).
//! Invariants: the lake's half is told even if the source cannot be reached; nothing is changed on either side.

mod show;

use crate::commit;
use crate::config::Config;
use crate::error::Result;
use crate::files::begun;
use crate::lake::{SlotState, Watermark};
use crate::lsn::Lsn;
use crate::postgres::server::{self, Blocker};
use crate::postgres::slot::{self, Slot};
use crate::postgres::{ConnectOptions, connect_sql};
use crate::store;
use crate::table_name::TableName;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

/// A source that does not answer in this time is told as unreachable: a person waits for the lake's half.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(20);

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
}

/// Prints the state as text, or as one JSON document.
///
/// # Errors
/// `Kind::Lake` if the lake cannot be read. A source that cannot be reached is a warning in the output.
pub async fn run(config: &Config, json: bool) -> Result<()> {
    let lake = lake(config).await?;
    let source = timeout(SOURCE_TIMEOUT, source(config, &lake.watermark)).await;
    let source = source.unwrap_or_else(|_| Err(crate::error::Error::retry(format!("no answer within {} s", SOURCE_TIMEOUT.as_secs()))));
    let source = source.map_err(|error| error.full());
    if json {
        let document = show::document(&lake, &source);
        return crate::stdout::line(&serde_json::to_string_pretty(&document).expect("JSON values are always JSON"));
    }
    crate::stdout::line(&show::text(&lake, &source))
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
    Ok(Source { current_wal, slot, blockers })
}

/// WAL between two positions.
fn distance(from: Lsn, to: Lsn) -> u64 {
    to.0.saturating_sub(from.0)
}
