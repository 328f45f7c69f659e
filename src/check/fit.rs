//! How the values of a source's type fare in the lake.
//!
//! Owns: which types count as text by nature. Does not own: the mapping of types (`schema`).

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
