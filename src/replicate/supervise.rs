//! Supervision: first start, take-over, session, and what to do when one of them ends.
//!
//! Owns: reconnection with back-off. Invariants: errors that a person must mend end the process; trouble is retried for ever, with pauses
//! that progress resets.

use super::announced::Announced;
use super::copier::Copier;
use super::establish::{Established, establish};
use super::session::{self, End};
use super::source;
use super::takeover::{Taken, take_over};
use super::writer::Writer;
use crate::config::Config;
use crate::error::Result;
use crate::postgres::{ConnectOptions, connect_sql, server};
use crate::schema::HashKey;
use backon::BackoffBuilder;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;

/// First and longest pause between two attempts to reach the source.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_LONGEST: Duration = Duration::from_secs(30);

/// How `run` was asked to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mode {
    /// End once everything that is in the WAL now is committed and no copy is pending.
    pub until_caught_up: bool,
    /// Make the slot anew and copy every table.
    pub resnapshot: bool,
}

/// Replicates until `stop` turns true, an end is reached, or a person is needed.
pub async fn run(config: Config, mode: Mode, mut stop: watch::Receiver<bool>) -> Result<()> {
    let options = ConnectOptions::parse(config.source.url.expose(), config.source.tls_ca.as_deref())?;
    let store = crate::store::open(&config.lake.url).await?;
    let hash_key = config.hash_key.as_ref().map(|key| HashKey::new(key.expose().as_bytes()));
    let mut writer = Writer {
        id: crate::commit::writer_id(),
        config,
        options,
        store,
        hash_key,
        held: None,
        copier: Copier::new(),
        prepared: None,
        unsettled: Vec::new(),
        target: None,
        announced: Announced::default(),
        ended: BTreeSet::new(),
    };
    let mut resnapshot = mode.resnapshot;
    let pauses = || {
        backon::ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(PAUSE_FIRST)
            .with_max_delay(PAUSE_LONGEST)
            .without_max_times()
            .build()
    };
    let mut pause = pauses();
    loop {
        let before = writer.held.as_ref().map(|h| h.watermark().seq);
        let ended = attempt(&mut writer, mode.until_caught_up, &mut resnapshot, &mut stop).await;
        if before != writer.held.as_ref().map(|h| h.watermark().seq) {
            pause = pauses(); // progress was made
        }
        let wait = pause.next().unwrap_or(PAUSE_LONGEST);
        match ended {
            Ok(End::Stopped | End::CaughtUp) => return Ok(()),
            Ok(End::Anew) => {}
            Err(error) if error.is_retry() => {
                tracing::warn!(error = %error.full(), pause_ms = wait.as_millis() as u64, "the session ended, beginning anew");
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// [`run`] for the time that a proposal needs: `huella snapshot` where no writer runs. (A name of its own breaks the circle of types.)
pub(super) fn run_until_taken(
    config: Config,
    mode: Mode,
    stop: watch::Receiver<bool>,
) -> std::pin::Pin<Box<dyn Future<Output = Result<()>>>> {
    Box::pin(run(config, mode, stop))
}

async fn attempt(writer: &mut Writer, until_caught_up: bool, resnapshot: &mut bool, stop: &mut watch::Receiver<bool>) -> Result<End> {
    let taken = tokio::select! {
        biased;
        _ = stop.wait_for(|s| *s) => return Ok(End::Stopped),
        taken = ready(writer, until_caught_up, resnapshot) => taken?,
    };
    session::run(writer, taken, stop).await
}

/// The lake established, the slot held, the epoch claimed.
async fn ready(writer: &mut Writer, until_caught_up: bool, resnapshot: &mut bool) -> Result<Taken> {
    if until_caught_up && writer.target.is_none() {
        let client = connect_sql(&writer.options).await?;
        source::primary(&client).await?;
        writer.target = Some(server::flush_lsn(&client).await?);
    }
    if writer.held.is_none() {
        match establish(writer, *resnapshot).await? {
            Established::Before => {}
            Established::Now => *resnapshot = false,
        }
    }
    take_over(writer).await
}
