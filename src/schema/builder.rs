//! A column being filled: the source's text or binary form in, Arrow array out.
//!
//! Owns: the cells of one column of one batch. Does not own: when to cut (`batch`), the conversions of single values.
//! Invariants: every append adds exactly one cell, a refused one NULL; nothing is allocated per value but the growth of the
//! column; a hashed column never refuses, since a refusal would put its text into `_exceptions`.

use super::hash::HashKey;
use super::types::{Conversion, Element, LakeType};
use super::{Unfit, Wire, array, binary, datetime, numeric, text};
use arrow_array::ArrayRef;
use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Decimal256Builder, Float32Builder, Float64Builder, Int64Builder,
    StringBuilder, TimestampMicrosecondBuilder,
};
use std::fmt;
use std::sync::Arc;

/// Arrow's offsets of text and bytes are 32 bits wide and signed.
const VALUES_BYTES_MAX: usize = i32::MAX as usize;

/// A scratch buffer larger than this is given back at once: one huge value must not stay in memory twice.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

/// Builder of one column.
pub struct ColumnBuilder {
    cells: Cells,
    conversion: Conversion,
}

enum Cells {
    Boolean(BooleanBuilder),
    Int64(Int64Builder),
    Float(Float32Builder),
    Double(Float64Builder),
    Decimal38(Decimal128Builder),
    Decimal76(Decimal256Builder),
    Date(Date32Builder),
    Timestamp(TimestampMicrosecondBuilder),
    DateTime(TimestampMicrosecondBuilder),
    Text(StringBuilder),
    Bytea { cells: BinaryBuilder, scratch: Vec<u8> },
    Array { cells: StringBuilder, scratch: String, element: Element, delimiter: u8 },
    Hashed { cells: StringBuilder, key: HashKey },
}

/// Runs `$body` with the Arrow builder of whatever kind the cells are.
macro_rules! with_builder {
    ($cells:expr, $builder:ident => $body:expr) => {
        match $cells {
            Cells::Boolean($builder) => $body,
            Cells::Int64($builder) => $body,
            Cells::Float($builder) => $body,
            Cells::Double($builder) => $body,
            Cells::Decimal38($builder) => $body,
            Cells::Decimal76($builder) => $body,
            Cells::Date($builder) => $body,
            Cells::Timestamp($builder) | Cells::DateTime($builder) => $body,
            Cells::Text($builder) => $body,
            Cells::Bytea { cells: $builder, .. } => $body,
            Cells::Array { cells: $builder, .. } | Cells::Hashed { cells: $builder, .. } => $body,
        }
    };
}

/// Appends the value to a builder of fixed width, or NULL and `Unfit`.
macro_rules! append {
    ($builder:expr, $value:expr) => {
        match $value {
            Ok(value) => {
                $builder.append_value(value);
                Ok(())
            }
            Err(Unfit) => {
                $builder.append_null();
                Err(Unfit)
            }
        }
    };
}

impl ColumnBuilder {
    /// An empty column.
    ///
    /// # Panics
    /// For `Conversion::Hashed`, which needs a key: `hashed` makes it.
    pub fn new(conversion: &Conversion) -> Self {
        let arrow = conversion.lake_type().arrow();
        let cells = match *conversion {
            Conversion::Boolean => Cells::Boolean(BooleanBuilder::with_capacity(0)),
            Conversion::Int64 => Cells::Int64(Int64Builder::with_capacity(0)),
            Conversion::Float => Cells::Float(Float32Builder::with_capacity(0)),
            Conversion::Double => Cells::Double(Float64Builder::with_capacity(0)),
            Conversion::Decimal38_9 => Cells::Decimal38(Decimal128Builder::with_capacity(0).with_data_type(arrow)),
            Conversion::Decimal76_38 => Cells::Decimal76(Decimal256Builder::with_capacity(0).with_data_type(arrow)),
            Conversion::Date => Cells::Date(Date32Builder::with_capacity(0)),
            Conversion::Timestamp => Cells::Timestamp(TimestampMicrosecondBuilder::with_capacity(0).with_data_type(arrow)),
            Conversion::DateTime => Cells::DateTime(TimestampMicrosecondBuilder::with_capacity(0).with_data_type(arrow)),
            Conversion::Text => Cells::Text(StringBuilder::with_capacity(0, 0)),
            Conversion::Bytea => Cells::Bytea { cells: BinaryBuilder::with_capacity(0, 0), scratch: Vec::new() },
            Conversion::Array { element, delimiter } => {
                Cells::Array { cells: StringBuilder::with_capacity(0, 0), scratch: String::new(), element, delimiter }
            }
            Conversion::Hashed => panic!("a hashed column is made by ColumnBuilder::hashed"),
        };
        Self { cells, conversion: *conversion }
    }

