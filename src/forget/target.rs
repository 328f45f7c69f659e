//! Which rows are asked for, in the terms of every version of the table.
//!
//! Owns: reading the command's words, the digest that each version has for them. Does not own: the source's view of them (`source`).
//! Invariants: no message holds a value; a version that cannot be searched is told, never passed over.

use crate::compact::keys::{Digester, Key};
use crate::compact::removal::Versions;
use crate::error::{Error, Result};
use crate::schema::version::{SchemaColumn, TableSchema};
use crate::schema::{ColumnBuilder, HashKey, exception_text};
use arrow_array::{ArrayRef, StringArray};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A column and the value that rows must have there.
#[derive(Clone)]
pub(super) struct Given {
    /// Its name at the source.
    pub(super) column: String,
    /// Its value as the source prints it; the hash, if `hashed`.
    pub(super) text: String,
    /// The value is a hash.
    pub(super) hashed: bool,
}

/// What a version's rows are compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seed {
    /// Lake names; the key's columns in the key's order, if these are they.
    pub(super) columns: Vec<String>,
    /// Digest of the cells asked for.
    pub(super) digest: Key,
}

/// Reads the words of the command line: values in the order of the key's columns, or `column=value`.
pub(super) fn given(schema: &TableSchema, words: &[String], hashed: bool) -> Result<Vec<Given>> {
    let key: Vec<&SchemaColumn> = schema.key.iter().filter_map(|name| schema.columns.iter().find(|column| column.name == *name)).collect();
    let allowed: Vec<&SchemaColumn> = if key.is_empty() { schema.columns.iter().filter(|c| !c.dropped).collect() } else { key.clone() };
    let named = |word: &String| {
        let (name, text) = word.split_once('=')?;
        allowed.iter().find(|column| column.source == name).map(|column| (*column, text.to_owned()))
    };
    let mut found: Vec<(&SchemaColumn, String)> = words.iter().filter_map(named).collect();
    let names = |columns: &[&SchemaColumn]| columns.iter().map(|column| column.source.as_str()).collect::<Vec<_>>().join(", ");
    if key.is_empty() {
        if found.len() != words.len() {
            return Err(Error::usage(format!(
                "{} has no key, so a row is named by its cells: column=value, once or more, of the columns {}",
                schema.table,
                names(&allowed)
            )));
        }
    } else if found.len() != words.len() || found.len() != key.len() {
        if !found.is_empty() || words.len() != key.len() {
            return Err(Error::usage(format!(
                "{}: its key is ({}), so give {} in this order, or column=value for each",
                schema.table,
                names(&key),
                if key.len() == 1 { "one value".to_owned() } else { format!("{} values", key.len()) },
            )));
        }
        found = key.iter().copied().zip(words.iter().cloned()).collect();
    }
    found.sort_by_key(|(column, _)| column.attnum);
    if let Some(twice) = found.windows(2).find(|two| two[0].0.attnum == two[1].0.attnum) {
        return Err(Error::usage(format!("{}: column {} is given twice", schema.table, twice[0].0.source)));
    }
    if hashed && !found.iter().any(|(column, _)| column.hashed) {
        return Err(Error::usage(format!("--hashed: no column given is stored as a hash in {}", schema.table)));
    }
    let given = |(column, text): (&SchemaColumn, String)| {
        let hashed = hashed && column.hashed;
        Given { column: column.source.clone(), text: if hashed { text.to_ascii_lowercase() } else { text }, hashed }
    };
    Ok(found.into_iter().map(given).collect())
}

/// The digests of all versions; and the versions that have no such column, or have it in a form that the value given cannot be turned into.
pub(super) fn seeds(
    versions: &Versions,
    current: &TableSchema,
    given: &[Given],
    hash: Option<&HashKey>,
) -> Result<(BTreeMap<u32, Seed>, Vec<u32>)> {
    let (mut seeds, mut unsearched) = (BTreeMap::new(), Vec::new());
    for (version, schema) in versions {
        match seed(schema, current, given, hash)? {
            Some(seed) => drop(seeds.insert(*version, seed)),
            None => unsearched.push(*version),
        }
    }
    Ok((seeds, unsearched))
}

