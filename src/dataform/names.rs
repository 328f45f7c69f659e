//! Names of tables in BigQuery.
//!
//! Owns: the rule. Pure. Invariants: names are `[A-Za-z_][A-Za-z0-9_]*`, distinct whatever the case; a name that was given stays given.

use crate::schema::LakeNames;
use crate::table_name::TableName;
use std::collections::BTreeMap;

/// The names of `tables`: `donaciones` for `public.donaciones`, `ventas__pedidos` for `ventas.pedidos`; characters that are not
/// legal are escaped as in columns' names. `given` are those of an earlier time, which stay; where two
/// would differ in case alone, or not at all, the one that comes later is escaped further.
pub(super) fn assign<'a>(tables: impl Iterator<Item = &'a TableName>, given: &BTreeMap<TableName, String>) -> BTreeMap<TableName, String> {
    let mut names = LakeNames::default();
    let tables: Vec<&TableName> = tables.collect();
    given.values().for_each(|name| names.reserve(name));
    let mut assigned = BTreeMap::new();
    for table in tables {
        let name = match given.get(table) {
            Some(name) => name.clone(),
            None => {
                let plain = if table.schema == "public" { table.name.clone() } else { format!("{}__{}", table.schema, table.name) };
                names.assign(&plain) // two names of 63 bytes, escaped, stay below BigQuery's 1,024
            }
        };
        assigned.insert(table.clone(), name);
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assign_to(tables: &[(&str, &str)], given: &BTreeMap<TableName, String>) -> Vec<String> {
        let tables: Vec<TableName> = tables.iter().map(|(schema, name)| TableName::new(*schema, *name)).collect();
        let names = assign(tables.iter(), given);
        tables.iter().map(|table| names[table].clone()).collect()
    }

    #[test]
    fn public_is_left_out_and_illegal_characters_are_escaped() {
        let names = assign_to(&[("public", "donaciones"), ("ventas", "pedidos"), ("public", "año 1"), ("public", "1st")], &BTreeMap::new());
        assert_eq!(names, ["donaciones", "ventas__pedidos", "a_xC3B1_o_x20_1", "_x31_st"]);
    }

    #[test]
    fn names_differ_in_more_than_case_and_stay_once_given() {
        let first = assign_to(&[("public", "User"), ("a", "b"), ("public", "a__b")], &BTreeMap::new());
        assert_eq!(first, ["User", "a__b", "_x61___b"]);
        let given = BTreeMap::from([(TableName::new("public", "user"), "user".to_owned())]);
        assert_eq!(assign_to(&[("public", "User"), ("public", "user")], &given), ["_x55_ser", "user"]);
    }
}
