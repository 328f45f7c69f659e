//! What real servers sent (`tests/golden/*.hex`, made by `capture.sh`) decodes to the reviewed text beside it.
//!
//! `GOLDEN=write` writes the texts anew; review the diff.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

use huella::pgoutput::{Cell, Message, OldKind, Relation, Truncate, Tuple, decode};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn captures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut captures: Vec<_> = entries.filter(|path| path.extension().is_some_and(|ending| ending == "hex")).collect();
    captures.sort();
    captures
}

fn messages(capture: &Path) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(capture).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.as_bytes().chunks(2).map(|hex| u8::from_str_radix(str::from_utf8(hex).unwrap(), 16).unwrap()).collect()).collect()
}

/// The relations seen so far, for the names in rows.
#[derive(Default)]
struct Renderer {
    relations: HashMap<u32, Relation>,
}

impl Renderer {
    fn message(&mut self, message: &Message<'_>) -> String {
        match message {
            Message::Begin(begin) => format!("BEGIN {} xid {} at {} us", begin.final_lsn, begin.xid, begin.commit_time_us),
            Message::Commit(commit) => format!("COMMIT {} to {} at {} us\n", commit.commit_lsn, commit.end_lsn, commit.commit_time_us),
            Message::Origin => "ORIGIN".into(),
            Message::Type => "TYPE".into(),
            Message::Relation(relation) => self.relation(relation),
            Message::Insert { relation, new } => format!("INSERT {} {}", self.name(*relation), self.row(*relation, *new)),
            Message::Update { relation, old: None, new } => format!("UPDATE {} {}", self.name(*relation), self.row(*relation, *new)),
            Message::Update { relation, old: Some(old), new } => {
                let (old, kind, new) = (self.row(*relation, old.tuple), kind(old.kind), self.row(*relation, *new));
                format!("UPDATE {} {kind} {old} TO {new}", self.name(*relation))
            }
            Message::Delete { relation, old } => {
                format!("DELETE {} {} {}", self.name(*relation), kind(old.kind), self.row(*relation, old.tuple))
            }
            Message::Truncate(Truncate { relations, cascade, restart_identity }) => {
                let names: Vec<_> = relations.iter().map(|id| self.name(*id)).collect();
                let options = [(*cascade, " CASCADE"), (*restart_identity, " RESTART IDENTITY")];
                let options = options.iter().filter(|(given, _)| *given).map(|(_, word)| *word);
                format!("TRUNCATE {}{}", names.join(", "), options.collect::<String>())
            }
            Message::Logical { transactional, lsn, prefix } => format!("MESSAGE {lsn} transactional {transactional} prefix {prefix:?}"),
            Message::Unasked(kind) => format!("UNASKED {}", char::from(*kind)),
        }
    }

    fn relation(&mut self, relation: &Relation) -> String {
        let mut text = format!("RELATION {} {}.{} {:?}:", relation.id, relation.namespace, relation.name, relation.identity);
        for column in &relation.columns {
            let key = if column.key { "*" } else { "" };
            write!(text, " {:?}{key} {}/{},", column.name, column.type_oid, column.typmod).unwrap();
        }
        self.relations.insert(relation.id, relation.clone());
        text
    }

    fn name(&self, relation: u32) -> &str {
        &self.relations[&relation].name
    }

    fn row(&self, relation: u32, row: Tuple<'_>) -> String {
        let columns = &self.relations[&relation].columns;
        assert_eq!((row.len(), row.cells().len(), row.cells().count()), (columns.len(), columns.len(), columns.len()));
        let cells = columns.iter().zip(row.cells()).map(|(column, value)| format!("{}={}", column.name, cell(value)));
        format!("({})", cells.collect::<Vec<_>>().join(", "))
    }
}

fn kind(kind: OldKind) -> &'static str {
    match kind {
        OldKind::Key => "KEY",
        OldKind::Full => "FULL",
    }
}

fn cell(cell: Cell<'_>) -> String {
    match cell {
        Cell::Null => "NULL".into(),
        Cell::Unchanged => "unchanged".into(),
        Cell::Text(value) if value.len() > 200 => {
            let text = str::from_utf8(value).unwrap();
            format!("{:?}… {} bytes", &text[..10], text.len())
        }
        Cell::Text(value) => format!("{:?}", str::from_utf8(value).unwrap()),
        Cell::Binary(value) => format!("0x{}", value.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

#[test]
fn captures_of_a_real_server_decode_to_the_reviewed_text() {
    let captures = captures();
    assert!(captures.len() >= 10, "captures are missing: {captures:?}");
    for capture in captures {
        let mut renderer = Renderer::default();
        let mut text = String::new();
        for bytes in messages(&capture) {
            let message = decode(&bytes).unwrap_or_else(|error| panic!("{}: {error}", capture.display()));
            writeln!(text, "{}", renderer.message(&message)).unwrap();
        }
        let expected = capture.with_extension("txt");
        if std::env::var_os("GOLDEN").is_some_and(|mode| mode == "write") {
            std::fs::write(&expected, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&expected).unwrap(), "{}", expected.display());
    }
}

#[test]
fn a_captured_message_cut_short_anywhere_is_refused() {
    for capture in captures() {
        for bytes in messages(&capture) {
            for end in 0..bytes.len() {
                let error = decode(&bytes[..end]).expect_err("a part of a message decoded");
                assert!(error.offset <= end, "{error}");
            }
        }
    }
}

#[test]
fn a_captured_message_with_a_byte_more_is_refused() {
    for capture in captures() {
        for mut bytes in messages(&capture) {
            bytes.push(0);
            decode(&bytes).expect_err("a byte was passed over");
        }
    }
}