fn seed(schema: &TableSchema, current: &TableSchema, given: &[Given], hash: Option<&HashKey>) -> Result<Option<Seed>> {
    let mut columns: Vec<(&SchemaColumn, &Given)> = Vec::with_capacity(given.len());
    for one in given {
        let Some(column) = column_of(schema, current, &one.column) else { return Ok(None) };
        columns.push((column, one));
    }
    let key_place = |(column, _): &(&SchemaColumn, &Given)| schema.key.iter().position(|key| *key == column.name);
    columns.sort_by_key(key_place);
    let mut digest = Digester::default();
    for (column, one) in &columns {
        let Some((cell, exception)) = cell(schema, current, column, one, hash)? else { return Ok(None) };
        digest.add(exception.as_deref(), &cell, 0)?;
    }
    Ok(Some(Seed { columns: columns.iter().map(|(column, _)| column.name.clone()).collect(), digest: digest.key() }))
}

/// The column in another version: of that name, or the one that was renamed since.
fn column_of<'a>(schema: &'a TableSchema, current: &TableSchema, source: &str) -> Option<&'a SchemaColumn> {
    let attnum = current.by_source(source).map(|column| column.attnum);
    let same = |column: &&SchemaColumn| schema.oid == current.oid && Some(column.attnum) == attnum;
    schema.columns.iter().find(same).or_else(|| schema.columns.iter().find(|column| column.source == source))
}

/// A value as the lake holds it, or as its exception; `None` if the version has it in a form that cannot be made of it: in clear where a hash
/// was given, or under another hash key than the current version.
fn cell(
    schema: &TableSchema,
    current: &TableSchema,
    column: &SchemaColumn,
    given: &Given,
    hash: Option<&HashKey>,
) -> Result<Option<(ArrayRef, Option<String>)>> {
    if given.hashed {
        let text: ArrayRef = Arc::new(StringArray::from(vec![given.text.as_str()]));
        return Ok((column.hashed && schema.hash_key == current.hash_key).then_some((text, None)));
    }
    let mut builder = if column.hashed {
        match schema.hasher(hash) {
            Ok(key) => ColumnBuilder::hashed(key),
            Err(error) if schema.version == current.version => return Err(error),
            Err(_) => return Ok(None),
        }
    } else {
        ColumnBuilder::new(&column.conversion)
    };
    let fits = builder.append_text(given.text.as_bytes()).is_ok();
    Ok(Some((builder.finish(), (!fits).then(|| exception_text(given.text.as_bytes())))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Conversion, LakeType};
    use crate::table_name::TableName;

    fn schema(key: &[&str]) -> TableSchema {
        let column = |attnum: i16, name: &str| SchemaColumn {
            name: name.to_owned(),
            source: name.to_owned(),
            attnum,
            type_oid: 25,
            typmod: -1,
            source_type: "text".to_owned(),
            lake_type: LakeType::String,
            conversion: Conversion::Text,
            hashed: name == "h",
            dropped: false,
        };
        TableSchema {
            table: TableName::new("public", "t"),
            version: 1,
            oid: 1,
            columns: vec![column(1, "a"), column(2, "b"), column(3, "h")],
            key: key.iter().map(|name| (*name).to_owned()).collect(),
            excluded: Vec::new(),
            excluded_names: Default::default(),
            hash_key: None,
        }
    }

    fn read(key: &[&str], words: &[&str], hashed: bool) -> Result<Vec<(String, String)>> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        given(&schema(key), &words, hashed).map(|given| given.into_iter().map(|one| (one.column, one.text)).collect())
    }

    #[test]
    fn values_stand_in_the_keys_order_or_are_named() {
        let both = vec![("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())];
        assert_eq!(read(&["b", "a"], &["2", "1"], false).unwrap(), both);
        assert_eq!(read(&["b", "a"], &["a=1", "b=2"], false).unwrap(), both);
        assert_eq!(read(&["a"], &["x=y"], false).unwrap(), [("a".to_owned(), "x=y".to_owned())], "x is no column of the key");
        assert_eq!(read(&["a"], &["a=a=b"], false).unwrap(), [("a".to_owned(), "a=b".to_owned())]);
        assert_eq!(read(&[], &["a=1"], false).unwrap().len(), 1);
        assert_eq!(read(&["h"], &["ABC"], true).unwrap(), [("h".to_owned(), "abc".to_owned())]);
        for (key, words, hashed) in [
            (&["a"][..], &["SECRETO", "2"][..], false),
            (&["b", "a"], &["SECRETO"], false),
            (&["b", "a"], &["a=1", "SECRETO"], false),
            (&["b", "a"], &["a=1", "a=SECRETO"], false),
            (&[], &["SECRETO"], false),
            (&["a"], &["SECRETO"], true),
        ] {
            let error = read(key, words, hashed).unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::Usage, "{words:?}");
            assert!(!error.full().contains("SECRETO"), "{}", error.full());
        }
    }
}
