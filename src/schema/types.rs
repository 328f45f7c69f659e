//! Which lake type a PostgreSQL type becomes, and by which conversion of its text.
//!
//! Owns: the contract's table of types, the stored names of lake types and conversions. Does not own: the conversions
//! themselves (`numeric`, `datetime`, `array`, `text`), resolving domains (the catalogue).
//! Invariant: a type that the table does not name, however exotic, is text; no type is refused.

use arrow_schema::{DataType, TimeUnit};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Digits that BigQuery's NUMERIC holds before and after the point.
pub const NUMERIC_DIGITS: (i32, i32) = (29, 9);
/// Digits of ours that BigQuery's BIGNUMERIC holds before and after the point.
pub const BIGNUMERIC_DIGITS: (i32, i32) = (38, 38);

/// A column's type as the catalogue resolves it: domains already replaced by their base type and its typmod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgType {
    /// Oid of the base type.
    pub oid: u32,
    /// `atttypmod`, or the domain's; -1 if none.
    pub typmod: i32,
    /// The type's name as `format_type` prints it, for people.
    pub name: String,
    /// For arrays: oid of the element's base type. For everything else, `int2vector` and `point` too: `None`.
    pub element: Option<u32>,
    /// For arrays: the element's typmod (its domain's included); -1 if none.
    pub element_typmod: i32,
    /// For arrays: what the element's type prints between two elements (`pg_type.typdelim`): `,` for all but a few, `;` for `box`.
    pub delimiter: u8,
}

impl PgType {
    /// A type that is no array.
    pub fn scalar(oid: u32, typmod: i32, name: impl Into<String>) -> Self {
        Self { oid, typmod, name: name.into(), element: None, element_typmod: -1, delimiter: b',' }
    }

    /// An array of `element`, its elements separated by `delimiter`.
    pub fn array(oid: u32, name: impl Into<String>, element: u32, element_typmod: i32, delimiter: u8) -> Self {
        Self { oid, typmod: element_typmod, name: name.into(), element: Some(element), element_typmod, delimiter }
    }
}

/// A column's type in the lake's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LakeType {
    /// BOOLEAN.
    Boolean,
    /// INT64.
    Int64,
    /// FLOAT, 32 bits.
    Float,
    /// DOUBLE, 64 bits.
    Double,
    /// DECIMAL(38, 9): BigQuery's NUMERIC.
    #[serde(rename = "Decimal38_9")]
    Decimal38_9,
    /// DECIMAL(76, 38): BigQuery's BIGNUMERIC.
    #[serde(rename = "Decimal76_38")]
    Decimal76_38,
    /// UTF-8 text.
    String,
    /// Bytes.
    Binary,
    /// Days since 1970-01-01.
    Date,
    /// Microseconds since 1970-01-01 UTC: an instant.
    Timestamp,
    /// Microseconds since 1970-01-01 without a zone: a wall clock.
    DateTime,
}

impl LakeType {
    /// The Arrow type that holds it.
    pub fn arrow(self) -> DataType {
        match self {
            LakeType::Boolean => DataType::Boolean,
            LakeType::Int64 => DataType::Int64,
            LakeType::Float => DataType::Float32,
            LakeType::Double => DataType::Float64,
            LakeType::Decimal38_9 => DataType::Decimal128(38, 9),
            LakeType::Decimal76_38 => DataType::Decimal256(76, 38),
            LakeType::String => DataType::Utf8,
            LakeType::Binary => DataType::Binary,
            LakeType::Date => DataType::Date32,
            LakeType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
            LakeType::DateTime => DataType::Timestamp(TimeUnit::Microsecond, None),
        }
    }

    /// The name in stored documents; the same that serde writes.
    pub fn name(self) -> &'static str {
        match self {
            LakeType::Boolean => "Boolean",
            LakeType::Int64 => "Int64",
            LakeType::Float => "Float",
            LakeType::Double => "Double",
            LakeType::Decimal38_9 => "Decimal38_9",
            LakeType::Decimal76_38 => "Decimal76_38",
            LakeType::String => "String",
            LakeType::Binary => "Binary",
            LakeType::Date => "Date",
            LakeType::Timestamp => "Timestamp",
            LakeType::DateTime => "DateTime",
        }
    }
}

