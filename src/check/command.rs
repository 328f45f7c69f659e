//! `huella check`: the configuration, the sessions and the lake brought to the tests, and their findings printed.
//!
//! Owns: opening the sessions. Does not own: any judgement.
//! Invariant: the watermark is read after the slot (see [`super::judge`]).

use super::{ConnectFailure, Finding, Known, Reached, Report, Session, Severity, Wanted, WantedTable};
use crate::commit;
use crate::config::{Config, Mode};
use crate::error::{Error, Result};
use crate::postgres::{ConnectOptions, Replication, connect_sql, sqlstate};
use crate::store::{self, Store};

/// Tests source and lake and prints one line a finding, or one JSON document with the plan of every table.
///
/// # Errors
/// `Kind::Found` if there is a problem; `Kind::Config` if a URL cannot be understood.
pub async fn run(config: &Config, json: bool) -> Result<()> {
    let options = ConnectOptions::parse(config.source.url.expose(), config.source.tls_ca.as_deref())?;
    let lake = store::open(&config.lake.url).await;
    let of_the_lake = match &lake {
        Ok(store) => super::lake(store.as_ref()).await,
        Err(error) => {
            vec![Finding::problem("lake-unreadable", "lake", error.full()).mend("correct lake.url, or the rights of this account")]
        }
    };
    let mut unreadable = None;
    let known = async {
        let store = lake.as_ref().ok()?;
        match remembered(store.as_ref()).await {
            Ok(known) => known,
            Err(error) => {
                unreadable = Some(error);
                None
            }
        }
    };
    let mut report = source(config, &options, known).await;
    report.findings.extend(of_the_lake);
    report.findings.extend(unreadable.map(|error| {
        Finding::problem("lake-unreadable", "lake", error.full())
            .mend("the lake's watermark must be readable: use the huella that wrote it, or another lake.url")
    }));
    if json {
        crate::stdout::line(&serde_json::to_string_pretty(&report.document()).expect("JSON values are always JSON"))?;
    } else {
        report.findings.iter().try_for_each(|finding| crate::stdout::line(&finding.to_string()))?;
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
    // Closed again before the facts are gathered: its sender would count among those in use.
    let replication = replication(options).await.err().map(|error| failed(Session::Replication, &error));
    let client = connect_sql(options).await.map_err(|error| failed(Session::Sql, &error));
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
        through: w.through,
        system_identifier: w.source.system_identifier,
        lists: w.source.publication.map(|publication| publication.lists).unwrap_or_default(),
    }))
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
    }
}
