//! The type of a column below all domains, with the modifier that counts.
//!
//! Owns: reading `pg_type`, taking domains off. Does not own: what a type becomes in the lake.
//! Invariant: the innermost domain's modifier counts, as it does in the server.

use super::rows::{SqlRow, rows};
use crate::error::Result;
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

/// A type with all domains taken off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseType {
    /// `pg_type.oid`.
    pub oid: u32,
    /// Modifier: the innermost domain's, else the column's; -1: none.
    pub typmod: i32,
    /// `pg_type.typname`, without schema; of an array the element's, with `[]`.
    pub name: String,
    /// Of a true array: its element's type, domains taken off.
    pub element: Option<u32>,
    /// The element's modifier; -1: none, or no array.
    pub element_typmod: i32,
    /// What an array prints between two elements: `;` for `box`, else a comma.
    pub delimiter: u8,
}

/// One row of `pg_type`.
#[derive(Debug, Clone)]
pub(super) struct TypeRow {
    name: String,
    /// A domain's next type and modifier.
    domain_of: Option<(u32, i32)>,
    /// A true array's element type.
    element: Option<u32>,
    /// What an array of this type prints between two elements.
    delimiter: u8,
}

/// These types, and all that they rest on.
pub(super) async fn read(client: &(impl GenericClient + Sync), oids: &BTreeSet<u32>) -> Result<BTreeMap<u32, TypeRow>> {
    // An array is what array_out prints: int2vector and oidvector have elements, but another text.
    let sql = "WITH RECURSIVE t AS (
                 SELECT oid, typname, typtype, typbasetype, typtypmod, typelem, typoutput, typdelim FROM pg_catalog.pg_type WHERE oid = ANY($1)
                 UNION
                 SELECT p.oid, p.typname, p.typtype, p.typbasetype, p.typtypmod, p.typelem, p.typoutput, p.typdelim
                   FROM t JOIN pg_catalog.pg_type p
                     ON p.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END)
               SELECT oid, typname::text, typtype = 'd', typbasetype, typtypmod,
                      typtype <> 'd' AND typelem <> 0 AND typoutput = 'pg_catalog.array_out'::pg_catalog.regproc, typelem, typdelim
                 FROM t";
    let oids: Vec<u32> = oids.iter().copied().collect();
    let rows = rows(client, "reading the columns' types", sql, &[(&oids, Type::OID_ARRAY)]).await?;
    let one = |row: &SqlRow| -> Result<TypeRow> {
        Ok(TypeRow {
            name: row.get(1)?,
            domain_of: if row.get(2)? { Some((row.get(3)?, row.get(4)?)) } else { None },
            element: if row.get(5)? { Some(row.get(6)?) } else { None },
            delimiter: row.get::<i8>(7)?.cast_unsigned(),
        })
    };
    rows.iter().map(|row| Ok((row.get(0)?, one(row)?))).collect()
}

/// The type below all domains of `oid` with the column's modifier.
pub(super) fn base(types: &BTreeMap<u32, TypeRow>, oid: u32, typmod: i32) -> BaseType {
    let (oid, typmod) = below_domains(types, oid, typmod);
    let row = types.get(&oid);
    let mut base = BaseType { oid, typmod, name: name(row).to_owned(), element: None, element_typmod: -1, delimiter: b',' };
    if let Some(declared) = row.and_then(|row| row.element) {
        // An array carries the modifier for its elements.
        let (element, element_typmod) = below_domains(types, declared, typmod);
        base.name = format!("{}[]", name(types.get(&element)));
        (base.element, base.element_typmod) = (Some(element), element_typmod);
        base.delimiter = types.get(&declared).map_or(b',', |row| row.delimiter);
    }
    base
}

fn name(row: Option<&TypeRow>) -> &str {
    row.map_or("", |row| row.name.as_str())
}

fn below_domains(types: &BTreeMap<u32, TypeRow>, mut oid: u32, mut typmod: i32) -> (u32, i32) {
    // The catalogue has no circle of domains; the bound keeps a corrupt one from hanging us.
    for _ in 0..types.len() {
        let Some((next, next_typmod)) = types.get(&oid).and_then(|row| row.domain_of) else { break };
        (oid, typmod) = (next, next_typmod);
    }
    (oid, typmod)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMERIC: u32 = 1700;
    const NUMERIC_ARRAY: u32 = 1231;
    const MONEY_OF: u32 = 20_000;
    const PRICE: u32 = 20_001;
    const PRICES: u32 = 20_002;
    const PRICE_ARRAY: u32 = 20_003;

    fn types() -> BTreeMap<u32, TypeRow> {
        let row = |name: &str, domain_of, element| TypeRow { name: name.into(), domain_of, element, delimiter: b',' };
        BTreeMap::from([
            (NUMERIC, row("numeric", None, None)),
            (NUMERIC_ARRAY, row("_numeric", None, Some(NUMERIC))),
            (MONEY_OF, row("money_of", Some((NUMERIC, 655_366)), None)),
            (PRICE, row("price", Some((MONEY_OF, -1)), None)),
            (PRICES, row("prices", Some((NUMERIC_ARRAY, 655_366)), None)),
            (PRICE_ARRAY, row("_price", None, Some(PRICE))),
        ])
    }

    fn known(oid: u32, typmod: i32, name: &str, element: Option<u32>, element_typmod: i32) -> BaseType {
        BaseType { oid, typmod, name: name.into(), element, element_typmod, delimiter: b',' }
    }

    #[test]
    fn the_innermost_domains_modifier_counts() {
        assert_eq!(base(&types(), PRICE, -1), known(NUMERIC, 655_366, "numeric", None, -1));
    }

    #[test]
    fn arrays_and_domains_nest_both_ways() {
        assert_eq!(base(&types(), PRICES, -1), known(NUMERIC_ARRAY, 655_366, "numeric[]", Some(NUMERIC), 655_366));
        assert_eq!(base(&types(), PRICE_ARRAY, -1), known(PRICE_ARRAY, -1, "numeric[]", Some(NUMERIC), 655_366));
        assert_eq!(base(&types(), NUMERIC_ARRAY, 655_366), known(NUMERIC_ARRAY, 655_366, "numeric[]", Some(NUMERIC), 655_366));
    }

    #[test]
    fn a_type_that_vanished_is_kept_by_its_oid() {
        assert_eq!(base(&types(), 99, 5), known(99, 5, "", None, -1));
    }

    #[test]
    fn a_circle_of_domains_ends() {
        let circle = BTreeMap::from([(1, TypeRow { name: "a".into(), domain_of: Some((1, -1)), element: None, delimiter: b',' })]);
        assert_eq!(base(&circle, 1, -1).oid, 1);
    }
}
