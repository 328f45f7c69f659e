//! Tells what becomes of columns in the lake: names that BigQuery refuses, types that become text, values that may not fit.
//!
//! Owns: those texts. Does not own: the mapping of names and types (`schema`), the plan (`plan`).

use super::plan::{ColumnPlan, Fate, TablePlan};
use super::{Finding, names};

/// So many renamed columns fit a line.
const A_LINE: usize = 8;

pub(super) fn judge(plans: &[TablePlan]) -> Vec<Finding> {
    plans.iter().flat_map(one).collect()
}

fn one(plan: &TablePlan) -> Vec<Finding> {
    let typed = |column: &ColumnPlan| format!("{} {}", column.column, column.source_type);
    let generated = plan.of(Fate::Generated);
    let renamed = plan.columns.iter().filter_map(|c| Some((c, c.lake_column.as_ref()?))).filter(|(c, lake)| c.column != **lake);
    let renamed: Vec<String> = renamed.map(|(c, lake)| format!("{} → {lake}", c.column)).collect();
    let text: Vec<String> = plan.columns.iter().filter(|c| c.becomes_text).map(typed).collect();
    let tight: Vec<String> = plan.columns.iter().filter_map(|c| c.exceptions.map(|which| format!("{} ({which})", typed(c)))).collect();
    let told = [
        ("columns-generated", "generated columns are left out", generated.into_iter().map(str::to_owned).collect()),
        ("columns-text", "columns that become text, as PostgreSQL prints them", text),
        ("columns-exceptions", "columns whose odd values become NULL, with their text in _exceptions", tight),
    ];
    let told = told.into_iter().filter(|(_, _, columns): &(_, _, Vec<String>)| !columns.is_empty());
    let told = told.map(|(code, what, columns)| Finding::ok(code, &plan.table, format!("{what}: {}", names(columns))));
    // All of them: who writes queries cannot guess the rest.
    let what = "columns that BigQuery cannot name so have other names in the lake";
    let renamed = renamed.chunks(A_LINE).map(|some| Finding::ok("columns-renamed", &plan.table, format!("{what}: {}", some.join(", "))));
    told.chain(renamed).collect()
}

#[cfg(test)]
mod tests {
    use super::super::WantedTable;
    use super::super::facts::{column, facts, table};
    use super::super::plan::plan;
    use super::*;
    use crate::postgres::catalogue::Column;
    use crate::table_name::TableName;

    #[test]
    fn odd_columns_are_told_and_excluded_or_hashed_ones_are_not() {
        let mut one = table("a");
        one.columns.extend([column(3, "ip", 869), column(4, "la suma", 1700), column(5, "x y", 1700), column(6, "secret", 869)]);
        one.columns.push(Column { generated: true, ..column(7, "g", 869) });
        let mut facts = facts(&[one]);
        let wanted = WantedTable { exclude: vec!["x y".into()], hash: vec!["secret".into()], ..TableName::new("public", "a").into() };
        facts.wanted = vec![wanted];
        let texts: Vec<_> = judge(&plan(&facts)).into_iter().map(|f| f.text).collect();
        assert_eq!(texts.len(), 4);
        assert!(texts[0].ends_with("left out: g"), "{texts:?}");
        assert!(texts[1].ends_with("prints them: ip t869"), "{texts:?}");
        assert!(texts[2].contains("_exceptions: la suma t1700 (NaN, more than 29 digits"), "{texts:?}");
        assert!(texts[3].ends_with("lake: la suma → la_x20_suma"), "{texts:?}");
    }

    #[test]
    fn all_renamed_columns_are_named() {
        let mut one = table("one");
        one.columns.extend((3..23).map(|n| column(n, &format!("la suma {n}"), 25)));
        let facts = facts(&[one]);
        let findings = judge(&plan(&facts));
        let told: Vec<_> = findings.iter().filter(|finding| finding.code == "columns-renamed").collect();
        assert_eq!(told.len(), 3, "so many lines: {told:?}");
        (3..23).for_each(|n| {
            assert!(told.iter().any(|line| line.text.contains(&format!("la suma {n} → la_x20_suma_x20_{n}"))), "{n}: {told:?}")
        });
    }
}
