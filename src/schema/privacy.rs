//! What the configuration keeps from the lake, of one table.
//!
//! Owns: the rule which columns stay out, and whether the names fit the table. Does not own: which version honours it (`version`).
//! Invariant: a name that fits no column is a misfit, never passed over: the values that it meant to keep out have another name now.

use crate::postgres::catalogue::{Column, Table};

/// Which columns must not reach the lake as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Privacy {
    /// Source names of columns that are dropped in the decoder.
    pub exclude: Vec<String>,
    /// Source names of columns that are stored as HMAC-SHA-256.
    pub hash: Vec<String>,
    /// Source names of the only columns that are published, the key's aside; `None`: all that are not excluded.
    pub include: Option<Vec<String>>,
    /// Mark of the key of the hashes, if there is a key.
    pub hash_key: Option<String>,
    /// Another key than before begins new versions, instead of being refused.
    pub rehash: bool,
}

impl Privacy {
    /// Whether a column stays out of the lake. Those of the key are out only if they are excluded (which is refused).
    pub fn keeps_out(&self, name: &str, in_key: bool) -> bool {
        let is_named = |list: &[String]| list.iter().any(|one| one == name);
        is_named(&self.exclude) || (!in_key && self.include.as_deref().is_some_and(|include| !is_named(include)))
    }

    /// As [`Privacy::keeps_out`], of a column of the catalog's table.
    pub fn keeps_out_of(&self, table: &Table, column: &Column) -> bool {
        self.keeps_out(&column.name, table.key.contains(&column.name))
    }

    /// Whether there is anything that must not reach the lake as it is.
    pub fn is_asked(&self) -> bool {
        !self.exclude.is_empty() || !self.hash.is_empty() || self.include.is_some()
    }

    /// What of it does not fit the table, whole as the catalog has it: one text each, for people.
    pub fn misfits(&self, table: &Table) -> Vec<String> {
        let lists = [("exclude", self.exclude.as_slice()), ("hash", &self.hash), ("include", self.include.as_deref().unwrap_or_default())];
        let absent = |list: &'static str, name: &String| {
            let named = |column: &&Column| column.name.eq_ignore_ascii_case(name.trim_matches('"'));
            let hint = match table.columns.iter().find(named) {
                Some(column) => format!("; there is {:?} (capital letters count, and no quotes are needed)", column.name),
                None => String::new(),
            };
            (!table.columns.iter().any(|column| column.name == *name))
                .then(|| format!("{list} names {name:?}, which is no column of the table{hint}"))
        };
        let absent = lists.into_iter().flat_map(|(list, names)| names.iter().filter_map(move |name| absent(list, name)));
        let hidden = self.hash.iter().filter(|name| self.keeps_out(name, table.key.contains(name)) && !self.exclude.contains(name));
        let hidden = hidden.map(|name| format!("hash names {name:?}, which include leaves out: name it there too, or take it out of hash"));
        absent.chain(hidden).collect()
    }
}
