//! The name of a table: schema and table, as one text that can be read back.
//!
//! Owns: printing and parsing of `schema.table`, quoting for SQL. Does not own: names in the lake's paths and columns.
//! Invariant: text and name convert both ways without loss, whatever characters the parts hold.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Schema and table, exactly as the catalogue has them.
///
/// The text is `schema.table`, cut at the first dot. A schema that itself holds a dot, and a part that begins with a
/// double quote, are written as in SQL, in double quotes: `"a.b".c`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// Schema.
    pub schema: String,
    /// Table.
    pub name: String,
}

impl TableName {
    /// A name from its parts.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// The name as SQL, each part quoted: `"schema"."table"`.
    pub fn sql(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }
}

/// An identifier as SQL: always in double quotes, so that no keyword and no capital letter is misread.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |text: &str, quoted: bool| if quoted { quote_ident(text) } else { text.to_owned() };
        let schema = part(&self.schema, self.schema.starts_with('"') || self.schema.contains('.'));
        let name = part(&self.name, self.name.starts_with('"'));
        f.pad(&format!("{schema}.{name}"))
    }
}

/// The text is not a table's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a table's name (expected schema.table)")]
pub struct NotATableName(pub String);

impl FromStr for TableName {
    type Err = NotATableName;

    fn from_str(text: &str) -> Result<Self, NotATableName> {
        let parsed = || {
            let (schema, rest) = if text.starts_with('"') {
                let (schema, rest) = unquote(text)?;
                (schema, rest.strip_prefix('.')?)
            } else {
                let (schema, rest) = text.split_once('.')?;
                (schema.to_owned(), rest)
            };
            let name = if rest.starts_with('"') {
                let (name, left) = unquote(rest)?;
                left.is_empty().then_some(name)?
            } else {
                rest.to_owned()
            };
            let usable = |part: &str| !part.is_empty() && !part.contains('\0');
            (usable(&schema) && usable(&name)).then_some(TableName { schema, name })
        };
        parsed().ok_or_else(|| NotATableName(text.to_owned()))
    }
}

/// The identifier in double quotes that `text` begins with, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text.strip_prefix('"')?;
    loop {
        let (part, after) = rest.split_once('"')?;
        name.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, after)),
        }
    }
}

impl Serialize for TableName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TableName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_cut_at_the_first_dot() {
        assert_eq!("public.a.b".parse(), Ok(TableName::new("public", "a.b")));
        assert_eq!("\"a.b\".c".parse(), Ok(TableName::new("a.b", "c")));
        assert_eq!("public.\"My \"\"T\"\"\"".parse(), Ok(TableName::new("public", "My \"T\"")));
        assert_eq!(TableName::new("public", "Mis Donaciones").to_string(), "public.Mis Donaciones");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", ".", "a", "a.", ".a", "\"a\"", "\"a.b", "\"a\"b.c", "a.\"b", "a.\"b\"c", "\"\".a", "a.\"\"", "a.b\0"] {
            assert!(text.parse::<TableName>().is_err(), "{text}");
        }
    }

    #[test]
    fn sql_survives_quotes() {
        assert_eq!(TableName::new("a\"b", "C d").sql(), "\"a\"\"b\".\"C d\"");
    }

    proptest! {
        #[test]
        fn every_name_reads_back(schema in "[^\0]{1,8}|[.\"a]{1,6}", name in "[^\0]{1,8}|[.\"a]{1,6}") {
            let name = TableName { schema, name };
            prop_assert_eq!(name.to_string().parse(), Ok(name.clone()));
            let json = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(serde_json::from_str::<TableName>(&json).unwrap(), name);
        }
    }
}
