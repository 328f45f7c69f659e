//! What `huella check` finds: tests of source and lake that change nothing at the source.
//!
//! Owns: the findings and their texts, the judgement of each fact. Does not own: connecting, the configuration, the
//! watermark's format; they come in as plain values. Invariants: facts are gathered (`gather`) apart from being judged
//! (everything else), so that every judgement is a pure function; a finding never carries a cell or a secret.

mod columns;
pub mod command;
mod connection;
mod gather;
mod lake;
mod narrowed;
mod plan;
mod publication;
mod report;
mod server;
mod slot;
mod tables;

#[cfg(test)]
mod facts;
mod fit;

pub use connection::{Cause, ConnectFailure, Session, address};
pub use gather::{Facts, gather};
pub use lake::lake;
pub use plan::{ColumnPlan, Fate, TablePlan};
pub use report::Report;

use crate::lake::ListMark;
use crate::lsn::Lsn;
use crate::schema::version::Privacy;
use crate::table_name::TableName;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use tokio_postgres::Client;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be, or worth knowing.
    Ok,
    /// Works, but may hurt later.
    Warning,
    /// Does not work.
    Problem,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which finding, for programs; never changed once it was released.
    pub code: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What it is about: `server`, `role`, a table, ….
    pub subject: String,
    /// The table, if it is about one.
    pub table: Option<TableName>,
    /// What is the case.
    pub text: String,
    /// What to do: a command, a statement, a setting.
    pub mend: Option<String>,
}

impl Finding {
    fn new(severity: Severity, code: &'static str, subject: impl Into<Subject>, text: impl Into<String>) -> Self {
        let Subject { text: subject, table } = subject.into();
        Self { code, severity, subject, table, text: text.into(), mend: None }
    }

    fn ok(code: &'static str, subject: impl Into<Subject>, text: impl Into<String>) -> Self {
        Self::new(Severity::Ok, code, subject, text)
    }

    fn warning(code: &'static str, subject: impl Into<Subject>, text: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, subject, text)
    }

    fn problem(code: &'static str, subject: impl Into<Subject>, text: impl Into<String>) -> Self {
        Self::new(Severity::Problem, code, subject, text)
    }

    fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

/// What a finding is about.
struct Subject {
    text: String,
    table: Option<TableName>,
}

impl From<&TableName> for Subject {
    fn from(table: &TableName) -> Self {
        Self { text: table.to_string(), table: Some(table.clone()) }
    }
}

impl From<&str> for Subject {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), table: None }
    }
}

impl From<String> for Subject {
    fn from(text: String) -> Self {
        Self { text, table: None }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = match self.severity {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Problem => "problem",
        };
        write!(f, "{label:<8} {}: {}", self.subject, self.text)?;
        match &self.mend {
            Some(mend) => write!(f, " → {mend}"),
            None => Ok(()),
        }
    }
}

/// What the configuration wants of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Replication slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Tables; `None`: every table of schema public that has a key.
    pub tables: Option<Vec<WantedTable>>,
    /// A first start copies the tables (`snapshot.initial`).
    pub initial: bool,
    /// Standbys are to keep the slot in step (`source.failover`).
    pub failover: bool,
    /// Workers of a copy.
    pub workers: usize,
    /// Without `tables`: those that appear after the first start stay out (`source.new_tables`).
    pub ignore_new: bool,
}

/// What the configuration wants of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedTable {
    /// Name.
    pub name: TableName,
    /// Streamed; otherwise a catalogue, copied whole.
    pub streamed: bool,
    /// Columns left out.
    pub exclude: Vec<String>,
    /// They are to be left out by the publication.
    pub exclude_at_source: bool,
    /// Columns that are hashed.
    pub hash: Vec<String>,
    /// The only columns that are published, besides the key's.
    pub include: Option<Vec<String>>,
}

impl WantedTable {
    /// What it keeps from the lake.
    fn privacy(&self) -> Privacy {
        Privacy { exclude: self.exclude.clone(), hash: self.hash.clone(), include: self.include.clone(), ..Privacy::default() }
    }
}

impl From<TableName> for WantedTable {
    fn from(name: TableName) -> Self {
        Self { name, streamed: true, exclude: Vec::new(), exclude_at_source: false, hash: Vec::new(), include: None }
    }
}

