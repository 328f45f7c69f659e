//! Column names in the lake: BigQuery's rules kept, the source's name always recoverable from the lake's alone.
//!
//! Owns: which names are refused, how they are written instead. Does not own: names in paths (`lake`), table names.
//! Invariants: the lake's names of a table are distinct whatever the case; `source_name` undoes the mapping; a name depends only
//! on the columns before it, so that a column added later renames none.
//!
//! The mapping. A name stays as it is if it is `[A-Za-z_][A-Za-z0-9_]*`, does not begin with one of BigQuery's reserved prefixes, is
//! none of our own columns nor `dt` (the folders' key), and differs from all columns before it in more than case. Otherwise
//! characters are escaped: a run of them becomes `_x`, the UTF-8 bytes in upper-case hex, `_`. Escaped are
//! - characters outside `[A-Za-z0-9_]`, and a digit at the beginning: `año` → `a_xC3B1_o`, `fecha de pago` → `fecha_x20_de_x20_pago`;
//! - an underscore that would otherwise seem to begin an escape: `pos_x20_y` → `pos_x5F_x20_y`;
//! - if the name is reserved or taken, as many of its first characters as are needed: `_op` → `_x5F_op`, `dt` → `_x64_t`,
//!   `name` beside `Name` → `_x6E_ame`.

use std::collections::HashSet;

/// Longest column name that BigQuery takes, in characters. A name of PostgreSQL (63 bytes at most) stays below 200.
pub const CHARS_MAX: usize = 300;

/// Columns that every data file has besides the table's.
pub const OWN: [&str; 8] = ["_op", "_commit_lsn", "_seq", "_commit_ts", "_xid", "_unchanged", "_old_key", "_exceptions"];

/// The hive key of the folders: a column of the same name would collide with it.
pub const HIVE_KEY: &str = "dt";

/// Prefixes that BigQuery keeps to itself, whatever the case.
pub const RESERVED_PREFIXES: [&str; 7] = ["_TABLE_", "_FILE_", "_PARTITION", "_ROW_TIMESTAMP", "__ROOT__", "_COLIDENTIFIER", "_CHANGE_"];

/// The lake's names of a table's columns, given in the source's order (attnum).
pub fn lake_names(source: &[&str]) -> Vec<String> {
    let mut names = LakeNames::default();
    source.iter().map(|name| names.assign(name)).collect()
}

