//! `huella files`: the live data files, which are what a reader may read.
//!
//! Owns: the command's two forms of output. Does not own: which files are live (`lake`).
//! Invariant: files stand in the order of their commits.

use crate::commit;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lake::{LiveFile, Watermark};
use crate::store::{self, Store};
use crate::table_name::TableName;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;

/// A lake that does not give its watermark in this time is told as unreadable: the person at the terminal decides what then.
const LAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Prints the live files of `tables` (none: of all), one URI a line or as one JSON array.
///
/// # Errors
/// `Kind::Usage` for a table that the lake does not have, `Kind::Lake` if there is no watermark or the lake cannot be read.
pub async fn run(config: &Config, tables: &[TableName], json: bool, all_versions: bool) -> Result<()> {
    let store = store::open(&config.lake.url).await?;
    let watermark = begun(store.as_ref()).await?;
    known(&watermark, tables)?;
    let live = commit::live(store.as_ref(), &watermark, all_versions).await?;
    let wanted = live.iter().filter(|live| tables.is_empty() || tables.contains(&live.file.table));
    if json {
        let all: Vec<Value> = wanted.map(|live| described(store.as_ref(), live)).collect();
        return crate::stdout::json(&all);
    }
    crate::stdout::lines(wanted.map(|live| store.uri(&live.file.path)))
}

/// The lake's watermark.
///
/// # Errors
/// `Kind::Lake` if there is none.
pub(crate) async fn begun(store: &dyn Store) -> Result<Watermark> {
    let none = || Error::lake(format!("{} holds no lake yet: `huella run` begins one", store.uri("")));
    let late = |_| Error::lake(format!("{} gave no watermark within {} s", store.uri(""), LAKE_TIMEOUT.as_secs()));
    Ok(timeout(LAKE_TIMEOUT, commit::load(store)).await.map_err(late)??.ok_or_else(none)?.0)
}

/// Refuses tables that the lake does not have.
pub(crate) fn known(watermark: &Watermark, tables: &[TableName]) -> Result<()> {
    let Some(unknown) = tables.iter().find(|table| !watermark.tables.contains_key(table)) else { return Ok(()) };
    let there: Vec<String> = watermark.tables.keys().map(TableName::to_string).collect();
    let there = if there.is_empty() { "it has none".to_owned() } else { format!("it has {}", there.join(", ")) };
    Err(Error::usage(format!("the lake has no table {unknown}; {there}")))
}

fn described(store: &dyn Store, live: &LiveFile) -> Value {
    let file = &live.file;
    json!({
        "uri": store.uri(&file.path), "path": file.path, "table": file.table, "version": file.version, "rows": file.rows,
        "bytes": file.bytes, "crc32c": file.crc32c, "kind": file.kind, "seq": live.seq, "through": live.through,
    })
}