    /// An empty column of hashes.
    pub fn hashed(key: &HashKey) -> Self {
        Self { cells: Cells::Hashed { cells: StringBuilder::with_capacity(0, 0), key: key.clone() }, conversion: Conversion::Hashed }
    }

    /// The lake type of the array to come.
    pub fn lake_type(&self) -> LakeType {
        self.conversion.lake_type()
    }

    /// Appends NULL.
    #[inline]
    pub fn append_null(&mut self) {
        with_builder!(&mut self.cells, builder => builder.append_null());
    }

    /// Appends the value that PostgreSQL's text means. If it does not fit, a NULL **has been** appended.
    #[inline]
    pub fn append_text(&mut self, raw: &[u8]) -> Result<(), Unfit> {
        match &mut self.cells {
            Cells::Boolean(builder) => append!(builder, numeric::boolean(raw)),
            Cells::Int64(builder) => append!(builder, numeric::int64(raw)),
            Cells::Float(builder) => append!(builder, numeric::float(raw)),
            Cells::Double(builder) => append!(builder, numeric::double(raw)),
            Cells::Decimal38(builder) => append!(builder, numeric::decimal38_9(raw)),
            Cells::Decimal76(builder) => append!(builder, numeric::decimal76_38(raw)),
            Cells::Date(builder) => append!(builder, datetime::date(raw)),
            Cells::Timestamp(builder) => append!(builder, datetime::timestamp_utc(raw)),
            Cells::DateTime(builder) => append!(builder, datetime::timestamp(raw)),
            Cells::Text(builder) => append!(builder, text::utf8(raw).and_then(|value| within(builder.values_slice(), value))),
            Cells::Bytea { cells, scratch } => {
                scratch.clear();
                let value = text::bytea(raw, scratch);
                let appended = append!(cells, value.and_then(|()| within(cells.values_slice(), scratch.as_slice())));
                scratch.shrink_to(SCRATCH_BYTES_MAX);
                appended
            }
            Cells::Array { cells, scratch, element, delimiter } => {
                scratch.clear();
                let value = array::json(raw, *element, *delimiter, scratch);
                let appended = append!(cells, value.and_then(|()| within(cells.values_slice(), scratch.as_str())));
                scratch.shrink_to(SCRATCH_BYTES_MAX);
                appended
            }
            Cells::Hashed { cells, key } => {
                let hex = key.hex(raw);
                let hex = std::str::from_utf8(&hex).expect("hex digits are ASCII");
                append!(cells, within(cells.values_slice(), hex))
            }
        }
    }

    /// Appends the value that PostgreSQL's binary form `wire` means, as `append_text` would from its text. If it does not fit, a
    /// NULL **has been** appended.
    #[inline]
    pub fn append_binary(&mut self, wire: Wire, raw: &[u8]) -> Result<(), Unfit> {
        match (wire, &mut self.cells) {
            (Wire::Int, Cells::Int64(builder)) => append!(builder, binary::int(raw)),
            (Wire::Numeric, Cells::Decimal38(builder)) => append!(builder, binary::decimal38_9(raw)),
            (Wire::Numeric, Cells::Decimal76(builder)) => append!(builder, binary::decimal76_38(raw)),
            (Wire::Timestamp, Cells::Timestamp(builder)) | (Wire::DateTime, Cells::DateTime(builder)) => {
                append!(builder, binary::instant(raw))
            }
            (Wire::Date, Cells::Date(builder)) => append!(builder, binary::date(raw)),
            (Wire::Bool, Cells::Boolean(builder)) => append!(builder, binary::boolean(raw)),
            (Wire::Oid, Cells::Int64(builder)) => append!(builder, binary::oid(raw)),
            (Wire::Float, Cells::Float(builder)) => append!(builder, binary::float(raw)),
            (Wire::Float, Cells::Double(builder)) => append!(builder, binary::double(raw)),
            (Wire::Uuid, Cells::Text(builder)) => {
                let text = binary::uuid(raw);
                let text = text.as_ref().map_err(|Unfit| Unfit).and_then(|t| text::utf8(t));
                append!(builder, text.and_then(|value| within(builder.values_slice(), value)))
            }
            (Wire::Jsonb, Cells::Text(builder)) => {
                append!(builder, binary::jsonb(raw).and_then(|value| within(builder.values_slice(), value)))
            }
            (Wire::Bytes, Cells::Bytea { cells, .. }) => append!(cells, within(cells.values_slice(), raw)),
            (Wire::Text, _) => self.append_text(raw),
            _ => {
                self.append_null();
                Err(Unfit)
            }
        }
    }