impl fmt::Display for LakeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How an array's elements are written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// `true` and `false`.
    Boolean,
    /// JSON numbers of PostgreSQL's digits; NaN and ±Infinity as strings.
    Number,
    /// JSON strings of PostgreSQL's text.
    Text,
}

/// How a source's text becomes a lake cell. Stored in the lake by its name (`Display`, `FromStr`, serde).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Conversion {
    /// `t`, `f`.
    Boolean,
    /// int2, int4, int8, oid.
    Int64,
    /// float4.
    Float,
    /// float8.
    Double,
    /// numeric within DECIMAL(38, 9), or without precision.
    Decimal38_9,
    /// numeric within DECIMAL(76, 38).
    Decimal76_38,
    /// PostgreSQL's text, untouched.
    Text,
    /// bytea in hex.
    Bytea,
    /// date.
    Date,
    /// timestamp with time zone, printed in UTC.
    Timestamp,
    /// timestamp without time zone.
    DateTime,
    /// An array as JSON text.
    Array {
        /// How its elements are written.
        element: Element,
        /// What PostgreSQL prints between elements.
        delimiter: u8,
    },
    /// HMAC-SHA-256 of PostgreSQL's text, as hex, whatever the type.
    Hashed,
}

impl Conversion {
    /// The lake type of the cells.
    pub fn lake_type(&self) -> LakeType {
        match self {
            Conversion::Boolean => LakeType::Boolean,
            Conversion::Int64 => LakeType::Int64,
            Conversion::Float => LakeType::Float,
            Conversion::Double => LakeType::Double,
            Conversion::Decimal38_9 => LakeType::Decimal38_9,
            Conversion::Decimal76_38 => LakeType::Decimal76_38,
            Conversion::Text | Conversion::Array { .. } | Conversion::Hashed => LakeType::String,
            Conversion::Bytea => LakeType::Binary,
            Conversion::Date => LakeType::Date,
            Conversion::Timestamp => LakeType::Timestamp,
            Conversion::DateTime => LakeType::DateTime,
        }
    }
}

/// Names of the conversions that are no arrays.
const SCALARS: [(Conversion, &str); 12] = [
    (Conversion::Boolean, "boolean"),
    (Conversion::Int64, "int64"),
    (Conversion::Float, "float"),
    (Conversion::Double, "double"),
    (Conversion::Decimal38_9, "decimal(38,9)"),
    (Conversion::Decimal76_38, "decimal(76,38)"),
    (Conversion::Text, "text"),
    (Conversion::Bytea, "bytea"),
    (Conversion::Date, "date"),
    (Conversion::Timestamp, "timestamp"),
    (Conversion::DateTime, "datetime"),
    (Conversion::Hashed, "hashed"),
];

/// Names of an array's kinds of elements.
const ELEMENTS: [(Element, &str); 3] = [(Element::Boolean, "boolean"), (Element::Number, "number"), (Element::Text, "text")];

/// `boolean`, `decimal(38,9)`, …; arrays as `number[]`, with a delimiter other than the comma as `text[;]`.
impl fmt::Display for Conversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Conversion::Array { element, delimiter } = *self {
            let name = ELEMENTS.iter().find(|e| e.0 == element).expect("every kind of element has a name").1;
            return if delimiter == b',' { write!(f, "{name}[]") } else { write!(f, "{name}[{}]", char::from(delimiter)) };
        }
        f.write_str(SCALARS.iter().find(|s| s.0 == *self).expect("every conversion but an array's stands in the table").1)
    }
}

/// The text names no conversion of this version of the program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a conversion")]
pub struct UnknownConversion(pub String);

