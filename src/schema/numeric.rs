//! Integers, floats and decimals from PostgreSQL's text.
//!
//! Owns: exact parsing from bytes, without allocation. Does not own: which numeric becomes which decimal (`types`).
//! Invariant: a value is exactly what the text says, or `Unfit`; nothing is rounded, clamped or guessed.
//!
//! Zeros behind the scale ("1.5000000000000") carry no digit of the value, so such a numeric fits; what is lost is how many
//! zeros the source displays, as it is for every decimal of a fixed scale.

use super::Unfit;
use super::types::{BIGNUMERIC_DIGITS, NUMERIC_DIGITS};
use arrow_buffer::i256;

/// `t` or `f`.
#[inline]
pub fn boolean(raw: &[u8]) -> Result<bool, Unfit> {
    match raw {
        b"t" => Ok(true),
        b"f" => Ok(false),
        _ => Err(Unfit),
    }
}

/// int2, int4, int8, oid.
#[inline]
pub fn int64(raw: &[u8]) -> Result<i64, Unfit> {
    let (negative, digits) = signed(raw);
    if digits.is_empty() || digits.len() > WORD_DIGITS {
        return Err(Unfit);
    }
    let magnitude = word(digits)?;
    if negative { 0i64.checked_sub_unsigned(magnitude).ok_or(Unfit) } else { i64::try_from(magnitude).map_err(|_| Unfit) }
}

/// float4: the nearest 32-bit float to the shortest text is the value itself.
#[inline]
pub fn float(raw: &[u8]) -> Result<f32, Unfit> {
    match raw {
        b"NaN" => Ok(f32::NAN),
        b"Infinity" => Ok(f32::INFINITY),
        b"-Infinity" => Ok(f32::NEG_INFINITY),
        _ => finite_text(raw)?.parse().ok().filter(|f: &f32| f.is_finite()).ok_or(Unfit),
    }
}

/// float8.
#[inline]
pub fn double(raw: &[u8]) -> Result<f64, Unfit> {
    match raw {
        b"NaN" => Ok(f64::NAN),
        b"Infinity" => Ok(f64::INFINITY),
        b"-Infinity" => Ok(f64::NEG_INFINITY),
        _ => finite_text(raw)?.parse().ok().filter(|f: &f64| f.is_finite()).ok_or(Unfit),
    }
}

/// The text of a finite float. The standard parser also takes `inf`, `nan` and `+1`, which PostgreSQL never prints.
#[inline]
fn finite_text(raw: &[u8]) -> Result<&str, Unfit> {
    let (_, digits) = signed(raw);
    if !digits.first().is_some_and(u8::is_ascii_digit) {
        return Err(Unfit);
    }
    std::str::from_utf8(raw).map_err(|_| Unfit)
}

/// A numeric as DECIMAL(38, 9): the value times 10^9. NaN and ±Infinity do not fit.
#[inline]
pub fn decimal38_9(raw: &[u8]) -> Result<i128, Unfit> {
    let (negative, whole, fraction) = plain(raw, NUMERIC_DIGITS.0 as usize, NUMERIC_DIGITS.1 as usize)?;
    let fraction = u128::from(word(fraction)? * POWERS[NUMERIC_DIGITS.1 as usize - fraction.len()]);
    let magnitude = (wide(whole)? * u128::from(POWERS[NUMERIC_DIGITS.1 as usize]) + fraction) as i128; // below 10^38
    Ok(if negative { -magnitude } else { magnitude })
}

/// A numeric as DECIMAL(76, 38): the value times 10^38. NaN and ±Infinity do not fit.
#[inline]
pub fn decimal76_38(raw: &[u8]) -> Result<i256, Unfit> {
    let (negative, whole, fraction) = plain(raw, BIGNUMERIC_DIGITS.0 as usize, BIGNUMERIC_DIGITS.1 as usize)?;
    let missing = BIGNUMERIC_DIGITS.1 as usize - fraction.len();
    let (one, other) = (missing.min(WORD_DIGITS), missing.saturating_sub(WORD_DIGITS));
    let fraction = wide(fraction)? * u128::from(POWERS[one]) * u128::from(POWERS[other]); // below 10^38
    let scale = i256::from_parts(u128::from(POWERS[WORD_DIGITS]) * u128::from(POWERS[WORD_DIGITS]), 0);
    let magnitude = i256::from_parts(wide(whole)?, 0).wrapping_mul(scale).wrapping_add(i256::from_parts(fraction, 0)); // below 10^76
    Ok(if negative { magnitude.wrapping_neg() } else { magnitude })
}

/// Decimal digits that always fit 64 bits.
const WORD_DIGITS: usize = 19;