    /// Whether appending a text of `len` bytes could pass the 2 GiB that an Arrow array of text or bytes holds. Never true of a
    /// column that holds no byte yet, where cutting would not help.
    #[inline]
    pub fn would_overflow(&self, len: usize) -> bool {
        let (held, more) = match &self.cells {
            Cells::Text(builder) => (builder.values_slice().len(), len),
            Cells::Bytea { cells, .. } => (cells.values_slice().len(), len / 2),
            Cells::Array { cells, .. } => (cells.values_slice().len(), len.saturating_mul(array::GROWTH_MAX)),
            Cells::Hashed { cells, .. } => (cells.values_slice().len(), 64),
            _ => return false,
        };
        held > 0 && held.saturating_add(more) > VALUES_BYTES_MAX
    }

    /// Cells so far.
    #[inline]
    pub fn len(&self) -> usize {
        use arrow_array::builder::ArrayBuilder;
        with_builder!(&self.cells, builder => ArrayBuilder::len(builder))
    }

    /// Whether there is no cell yet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the cells take in memory, validity included, spare capacity not.
    #[inline]
    pub fn bytes(&self) -> usize {
        let offset = size_of::<i32>();
        let values = match &self.cells {
            Cells::Boolean(builder) => builder.values_slice().len(),
            Cells::Int64(builder) => size_of_val(builder.values_slice()),
            Cells::Float(builder) => size_of_val(builder.values_slice()),
            Cells::Double(builder) => size_of_val(builder.values_slice()),
            Cells::Decimal38(builder) => size_of_val(builder.values_slice()),
            Cells::Decimal76(builder) => size_of_val(builder.values_slice()),
            Cells::Date(builder) => size_of_val(builder.values_slice()),
            Cells::Timestamp(builder) | Cells::DateTime(builder) => size_of_val(builder.values_slice()),
            Cells::Bytea { cells, .. } => cells.values_slice().len() + self.len() * offset,
            Cells::Text(builder) | Cells::Array { cells: builder, .. } | Cells::Hashed { cells: builder, .. } => {
                builder.values_slice().len() + self.len() * offset
            }
        };
        values + self.len().div_ceil(8)
    }

    /// The column's cells as an array; the builder is empty afterwards and has given its memory away.
    pub fn finish(&mut self) -> ArrayRef {
        with_builder!(&mut self.cells, builder => Arc::new(builder.finish()))
    }
}

/// Never a cell.
impl fmt::Debug for ColumnBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ColumnBuilder({}, {} cells)", self.conversion, self.len())
    }
}