/// What a lake that has a watermark remembers of its source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Up to where the lake is complete. `None`: the first start has not come to its slot.
    pub through: Option<Lsn>,
    /// The cluster it belongs to.
    pub system_identifier: String,
    /// Column lists of the publication that were made for `exclude_at_source`.
    pub lists: BTreeMap<TableName, ListMark>,
    /// The streamed tables.
    pub tables: BTreeSet<TableName>,
}

impl Known {
    /// The lake has begun: slot and publication must be there.
    fn ready(known: Option<&Known>) -> bool {
        known.is_some_and(|known| known.through.is_some())
    }
}

/// What came of connecting to the source.
#[derive(Debug)]
pub struct Reached<'a> {
    /// Host, as configured.
    pub host: &'a str,
    /// Port.
    pub port: u16,
    /// The SQL session.
    pub sql: Result<&'a Client, ConnectFailure>,
    /// Why the replication session was not opened; `None`: it was (and is closed again), or was not tried.
    pub replication: Option<ConnectFailure>,
}

/// Checks the source. `known` reads what the lake remembers; it is awaited once the facts are gathered (see [`judge`]).
pub async fn source(reached: &Reached<'_>, wanted: &Wanted, known: impl Future<Output = Option<Known>>) -> Report {
    let mut findings: Vec<_> = reached.replication.iter().map(Finding::from).collect();
    let client = match &reached.sql {
        Ok(client) => *client,
        Err(failure) => {
            // Both sessions mostly fail for one reason, which needs to be told once.
            findings.retain(|_| reached.replication.as_ref().is_none_or(|other| other.cause != failure.cause));
            findings.insert(0, failure.into());
            return Report { findings, tables: Vec::new() };
        }
    };
    // The role's attributes say it better, with the statement that mends it.
    findings.retain(|_| reached.replication.as_ref().is_none_or(|failure| failure.cause != Cause::NoReplicationRight));
    if findings.is_empty() {
        findings.extend(address(reached.host, reached.port));
    }
    let mut tables = Vec::new();
    match gather(client, wanted).await {
        Ok(mut facts) => {
            let known = known.await;
            facts.leave_out_new(wanted, known.as_ref());
            tables = plan::plan(&facts);
            findings.extend(judge(wanted, &facts, known.as_ref(), &tables));
        }
        Err(error) => {
            let finding = Finding::problem("source-unreadable", "source", format!("it cannot be examined: {}", error.full()));
            findings.push(finding.mend("give the role the rights named, or try again"));
        }
    }
    Report { findings, tables }
}

/// Judges what was gathered. `known` must have been read **after** the facts: acknowledged positions trail the watermark,
/// so a slot read first can never seem ahead of it without being so.
pub fn judge(wanted: &Wanted, facts: &Facts, known: Option<&Known>, plans: &[TablePlan]) -> Vec<Finding> {
    let mut findings = server::judge(facts, known);
    findings.extend(slot::judge(wanted, facts, known));
    findings.extend(publication::judge(wanted, facts, known));
    findings.extend(narrowed::judge(wanted, facts, known));
    findings.extend(tables::judge(wanted, facts));
    // Of a table that cannot be replicated there is nothing to plan.
    let hopeless = |plan: &&TablePlan| !findings.iter().any(|f| f.severity == Severity::Problem && f.table.as_ref() == Some(&plan.table));
    let planned: Vec<TablePlan> = plans.iter().filter(hopeless).cloned().collect();
    findings.extend(planned.iter().map(|plan| Finding::ok("plan", &plan.table, plan.line())));
    findings.extend(columns::judge(&planned));
    findings
}

/// Bytes for people.
fn size(bytes: i64) -> String {
    bytesize::ByteSize(u64::try_from(bytes).unwrap_or(0)).to_string()
}

/// `a, b, c and 4 more`: names in one line.
fn names<T: fmt::Display>(names: impl IntoIterator<Item = T>) -> String {
    /// So many fit a line.
    const SHOWN: usize = 8;
    let all: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    let shown = all.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if all.len() > SHOWN { format!("{shown} and {} more", all.len() - SHOWN) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_mend() {
        let finding = Finding::problem("table-no-key", &TableName::new("public", "t"), "no key").mend("add one");
        assert_eq!(finding.to_string(), "problem  public.t: no key → add one");
        assert_eq!(Finding::ok("server-version", "server", "fine").to_string(), "ok       server: fine");
    }

    #[test]
    fn long_lists_of_names_are_cut() {
        assert_eq!(names(["a", "b"]), "a, b");
        assert_eq!(names(0..10), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}
