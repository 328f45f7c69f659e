//! `teardown`: takes slot and publication away from the source; the lake stays.
//!
//! Owns: the order (slot first: without it no WAL is held back). Invariant: nothing of the lake is touched.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::postgres::slot::Dropped;
use crate::postgres::{ConnectOptions, connect_sql, publication, slot};

/// Drops slot and publication and says so on standard output.
///
/// # Errors
/// `Source` if the slot is in use; `Retry` if the source does not answer.
pub async fn run(config: &Config) -> Result<()> {
    let options = ConnectOptions::parse(config.source.url.expose(), config.source.tls_ca.as_deref())?;
    let client = connect_sql(&options).await?;
    let (name, publication) = (&config.source.slot, &config.source.publication);
    let slot = match slot::drop_if_inactive(&client, name).await? {
        Dropped::Gone => "dropped",
        Dropped::Absent => "was not there",
        Dropped::Active => return Err(Error::source_refused(format!("replication slot {name:?} is in use: stop `huella run` first"))),
    };
    let published = match publication::read(&client, publication).await? {
        Some(_) => {
            publication::drop(&client, publication).await?;
            "dropped"
        }
        None => "was not there",
    };
    crate::stdout::lines([
        format!("replication slot {name:?}: {slot}"),
        format!("publication {publication:?}: {published}"),
        format!("the lake at {} stays as it is", config.lake.url),
    ])
}
