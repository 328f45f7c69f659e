//! Proposals: finished copies that another process hands to the writer.
//!
//! Owns: their fields, their reading, the rule when one may be taken. Invariant: only the writer that holds the epoch makes a copy
//! visible; a proposal is taken whole or not at all, and one that does not fit the watermark any more is void.

use super::{DataFile, FORMAT, TableMark, Unreadable, Watermark};
use crate::config::Mode;
use crate::lsn::Lsn;
use crate::postgres::look::Look;
use crate::table_name::TableName;
use serde::{Deserialize, Serialize};

/// Folder of the proposals.
pub const PROPOSALS: &str = "state/proposals/";

/// A copy of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposedTable {
    /// Table.
    pub table: TableName,
    /// Whether it is a catalogue or a streamed table.
    pub mode: Mode,
    /// `pg_class.oid` of what was copied.
    pub oid: u32,
    /// Current version when the copy began; `None` if the lake did not have the table.
    pub base: Option<u32>,
    /// Version that the copy belongs to.
    pub version: u32,
    /// Name of the version's schema document.
    pub schema: String,
    /// The catalog under the copy's lock.
    pub look: Look,
    /// Consistent point S.
    pub snapshot: Lsn,
    /// Rows copied.
    pub rows: u64,
    /// Digest of a catalogue's rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Its files, durable.
    pub files: Vec<DataFile>,
}

/// The document, created once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Layout number, [`FORMAT`].
    pub format: u32,
    /// Who made it: host, pid and a random part.
    pub writer: String,
    /// IDENTIFY_SYSTEM's systemid.
    pub system_identifier: String,
    /// Timeline of the copies.
    pub timeline: u32,
    /// The tables, which become current in one commit.
    pub tables: Vec<ProposedTable>,
}

impl Proposal {
    /// Its object's path; `random` keeps two processes apart.
    pub fn path(&self, random: u64) -> String {
        let newest = self.tables.iter().map(|t| t.snapshot).max().unwrap_or(Lsn::ZERO);
        format!("{PROPOSALS}{:016X}-{random:016x}.json", newest.0)
    }

    /// Reads the document stored at `path`.
    pub fn parse(path: &str, body: &[u8]) -> Result<Self, Unreadable> {
        let bad = |reason: String| Unreadable { path: path.to_owned(), reason };
        let proposal: Self = serde_json::from_slice(body).map_err(|e| bad(e.to_string()))?;
        if proposal.format != FORMAT {
            return Err(bad(format!("format {}; this program reads format {FORMAT}", proposal.format)));
        }
        let of_its_table = |table: &ProposedTable| {
            let same = |file: &DataFile| (&file.table, file.version) == (&table.table, table.version);
            table
                .files
                .iter()
                .try_for_each(|file| if same(file) { file.check() } else { Err(format!("{}: a file of another table", table.table)) })
        };
        proposal.tables.iter().try_for_each(of_its_table).map_err(bad)?;
        Ok(proposal)
    }

    /// The document as it is stored.
    pub fn to_body(&self) -> bytes::Bytes {
        serde_json::to_vec(self).expect("a proposal has only text keys, so it is always JSON").into()
    }

    /// Position that the commit which names it must reach: that of its streamed tables. A catalogue stands at its own time.
    pub fn needs(&self) -> Lsn {
        let streamed = self.tables.iter().filter(|t| t.mode == Mode::Stream);
        streamed.map(|t| t.snapshot).max().unwrap_or(Lsn::ZERO)
    }

    /// Whether it fits the watermark; if not, why it is void.
    pub fn judge(&self, watermark: &Watermark) -> Result<(), String> {
        let source = &watermark.source;
        if (&source.system_identifier, source.timeline) != (&self.system_identifier, self.timeline) {
            return Err("it was taken from another cluster or timeline".to_owned());
        }
        self.tables.iter().try_for_each(|proposed| {
            proposed.judge(watermark.tables.get(&proposed.table)).map_err(|reason| format!("{}: {reason}", proposed.table))
        })
    }

    /// Whether the watermark holds these copies, or newer ones, or the streamed tables they are of no longer.
    pub fn is_settled(&self, watermark: &Watermark) -> bool {
        self.tables.iter().all(|p| match watermark.tables.get(&p.table) {
            Some(mark) => mark.snapshot.is_some_and(|there| there >= p.snapshot),
            None => p.mode == Mode::Stream,
        })
    }
}

