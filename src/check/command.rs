//! `huella check`: the configuration, the sessions and the lake brought to the tests, and their findings printed.
//!
//! Owns: opening the sessions. Does not own: any judgement.
//! Invariant: the watermark is read after the slot (see [`super::judge`]).

use super::{ConnectFailure, Finding, Known, Reached, Report, Session, Severity, TablePlan, Wanted, WantedTable, lake};
use crate::commit;
use crate::config::{Config, Mode, NewTables};
use crate::error::{Error, Kind, Result};
use crate::lake::{WATERMARK, table_folder};
use crate::postgres::{ConnectOptions, FIRST_CONNECTION, Replication, connect_sql, sqlstate};
use crate::store::{self, Store};
use crate::table_name::TableName;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::timeout;

/// Silence of the lake that is borne, unless the command was given another limit.
const LAKE_PATIENCE: Duration = Duration::from_secs(15);

/// Findings, printed as they come.
struct Told {
    json: bool,
    findings: Vec<Finding>,
}

impl Told {
    fn add(&mut self, found: impl IntoIterator<Item = Finding>) -> Result<()> {
        for finding in found {
            if !self.json {
                crate::stdout::line(&finding.to_string())?;
            }
            self.findings.push(finding);
        }
        Ok(())
    }
}

/// Tests source and lake and prints one line a finding as soon as it is found, or one JSON document with the plan of every table. `patience`:
/// how long either may be silent; without it the lake's silence is borne for 15 s, connecting to the source for 75 s.
///
/// # Errors
/// `Kind::Found` if there is a problem; `Kind::Config` if a URL cannot be understood.
pub async fn run(config: &Config, json: bool, patience: Option<Duration>) -> Result<()> {
    let options = ConnectOptions::parse(config.source.url.expose(), config.source.tls_ca.as_deref())?;
    let options = match patience {
        Some(patience) => options.within(patience),
        None => options.patient(FIRST_CONNECTION),
    };
    let limit = patience.unwrap_or(LAKE_PATIENCE);
    let mut told = Told { json, findings: Vec::new() };
    let lake = match timeout(limit, store::open(&config.lake.url)).await {
        Ok(Ok(store)) => Ok(store),
        Ok(Err(error)) if error.kind() == Kind::Config => return Err(error),
        Ok(Err(error)) => Err(lake::unopened(&error)),
        Err(_) => Err(lake::silent(&config.lake.url, limit)),
    };
    match &lake {
        Ok(store) => told.add(lake::lake_within(store.as_ref(), limit).await)?,
        Err(finding) => told.add([finding.clone()])?,
    }
    let answers = told.findings.iter().all(|finding| finding.severity != Severity::Problem);
    let mut unreadable = None;
    let known = async {
        let store = lake.as_ref().ok().filter(|_| answers)?;
        match timeout(limit, remembered(store.as_ref())).await {
            Ok(Ok(known)) => known,
            Ok(Err(error)) => {
                let mend = "the lake's watermark must be readable: use the huella that wrote it, or another lake.url";
                unreadable = Some(Finding::problem("lake-unreadable", "lake", error.full()).mend(mend));
                None
            }
            Err(_) => {
                unreadable = Some(lake::silent(&config.lake.url, limit));
                None
            }
        }
    };
    let Report { findings, tables } = source(config, &options, known).await;
    told.add(findings)?;
    told.add([super::connection::encryption(&options)])?;
    told.add(unreadable)?;
    if let Ok(store) = &lake
        && answers
    {
        told.add(damaged(store.as_ref()).await)?;
        told.add(twins(store.as_ref(), &tables).await)?;
    }
    told.add(config.exposed_file.iter().map(|file| {
        let file = file.display().to_string();
        Finding::warning("configuration-readable", file.as_str(), "it holds a password, and others may read it")
            .mend(format!("chmod 0600 {file}, or give the password as HUELLA_SOURCE_PASSWORD_FILE"))
    }))?;
    let report = Report { findings: told.findings, tables };
    if json {
        crate::stdout::json(&report.document())?;
    }
    match report.count(Severity::Problem) {
        0 => Ok(()),
        1 => Err(Error::found("1 problem was found")),
        problems => Err(Error::found(format!("{problems} problems were found"))),
    }
}