/// Powers of ten, 10^0 to 10^19.
const POWERS: [u64; WORD_DIGITS + 1] = {
    let mut table = [1; WORD_DIGITS + 1];
    let mut n = 1;
    while n < table.len() {
        table[n] = table[n - 1] * 10;
        n += 1;
    }
    table
};

#[inline]
fn signed(raw: &[u8]) -> (bool, &[u8]) {
    match raw {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, raw),
    }
}

/// Sign, digits before the point without leading zeros, and at most `scale` digits behind it. The digits themselves are
/// not yet looked at.
#[inline]
fn plain(raw: &[u8], whole_max: usize, scale: usize) -> Result<(bool, &[u8], &[u8]), Unfit> {
    let (negative, digits) = signed(raw);
    let (whole, mut fraction) = match digits.iter().position(|&b| b == b'.') {
        Some(point) if point + 1 < digits.len() => (&digits[..point], &digits[point + 1..]),
        Some(_) => return Err(Unfit),
        None => (digits, &digits[..0]),
    };
    if whole.is_empty() {
        return Err(Unfit);
    }
    let zeros = whole.iter().take_while(|&&b| b == b'0').count();
    let whole = &whole[zeros..];
    if whole.len() > whole_max {
        return Err(Unfit);
    }
    if fraction.len() > scale {
        let (kept, beyond) = fraction.split_at(scale);
        if beyond.iter().any(|&b| b != b'0') {
            return Err(Unfit);
        }
        fraction = kept;
    }
    Ok((negative, whole, fraction))
}

/// The number that at most 19 digits mean.
#[inline]
fn word(digits: &[u8]) -> Result<u64, Unfit> {
    debug_assert!(digits.len() <= WORD_DIGITS);
    let mut number = 0u64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err(Unfit);
        }
        number = number * 10 + u64::from(digit);
    }
    Ok(number)
}

