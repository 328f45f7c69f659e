//! `huella daily`: everything that a day needs, one step after the other.
//!
//! Owns: the order of the steps, which of them need which, the summary. Does not own: any step.
//! Invariants: every step finds what is done already, so that the whole may be started twice, or again where it failed; two at a time
//! on one source do not work against each other: the second ends. A step that fails is told at the end, with the exit code of the first.

use crate::config::{Config, Mode};
use crate::error::{Error, Result};
use crate::postgres::{self, ConnectOptions, connect_sql};
use crate::{compact, dataform, publish, replicate, stdout, wait};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

/// How a step ended.
enum Outcome {
    Done,
    Skipped(&'static str),
    Failed(Error),
}

struct Step {
    name: &'static str,
    outcome: Outcome,
    secs: f64,
}

/// Copies the catalogues, compacts, publishes, and runs Dataform, as far as each is configured. A step is given up after `timeout` without progress.
///
/// # Errors
/// The first step's that failed.
pub async fn run(config: Config, timeout: Duration, stop: watch::Receiver<bool>) -> Result<()> {
    let turn = turn(&config).await;
    let _turn = match turn {
        Ok(Some(client)) => Some(client),
        Ok(None) => return stdout::line("another `huella daily` is under way for this lake: nothing to do here"),
        // Each step is safe beside another of its kind, and what needs the source will say so itself.
        Err(error) => {
            tracing::warn!(error = %error.full(), "the source cannot be asked whether another daily job runs; going on");
            None
        }
    };
    let begun = Instant::now();
    let mut steps = Vec::new();
    let catalogues = config.tables.iter().flatten().any(|table| table.mode == Mode::Snapshot);
    steps.push(match catalogues {
        true => step("snapshot", timeout, replicate::snapshot(config.clone(), &[], stop.clone())).await,
        false => skipped("snapshot", "no table is in mode = \"snapshot\""),
    });
    if !*stop.borrow() {
        steps.push(step("compact", timeout, compact::run(&config, None)).await);
    }
    if !*stop.borrow() {
        steps.push(step("publish", timeout, publish::run(&config)).await);
    }
    let published = matches!(steps.last(), Some(Step { name: "publish", outcome: Outcome::Done, .. }));
    if published {
        steps.push(match &config.bigquery {
            Some(_) => step("tables", timeout, tables(&config)).await,
            None => skipped("tables", "[bigquery] is not configured"),
        });
        steps.push(match &config.dataform {
            Some(_) => step("dataform", timeout, dataform::run(&config, stop.clone())).await,
            None => skipped("dataform", "[dataform] is not configured"),
        });
    }
    summary(&steps, begun.elapsed().as_secs_f64())?;
    if *stop.borrow() {
        return Err(Error::retry("asked to stop; `huella daily` goes on where it was"));
    }
    match steps.into_iter().find_map(|step| if let Outcome::Failed(error) = step.outcome { Some((step.name, error)) } else { None }) {
        Some((name, error)) => Err(error.context(format!("daily, step {name}"))),
        None => Ok(()),
    }
}

/// The session-level lock that one daily job holds; it ends with the session, however that ends. `None`: another has it.
async fn turn(config: &Config) -> Result<Option<Client>> {
    let options = ConnectOptions::parse(config.source.url.expose(), config.source.tls_ca.as_deref())?;
    let client = connect_sql(&options).await?;
    let sql = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext('huella daily'), pg_catalog.hashtext($1))";
    let key = format!("{} {}", config.source.slot, config.lake.url);
    let turn: bool = postgres::one(&client, "taking the turn for the daily job", sql, &[(&key, Type::TEXT)]).await?.get(0)?;
    Ok(turn.then_some(client))
}

/// One step; given up if it does not move for `timeout`, so that a lake or a service that does not answer costs one step and not the day.
async fn step(name: &'static str, timeout: Duration, work: impl Future<Output = Result<()>>) -> Step {
    let begun = Instant::now();
    tracing::info!(step = name, "daily: begins");
    let outcome = match wait::while_it_moves(Some(timeout), &format!("daily, step {name}"), work).await {
        Ok(()) => Outcome::Done,
        Err(error) => {
            tracing::error!(step = name, error = %error.full(), "daily: the step failed");
            Outcome::Failed(error)
        }
    };
    Step { name, outcome, secs: begun.elapsed().as_secs_f64() }
}

fn skipped(name: &'static str, why: &'static str) -> Step {
    Step { name, outcome: Outcome::Skipped(why), secs: 0.0 }
}

/// Tells whether the Dataform repository has to learn of changed tables.
async fn tables(config: &Config) -> Result<()> {
    let store = crate::store::open(&config.lake.url).await?;
    let changed = dataform::publish_tables(config, store.as_ref()).await?;
    for line in &changed {
        tracing::warn!(
            change = line,
            "tables changed: the Dataform repository needs a commit of `huella dataform generate --out includes`"
        );
    }
    Ok(())
}

/// One line: what was done, how long it took.
fn summary(steps: &[Step], secs: f64) -> Result<()> {
    let text = |step: &Step| match &step.outcome {
        Outcome::Done => format!("{} done in {:.1} s", step.name, step.secs),
        Outcome::Skipped(why) => format!("{} skipped ({why})", step.name),
        Outcome::Failed(error) => format!("{} failed after {:.1} s: {error}", step.name, step.secs),
    };
    let line = steps.iter().map(text).collect::<Vec<_>>().join("; ");
    let failed = steps.iter().filter(|step| matches!(step.outcome, Outcome::Failed(_))).count();
    if failed == 0 {
        tracing::info!(steps = line, secs, "daily: done");
    } else {
        tracing::error!(steps = line, failed, secs, "daily: not everything was done");
    }
    Ok(())
}