async fn source(config: &Config, options: &ConnectOptions, known: impl Future<Output = Option<Known>>) -> Report {
    let (host, port) = (options.host(), options.port());
    let failed = |session, error: &Error| ConnectFailure::new(session, host, port, error, sqlstate(error));
    let client = connect_sql(options).await.map_err(|error| failed(Session::Sql, &error));
    // A host that cannot be reached is waited for once.
    let unreachable = client.as_ref().is_err_and(|failure| failure.cause.is_of_the_network());
    let replication = match unreachable {
        true => None,
        // Closed again before the facts are gathered: its sender would count among those in use.
        false => replication(options).await.err().map(|error| failed(Session::Replication, &error)),
    };
    let reached = Reached { host, port, sql: client.as_ref().map_err(Clone::clone), replication };
    super::source(&reached, &wanted(config), known).await
}

async fn replication(options: &ConnectOptions) -> Result<()> {
    let mut session = Replication::connect(options).await?;
    // A pooler that took the request for a SQL session shows itself only now.
    let answer = session.identify_system().await;
    session.terminate().await;
    answer.map(|_| ())
}

async fn remembered(store: &dyn Store) -> Result<Option<Known>> {
    let watermark = commit::load(store).await?;
    Ok(watermark.map(|(w, _)| Known {
        tables: w.streamed().map(|(name, _)| name.clone()).collect(),
        through: w.through,
        system_identifier: w.source.system_identifier,
        lists: w.source.publication.map(|publication| publication.lists).unwrap_or_default(),
    }))
}

/// What of the lake's history is not as the watermark says. A watermark that cannot be read is a finding already.
async fn damaged(store: &dyn Store) -> Option<Finding> {
    let (watermark, _) = commit::load(store).await.ok()??;
    let what = commit::damage(store, &watermark, usize::MAX).await.unwrap_or_else(|error| Some(error.full()))?;
    Some(Finding::problem("lake-damaged", "lake", what).mend(commit::DAMAGE_FIX))
}

/// Tables that would share a folder where a file system does not tell `A` from `a`.
async fn twins(store: &dyn Store, tables: &[TablePlan]) -> Option<Finding> {
    let mut folders = HashMap::new();
    let twin = |plan: &TablePlan| {
        folders.insert(table_folder(&plan.table).to_ascii_lowercase(), plan.table.clone()).map(|other| (other, plan.table.clone()))
    };
    let twins: Vec<(TableName, TableName)> = tables.iter().filter_map(twin).collect();
    let (one, other) = twins.first()?;
    // An object of this name was never written: who finds it found the watermark.
    store.head(&WATERMARK.to_ascii_uppercase()).await.ok()??;
    let text = format!("{one} and {other} share a folder: the lake's file system does not tell upper from lower case");
    Some(
        Finding::problem("lake-case", "lake", text)
            .mend("put the lake on a file system that does (ext4, xfs, btrfs), or into a bucket; or replicate only one of them"),
    )
}

fn wanted(config: &Config) -> Wanted {
    let table = |table: &crate::config::TableConfig| WantedTable {
        name: table.name.clone(),
        streamed: table.mode == Mode::Stream,
        exclude: table.exclude.clone(),
        exclude_at_source: table.exclude_at_source,
        hash: table.hash.clone(),
        include: table.include.clone(),
    };
    Wanted {
        slot: config.source.slot.clone(),
        publication: config.source.publication.clone(),
        tables: config.tables.as_ref().map(|tables| tables.iter().map(table).collect()),
        initial: config.snapshot.initial,
        failover: config.source.failover,
        workers: config.snapshot.workers,
        ignore_new: config.source.new_tables == NewTables::Ignore,
    }
}
