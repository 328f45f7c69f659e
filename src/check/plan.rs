//! What becomes of each table: how it is replicated, and what each of its columns is in the lake.
//!
//! Owns: the plan as values and as a line. Does not own: names and types in the lake (`schema`), what is wrong with a table (`tables`).
//! Invariant: the plan is of the version that a first copy would begin; a version that stands already keeps the types it began with.

use super::fit::{Fit, fit};
use super::{Facts, WantedTable, names};
use crate::postgres::catalogue::{Column, ReplicaIdentity, Table};
use crate::schema::LakeType;
use crate::schema::version::{Privacy, TableSchema};
use crate::table_name::TableName;
use serde::Serialize;
use std::collections::BTreeMap;

/// The plan of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TablePlan {
    /// Table.
    pub table: TableName,
    /// `stream` or `snapshot`.
    pub mode: &'static str,
    /// Key in the lake, source names; empty: none.
    pub key: Vec<String>,
    /// `default`, `index`, `full` or `nothing`.
    pub identity: &'static str,
    /// Partitions that hold rows.
    pub partitions: usize,
    /// As of the last ANALYZE; -1: not known.
    pub rows_estimate: i64,
    /// Size, as of the last ANALYZE.
    pub bytes: i64,
    /// Columns that the publication's row filter looks at; empty: no filter.
    pub row_filter: Vec<String>,
    /// Columns, in table order.
    pub columns: Vec<ColumnPlan>,
}

/// The plan of a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnPlan {
    /// Name at the source.
    pub column: String,
    /// Type at the source, domains taken off.
    pub source_type: String,
    /// What becomes of it.
    pub fate: Fate,
    /// Name in the lake, if it goes there.
    pub lake_column: Option<String>,
    /// Type in the lake.
    pub lake_type: Option<&'static str>,
    /// Values that the lake's type cannot hold: they go to `_exceptions`.
    pub exceptions: Option<&'static str>,
    #[serde(skip)]
    pub(super) becomes_text: bool,
}

/// What becomes of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It goes to the lake as it is.
    Plain,
    /// As its HMAC-SHA-256.
    Hashed,
    /// Dropped in the decoder.
    Excluded,
    /// It does not leave the source.
    ExcludedAtSource,
    /// The publication's column list leaves it out.
    Unlisted,
    /// Generated: left out.
    Generated,
}

/// The plans of the wanted tables that exist.
pub(super) fn plan(facts: &Facts) -> Vec<TablePlan> {
    facts.pairs().map(|(wanted, table)| one(wanted, table, facts)).collect()
}

fn one(wanted: &WantedTable, table: &Table, facts: &Facts) -> TablePlan {
    let published = facts.publication.as_ref().filter(|_| wanted.streamed).and_then(|p| p.tables.get(&table.name));
    let listed = published.and_then(|p| p.columns.as_ref());
    let privacy = wanted.privacy();
    let fate = |column: &Column| match () {
        () if column.generated => Fate::Generated,
        () if wanted.exclude.contains(&column.name) && wanted.exclude_at_source => Fate::ExcludedAtSource,
        () if privacy.keeps_out_of(table, column) => Fate::Excluded,
        () if listed.is_some_and(|listed| !listed.contains(&column.name)) => Fate::Unlisted,
        () if wanted.hash.contains(&column.name) => Fate::Hashed,
        () => Fate::Plain,
    };
    let mut kept = table.clone();
    kept.columns.retain(|column| matches!(fate(column), Fate::Plain | Fate::Hashed));
    let schema = TableSchema::begin(&kept, 1, &Privacy { hash: wanted.hash.clone(), ..Privacy::default() });
    let column = |column: &Column| {
        let lake = schema.by_source(&column.name);
        let fit = lake.filter(|lake| !lake.hashed).map(|_| fit(&column.base));
        ColumnPlan {
            column: column.name.clone(),
            source_type: column.base.name.clone(),
            fate: fate(column),
            lake_column: lake.map(|lake| lake.name.clone()),
            lake_type: lake.map(|lake| parquet_name(lake.lake_type)),
            exceptions: if let Some(Fit::Exceptions(which)) = fit { Some(which) } else { None },
            becomes_text: fit == Some(Fit::Text),
        }
    };
    TablePlan {
        table: table.name.clone(),
        mode: if wanted.streamed { "stream" } else { "snapshot" },
        key: table.key.clone(),
        identity: match table.identity {
            ReplicaIdentity::Default => "default",
            ReplicaIdentity::Index => "index",
            ReplicaIdentity::Full => "full",
            ReplicaIdentity::Nothing => "nothing",
        },
        partitions: table.leaves.len(),
        rows_estimate: table.rows_estimate,
        bytes: table.bytes,
        row_filter: published.map(|p| p.filter_columns.clone()).unwrap_or_default(),
        columns: table.columns.iter().map(column).collect(),
    }
}

