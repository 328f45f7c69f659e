//! What differs in a table, for a person: the first differences in full, all of them in numbers.
//!
//! Owns: texts and limits. Invariant: cells are shown only where they were asked for, shortened, and only here, on standard output: that of a
//! job goes to a log which more people read than may read the table.

use super::cell::{Cell, cells};
use super::changes::Shape;
use crate::table_name::TableName;
use std::collections::BTreeMap;

/// So many differences of a table are shown; more would bury the first.
const SHOWN: usize = 20;
/// Characters of a cell that are shown.
const CELL_CHARS: usize = 60;

/// Differences of a table.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Rows that are equal.
    pub(super) equal: u64,
    pub(super) missing: u64,
    pub(super) extra: u64,
    pub(super) differing: u64,
    /// Rows that the lake's files hold more than once.
    pub(super) duplicates: u64,
    /// Differences that are not of rows.
    pub(super) other: u64,
    /// Whether cells may be shown.
    values: bool,
    /// Rows that differ, by column: what is told in place of cells.
    columns: BTreeMap<String, u64>,
    shown: Vec<String>,
}

impl Report {
    /// Of no difference yet; `values`: cells may be shown.
    pub(super) fn new(values: bool) -> Self {
        Self { values, ..Self::default() }
    }

    /// A difference that is not one of rows.
    pub(super) fn note(&mut self, text: String) {
        self.other += 1;
        self.show(text);
    }

    /// A row of the source that the lake lacks.
    pub(super) fn missing(&mut self, shape: &Shape, row: &[u8], times: u64) {
        self.missing += times;
        if self.values && self.shown.len() < SHOWN {
            self.show(format!("missing in the lake: {}", described(shape, row)));
        }
    }

    /// A row of the lake that the source lacks.
    pub(super) fn extra(&mut self, shape: &Shape, row: &[u8], times: u64) {
        self.extra += times;
        if self.values && self.shown.len() < SHOWN {
            self.show(format!("not at the source: {}", described(shape, row)));
        }
    }

    /// The two sides' rows of one key.
    pub(super) fn compare(&mut self, shape: &Shape, lake: &[u8], source: &[u8]) {
        if lake == source {
            self.equal += 1;
            return;
        }
        self.differing += 1;
        let key = if self.values { described(shape, source) } else { String::new() };
        for (column, (lake, source)) in shape.columns.iter().zip(cells(lake).zip(cells(source))) {
            if lake != source && !self.values {
                *self.columns.entry(column.name.clone()).or_default() += 1;
            } else if lake != source && self.shown.len() < SHOWN {
                self.show(format!("{key}, column {}: lake {}, source {}", column.name, shown(lake), shown(source)));
            }
        }
    }

    fn show(&mut self, text: String) {
        if self.shown.len() < SHOWN {
            self.shown.push(text);
        }
    }

    /// Whether nothing differs.
    pub(super) fn is_equal(&self) -> bool {
        self.missing + self.extra + self.differing + self.duplicates + self.other == 0
    }

    /// The report's lines.
    pub(super) fn lines(&self, table: &TableName, at: crate::lsn::Lsn) -> Vec<String> {
        if self.is_equal() {
            return vec![format!("{table}: equal, {} rows at {at}", self.equal)];
        }
        let mut lines: Vec<String> = self.shown.iter().map(|text| format!("{table}: {text}")).collect();
        lines.extend(self.columns.iter().take(SHOWN).map(|(column, rows)| format!("{table}: column {column} differs in {rows} rows")));
        let rows = self.missing + self.extra + self.differing + self.duplicates;
        if rows > 0 {
            let how = if self.values { "" } else { " (--values shows cells)" };
            lines.push(format!(
                "{table}: different at {at}: {} rows differ, {} are missing in the lake, {} are not at the source, {} stand twice in the lake's files; {} are equal{how}",
                self.differing, self.missing, self.extra, self.duplicates, self.equal
            ));
        }
        lines
    }
}

/// A row by its key, or, without one, by all its cells.
fn described(shape: &Shape, row: &[u8]) -> String {
    let all: Vec<Cell<'_>> = cells(row).collect();
    let cell = |at: usize| format!("{} = {}", shape.columns[at].name, shown(all[at]));
    let parts: Vec<String> =
        if shape.key.is_empty() { (0..all.len()).map(cell).collect() } else { shape.key.iter().map(|at| cell(*at)).collect() };
    parts.join(", ")
}

fn shown(cell: Cell<'_>) -> String {
    let quoted = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let short: String = text.chars().take(CELL_CHARS).collect();
        let more = text.chars().count().saturating_sub(CELL_CHARS);
        if more > 0 { format!("{short:?}… (and {more} characters)") } else { format!("{short:?}") }
    };
    match cell {
        Cell::Null => "NULL".to_owned(),
        Cell::Value(bytes) => quoted(bytes),
        Cell::Exception(bytes) => format!("{} (beyond the lake's type)", quoted(bytes)),
        Cell::Unchanged => "unknown (an UPDATE left it out, and there is no row before)".to_owned(),
    }
}
