//! Supervision: first start, take-over, session, and what to do when one of them ends.
//!
//! Owns: reconnection with back-off, who begins again after a fencing. Invariants: errors that a person must fix end the process; trouble is
//! retried for ever, with pauses that progress resets, or up to the limit that a job was given.

use super::announced::Announced;
use super::copier::Copier;
use super::establish::{Established, establish};
use super::session::{self, End};
use super::source;
use super::takeover::{Taken, take_over};
use super::writer::Writer;
use crate::commit::load;
use crate::config::Config;
use crate::error::{Kind, Result};
use crate::lake::Tenure;
use crate::postgres::unstreamable::left_out;
use crate::postgres::{ConnectOptions, FIRST_CONNECTION, connect_sql, server};
use crate::schema::HashKey;
use crate::wait;
use backon::BackoffBuilder;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;
use tokio_postgres::Client;

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
    /// End whoever holds the slot.
    pub take_over: bool,
    /// Give up after so long without progress; `None`: never.
    pub timeout: Option<Duration>,
}

impl Mode {
    fn tenure(&self) -> Tenure {
        if self.until_caught_up { Tenure::Passing } else { Tenure::Stays }
    }
}

/// Replicates until `stop` turns true, an end is reached, or a person is needed.
pub async fn run(config: Config, mode: Mode, stop: watch::Receiver<bool>) -> Result<()> {
    let options = ConnectOptions::parse(config.source.url.expose(), config.source.tls_ca.as_deref())?;
    let doing = format!("huella run from {} into {}", options.describe(), config.lake.url);
    wait::while_it_moves(mode.timeout, &doing, supervise(config, options, mode, stop)).await
}

async fn supervise(config: Config, options: ConnectOptions, mode: Mode, mut stop: watch::Receiver<bool>) -> Result<()> {
    let store = crate::store::open(&config.lake.url).await?;
    let hash_key = config.hash_key.as_ref().map(|key| HashKey::new(key.expose().as_bytes()));
    let mut writer = Writer {
        id: crate::commit::writer_id(),
        config,
        options: options.clone().patient(FIRST_CONNECTION),
        store,
        hash_key,
        held: None,
        copier: Copier::new(),
        prepared: None,
        unsettled: Vec::new(),
        tenure: mode.tenure(),
        take_over: mode.take_over,
        turn: None,
        told_left_out: false,
        target: None,
        announced: Announced::default(),
        ended: BTreeSet::new(),
        left_out: BTreeMap::new(),
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
        writer.options = options.clone();
        let wait = pause.next().unwrap_or(PAUSE_LONGEST);
        match ended {
            Ok(End::Stopped | End::CaughtUp) => break,
            Ok(End::Anew) => {}
            Err(error) if error.is_retry() => {
                wait::trouble(error.full());
                tracing::warn!(error = %error.full(), pause_ms = wait.as_millis() as u64, "the session ended, reconnecting after a pause");
            }
            Err(error) if error.kind() == Kind::Fenced && writer.tenure.stays() && passed_by(&writer).await? => {
                tracing::warn!(error = %error.full(), "a job that does not stay took the lake over: this writer begins again behind it, as one that has just started");
                writer.forget_claim();
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    if let Some(held) = &mut writer.held {
        held.leave().await;
    }
    Ok(())
}

/// Whether who fenced us is a job that leaves by itself, or has left.
async fn passed_by(writer: &Writer) -> Result<bool> {
    Ok(load(writer.store.as_ref()).await?.is_some_and(|(watermark, _)| !watermark.tenure.stays()))
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
    match taken {
        Some(taken) => session::run(writer, taken, stop).await,
        None => Ok(End::CaughtUp),
    }
}

/// The lake established, the slot held, the epoch claimed. `None`: another writer has brought the lake to where this one was to end.
async fn ready(writer: &mut Writer, until_caught_up: bool, resnapshot: &mut bool) -> Result<Option<Taken>> {
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
    let taken = take_over(writer).await;
    writer.turn = None;
    let taken = taken?;
    if let Some(taken) = taken.as_ref().filter(|_| !std::mem::replace(&mut writer.told_left_out, true)) {
        tell_left_out(&writer.config, &taken.client).await;
    }
    Ok(taken)
}

/// Names the tables that nobody asked for and that are not streamed: among hundreds nobody would miss one.
async fn tell_left_out(config: &Config, client: &Client) {
    if config.tables.is_some() {
        return;
    }
    match left_out(client, "public").await {
        Ok(tables) => tables.iter().for_each(
            |out| tracing::warn!(table = %out.table, why = %out.why, fix = out.fix, "this table is left out: it cannot be streamed"),
        ),
        Err(error) => tracing::debug!(error = %error.full(), "the tables that are left out cannot be named now"),
    }
}
