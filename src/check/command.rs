//! `huella check`: the configuration, the sessions and the lake brought to the tests, and their findings printed.
//!
//! Owns: opening the sessions, the lake's view of columns. Does not own: any judgement.
//! Invariant: the watermark is read after the slot (see [`super::judge`]).

use super::{ConnectFailure, Finding, Fit, Known, LakeView, Reached, Session, Severity, Wanted, WantedTable};
use crate::commit;
use crate::config::{Config, Mode};
use crate::error::{Error, Result};
use crate::postgres::catalogue::BaseType;
use crate::postgres::{ConnectOptions, Replication, connect_sql, sqlstate};
use crate::schema::{Conversion, PgType, conversion, lake_names};
use crate::store::{self, Store};

/// Oids of types whose values are text already: "char", name, text, json, xml, bpchar, varchar, uuid, jsonb.
const TEXT_BY_NATURE: [u32; 9] = [18, 19, 25, 114, 142, 1042, 1043, 2950, 3802];

/// Tests source and lake and prints one line a finding.
///
/// # Errors
/// `Kind::Found` if there is a problem; `Kind::Config` if a URL cannot be understood.
pub async fn run(config: &Config) -> Result<()> {
    let options = ConnectOptions::parse(config.source.url.expose(), config.source.tls_ca.as_deref())?;
    let lake = store::open(&config.lake.url).await;
    let mut findings = match &lake {
        Ok(store) => super::lake(store.as_ref()).await,
        Err(error) => vec![Finding::problem("lake", error.full()).mend("correct lake.url, or the rights of this account")],
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
    findings.splice(0..0, source(config, &options, known).await);
    findings.extend(unreadable.map(|error| {
        Finding::problem("lake", error.full())
            .mend("the lake's watermark must be readable: use the huella that wrote it, or another lake.url")
    }));
    for finding in &findings {
        crate::stdout::line(&finding.to_string())?;
    }
    match findings.iter().filter(|finding| finding.severity == Severity::Problem).count() {
        0 => Ok(()),
        1 => Err(Error::found("1 problem was found")),
        problems => Err(Error::found(format!("{problems} problems were found"))),
    }
}

async fn source(config: &Config, options: &ConnectOptions, known: impl Future<Output = Option<Known>>) -> Vec<Finding> {
    let (host, port) = (options.host(), options.port());
    let failed = |session, error: &Error| ConnectFailure::new(session, host, port, error, sqlstate(error));
    // Closed again before the facts are gathered: its sender would count among those in use.
    let replication = replication(options).await.err().map(|error| failed(Session::Replication, &error));
    let client = connect_sql(options).await.map_err(|error| failed(Session::Sql, &error));
    let reached = Reached { host, port, sql: client.as_ref().map_err(Clone::clone), replication };
    super::source(&reached, &wanted(config), known, &LakeView { names: lake_names, fit }).await
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
    Ok(watermark.map(|(w, _)| Known { through: w.through, system_identifier: w.source.system_identifier }))
}

fn wanted(config: &Config) -> Wanted {
    let table = |table: &crate::config::TableConfig| WantedTable {
        name: table.name.clone(),
        streamed: table.mode == Mode::Stream,
        exclude: table.exclude.clone(),
        exclude_at_source: table.exclude_at_source,
        hash: table.hash.clone(),
    };
    Wanted {
        slot: config.source.slot.clone(),
        publication: config.source.publication.clone(),
        tables: config.tables.as_ref().map(|tables| tables.iter().map(table).collect()),
        initial: config.snapshot.initial,
    }
}

fn fit(base: &BaseType) -> Fit {
    let pg = PgType {
        oid: base.oid,
        typmod: base.typmod,
        name: base.name.clone(),
        element: base.element,
        element_typmod: base.element_typmod,
        delimiter: base.delimiter,
    };
    match conversion(&pg) {
        Conversion::Text if TEXT_BY_NATURE.contains(&base.oid) || base.name.ends_with("citext") => Fit::Exact,
        Conversion::Text => Fit::Text,
        Conversion::Decimal38_9 if base.typmod < 0 => Fit::Exceptions("NaN, more than 29 digits before the point or 9 behind"),
        Conversion::Decimal38_9 | Conversion::Decimal76_38 => Fit::Exceptions("NaN"),
        Conversion::Date | Conversion::Timestamp | Conversion::DateTime => Fit::Exceptions("infinity, BC, years after 9999"),
        Conversion::Array { .. } => Fit::Exceptions("lower bounds other than 1"),
        Conversion::Boolean | Conversion::Int64 | Conversion::Float | Conversion::Double | Conversion::Bytea | Conversion::Hashed => {
            Fit::Exact
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(oid: u32, typmod: i32, name: &str) -> BaseType {
        BaseType { oid, typmod, name: name.into(), element: None, element_typmod: -1, delimiter: b',' }
    }

    #[test]
    fn the_lakes_view_is_that_of_its_conversions() {
        assert_eq!(fit(&base(25, -1, "text")), Fit::Exact);
        assert_eq!(fit(&base(50_000, -1, "public.citext")), Fit::Exact);
        assert_eq!(fit(&base(869, -1, "inet")), Fit::Text);
        assert!(matches!(fit(&base(1700, -1, "numeric")), Fit::Exceptions(which) if which.contains("29")));
        assert_eq!(fit(&base(1700, (10 << 16 | 2) + 4, "numeric(10,2)")), Fit::Exceptions("NaN"));
        assert_eq!(fit(&base(20, -1, "bigint")), Fit::Exact);
    }
}
