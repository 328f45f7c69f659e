//! Tells what becomes of columns in the lake: names that BigQuery refuses, types that become text, values that may not fit.
//!
//! Owns: those texts. Does not own: the mapping of names and types (`schema`): it comes in as functions.

use super::{Facts, Finding, WantedTable, names};
use crate::postgres::catalogue::{BaseType, Column, Table};

/// How a type fares in the lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Every value has its place, or is text by nature.
    Exact,
    /// It becomes the source's text.
    Text,
    /// Some values that it can hold the lake's type cannot: they go to `_exceptions`.
    Exceptions(&'static str),
}

/// The lake's view of columns.
#[derive(Debug, Clone, Copy)]
pub struct LakeView {
    /// The lake's names of a table's columns, in order.
    pub names: fn(&[&str]) -> Vec<String>,
    /// How a type fares.
    pub fit: fn(&BaseType) -> Fit,
}

pub(super) fn judge(facts: &Facts, view: &LakeView) -> Vec<Finding> {
    facts.pairs().flat_map(|(wanted, table)| one(wanted, table, view)).collect()
}

fn one(wanted: &WantedTable, table: &Table, view: &LakeView) -> Vec<Finding> {
    let kept: Vec<_> = table.columns.iter().filter(|c| !c.generated && !wanted.exclude.contains(&c.name)).collect();
    let mut findings = Vec::new();
    let generated: Vec<_> = table.columns.iter().filter(|c| c.generated).map(|c| &c.name).collect();
    if !generated.is_empty() {
        findings.push(Finding::ok(&table.name, format!("generated columns are left out: {}", names(generated))));
    }
    findings.extend(renamed(wanted, table, view));
    let plain = kept.iter().filter(|c| !wanted.hash.contains(&c.name));
    let fits: Vec<_> = plain.map(|column| (*column, (view.fit)(&column.base))).collect();
    let text: Vec<_> = fits.iter().filter(|(_, fit)| *fit == Fit::Text).map(|(column, _)| typed(column)).collect();
    if !text.is_empty() {
        findings.push(Finding::ok(&table.name, format!("columns that become text, as PostgreSQL prints them: {}", names(text))));
    }
    let tight = fits.iter().filter_map(|(column, fit)| match fit {
        Fit::Exceptions(which) => Some(format!("{} ({which})", typed(column))),
        _ => None,
    });
    let tight: Vec<_> = tight.collect();
    if !tight.is_empty() {
        let text = format!("columns whose odd values become NULL, with their text in _exceptions: {}", names(tight));
        findings.push(Finding::ok(&table.name, text));
    }
    findings
}

fn typed(column: &Column) -> String {
    format!("{} {}", column.name, column.base.name)
}

/// Names are given over all columns of the source, so that leaving one out renames no other.
fn renamed(wanted: &WantedTable, table: &Table, view: &LakeView) -> Option<Finding> {
    let source: Vec<_> = table.columns.iter().map(|column| column.name.as_str()).collect();
    let lake = (view.names)(&source);
    let differ = source.iter().zip(&lake).filter(|(from, to)| **from != to.as_str() && !wanted.exclude.iter().any(|c| c == *from));
    let list: Vec<_> = differ.map(|(from, to)| format!("{from} → {to}")).collect();
    (!list.is_empty())
        .then(|| Finding::ok(&table.name, format!("columns that BigQuery cannot name so have other names in the lake: {}", names(list))))
}

#[cfg(test)]
mod tests {
    use super::super::facts::{column, facts, table};
    use super::*;
    use crate::table_name::TableName;

    fn view() -> LakeView {
        LakeView {
            names: |source| source.iter().map(|name| name.replace(' ', "_x20_")).collect(),
            fit: |base| match base.oid {
                869 => Fit::Text,
                1700 => Fit::Exceptions("beyond 29 digits"),
                _ => Fit::Exact,
            },
        }
    }

    #[test]
    fn odd_columns_are_told_and_excluded_or_hashed_ones_are_not() {
        let mut one = table("a");
        one.columns.extend([column(3, "ip", 869), column(4, "la suma", 1700), column(5, "x y", 1700), column(6, "secret", 869)]);
        one.columns.push(Column { generated: true, ..column(7, "g", 869) });
        let mut facts = facts(&[one]);
        let wanted = WantedTable { exclude: vec!["x y".into()], hash: vec!["secret".into()], ..TableName::new("public", "a").into() };
        facts.wanted = vec![wanted];
        let texts: Vec<_> = judge(&facts, &view()).into_iter().map(|f| f.text).collect();
        assert_eq!(texts.len(), 4);
        assert!(texts[0].ends_with("left out: g"), "{texts:?}");
        assert!(texts[1].ends_with("lake: la suma → la_x20_suma"), "{texts:?}");
        assert!(texts[2].ends_with("prints them: ip t869"), "{texts:?}");
        assert!(texts[3].ends_with("_exceptions: la suma t1700 (beyond 29 digits)"), "{texts:?}");
    }
}
