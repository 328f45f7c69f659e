//! Tells what becomes of columns in the lake: names that BigQuery refuses, types that become text, values that may not fit.
//!
//! Owns: those texts, which types count as text by nature. Does not own: the mapping of names and types (`schema`), the plan (`plan`).

use super::plan::{ColumnPlan, Fate, TablePlan};
use super::{Finding, names};
use crate::postgres::catalogue::BaseType;
use crate::schema::{Conversion, PgType, conversion};

/// How a type fares in the lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// Every value has its place, or is text by nature.
    Exact,
    /// It becomes the source's text.
    Text,
    /// Some values that it can hold the lake's type cannot: they go to `_exceptions`.
    Exceptions(&'static str),
}

/// Oids of types whose values are text already: "char", name, text, json, xml, bpchar, varchar, uuid, jsonb.
const TEXT_BY_NATURE: [u32; 9] = [18, 19, 25, 114, 142, 1042, 1043, 2950, 3802];

/// How values of a type fare.
pub(super) fn fit(base: &BaseType) -> Fit {
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

    fn base(oid: u32, typmod: i32, name: &str) -> BaseType {
        BaseType { oid, typmod, name: name.into(), element: None, element_typmod: -1, delimiter: b',' }
    }

    #[test]
    fn types_fare_as_their_conversions_do() {
        assert_eq!(fit(&base(25, -1, "text")), Fit::Exact);
        assert_eq!(fit(&base(50_000, -1, "public.citext")), Fit::Exact);
        assert_eq!(fit(&base(869, -1, "inet")), Fit::Text);
        assert!(matches!(fit(&base(1700, -1, "numeric")), Fit::Exceptions(which) if which.contains("29")));
        assert_eq!(fit(&base(1700, (10 << 16 | 2) + 4, "numeric(10,2)")), Fit::Exceptions("NaN"));
        assert_eq!(fit(&base(20, -1, "bigint")), Fit::Exact);
    }

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