impl FromStr for Conversion {
    type Err = UnknownConversion;
    fn from_str(text: &str) -> Result<Self, UnknownConversion> {
        if let Some(&(scalar, _)) = SCALARS.iter().find(|s| s.1 == text) {
            return Ok(scalar);
        }
        let array = || {
            let (name, delimiter) = text.strip_suffix(']')?.split_once('[')?;
            let element = ELEMENTS.iter().find(|e| e.1 == name)?.0;
            let mut chars = delimiter.chars();
            let delimiter = chars.next().map_or(Some(b','), |c| u8::try_from(c).ok())?;
            chars.next().is_none().then_some(Conversion::Array { element, delimiter })
        };
        array().ok_or_else(|| UnknownConversion(text.to_owned()))
    }
}

impl Serialize for Conversion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Conversion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Oids of PostgreSQL's built-in types (`pg_type.dat`); they never change.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const OID: u32 = 26;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const DATE: u32 = 1082;
    pub(super) const TIMESTAMP: u32 = 1114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const NUMERIC: u32 = 1700;
    /// Types with a `typelem` that do not print as arrays: name, int2vector, oidvector, point, lseg, box, line.
    pub(super) const NOT_ARRAYS: [u32; 7] = [19, 22, 30, 600, 601, 603, 628];
}

/// The conversion of a column that is not hashed.
pub fn conversion(t: &PgType) -> Conversion {
    match t.oid {
        oid::BOOL => Conversion::Boolean,
        oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => Conversion::Int64,
        oid::FLOAT4 => Conversion::Float,
        oid::FLOAT8 => Conversion::Double,
        oid::NUMERIC => numeric(t.typmod),
        oid::BYTEA => Conversion::Bytea,
        oid::DATE => Conversion::Date,
        oid::TIMESTAMP => Conversion::DateTime,
        oid::TIMESTAMPTZ => Conversion::Timestamp,
        other => match t.element {
            Some(element) if !oid::NOT_ARRAYS.contains(&other) => {
                Conversion::Array { element: array_element(element), delimiter: t.delimiter }
            }
            _ => Conversion::Text,
        },
    }
}

fn array_element(element: u32) -> Element {
    match element {
        oid::BOOL => Element::Boolean,
        oid::INT2 | oid::INT4 | oid::INT8 | oid::OID | oid::FLOAT4 | oid::FLOAT8 | oid::NUMERIC => Element::Number,
        _ => Element::Text,
    }
}

fn numeric(typmod: i32) -> Conversion {
    let Some((precision, scale)) = precision_and_scale(typmod) else {
        return Conversion::Decimal38_9;
    };
    let fits = |digits: (i32, i32)| precision - scale <= digits.0 && scale <= digits.1;
    match () {
        () if fits(NUMERIC_DIGITS) => Conversion::Decimal38_9,
        () if fits(BIGNUMERIC_DIGITS) => Conversion::Decimal76_38,
        () => Conversion::Text,
    }
}

