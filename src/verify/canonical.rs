//! One text for one value, from the lake's side and from the source's.
//!
//! Owns: rendering of Arrow cells, normalising of PostgreSQL's text. Written apart from the conversions that `run` uses
//! (arrays and hashes excepted), so that a fault there shows as a difference.
//! Invariant: equal values have equal texts, different values different ones; nothing is rounded.

use super::cell::{Cell, push};
use crate::error::{Error, Result};
use crate::schema::array;
use crate::schema::{Conversion, HashKey, LakeType, exception_text};
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Decimal256Array, Float32Array, Float64Array, Int64Array,
    StringArray, TimestampMicrosecondArray,
};
use std::fmt::Write;

/// A column of a file, by its type.
pub(super) enum Column<'a> {
    /// The file is older than the column.
    Absent,
    Boolean(&'a BooleanArray),
    Int64(&'a Int64Array),
    Float(&'a Float32Array),
    Double(&'a Float64Array),
    Decimal38(&'a Decimal128Array),
    Decimal76(&'a Decimal256Array),
    Text(&'a StringArray),
    Binary(&'a BinaryArray),
    Date(&'a Date32Array),
    /// With `+00` behind it or without.
    Timestamp(&'a TimestampMicrosecondArray, &'static str),
}

impl<'a> Column<'a> {
    /// The column, if the file has it and its type is the one that the version says.
    pub(super) fn new(name: &str, array: Option<&'a ArrayRef>, lake_type: LakeType) -> Result<Self> {
        let Some(array) = array else { return Ok(Column::Absent) };
        let column = match lake_type {
            LakeType::Boolean => array.as_boolean_opt().map(Column::Boolean),
            LakeType::Int64 => array.as_primitive_opt::<Int64Type>().map(Column::Int64),
            LakeType::Float => array.as_primitive_opt::<Float32Type>().map(Column::Float),
            LakeType::Double => array.as_primitive_opt::<Float64Type>().map(Column::Double),
            LakeType::Decimal38_9 => array.as_primitive_opt::<Decimal128Type>().filter(|a| a.scale() == 9).map(Column::Decimal38),
            LakeType::Decimal76_38 => array.as_primitive_opt::<Decimal256Type>().filter(|a| a.scale() == 38).map(Column::Decimal76),
            LakeType::String => array.as_string_opt::<i32>().map(Column::Text),
            LakeType::Binary => array.as_binary_opt::<i32>().map(Column::Binary),
            LakeType::Date => array.as_primitive_opt::<Date32Type>().map(Column::Date),
            LakeType::Timestamp => array.as_primitive_opt::<TimestampMicrosecondType>().map(|a| Column::Timestamp(a, "+00")),
            LakeType::DateTime => array.as_primitive_opt::<TimestampMicrosecondType>().map(|a| Column::Timestamp(a, "")),
        };
        column.ok_or_else(|| Error::lake(format!("column {name} is {} where {lake_type} belongs", array.data_type())))
    }

    /// Appends the cell of row `at`; `scratch` is reused.
    pub(super) fn push(&self, at: usize, row: &mut Vec<u8>, scratch: &mut String) {
        if self.is_null(at) {
            return push(row, Cell::Null);
        }
        scratch.clear();
        let written = match self {
            Column::Absent => Ok(()),
            Column::Boolean(a) => scratch.write_str(if a.value(at) { "t" } else { "f" }),
            Column::Int64(a) => write!(scratch, "{}", a.value(at)),
            Column::Float(a) => write!(scratch, "{:?}", a.value(at)),
            Column::Double(a) => write!(scratch, "{:?}", a.value(at)),
            Column::Decimal38(a) => scratch.write_str(&decimal(&a.value(at).to_string(), 9)),
            Column::Decimal76(a) => scratch.write_str(&decimal(&a.value(at).to_string(), 38)),
            Column::Text(a) => return push(row, Cell::Value(a.value(at).as_bytes())),
            Column::Binary(a) => {
                scratch.push_str("\\x");
                a.value(at).iter().try_for_each(|byte| write!(scratch, "{byte:02x}"))
            }
            Column::Date(a) => scratch.write_str(&date(a.value(at))),
            Column::Timestamp(a, zone) => scratch.write_str(&timestamp(a.value(at), zone)),
        };
        written.expect("writing to a String cannot fail");
        push(row, Cell::Value(scratch.as_bytes()));
    }

    fn is_null(&self, at: usize) -> bool {
        match self {
            Column::Absent => true,
            Column::Boolean(a) => a.is_null(at),
            Column::Int64(a) => a.is_null(at),
            Column::Float(a) => a.is_null(at),
            Column::Double(a) => a.is_null(at),
            Column::Decimal38(a) => a.is_null(at),
            Column::Decimal76(a) => a.is_null(at),
            Column::Text(a) => a.is_null(at),
            Column::Binary(a) => a.is_null(at),
            Column::Date(a) => a.is_null(at),
            Column::Timestamp(a, _) => a.is_null(at),
        }
    }
}

/// An unscaled number as decimal text without needless zeros.
fn decimal(unscaled: &str, scale: usize) -> String {
    let (sign, digits) = unscaled.strip_prefix('-').map_or(("", unscaled), |digits| ("-", digits));
    let padded = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = padded.split_at(padded.len() - scale);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

fn date(days: i32) -> String {
    match chrono::NaiveDate::from_epoch_days(days) {
        Some(day) => day.format("%Y-%m-%d").to_string(),
        None => format!("day {days}"),
    }
}

/// As PostgreSQL prints it: the fraction without needless zeros.
fn timestamp(us: i64, zone: &str) -> String {
    let Some(time) = chrono::DateTime::from_timestamp_micros(us) else { return format!("microsecond {us}") };
    let seconds = time.format("%Y-%m-%d %H:%M:%S");
    match time.timestamp_subsec_micros() {
        0 => format!("{seconds}{zone}"),
        fraction => format!("{seconds}.{}{zone}", format!("{fraction:06}").trim_end_matches('0')),
    }
}

/// Appends the cell that PostgreSQL's text must have become.
pub(super) fn push_source(row: &mut Vec<u8>, conversion: &Conversion, hash: Option<&HashKey>, raw: &[u8]) {
    let text = std::str::from_utf8(raw).ok();
    let value = match (conversion, text) {
        (Conversion::Hashed, _) => hash.map(|key| String::from_utf8_lossy(&key.hex(raw)).into_owned()),
        (_, None) => None,
        (Conversion::Text | Conversion::Boolean | Conversion::Int64 | Conversion::Bytea, Some(text)) => Some(text.to_owned()),
        (Conversion::Float, Some(text)) => text.parse::<f32>().ok().map(|value| format!("{value:?}")),
        (Conversion::Double, Some(text)) => text.parse::<f64>().ok().map(|value| format!("{value:?}")),
        (Conversion::Decimal38_9, Some(text)) => numeric(text, 29, 9),
        (Conversion::Decimal76_38, Some(text)) => numeric(text, 38, 38),
        (Conversion::Date, Some(text)) => common_era(text, 10..=10),
        (Conversion::DateTime, Some(text)) => common_era(text, 19..=26),
        (Conversion::Timestamp, Some(text)) => common_era(text, 22..=29).filter(|text| text.ends_with("+00")),
        (Conversion::Array { element, delimiter }, Some(_)) => {
            let mut json = String::new();
            array::json(raw, *element, *delimiter, &mut json).ok().map(|()| json)
        }
    };
    match value {
        Some(value) => push(row, Cell::Value(value.as_bytes())),
        None => push(row, Cell::Exception(exception_text(raw).as_bytes())),
    }
}

/// A numeric's text without needless zeros, if it has at most so many digits before and behind the point.
fn numeric(text: &str, whole_max: usize, fraction_max: usize) -> Option<String> {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') && !digits.is_empty();
    if !plain || whole.len() > whole_max || fraction.len() > fraction_max {
        return None;
    }
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(match (whole, fraction) {
        ("0", "") => "0".to_owned(),
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{whole}.{fraction}"),
    })
}

/// A date's or timestamp's text of a year 0001 to 9999, which has four digits and no era behind it.
fn common_era(text: &str, length: std::ops::RangeInclusive<usize>) -> Option<String> {
    let four = text.len() > 4 && text.as_bytes()[4] == b'-' && text.as_bytes()[..4].iter().all(u8::is_ascii_digit);
    (four && length.contains(&text.len()) && !text.ends_with("BC")).then(|| text.to_owned())
}