/// The number that at most 38 digits mean.
#[inline]
fn wide(digits: &[u8]) -> Result<u128, Unfit> {
    if digits.len() <= WORD_DIGITS {
        return word(digits).map(u128::from);
    }
    let (high, low) = digits.split_at(digits.len() - WORD_DIGITS);
    Ok(u128::from(word(high)?) * u128::from(POWERS[WORD_DIGITS]) + u128::from(word(low)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn booleans_are_one_letter() {
        assert_eq!((boolean(b"t"), boolean(b"f")), (Ok(true), Ok(false)));
        for bad in [&b""[..], b"true", b"T", b"1"] {
            assert_eq!(boolean(bad), Err(Unfit));
        }
    }

    #[test]
    fn integers_hold_to_the_edges_and_not_past_them() {
        for n in [0, 1, -1, i64::from(i16::MIN), i64::from(i32::MAX), 1 << 40, i64::from(u32::MAX), i64::MAX, i64::MIN] {
            assert_eq!(int64(n.to_string().as_bytes()), Ok(n));
        }
        assert_eq!(int64(b"-0"), Ok(0));
        for bad in [
            "",
            "-",
            "+1",
            " 1",
            "1 ",
            "1.0",
            "1e3",
            "--1",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999",
            "\u{663}",
        ] {
            assert_eq!(int64(bad.as_bytes()), Err(Unfit), "{bad}");
        }
    }

    #[test]
    fn floats_are_what_the_shortest_text_means() {
        for text in ["0", "1e+20", "1e-05", "1.7976931348623157e+308", "5e-324", "-2.2250738585072014e-308", "0.1", "123456.789"] {
            assert_eq!(double(text.as_bytes()).map(f64::to_bits), Ok(text.parse::<f64>().unwrap().to_bits()));
        }
        assert_eq!(double(b"-0").map(f64::to_bits), Ok((-0.0f64).to_bits()));
        assert_eq!(float(b"-0").map(f32::to_bits), Ok((-0.0f32).to_bits()));
        assert_eq!(float(b"3.4028235e+38"), Ok(f32::MAX));
        assert_eq!(float(b"1e-45"), Ok(f32::from_bits(1)));
        assert!(double(b"NaN").unwrap().is_nan() && float(b"NaN").unwrap().is_nan());
        assert_eq!((double(b"Infinity"), double(b"-Infinity")), (Ok(f64::INFINITY), Ok(f64::NEG_INFINITY)));
        for bad in ["", "-", "inf", "nan", "-NaN", "+1", ".5", "1e400", "infinity", "1 ", "0x10", "1,5", "1e"] {
            assert_eq!(double(bad.as_bytes()), Err(Unfit), "{bad}");
            assert_eq!(float(bad.as_bytes()), Err(Unfit), "{bad}");
        }
        assert_eq!(float(b"1e39"), Err(Unfit));
    }

    #[test]
    fn decimals_of_38_digits_are_exact() {
        let cases = [
            ("0", 0),
            ("0.000000001", 1),
            ("-0.000000001", -1),
            ("-0.5", -500_000_000),
            ("1.500000000000", 1_500_000_000),
            ("12345678901234567890.5", 12_345_678_901_234_567_890_500_000_000),
            ("10000000000000000000000000000", 10i128.pow(37)),
            ("99999999999999999999999999999.999999999", 10i128.pow(38) - 1),
            ("-99999999999999999999999999999.999999999", 1 - 10i128.pow(38)),
            ("0000000000000000000000000000000000000001.0", 1_000_000_000),
        ];
        for (text, value) in cases {
            assert_eq!(decimal38_9(text.as_bytes()), Ok(value), "{text}");
        }
        let bad = [
            "100000000000000000000000000000",
            "0.0000000001",
            "1.5000000000001",
            "NaN",
            "Infinity",
            "-Infinity",
            "",
            "-",
            ".",
            "1.",
            ".5",
            "1e3",
            "+1",
            "1.2.3",
            "1.0000000000x",
            "1x",
            "--1",
        ];
        for text in bad {
            assert_eq!(decimal38_9(text.as_bytes()), Err(Unfit), "{text}");
        }
    }

    #[test]
    fn decimals_of_76_digits_are_exact() {
        let nines = "9".repeat(38);
        let cases = [
            ("0".to_owned(), "0".to_owned()),
            (format!("{nines}.{nines}"), "9".repeat(76)),
            (format!("-{nines}.{nines}"), format!("-{}", "9".repeat(76))),
            (format!("0.{}1", "0".repeat(37)), "1".to_owned()),
            (format!("-1.{}", "0".repeat(60)), format!("-1{}", "0".repeat(38))),
            ("1.5".to_owned(), format!("15{}", "0".repeat(37))),
            ("0.1".to_owned(), format!("1{}", "0".repeat(37))),
            ("0.1234567890123456789".to_owned(), format!("1234567890123456789{}", "0".repeat(19))),
            ("0.12345678901234567891".to_owned(), format!("12345678901234567891{}", "0".repeat(18))),
        ];
        for (text, value) in cases {
            assert_eq!(decimal76_38(text.as_bytes()).map(|v| v.to_string()), Ok(value), "{text}");
        }
        for text in [format!("1{}", "0".repeat(38)), format!("0.{}1", "0".repeat(38)), "NaN".to_owned(), "-Infinity".to_owned()] {
            assert_eq!(decimal76_38(text.as_bytes()), Err(Unfit), "{text}");
        }
    }

    /// A scaled decimal as text, with `zeros` more zeros behind it.
    fn decimal_text(digits: &str, scale: usize, zeros: usize) -> String {
        let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |d| ("-", d));
        let padded = format!("{digits:0>width$}", width = scale + 1);
        let (whole, fraction) = padded.split_at(padded.len() - scale);
        format!("{sign}{whole}.{fraction}{}", "0".repeat(zeros))
    }

    proptest! {
        #[test]
        fn integers_round_trip(n: i64) {
            prop_assert_eq!(int64(n.to_string().as_bytes()), Ok(n));
        }

        #[test]
        fn floats_round_trip(bits: u64, narrow: u32) {
            let (wide, narrow) = (f64::from_bits(bits), f32::from_bits(narrow));
            if wide.is_finite() {
                prop_assert_eq!(double(format!("{wide:e}").as_bytes()).map(f64::to_bits), Ok(wide.to_bits()));
            }
            if narrow.is_finite() {
                prop_assert_eq!(float(format!("{narrow:e}").as_bytes()).map(f32::to_bits), Ok(narrow.to_bits()));
            }
        }

        #[test]
        fn decimals_round_trip(n in 1 - 10i128.pow(38)..10i128.pow(38), shift in 0u32..38, zeros in 0usize..20) {
            let n = n / 10i128.pow(shift);
            prop_assert_eq!(decimal38_9(decimal_text(&n.to_string(), 9, zeros).as_bytes()), Ok(n));
        }

        #[test]
        fn wide_decimals_round_trip(digits in "-?[1-9][0-9]{0,75}", zeros in 0usize..20) {
            let parsed = decimal76_38(decimal_text(&digits, 38, zeros).as_bytes()).map(|v| v.to_string());
            prop_assert_eq!(parsed, Ok(digits));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::sample::select(b"0123456789.-+eNaI\xff".to_vec()), 0..90)) {
            let _ = (boolean(&bytes), int64(&bytes), float(&bytes), double(&bytes), decimal38_9(&bytes), decimal76_38(&bytes));
        }
    }
}