/// Precision and scale of a numeric's typmod, `None` without. The scale is signed, 11 bits wide (negative ones, and ones
/// beyond the precision, exist since PostgreSQL 15; what older servers write reads the same).
pub fn precision_and_scale(typmod: i32) -> Option<(i32, i32)> {
    const VARHDRSZ: i32 = 4;
    (typmod >= VARHDRSZ).then(|| {
        let packed = typmod - VARHDRSZ;
        ((packed >> 16) & 0xFFFF, ((packed & 0x7FF) ^ 0x400) - 0x400)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(oid: u32) -> Conversion {
        conversion(&PgType::scalar(oid, -1, ""))
    }

    fn of_numeric(precision: i32, scale: i32) -> Conversion {
        conversion(&PgType::scalar(oid::NUMERIC, ((precision << 16) | (scale & 0x7FF)) + 4, ""))
    }

    #[test]
    fn every_row_of_the_table_of_types_holds() {
        assert_eq!(of(16).lake_type(), LakeType::Boolean);
        for int in [20, 21, 23, 26] {
            assert_eq!(of(int).lake_type(), LakeType::Int64);
        }
        assert_eq!(of(700).lake_type(), LakeType::Float);
        assert_eq!(of(701).lake_type(), LakeType::Double);
        assert_eq!(of(1700).lake_type(), LakeType::Decimal38_9);
        assert_eq!(of(17).lake_type(), LakeType::Binary);
        assert_eq!(of(1082).lake_type(), LakeType::Date);
        assert_eq!(of(1184).lake_type(), LakeType::Timestamp);
        assert_eq!(of(1114).lake_type(), LakeType::DateTime);
        // "char", name, text, json, xml, point, money, inet, bpchar, varchar, time, interval, timetz, uuid, jsonb, ours
        for text in [18, 19, 25, 114, 142, 600, 790, 869, 1042, 1043, 1083, 1186, 1266, 2950, 3802, 70_000] {
            assert_eq!(of(text), Conversion::Text, "{text}");
        }
    }

    #[test]
    fn numeric_takes_the_narrowest_type_that_holds_every_value() {
        for (p, s) in [(1, 0), (38, 9), (29, 0), (10, 2), (5, -3), (26, -3), (3, 5), (9, 9)] {
            assert_eq!(of_numeric(p, s), Conversion::Decimal38_9, "({p},{s})");
        }
        for (p, s) in [(30, 0), (38, 0), (39, 9), (38, 10), (76, 38), (10, 10), (3, 38), (27, -3), (35, -3)] {
            assert_eq!(of_numeric(p, s), Conversion::Decimal76_38, "({p},{s})");
        }
        for (p, s) in [(39, 0), (77, 38), (1000, 0), (1000, 1000), (3, 39), (1, 1000), (36, -3), (1, -1000)] {
            assert_eq!(of_numeric(p, s), Conversion::Text, "({p},{s})");
        }
    }

    #[test]
    fn typmods_read_as_postgres_packs_them() {
        // Seen in pg_attribute: numeric(10,2), numeric(5,-3), numeric(3,5), numeric(1000,-1000)
        assert_eq!(precision_and_scale(655_366), Some((10, 2)));
        assert_eq!(precision_and_scale(((5 << 16) | 2045) + 4), Some((5, -3)));
        assert_eq!(precision_and_scale(((3 << 16) | 5) + 4), Some((3, 5)));
        assert_eq!(precision_and_scale(((1000 << 16) | (-1000 & 0x7FF)) + 4), Some((1000, -1000)));
        assert_eq!(precision_and_scale(-1), None);
        assert_eq!(precision_and_scale(3), None);
    }

    #[test]
    fn arrays_follow_their_element_and_vectors_are_text() {
        let array = |element, delimiter| conversion(&PgType::array(1_000_000, "", element, -1, delimiter));
        assert_eq!(array(16, b','), Conversion::Array { element: Element::Boolean, delimiter: b',' });
        for number in [20, 21, 23, 26, 700, 701, 1700] {
            assert_eq!(array(number, b','), Conversion::Array { element: Element::Number, delimiter: b',' });
        }
        for text in [25, 790, 1082, 3802, 17] {
            assert_eq!(array(text, b','), Conversion::Array { element: Element::Text, delimiter: b',' });
        }
        assert_eq!(array(603, b';'), Conversion::Array { element: Element::Text, delimiter: b';' });
        for (vector, element) in [(22, 21), (30, 26), (600, 701), (19, 18)] {
            assert_eq!(conversion(&PgType::array(vector, "", element, -1, b',')), Conversion::Text);
        }
    }

    #[test]
    fn stored_names_round_trip() {
        let arrays = [Element::Boolean, Element::Number, Element::Text]
            .into_iter()
            .flat_map(|element| [b',', b';', b':', b']', 0xFF].map(|delimiter| Conversion::Array { element, delimiter }));
        for conversion in SCALARS.iter().map(|s| s.0).chain(arrays) {
            let json = serde_json::to_string(&conversion).unwrap();
            assert_eq!(serde_json::from_str::<Conversion>(&json).unwrap(), conversion, "{json}");
            let lake = conversion.lake_type();
            assert_eq!(serde_json::to_string(&lake).unwrap(), format!("\"{}\"", lake.name()));
        }
        assert_eq!(Conversion::Array { element: Element::Number, delimiter: b',' }.to_string(), "number[]");
        for bad in ["", "Text", "text[", "text[,,]", "[]", "blob[]", "text[€]"] {
            assert!(bad.parse::<Conversion>().is_err(), "{bad}");
        }
    }
}
