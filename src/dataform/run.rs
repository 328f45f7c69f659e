//! `huella dataform run`: merges the published cut by one invocation of the Dataform repository.
//!
//! Owns: the order (record, compile, invoke, wait), what is printed. Does not own: the calls (`api`), the record's form (`record`).
//! Invariants: a cut that was merged is not merged again; a run that goes on, or whose start was not recorded or not answered, is found and
//! waited for; the cut is called merged only when every action succeeded, and the command only ends well if it is also young.

use super::api::{Action, Invoked, Repository, Standing};
use super::record::{REFUSED, Record, Run};
use super::vars::huella_cut;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lake::{Cut, FORMAT};
use crate::{publish, stdout};
use std::fmt::Write;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// First and longest pause between two looks at a run: merges take seconds to minutes.
const POLL_FIRST: Duration = Duration::from_secs(1);
const POLL_LONGEST: Duration = Duration::from_secs(30);
/// Failed looks in a row that are taken for passing trouble.
const LOOKS_FAILED_MAX: u32 = 20;
/// Characters of a failure that an error repeats; the log has all of it.
const REASON_MAX: usize = 300;

/// Runs Dataform on the published cut, waits, prints a table of its actions.
///
/// # Errors
/// `Kind::Config` without `[dataform]`, for a repository that does not compile, and for what the service refuses; `Kind::Lake` if
/// nothing is published; `Kind::Retry` if an action failed, the service does not answer, or the cut is older than `dataform.max_age`.
pub async fn run(config: &Config, stop: watch::Receiver<bool>) -> Result<()> {
    let settings = config
        .dataform
        .as_ref()
        .ok_or_else(|| Error::config("[dataform] is missing: repository, and git_commitish or release_config, say what is to run"))?;
    let store = crate::store::open(&config.lake.url).await?;
    let Some((cut, _)) = publish::current(store.as_ref()).await? else {
        return Err(Error::lake("nothing is published yet: `huella publish` first"));
    };
    let repository = Repository::open(config, settings).await?;
    let merged = merge(&repository, &mut Record::read(store.as_ref()).await?, &cut, stop).await;
    // Whatever the run did: an old cut that is merged is still old.
    match (merged, too_old(&cut, settings.max_age, chrono::Utc::now())) {
        (merged, None) => merged,
        (Ok(()), Some(reason)) => Err(Error::retry(reason)),
        (Err(error), Some(reason)) => Err(error.context(reason)),
    }
}

/// Why a cut may not be taken for the present.
fn too_old(cut: &Cut, max_age: Duration, now: chrono::DateTime<chrono::Utc>) -> Option<String> {
    let of = &cut.commit_time;
    let Ok(time) = chrono::DateTime::parse_from_rfc3339(of) else { return Some(format!("the published cut has no time: {of:?}")) };
    let age = (now - time.to_utc()).to_std().unwrap_or_default(); // a clock of the future is no age
    let shown = |duration: Duration| humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    (age > max_age).then(|| {
        let limit = humantime::format_duration(max_age);
        let mend = "see `huella status`; is `huella run` running, and does `huella publish` succeed?";
        format!("the published cut is of {of}, {} old, and dataform.max_age is {limit}: {mend}", shown(age))
    })
}

/// One invocation for the cut, to its end.
async fn merge(repository: &Repository<'_>, record: &mut Record<'_>, cut: &Cut, mut stop: watch::Receiver<bool>) -> Result<()> {
    let variable = huella_cut(cut);
    let starting = async {
        match begun(repository, record, &variable).await? {
            Begun::Merged => Ok(None),
            Begun::Running(invocation) => Ok(Some(invocation)),
            Begun::Not => begin(repository, record, &cut.commit, &variable).await.map(Some),
        }
    };
    // What is half begun is recorded, and found by the next start.
    let invocation = tokio::select! {
        biased;
        _ = stop.wait_for(|s| *s) => return Err(Error::retry("asked to stop; the next `huella dataform run` goes on")),
        started = starting => started?,
    };
    let Some(invocation) = invocation else { return stdout::line(&format!("the cut at {} is merged already", cut.through)) };
    tracing::info!(invocation, through = %cut.through, "Dataform runs");
    let standing = wait(repository, &invocation, &mut stop).await?;
    let actions = repository.actions(&invocation).await?;
    stdout::lines(table(&actions).lines())?;
    for action in actions.iter().filter(|action| action.has_failed()) {
        tracing::error!(action = action.target, job = action.job, failure = action.failure, invocation, "a Dataform action failed");
    }
    let mut last = record.last.clone().ok_or_else(|| Error::bug("a run without a record"))?;
    last.state = match &standing {
        Standing::Succeeded => "SUCCEEDED".to_owned(),
        Standing::Ended(how) => how.clone(),
        Standing::Running => "RUNNING".to_owned(),
    };
    record.write(last).await?;
    match standing {
        Standing::Succeeded => {
            tracing::info!(through = %cut.through, actions = actions.len(), "the cut is merged");
            Ok(())
        }
        _ => Err(Error::retry(format!("the Dataform run did not succeed ({}): {invocation}", reason(&actions)))),
    }
}

/// How many actions failed, and why the first did.
fn reason(actions: &[Action]) -> String {
    let failed: Vec<&Action> = actions.iter().filter(|action| action.has_failed()).collect();
    let mut text = format!("{} of {} actions failed", failed.len(), actions.len());
    if let Some(first) = failed.first() {
        let why: String = first.failure.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(REASON_MAX).collect();
        write!(text, "; {}: {why}", first.target).expect("writing to a String cannot fail");
    }
    text
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
        None if last.state == REFUSED => None,
        // Started and not recorded, or not started: the service knows, or soon will.
        None => repository.invocation_by(&last.compilation, looking_ends(&last, repository)).await?,
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

/// Until when a recorded start that is not found may still appear, as of its record's time.
fn looking_ends(run: &Run, repository: &Repository<'_>) -> Instant {
    let recorded = chrono::DateTime::parse_from_rfc3339(&run.time).map(|time| time.to_utc()).unwrap_or_default();
    let since = (chrono::Utc::now() - recorded).to_std().unwrap_or_default();
    let left = repository.looked_for().saturating_sub(since);
    Instant::now() + left
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
    let invocation = match repository.invoke(&compiled.name).await? {
        Invoked::Started(invocation) => invocation,
        Invoked::Refused(error) => {
            // Whether this is recorded or not, nothing runs: without it the next start looks for it in vain, for a while.
            let _ = record.write(Run { state: REFUSED.to_owned(), ..run }).await;
            return Err(error);
        }
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
    let failed = actions.iter().filter(|action| action.has_failed()).count();
    write!(out, "{} actions, {failed} failed", actions.len()).expect("writing to a String cannot fail");
    out
}
