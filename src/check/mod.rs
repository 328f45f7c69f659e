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
mod publication;
mod server;
mod slot;
mod tables;

#[cfg(test)]
mod facts;

pub use columns::{Fit, LakeView};
pub use connection::{Cause, ConnectFailure, Session, address};
pub use gather::{Facts, gather};
pub use lake::lake;

use crate::lsn::Lsn;
use crate::table_name::TableName;
use std::fmt;
use std::future::Future;
use tokio_postgres::Client;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// How bad.
    pub severity: Severity,
    /// What it is about: `server`, `role`, a table, ….
    pub subject: String,
    /// What is the case.
    pub text: String,
    /// What to do: a command, a statement, a setting.
    pub mend: Option<String>,
}

impl Finding {
    fn new(severity: Severity, subject: impl fmt::Display, text: impl Into<String>) -> Self {
        Self { severity, subject: subject.to_string(), text: text.into(), mend: None }
    }

    fn ok(subject: impl fmt::Display, text: impl Into<String>) -> Self {
        Self::new(Severity::Ok, subject, text)
    }

    fn warning(subject: impl fmt::Display, text: impl Into<String>) -> Self {
        Self::new(Severity::Warning, subject, text)
    }

    fn problem(subject: impl fmt::Display, text: impl Into<String>) -> Self {
        Self::new(Severity::Problem, subject, text)
    }

    fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
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
}

impl From<TableName> for WantedTable {
    fn from(name: TableName) -> Self {
        Self { name, streamed: true, exclude: Vec::new(), exclude_at_source: false, hash: Vec::new() }
    }
}

/// What a lake that has a watermark remembers of its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Up to where the lake is complete. `None`: the first start has not come to its slot.
    pub through: Option<Lsn>,
    /// The cluster it belongs to.
    pub system_identifier: String,
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
pub async fn source(reached: &Reached<'_>, wanted: &Wanted, known: impl Future<Output = Option<Known>>, view: &LakeView) -> Vec<Finding> {
    let mut findings: Vec<_> = reached.replication.iter().map(Finding::from).collect();
    let client = match &reached.sql {
        Ok(client) => *client,
        Err(failure) => {
            // Both sessions mostly fail for one reason, which needs to be told once.
            findings.retain(|_| reached.replication.as_ref().is_none_or(|other| other.cause != failure.cause));
            findings.insert(0, failure.into());
            return findings;
        }
    };
    // The role's attributes say it better, with the statement that mends it.
    findings.retain(|_| reached.replication.as_ref().is_none_or(|failure| failure.cause != Cause::NoReplicationRight));
    if findings.is_empty() {
        findings.extend(address(reached.host, reached.port));
    }
    match gather(client, wanted).await {
        Ok(facts) => findings.extend(judge(wanted, &facts, known.await.as_ref(), view)),
        Err(error) => {
            let finding = Finding::problem("source", format!("it cannot be examined: {}", error.full()));
            findings.push(finding.mend("give the role the rights named, or try again"));
        }
    }
    findings
}

/// Judges what was gathered. `known` must have been read **after** the facts: acknowledged positions trail the watermark,
/// so a slot read first can never seem ahead of it without being so.
pub fn judge(wanted: &Wanted, facts: &Facts, known: Option<&Known>, view: &LakeView) -> Vec<Finding> {
    let mut findings = server::judge(facts, known);
    findings.extend(slot::judge(wanted, facts, known));
    findings.extend(publication::judge(wanted, facts, known));
    findings.extend(tables::judge(wanted, facts));
    findings.extend(columns::judge(facts, view));
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
        let finding = Finding::problem(TableName::new("public", "t"), "no key").mend("add one");
        assert_eq!(finding.to_string(), "problem  public.t: no key → add one");
        assert_eq!(Finding::ok("server", "fine").to_string(), "ok       server: fine");
    }

    #[test]
    fn long_lists_of_names_are_cut() {
        assert_eq!(names(["a", "b"]), "a, b");
        assert_eq!(names(0..10), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}