/// The value, if it can stand behind those already held.
#[inline]
fn within<'a, T: AsRef<[u8]> + ?Sized>(held: &[u8], value: &'a T) -> Result<&'a T, Unfit> {
    if held.len() + value.as_ref().len() > VALUES_BYTES_MAX { Err(Unfit) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Date32Type, Decimal128Type, Int64Type};
    use arrow_array::{Array, ArrayRef};

    const ARRAY: Conversion = Conversion::Array { element: Element::Text, delimiter: b',' };

    /// Every conversion but the hashed one, with a text that fits and (where there is one) a text that does not.
    const SAMPLES: [(Conversion, &str, Option<&str>); 12] = [
        (Conversion::Boolean, "t", Some("x")),
        (Conversion::Int64, "1", Some("x")),
        (Conversion::Float, "1.5", Some("x")),
        (Conversion::Double, "1.5", Some("x")),
        (Conversion::Decimal38_9, "1.5", Some("NaN")),
        (Conversion::Decimal76_38, "1.5", Some("NaN")),
        (Conversion::Text, "añ", None),
        (Conversion::Bytea, "\\x00", Some("\\x0")),
        (Conversion::Date, "2024-02-29", Some("infinity")),
        (Conversion::Timestamp, "2024-02-29 00:00:00+00", Some("infinity")),
        (Conversion::DateTime, "2024-02-29 00:00:00", Some("infinity")),
        (ARRAY, "{a}", Some("[0:0]={a}")),
    ];

    #[test]
    fn every_append_adds_one_cell_and_a_refused_one_is_null() {
        for (conversion, fits, misfit) in SAMPLES {
            let mut builder = ColumnBuilder::new(&conversion);
            assert!(builder.is_empty() && builder.bytes() == 0);
            assert_eq!(builder.append_text(fits.as_bytes()), Ok(()), "{conversion}");
            builder.append_null();
            assert_eq!(builder.append_text(misfit.map_or(b"\xff", str::as_bytes)), Err(Unfit), "{conversion}");
            assert_eq!(builder.append_text(fits.as_bytes()), Ok(()), "{conversion}");
            assert_eq!(builder.len(), 4);
            assert!(builder.bytes() > 0);
            let cells = builder.finish();
            assert_eq!(*cells.data_type(), conversion.lake_type().arrow());
            assert_eq!((0..4).map(|n| cells.is_valid(n)).collect::<Vec<_>>(), [true, false, false, true], "{conversion}");
            assert_eq!(cells.slice(0, 1).to_data(), cells.slice(3, 1).to_data(), "{conversion}");
        }
    }

    #[test]
    fn a_finished_builder_is_empty_and_fills_again_with_the_same_type() {
        for (conversion, fits, _) in SAMPLES {
            let mut builder = ColumnBuilder::new(&conversion);
            let fill = |builder: &mut ColumnBuilder| -> ArrayRef {
                builder.append_text(fits.as_bytes()).unwrap();
                builder.append_null();
                builder.finish()
            };
            let first = fill(&mut builder);
            assert!(builder.is_empty() && builder.bytes() == 0, "{conversion}");
            assert_eq!(fill(&mut builder).to_data(), first.to_data(), "{conversion}");
            assert_eq!(builder.finish().len(), 0);
        }
    }

    #[test]
    fn values_stand_in_the_array_as_they_were_read() {
        let column = |conversion: Conversion, values: &[&str]| {
            let mut builder = ColumnBuilder::new(&conversion);
            values.iter().for_each(|v| builder.append_text(v.as_bytes()).unwrap());
            builder.finish()
        };
        assert_eq!(column(Conversion::Int64, &["-5", "7"]).as_primitive::<Int64Type>().values()[..], [-5, 7]);
        assert_eq!(column(Conversion::Date, &["1970-01-02"]).as_primitive::<Date32Type>().value(0), 1);
        assert_eq!(column(Conversion::Decimal38_9, &["-0.1"]).as_primitive::<Decimal128Type>().value(0), -100_000_000);
        assert_eq!(column(Conversion::Text, &["", "añ"]).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["", "añ"]);
        assert_eq!(column(Conversion::Bytea, &["\\x", "\\x00ff"]).as_binary::<i32>().value(1), [0, 0xFF]);
        assert_eq!(column(ARRAY, &["{}", "{a,NULL}"]).as_string::<i32>().value(1), r#"["a",null]"#);
    }

    #[test]
    fn a_hash_is_taken_of_any_text_and_null_stays_null() {
        let key = HashKey::new(b"Jefe");
        let mut builder = ColumnBuilder::hashed(&key);
        builder.append_null();
        assert_eq!(builder.append_text(b"what do ya want for nothing?"), Ok(()));
        assert_eq!(builder.append_text(b"not UTF-8: \xff"), Ok(()));
        assert_eq!(builder.append_text(b""), Ok(()));
        let cells = builder.finish();
        let cells = cells.as_string::<i32>();
        assert!(cells.is_null(0));
        assert_eq!(cells.value(1), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert!(cells.iter().flatten().all(|hex| hex.len() == 64));
        assert_eq!(format!("{builder:?}"), "ColumnBuilder(hashed, 0 cells)");
    }

    #[test]
    fn two_gibibytes_are_never_passed() {
        let bound = VALUES_BYTES_MAX;
        let mut text = ColumnBuilder::new(&Conversion::Text);
        assert!(!text.would_overflow(bound + 1), "cutting an empty column would not help");
        text.append_text(b"a").unwrap();
        assert!(!text.would_overflow(bound - 1) && text.would_overflow(bound) && text.would_overflow(usize::MAX));
        let mut array = ColumnBuilder::new(&ARRAY);
        array.append_text(b"{a}").unwrap();
        assert!(!array.would_overflow(bound / 7) && array.would_overflow(bound / 6) && array.would_overflow(usize::MAX));
        let mut number = ColumnBuilder::new(&Conversion::Int64);
        number.append_text(b"1").unwrap();
        assert!(!number.would_overflow(usize::MAX));
        // Zeroed memory that is never touched: the kernel gives no page for it.
        assert_eq!(within(&vec![0; bound], "a"), Err(Unfit));
        assert_eq!(within(&vec![0; bound - 1], "a"), Ok("a"));
    }

    #[test]
    fn a_huge_value_leaves_no_huge_scratch_behind() {
        let mut builder = ColumnBuilder::new(&ARRAY);
        builder.append_text(format!("{{{}}}", "a".repeat(1 << 20)).as_bytes()).unwrap();
        builder.append_text(b"{a}").unwrap();
        let Cells::Array { scratch, .. } = &builder.cells else { panic!("an array's column") };
        assert!(scratch.capacity() <= SCRATCH_BYTES_MAX);
    }
}
