//! `huella dataform run`: merges the published cut by one invocation of the Dataform repository.
//!
//! Owns: the order (record, compile, invoke, wait), what is printed. Does not own: the calls (`api`), the record's form (`record`).
//! Invariants: a cut that was merged is not merged again; a run that goes on, or whose start was not recorded, is found and waited for;
//! the cut is called merged only when every action succeeded.

use super::api::{Action, Repository, Standing};
use super::record::{Record, Run};
use super::vars::huella_cut;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lake::FORMAT;
use crate::{publish, stdout};
use std::fmt::Write;
use std::time::Duration;
use tokio::sync::watch;

/// First and longest pause between two looks at a run: merges take seconds to minutes.
const POLL_FIRST: Duration = Duration::from_secs(1);
const POLL_LONGEST: Duration = Duration::from_secs(30);
/// Failed looks in a row that are taken for passing trouble.
const LOOKS_FAILED_MAX: u32 = 20;

/// Runs Dataform on the published cut, waits, prints a table of its actions.
///
/// # Errors
/// `Kind::Config` without `[dataform]`, for a repository that does not compile, and for what the service refuses; `Kind::Lake` if
/// nothing is published; `Kind::Retry` if an action failed, or the service does not answer.
pub async fn run(config: &Config, mut stop: watch::Receiver<bool>) -> Result<()> {
    let settings = config
        .dataform
        .as_ref()
        .ok_or_else(|| Error::config("[dataform] is missing: repository, and git_commitish or release_config, say what is to run"))?;
    let store = crate::store::open(&config.lake.url).await?;
    let Some((cut, _)) = publish::current(store.as_ref()).await? else {
        return Err(Error::lake("nothing is published yet: `huella publish` first"));
    };
    let variable = huella_cut(&cut);
    let repository = Repository::open(settings).await?;
    let mut record = Record::read(store.as_ref()).await?;
    let invocation = match begun(&repository, &mut record, &variable).await? {
        Begun::Merged => return stdout::line(&format!("the cut at {} is merged already", cut.through)),
        Begun::Running(invocation) => invocation,
        Begun::Not => begin(&repository, &mut record, &cut.commit, &variable).await?,
    };
    tracing::info!(invocation, through = %cut.through, "Dataform runs");
    let standing = wait(&repository, &invocation, &mut stop).await?;
    let actions = repository.actions(&invocation).await?;
    stdout::line(&table(&actions))?;
    let mut last = record.last.clone().ok_or_else(|| Error::bug("a run without a record"))?;
    last.state = match &standing {
        Standing::Succeeded => "SUCCEEDED".to_owned(),
        Standing::Ended(how) => how.clone(),
        Standing::Running => "RUNNING".to_owned(),
    };
    record.write(last).await?;
    let failed = actions.iter().filter(|a| a.state == "FAILED").count();
    match standing {
        Standing::Succeeded => {
            tracing::info!(through = %cut.through, actions = actions.len(), "the cut is merged");
            Ok(())
        }
        _ => Err(Error::retry(format!("the Dataform run did not succeed ({failed} of {} actions failed): {invocation}", actions.len()))),
    }
}

enum Begun {
    Not,
    Running(String),
    Merged,
}

/// What became of an earlier start for this very cut.
async fn begun(repository: &Repository<'_>, record: &mut Record<'_>, variable: &str) -> Result<Begun> {
    let Some(last) = record.last.clone().filter(|last| last.variable == variable) else { return Ok(Begun::Not) };
    if last.state == "SUCCEEDED" {
        return Ok(Begun::Merged);
    }
    let invocation = match &last.invocation {
        Some(invocation) => Some(invocation.clone()),
        // Started and not recorded, or not started: the service knows.
        None => repository.invocation_of(&last.compilation).await?,
    };
    let Some(invocation) = invocation else { return Ok(Begun::Not) };
    match repository.standing(&invocation).await? {
        Some(Standing::Running) => {}
        Some(Standing::Succeeded) => {
            record.write(Run { invocation: Some(invocation), state: "SUCCEEDED".to_owned(), ..last }).await?;
            return Ok(Begun::Merged);
        }
        Some(Standing::Ended(how)) => {
            tracing::warn!(invocation, how, "the last run of this cut did not succeed, running again");
            return Ok(Begun::Not);
        }
        None => return Ok(Begun::Not),
    }
    if last.invocation.is_none() {
        record.write(Run { invocation: Some(invocation.clone()), ..last }).await?;
    }
    Ok(Begun::Running(invocation))
}

/// Compiles, records, invokes, records.
async fn begin(repository: &Repository<'_>, record: &mut Record<'_>, cut: &str, variable: &str) -> Result<String> {
    let compiled = repository.compile(variable).await?;
    tracing::info!(compilation = compiled.name, code = compiled.commit, "the Dataform repository compiles");
    let run = Run {
        format: FORMAT,
        cut: cut.to_owned(),
        variable: variable.to_owned(),
        compilation: compiled.name.clone(),
        code: compiled.commit,
        invocation: None,
        state: "RUNNING".to_owned(),
        time: String::new(),
    };
    record.write(run.clone()).await?;
    let invocation = match repository.invoke(&compiled.name).await {
        Ok(invocation) => invocation,
        // The reply may have been lost: a creation is never repeated blindly.
        Err(error) if error.is_retry() => match repository.invocation_of(&compiled.name).await? {
            Some(invocation) => invocation,
            None => return Err(error),
        },
        Err(error) => return Err(error),
    };
    record.write(Run { invocation: Some(invocation.clone()), ..run }).await?;
    Ok(invocation)
}

/// Waits for the end. Being asked to stop leaves the run to itself: the next `dataform run` finds it.
async fn wait(repository: &Repository<'_>, invocation: &str, stop: &mut watch::Receiver<bool>) -> Result<Standing> {
    let (mut pause, mut failures) = (POLL_FIRST, 0);
    loop {
        match repository.standing(invocation).await {
            Ok(Some(Standing::Running)) => {
                failures = 0;
                crate::wait::moved(); // it works for us
            }
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) => return Err(Error::retry(format!("the run is gone from the service: {invocation}"))),
            Err(error) if error.is_retry() && failures < LOOKS_FAILED_MAX => {
                failures += 1;
                tracing::warn!(error = %error.full(), "Dataform does not answer as it should, asking again");
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => return Err(Error::retry(format!("asked to stop; the run goes on by itself: {invocation}"))),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(POLL_LONGEST);
    }
}

/// Actions, state, time, failure.
fn table(actions: &[Action]) -> String {
    let wide = actions.iter().map(|a| a.target.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for action in actions {
        let took = action.took_ms.map_or(String::new(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
        let failure = action.failure.replace('\n', " ");
        let line = format!("{:<wide$}  {:<9}  {took:>8}  {failure}", action.target, action.state);
        writeln!(out, "{}", line.trim_end()).expect("writing to a String cannot fail");
    }
    let failed = actions.iter().filter(|a| a.state == "FAILED").count();
    write!(out, "{} actions, {failed} failed", actions.len()).expect("writing to a String cannot fail");
    out
}
