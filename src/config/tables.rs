//! `[[table]]`: which tables are replicated, how, and what is kept from the lake.
//!
//! Owns: the rules of a block and between blocks. Does not own: whether tables and columns exist (`check`, `run`).
//! Invariant: no column is excluded and hashed, or excluded and included; a hash needs its key.

use super::reader::Reader;
use super::sections::{NAME_BYTES_MAX, is_name};
use super::{Mode, TableConfig};
use crate::table_name::TableName;

impl TableConfig {
    /// Reads all blocks; `None` without any: then every table of schema public that has a key.
    pub(super) fn read_all(reader: &mut Reader, has_hash_key: bool) -> Option<Vec<Self>> {
        let count = reader.tables()?;
        if count == 0 {
            reader.problem("table", "the list is empty: leave it out for every table of schema public that has a key");
        }
        let mut tables: Vec<Self> = Vec::with_capacity(count);
        for number in 1..=count {
            let Some(table) = Self::read(reader, &format!("table[{number}]"), has_hash_key) else { continue };
            if let Some(at) = tables.iter().position(|other| other.name == table.name) {
                reader.refuse(&format!("table[{number}].name"), &format!("is there already (block {})", at + 1));
            }
            tables.push(table);
        }
        Some(tables)
    }

    fn read(reader: &mut Reader, block: &str, has_hash_key: bool) -> Option<Self> {
        let key = |name: &str| format!("{block}.{name}");
        let name_rule = format!("must be schema.table, cut at the first dot and unquoted, each of 1 to {NAME_BYTES_MAX} bytes");
        let parse = |text: &str| text.parse::<TableName>().ok().filter(|name| is_name(&name.schema) && is_name(&name.name));
        if !reader.has(&key("name")) {
            reader.problem(&key("name"), &format!("is required; {name_rule}"));
        }
        let name = reader.parsed(&key("name"), &name_rule, parse);
        if name.as_ref().is_some_and(|name| name.schema.starts_with("pg_") || name.schema == "information_schema") {
            reader.refuse(&key("name"), "PostgreSQL does not replicate its own catalogues");
        }
        let mode = reader.parsed(&key("mode"), r#"must be "stream" or "snapshot""#, |text| match text {
            "stream" => Some(Mode::Stream),
            "snapshot" => Some(Mode::Snapshot),
            _ => None,
        });
        let table = Self {
            name: name.unwrap_or_else(|| TableName::new("", block)),
            mode: mode.unwrap_or_default(),
            exclude: reader.texts(&key("exclude"), "columns' names", is_name),
            exclude_at_source: reader.flag(&key("exclude_at_source"), false),
            hash: reader.texts(&key("hash"), "columns' names", is_name),
            include: reader.has(&key("include")).then(|| reader.texts(&key("include"), "columns' names", is_name)),
        };
        if let Some(both) = table.hash.iter().find(|column| table.exclude.contains(column)) {
            reader.refuse(&key("hash"), &format!("column {both:?} is also in exclude: choose one"));
        }
        if let Some(both) = table.include.iter().flatten().find(|column| table.exclude.contains(column)) {
            reader.refuse(&key("include"), &format!("column {both:?} is also in exclude: choose one"));
        }
        if !table.hash.is_empty() && !has_hash_key {
            reader.refuse(&key("hash"), "needs a key: set HUELLA_HASH_KEY in the environment (`openssl rand -hex 32` makes one)");
        }
        if table.exclude_at_source && table.exclude.is_empty() {
            reader.refuse(&key("exclude_at_source"), "there is no exclude to apply at the source");
        }
        if table.exclude_at_source && table.mode == Mode::Snapshot {
            reader.refuse(
                &key("exclude_at_source"),
                r#"is a property of the publication, and mode = "snapshot" has none; exclude alone keeps the columns out"#,
            );
        }
        Some(table)
    }
}