/// The source's name of a lake's column.
pub fn source_name(lake: &str) -> String {
    let mut source = String::with_capacity(lake.len());
    let mut rest = lake;
    while let Some(first) = rest.chars().next() {
        if let Some((text, behind)) = escape_at(rest) {
            source.push_str(&text);
            rest = behind;
        } else {
            source.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    source
}

/// Names of one table given so far: for a table whose columns come one after the other, or whose former names must stay taken.
#[derive(Debug, Default, Clone)]
pub struct LakeNames {
    /// In lower case.
    taken: HashSet<String>,
}

impl LakeNames {
    /// Marks a lake's name as taken (that of a dropped column, say).
    pub fn reserve(&mut self, lake: &str) {
        self.taken.insert(lake.to_ascii_lowercase());
    }

    /// The lake's name of the next column. The source's names of a table are distinct, so there always is one.
    pub fn assign(&mut self, source: &str) -> String {
        let chars: Vec<char> = source.chars().collect();
        // With every character escaped the name is unlike any other: hex has no twins in case.
        let free = (0..chars.len()).map(|escaped| encode(&chars, escaped)).find(|lake| self.is_free(lake));
        let lake = free.unwrap_or_else(|| encode(&chars, chars.len()));
        self.reserve(&lake);
        lake
    }

    fn is_free(&self, lake: &str) -> bool {
        let reserved = RESERVED_PREFIXES.iter().any(|prefix| lake.get(..prefix.len()).is_some_and(|p| p.eq_ignore_ascii_case(prefix)));
        let ours = OWN.iter().chain([&HIVE_KEY]).any(|own| lake.eq_ignore_ascii_case(own));
        !reserved && !ours && !self.taken.contains(&lake.to_ascii_lowercase())
    }
}

/// The name with its first `forced` characters escaped, and all others that need it.
fn encode(chars: &[char], forced: usize) -> String {
    // From the end, because an underscore must be escaped if what follows it makes it look like an escape.
    let mut name = String::new();
    let mut in_run = false;
    for (at, &c) in chars.iter().enumerate().rev() {
        let plain = c.is_ascii_alphanumeric() && !(at == 0 && c.is_ascii_digit()) || c == '_' && !continues_escape(&name);
        if plain && at >= forced {
            name.insert(0, c);
            in_run = false;
            continue;
        }
        let hex: String = c.encode_utf8(&mut [0; 4]).bytes().map(|byte| format!("{byte:02X}")).collect();
        if in_run {
            name.insert_str("_x".len(), &hex);
        } else {
            name.insert_str(0, &format!("_x{hex}_"));
            in_run = true;
        }
    }
    name
}

/// Whether an underscore before `rest` would read as an escape, in any case of letters: `x`, hex, `_`.
fn continues_escape(rest: &str) -> bool {
    let Some(hex) = rest.strip_prefix(['x', 'X']) else { return false };
    let behind = hex.trim_start_matches(|c: char| c.is_ascii_hexdigit());
    behind.len() < hex.len() && behind.starts_with('_')
}

/// The escape that `name` begins with: its text, and what stands behind it.
fn escape_at(name: &str) -> Option<(String, &str)> {
    let (hex, behind) = name.strip_prefix("_x")?.split_once('_')?;
    let digit = |b: u8| char::from(b).to_digit(16).filter(|_| !b.is_ascii_lowercase());
    let (pairs, odd) = hex.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs.iter().map(|&[high, low]| Some((digit(high)? << 4 | digit(low)?) as u8)).collect();
    let text = String::from_utf8(bytes?).ok().filter(|text| odd.is_empty() && !text.is_empty())?;
    Some((text, behind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(source: &str) -> String {
        lake_names(&[source]).remove(0)
    }

    #[test]
    fn names_that_bigquery_takes_stay() {
        for name in ["id_caso", "Monto", "_private", "a1", "_x", "pos_x1", "_x20", "_dt", "op", "_opx", "a_x_b", "table_", "_xG0_"] {
            assert_eq!(one(name), name);
        }
    }

    #[test]
    fn names_that_bigquery_refuses_are_escaped() {
        let cases = [
            ("año", "a_xC3B1_o"),
            ("fecha de pago", "fecha_x20_de_x20_pago"),
            ("1st", "_x31_st"),
            ("a--b", "a_x2D2D_b"),
            ("😀", "_xF09F9880_"),
            ("_TABLE_x", "_x5F_TABLE_x"),
            ("_partitiontime", "_x5F_partitiontime"),
            ("__root__", "_x5F__root__"),
            ("_op", "_x5F_op"),
            ("_Commit_LSN", "_x5F_Commit_LSN"),
            ("dt", "_x64_t"),
            ("DT", "_x44_T"),
            ("pos_x20_y", "pos_x5F_x20_y"),
            ("_X2f_", "_x5F_X2f_"),
            ("_x2 ", "_x5F_x2_x20_"),
        ];
        for (source, lake) in cases {
            assert_eq!(one(source), lake);
            assert_eq!(source_name(lake), source);
        }
    }

    #[test]
    fn twins_in_case_part_and_earlier_columns_keep_their_names() {
        let source = ["Name", "name", "NAME", "nAME", "id", "_x6E_ame"];
        let lake = lake_names(&source);
        assert_eq!(lake[..3], ["Name", "_x6E_ame", "_x4E_AME"]);
        for (n, lake) in lake.iter().enumerate() {
            assert_eq!(source_name(lake), source[n]);
            assert_eq!(lake_names(&source[..=n])[n], *lake);
        }
        assert_eq!(lake.iter().map(|l| l.to_ascii_lowercase()).collect::<HashSet<_>>().len(), source.len());
    }

    #[test]
    fn a_reserved_name_stays_taken() {
        let mut names = LakeNames::default();
        names.reserve("Old");
        assert_eq!(names.assign("old"), "_x6F_ld");
    }

    fn is_valid(lake: &str) -> bool {
        let own = OWN.iter().chain([&HIVE_KEY]).any(|own| own.eq_ignore_ascii_case(lake));
        let reserved = RESERVED_PREFIXES.iter().any(|p| lake.to_uppercase().starts_with(p));
        let first = lake.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        first && lake.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && lake.len() <= CHARS_MAX && !own && !reserved
    }

    /// Names of up to 63 bytes, thick with what the mapping must tell apart.
    fn names() -> impl Strategy<Value = Vec<String>> {
        let name = prop_oneof!["([_xX0-9aAFf ñ]|_x5F_|_op|dt|_TABLE_){1,20}", "[aA][bB][cC]?", "(?s).{1,63}"];
        proptest::collection::hash_set(
            name.prop_map(|s: String| {
                s.chars()
                    .scan(0, |n, c| {
                        *n += c.len_utf8();
                        (*n <= 63).then_some(c)
                    })
                    .collect()
            }),
            1..12,
        )
        .prop_map(|set: HashSet<String>| set.into_iter().collect())
    }

    proptest! {
        #[test]
        fn lake_names_are_valid_distinct_and_reversible(source in names()) {
            let source: Vec<&str> = source.iter().map(String::as_str).collect();
            let lake = lake_names(&source);
            let mut seen = HashSet::new();
            for (lake, source) in lake.iter().zip(&source) {
                prop_assert!(is_valid(lake), "{} from {:?}", lake, source);
                prop_assert_eq!(&source_name(lake), source);
                prop_assert!(seen.insert(lake.to_ascii_lowercase()), "{}", lake);
            }
            prop_assert_eq!(&lake_names(&source[..source.len() - 1])[..], &lake[..source.len() - 1]);
        }

        #[test]
        fn any_text_has_a_source_name(lake: String) {
            let _ = source_name(&lake);
        }
    }
}