/// The contract's name of a lake type.
fn parquet_name(lake_type: LakeType) -> &'static str {
    match lake_type {
        LakeType::Boolean => "BOOLEAN",
        LakeType::Int64 => "INT64",
        LakeType::Float => "FLOAT",
        LakeType::Double => "DOUBLE",
        LakeType::Decimal38_9 => "DECIMAL(38,9)",
        LakeType::Decimal76_38 => "DECIMAL(76,38)",
        LakeType::String => "STRING",
        LakeType::Binary => "BINARY",
        LakeType::Date => "DATE",
        LakeType::Timestamp => "TIMESTAMP(us, UTC)",
        LakeType::DateTime => "TIMESTAMP(us)",
    }
}

impl TablePlan {
    /// Its columns of this fate.
    pub(super) fn of(&self, fate: Fate) -> Vec<&str> {
        self.columns.iter().filter(|column| column.fate == fate).map(|column| column.column.as_str()).collect()
    }

    /// The plan in one line.
    pub(super) fn line(&self) -> String {
        let mode = if self.mode == "stream" { "streamed" } else { "a catalogue, copied whole" };
        let key = if self.key.is_empty() { "no key".to_owned() } else { format!("key {}", self.key.join(", ")) };
        let mut types = BTreeMap::<&str, usize>::new();
        self.columns.iter().filter_map(|c| c.lake_type).for_each(|name| *types.entry(name).or_default() += 1);
        let count: usize = types.values().sum();
        let types: Vec<String> = types.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let mut line = format!("{mode}, {key}, identity {}, {count} columns in the lake ({})", self.identity, types.join(", "));
        let parts = [("excluded", Fate::Excluded), ("excluded at the source", Fate::ExcludedAtSource), ("hashed", Fate::Hashed)];
        for (word, fate) in parts {
            let columns = self.of(fate);
            if !columns.is_empty() {
                line.push_str(&format!("; {word}: {}", names(columns)));
            }
        }
        if !self.row_filter.is_empty() {
            line.push_str(&format!("; row filter over {}", names(&self.row_filter)));
        }
        if self.partitions > 0 {
            line.push_str(&format!("; {} partitions", self.partitions));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::{column, facts, partitioned, publication, table};
    use super::*;

    #[test]
    fn a_plan_says_what_becomes_of_every_column() {
        let mut one = table("a");
        one.columns.extend([column(3, "monto", 1700), column(4, "correo", 25), column(5, "notas", 25), column(6, "año", 23)]);
        one.columns.push(Column { generated: true, ..column(7, "g", 23) });
        let mut facts = facts(&[one, partitioned("p")]);
        facts.wanted[0].exclude = vec!["notas".into()];
        facts.wanted[0].hash = vec!["correo".into()];
        let mut narrow = publication(&facts.tables);
        let filtered = narrow.tables.get_mut(&facts.tables[1].name).unwrap();
        (filtered.row_filter, filtered.filter_columns, filtered.columns) = (true, vec!["id".into()], Some(vec!["id".into()]));
        facts.publication = Some(narrow);
        let plans = plan(&facts);
        let fates: Vec<Fate> = plans[0].columns.iter().map(|c| c.fate).collect();
        assert_eq!(fates, [Fate::Plain, Fate::Plain, Fate::Plain, Fate::Hashed, Fate::Excluded, Fate::Plain, Fate::Generated]);
        assert_eq!(plans[0].columns[5].lake_column.as_deref(), Some("a_xC3B1_o"));
        assert!(plans[0].columns[2].exceptions.is_some() && plans[0].columns[4].lake_column.is_none());
        let line = plans[0].line();
        assert!(
            line.starts_with("streamed, key id, identity default, 5 columns in the lake (")
                && line.ends_with("; excluded: notas; hashed: correo"),
            "{line}"
        );
        assert!(line.contains("2 INT64") && line.contains("2 STRING"), "{line}");
        assert_eq!(plans[1].columns[1].fate, Fate::Unlisted);
        assert!(plans[1].line().ends_with("; row filter over id; 2 partitions"), "{}", plans[1].line());
        let json = serde_json::to_value(&plans[0]).unwrap();
        assert_eq!((&json["columns"][4]["fate"], &json["columns"][0]["lake_type"]), (&"excluded".into(), &"INT64".into()));
    }

    #[test]
    fn a_column_excluded_at_the_source_is_told_apart() {
        let mut facts = facts(&[table("a")]);
        (facts.wanted[0].exclude, facts.wanted[0].exclude_at_source) = (vec!["note".into()], true);
        assert!(plan(&facts)[0].line().contains("excluded at the source: note"));
    }
}