impl ProposedTable {
    fn judge(&self, mark: Option<&TableMark>) -> Result<(), String> {
        let Some(mark) = mark else {
            return match (self.mode, self.base) {
                (Mode::Snapshot, None) => Ok(()),
                _ => Err("the lake has the table no longer".to_owned()),
            };
        };
        if mark.mode != self.mode {
            return Err(format!("the lake has it as a table in mode {}", mark.mode.as_str()));
        }
        if mark.version != self.base {
            return Err("a version of it began meanwhile".to_owned());
        }
        if mark.snapshot.is_some_and(|there| there >= self.snapshot) {
            return Err("the lake has a newer copy".to_owned());
        }
        if self.mode == Mode::Stream {
            // Listed in the publication or not: a difference that would matter to one that is not only makes it be asked for again.
            if mark.oid != self.oid || mark.version != Some(self.version) || !mark.reconciled.same_rows(&self.look, true) {
                return Err("its definition changed meanwhile".to_owned());
            }
            if !mark.pending.is_empty() {
                return Err("the writer is already re-copying it".to_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::Pending;

    fn watermark(tables: &str) -> Watermark {
        let text = format!(
            r#"{{"format": 2, "epoch": 1, "writer": "w", "seq": 0, "through": "0/100", "slot_state": "ready", "commit": null, "commit_time": "",
             "source": {{"system_identifier": "7", "timeline": 1, "database": "d", "slot": "s", "publication": null}}, "tables": {tables}}}"#
        );
        Watermark::parse(text.as_bytes()).expect("valid")
    }

    fn look(written: &str, file: u32) -> Look {
        Look { shape: "s".to_owned(), written: written.to_owned(), file, ..Look::default() }
    }

    fn proposal(mode: Mode, base: Option<u32>, version: u32, snapshot: u64) -> Proposal {
        let table = ProposedTable {
            table: TableName::new("public", "t"),
            mode,
            oid: 5,
            base,
            version,
            schema: "_schema-a.json".to_owned(),
            look: look("a", 1),
            snapshot: Lsn(snapshot),
            rows: 0,
            content: None,
            files: Vec::new(),
        };
        Proposal { format: FORMAT, writer: "p".to_owned(), system_identifier: "7".to_owned(), timeline: 1, tables: vec![table] }
    }

    #[test]
    fn a_catalogue_is_taken_if_it_is_newer_and_its_version_is_the_one_it_began_from() {
        let none = watermark("{}");
        assert!(proposal(Mode::Snapshot, None, 1, 50).judge(&none).is_ok(), "a new catalogue");
        assert!(proposal(Mode::Snapshot, Some(1), 1, 50).judge(&none).is_err(), "forgotten meanwhile");
        let there = watermark(r#"{"public.t": {"oid": 5, "mode": "snapshot", "version": 1, "snapshot": "0/40"}}"#);
        assert!(proposal(Mode::Snapshot, Some(1), 1, 0x41).judge(&there).is_ok());
        assert!(proposal(Mode::Snapshot, Some(1), 2, 0x41).judge(&there).is_ok(), "another shape");
        assert!(proposal(Mode::Snapshot, Some(1), 1, 0x40).judge(&there).is_err(), "no newer");
        assert!(proposal(Mode::Snapshot, None, 1, 0x41).judge(&there).is_err(), "somebody else was quicker");
        assert!(proposal(Mode::Stream, Some(1), 1, 0x41).judge(&there).is_err(), "another mode");
        assert!(
            proposal(Mode::Snapshot, Some(1), 1, 0x40).is_settled(&there) && !proposal(Mode::Snapshot, Some(1), 1, 0x41).is_settled(&there)
        );
    }

    #[test]
    fn a_streamed_table_is_taken_only_in_the_shape_that_stands() {
        let mut there = watermark(r#"{"public.t": {"oid": 5, "version": 1, "snapshot": "0/40"}}"#);
        there.tables.get_mut(&TableName::new("public", "t")).expect("there").reconciled = look("a", 1);
        assert!(proposal(Mode::Stream, Some(1), 1, 0x41).judge(&there).is_ok());
        assert_eq!(proposal(Mode::Stream, Some(1), 1, 0x41).needs(), Lsn(0x41));
        assert!(proposal(Mode::Stream, Some(1), 2, 0x41).judge(&there).is_err(), "another version");
        let mark = there.tables.get_mut(&TableName::new("public", "t")).expect("there");
        mark.reconciled = look("b", 2);
        assert!(proposal(Mode::Stream, Some(1), 1, 0x41).judge(&there).is_err(), "rewritten");
        let mark = there.tables.get_mut(&TableName::new("public", "t")).expect("there");
        mark.reconciled = look("a", 2);
        mark.pending.push(Pending { version: 1, since: None, reason: None });
        assert!(proposal(Mode::Stream, Some(1), 1, 0x41).judge(&there).is_err(), "being copied");
    }

    #[test]
    fn another_cluster_or_timeline_is_void_and_garbage_is_refused() {
        let mut other = proposal(Mode::Snapshot, None, 1, 50);
        other.timeline = 2;
        assert!(other.judge(&watermark("{}")).is_err());
        let written = proposal(Mode::Snapshot, None, 1, 50);
        assert_eq!(Proposal::parse("p", &written.to_body()).expect("valid"), written);
        assert!(written.path(7).starts_with(PROPOSALS));
        for body in ["", "{}", "[]", r#"{"format": 2}"#] {
            assert!(Proposal::parse("p", body.as_bytes()).is_err(), "{body}");
        }
    }
}
