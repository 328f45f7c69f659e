//! PostgreSQL's binary output of the types whose bytes mean exactly what their text means.
//!
//! Owns: which columns a copy may fetch in binary, the values, and the text that the server would have printed (for
//! `_exceptions`). Does not own: reading rows (`snapshot`), every other type, which a copy fetches as text.
//! Invariant: a binary value becomes the cell that its text becomes, or is `Unfit` where its text is. Source of the
//! rule: the `*_send` functions of PostgreSQL. No bytes panic.

use super::types::{BIGNUMERIC_DIGITS, Conversion, NUMERIC_DIGITS};
use super::{Unfit, text};
use arrow_buffer::i256;
use std::fmt::Write;

/// The binary form of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Bytes of the text itself: text types, and every type that a copy fetches by its output function.
    Text,
    /// One byte, 0 or 1.
    Bool,
    /// int2, int4, int8: big-endian, their width by their length.
    Int,
    /// oid: four bytes without a sign.
    Oid,
    /// float4, float8.
    Float,
    /// numeric: digits to the base of 10,000.
    Numeric,
    /// bytea: the bytes.
    Bytes,
    /// uuid: sixteen bytes.
    Uuid,
    /// jsonb: a version byte and the text.
    Jsonb,
    /// Days since 2000-01-01.
    Date,
    /// Microseconds since 2000-01-01 00:00.
    DateTime,
    /// The same, UTC.
    Timestamp,
}

impl Wire {
    /// The form in which a column of this base type (domains resolved) is fetched for this conversion; `None`: as text.
    pub fn of(base_oid: u32, conversion: Conversion) -> Option<Self> {
        Some(match (conversion, base_oid) {
            (Conversion::Boolean, 16) => Wire::Bool,
            (Conversion::Int64, 20 | 21 | 23) => Wire::Int,
            (Conversion::Int64, 26) => Wire::Oid,
            (Conversion::Float, 700) | (Conversion::Double, 701) => Wire::Float,
            (Conversion::Decimal38_9 | Conversion::Decimal76_38, 1700) => Wire::Numeric,
            (Conversion::Bytea, 17) => Wire::Bytes,
            (Conversion::Date, 1082) => Wire::Date,
            (Conversion::DateTime, 1114) => Wire::DateTime,
            (Conversion::Timestamp, 1184) => Wire::Timestamp,
            // name, text, json, bpchar, varchar: they send what they print.
            (Conversion::Text | Conversion::Hashed, 19 | 25 | 114 | 1042 | 1043) => Wire::Text,
            (Conversion::Text, 2950) => Wire::Uuid,
            (Conversion::Text, 3802) => Wire::Jsonb,
            _ => return None,
        })
    }

    /// What the server would have printed, for values that do not fit.
    pub fn printed(self, raw: &[u8]) -> String {
        let printed = match self {
            Wire::Numeric => Numeric::read(raw).map(|n| n.printed()),
            Wire::Date => four(raw).map(|days| printed_day(i64::from(i32::from_be_bytes(days)), i32::MIN.into(), i32::MAX.into(), "")),
            Wire::DateTime => eight(raw).map(|us| printed_instant(i64::from_be_bytes(us), "")),
            Wire::Timestamp => eight(raw).map(|us| printed_instant(i64::from_be_bytes(us), "+00")),
            Wire::Jsonb => raw.split_first().map(|(_, json)| text::exception_text(json)).ok_or(Unfit),
            Wire::Text => Ok(text::exception_text(raw)),
            // These always fit but for lengths that no server sends.
            Wire::Bool | Wire::Int | Wire::Oid | Wire::Float | Wire::Bytes | Wire::Uuid => Err(Unfit),
        };
        printed.unwrap_or_else(|Unfit| "\\x".chars().chain(raw.iter().flat_map(|&b| text::hex_pair(b)).map(char::from)).collect())
    }
}

#[inline]
fn four(raw: &[u8]) -> Result<[u8; 4], Unfit> {
    raw.try_into().map_err(|_| Unfit)
}

#[inline]
fn eight(raw: &[u8]) -> Result<[u8; 8], Unfit> {
    raw.try_into().map_err(|_| Unfit)
}

/// bool.
#[inline]
pub fn boolean(raw: &[u8]) -> Result<bool, Unfit> {
    match raw {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(Unfit),
    }
}

/// int2, int4, int8.
#[inline]
pub fn int(raw: &[u8]) -> Result<i64, Unfit> {
    match *raw {
        [a, b, c, d] => Ok(i32::from_be_bytes([a, b, c, d]).into()),
        [a, b, c, d, e, f, g, h] => Ok(i64::from_be_bytes([a, b, c, d, e, f, g, h])),
        [a, b] => Ok(i16::from_be_bytes([a, b]).into()),
        _ => Err(Unfit),
    }
}

/// oid.
#[inline]
pub fn oid(raw: &[u8]) -> Result<i64, Unfit> {
    Ok(u32::from_be_bytes(four(raw)?).into())
}

/// float4. Text knows one NaN only.
#[inline]
pub fn float(raw: &[u8]) -> Result<f32, Unfit> {
    let value = f32::from_be_bytes(four(raw)?);
    Ok(if value.is_nan() { f32::NAN } else { value })
}

/// float8.
#[inline]
pub fn double(raw: &[u8]) -> Result<f64, Unfit> {
    let value = f64::from_be_bytes(eight(raw)?);
    Ok(if value.is_nan() { f64::NAN } else { value })
}

/// A uuid's 36 characters.
#[inline]
pub fn uuid(raw: &[u8]) -> Result<[u8; 36], Unfit> {
    let raw: &[u8; 16] = raw.try_into().map_err(|_| Unfit)?;
    let mut out = [b'-'; 36];
    let mut at = 0;
    for (n, &byte) in raw.iter().enumerate() {
        if matches!(n, 4 | 6 | 8 | 10) {
            at += 1;
        }
        out[at..at + 2].copy_from_slice(&text::hex_pair(byte));
        at += 2;
    }
    Ok(out)
}

/// The text of a jsonb.
#[inline]
pub fn jsonb(raw: &[u8]) -> Result<&str, Unfit> {
    match raw {
        [1, json @ ..] => text::utf8(json),
        _ => Err(Unfit),
    }
}

/// Days from 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;
const US_PER_DAY: i64 = 86_400_000_000;
const EPOCH_US: i64 = EPOCH_DAYS as i64 * US_PER_DAY;
/// 0001-01-01 and 9999-12-31, days since 1970-01-01.
const DAYS: std::ops::RangeInclusive<i32> = -719_162..=2_932_896;

/// date, as days since 1970-01-01.
#[inline]
pub fn date(raw: &[u8]) -> Result<i32, Unfit> {
    let days = i32::from_be_bytes(four(raw)?).checked_add(EPOCH_DAYS).ok_or(Unfit)?;
    if DAYS.contains(&days) { Ok(days) } else { Err(Unfit) }
}

/// timestamp and timestamptz, as microseconds since 1970-01-01 00:00.
#[inline]
pub fn instant(raw: &[u8]) -> Result<i64, Unfit> {
    let us = i64::from_be_bytes(eight(raw)?).checked_add(EPOCH_US).ok_or(Unfit)?;
    let fits = (i64::from(*DAYS.start()) * US_PER_DAY..(i64::from(*DAYS.end()) + 1) * US_PER_DAY).contains(&us);
    if fits { Ok(us) } else { Err(Unfit) }
}

/// `YYYY-MM-DD`, `… BC` or an infinity; `zone` stands between the day and the era of an instant.
fn printed_day(days_since_2000: i64, minus_infinity: i64, infinity: i64, time_and_zone: &str) -> String {
    if days_since_2000 == minus_infinity {
        return "-infinity".to_owned();
    }
    if days_since_2000 == infinity {
        return "infinity".to_owned();
    }
    // Counted from 0000-03-01, in years that begin in March and cycles of 400 of them.
    let days = days_since_2000 + i64::from(EPOCH_DAYS) + 719_468;
    let (cycle, day_of_cycle) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = cycle * 400 + year_of_cycle + i64::from(month <= 2);
    // There is no year 0: before year 1 comes 1 BC.
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    format!("{year:04}-{month:02}-{day:02}{time_and_zone}{era}")
}

/// As `timestamp_out` and `timestamptz_out` in UTC.
fn printed_instant(us_since_2000: i64, zone: &str) -> String {
    if us_since_2000 == i64::MIN || us_since_2000 == i64::MAX {
        return if us_since_2000 < 0 { "-infinity" } else { "infinity" }.to_owned();
    }
    let (days, us) = (us_since_2000.div_euclid(US_PER_DAY), us_since_2000.rem_euclid(US_PER_DAY));
    let (seconds, fraction) = (us / 1_000_000, us % 1_000_000);
    let mut time = format!(" {:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction > 0 {
        let digits = format!(".{fraction:06}");
        time.push_str(digits.trim_end_matches('0'));
    }
    printed_day(days, i64::MIN, i64::MAX, &(time + zone))
}

/// A numeric as it is sent.
struct Numeric<'a> {
    /// Power of 10,000 of the first digit.
    weight: i32,
    sign: u16,
    /// Decimal digits behind the point that are shown.
    shown: u16,
    /// Two bytes a digit.
    digits: &'a [u8],
}

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITE: u16 = 0xD000;
const MINUS_INFINITE: u16 = 0xF000;
/// Base of the digits.
const BASE: u128 = 10_000;

impl<'a> Numeric<'a> {
    #[inline]
    fn read(raw: &'a [u8]) -> Result<Self, Unfit> {
        let (&[n0, n1, w0, w1, s0, s1, d0, d1], digits) = raw.split_first_chunk::<8>().ok_or(Unfit)?;
        if digits.len() != usize::from(u16::from_be_bytes([n0, n1])) * 2 {
            return Err(Unfit);
        }
        let (weight, sign) = (i16::from_be_bytes([w0, w1]), u16::from_be_bytes([s0, s1]));
        Ok(Self { weight: weight.into(), sign, shown: u16::from_be_bytes([d0, d1]), digits })
    }

    #[inline]
    fn negative(&self) -> Result<bool, Unfit> {
        match self.sign {
            POSITIVE => Ok(false),
            NEGATIVE => Ok(true),
            _ => Err(Unfit),
        }
    }

    #[inline]
    fn digits(&self) -> impl Iterator<Item = u16> {
        self.digits.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
    }

    /// Whole part and the part behind the point times 10^`scale`; `Unfit` if a digit stands behind that, or either part has
    /// more than 38 digits.
    #[inline]
    fn parts(&self, scale: u32) -> Result<(u128, u128), Unfit> {
        let (mut whole, mut fraction) = (0u128, 0u128);
        let mut power = self.weight;
        for digit in self.digits() {
            let digit = u128::from(digit);
            if digit >= BASE {
                return Err(Unfit);
            }
            if power >= 0 {
                whole = whole.checked_mul(BASE).and_then(|w| w.checked_add(digit)).ok_or(Unfit)?;
            } else if digit != 0 {
                // The place of the digit's last decimal, counted from `scale`.
                let place = scale as i32 + 4 * power;
                if place >= 0 {
                    fraction += digit * POWERS[place as usize]; // below 10^scale, since place + 4 <= scale
                } else if place > -4 {
                    let cut = POWERS[place.unsigned_abs() as usize];
                    if !digit.is_multiple_of(cut) {
                        return Err(Unfit);
                    }
                    fraction += digit / cut;
                } else {
                    return Err(Unfit);
                }
            }
            power -= 1;
        }
        // Zero digits at the end are not sent.
        for _ in 0..=power {
            if whole == 0 {
                break;
            }
            whole = whole.checked_mul(BASE).ok_or(Unfit)?;
        }
        Ok((whole, fraction))
    }

    /// As `numeric_out`.
    fn printed(&self) -> String {
        match self.sign {
            POSITIVE | NEGATIVE => {}
            NAN => return "NaN".to_owned(),
            INFINITE => return "Infinity".to_owned(),
            MINUS_INFINITE => return "-Infinity".to_owned(),
            other => return format!("numeric with sign {other:#06x}"),
        }
        let digit = |power: i32| {
            let at = usize::try_from(self.weight - power).ok();
            at.and_then(|at| self.digits().nth(at)).unwrap_or(0)
        };
        let mut out = String::new();
        if self.sign == NEGATIVE {
            out.push('-');
        }
        let mut whole = String::new();
        for power in (0..=self.weight.max(0)).rev() {
            let _ = write!(whole, "{:04}", digit(power));
        }
        let trimmed = whole.trim_start_matches('0');
        out.push_str(if trimmed.is_empty() { "0" } else { trimmed });
        let shown = usize::from(self.shown);
        if shown > 0 {
            let mut fraction = String::with_capacity(shown + 4);
            for n in 1..=shown.div_ceil(4) {
                let _ = write!(fraction, "{:04}", digit(-(n as i32)));
            }
            fraction.truncate(shown);
            out.push('.');
            out.push_str(&fraction);
        }
        out
    }
}

/// Powers of ten that fit 128 bits.
const POWERS: [u128; 39] = {
    let mut table = [1; 39];
    let mut n = 1;
    while n < table.len() {
        table[n] = table[n - 1] * 10;
        n += 1;
    }
    table
};

/// A numeric as DECIMAL(38, 9).
#[inline]
pub fn decimal38_9(raw: &[u8]) -> Result<i128, Unfit> {
    let number = Numeric::read(raw)?;
    let negative = number.negative()?;
    let (whole, fraction) = number.parts(NUMERIC_DIGITS.1 as u32)?;
    if whole >= POWERS[NUMERIC_DIGITS.0 as usize] {
        return Err(Unfit);
    }
    let magnitude = (whole * POWERS[NUMERIC_DIGITS.1 as usize] + fraction) as i128; // below 10^38
    Ok(if negative { -magnitude } else { magnitude })
}

/// A numeric as DECIMAL(76, 38).
#[inline]
pub fn decimal76_38(raw: &[u8]) -> Result<i256, Unfit> {
    let number = Numeric::read(raw)?;
    let negative = number.negative()?;
    let (whole, fraction) = number.parts(BIGNUMERIC_DIGITS.1 as u32)?;
    if whole >= POWERS[BIGNUMERIC_DIGITS.0 as usize] {
        return Err(Unfit);
    }
    let scale = i256::from_parts(POWERS[BIGNUMERIC_DIGITS.1 as usize], 0);
    let magnitude = i256::from_parts(whole, 0).wrapping_mul(scale).wrapping_add(i256::from_parts(fraction, 0)); // below 10^76
    Ok(if negative { magnitude.wrapping_neg() } else { magnitude })
}

#[cfg(test)]
mod tests {
    use super::super::{datetime, numeric};
    use super::*;
    use proptest::prelude::*;

    /// As `numeric_send` sends what the text says.
    fn sent(text: &str) -> Vec<u8> {
        let special = |sign: u16| [0, 0, sign, 0].iter().flat_map(|w| w.to_be_bytes()).collect();
        match text {
            "NaN" => return special(NAN),
            "Infinity" => return special(INFINITE),
            "-Infinity" => return special(MINUS_INFINITE),
            _ => {}
        }
        let (sign, plain) = text.strip_prefix('-').map_or((POSITIVE, text), |t| (NEGATIVE, t));
        let (whole, fraction) = plain.split_once('.').unwrap_or((plain, ""));
        let whole = format!("{whole:0>width$}", width = whole.len().div_ceil(4) * 4);
        let shown = fraction.len() as u16;
        let fraction = format!("{fraction:0<width$}", width = fraction.len().div_ceil(4) * 4);
        let all = format!("{whole}{fraction}");
        let mut digits: Vec<u16> = all.as_bytes().chunks(4).map(|c| std::str::from_utf8(c).unwrap().parse().unwrap()).collect();
        let mut weight = (whole.len() / 4) as i16 - 1;
        while digits.first() == Some(&0) {
            digits.remove(0);
            weight -= 1;
        }
        while digits.last() == Some(&0) {
            digits.pop();
        }
        let (weight, sign) = if digits.is_empty() { (0, POSITIVE) } else { (weight, sign) };
        let head = [digits.len() as u16, weight as u16, sign, shown];
        head.iter().chain(&digits).flat_map(|w| w.to_be_bytes()).collect()
    }

    #[test]
    fn a_column_is_binary_only_where_its_bytes_mean_its_text() {
        assert_eq!(Wire::of(23, Conversion::Int64), Some(Wire::Int));
        assert_eq!(Wire::of(1043, Conversion::Hashed), Some(Wire::Text));
        for (oid, conversion) in [(23, Conversion::Hashed), (142, Conversion::Text), (869, Conversion::Text), (700, Conversion::Double)] {
            assert_eq!(Wire::of(oid, conversion), None);
        }
    }

    #[test]
    fn uuids_and_jsonb_read_as_they_print() {
        let raw: Vec<u8> = (0..16).map(|n| n * 17).collect();
        assert_eq!(uuid(&raw).map(|u| String::from_utf8(u.to_vec()).unwrap()).unwrap(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(jsonb(b"\x01{\"a\": 1}"), Ok("{\"a\": 1}"));
        assert_eq!(jsonb(b"\x02{}"), Err(Unfit));
    }

    #[test]
    fn what_does_not_fit_is_printed_as_the_server_prints_it() {
        let day = |days: i32| Wire::Date.printed(&days.to_be_bytes());
        assert_eq!((day(i32::MAX).as_str(), day(i32::MIN).as_str()), ("infinity", "-infinity"));
        assert_eq!(day(-730_120), "0001-12-31 BC");
        assert_eq!(day(2_921_940), "10000-01-01");
        let at = |us: i64| Wire::Timestamp.printed(&us.to_be_bytes());
        assert_eq!(at(2_921_940 * US_PER_DAY + 1_500_000), "10000-01-01 00:00:01.5+00");
        assert_eq!(Wire::DateTime.printed(&(-730_119 * US_PER_DAY - 1).to_be_bytes()), "0001-12-31 23:59:59.999999 BC");
        assert_eq!(at(i64::MIN), "-infinity");
        for text in ["NaN", "Infinity", "-Infinity", "0", "0.000", "-0.0000000001", "100000000000000000000000000000000000000.50", "10000"] {
            assert_eq!(Wire::Numeric.printed(&sent(text)), text);
        }
    }

    proptest! {
        #[test]
        fn numerics_become_what_their_text_becomes(text in "(-?(0|[1-9][0-9]{0,45})(\\.[0-9]{1,50})?)|NaN|-?Infinity", zeros in 0usize..12) {
            let text = if text.contains('.') { format!("{text}{}", "0".repeat(zeros)) } else { text };
            let raw = sent(&text);
            prop_assert_eq!(decimal38_9(&raw), numeric::decimal38_9(text.as_bytes()));
            prop_assert_eq!(decimal76_38(&raw), numeric::decimal76_38(text.as_bytes()));
            let printed = Wire::Numeric.printed(&raw);
            let zero = text.bytes().all(|b| matches!(b, b'-' | b'0' | b'.'));
            prop_assert_eq!(&printed, if zero { text.trim_start_matches('-') } else { &text });
        }

        #[test]
        fn small_numerics_become_what_their_text_becomes(n: i64, scale in 0usize..14) {
            let digits = format!("{:0>width$}", n.unsigned_abs(), width = scale + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            let sign = if n < 0 { "-" } else { "" };
            let text = if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") };
            prop_assert_eq!(decimal38_9(&sent(&text)), numeric::decimal38_9(text.as_bytes()));
            prop_assert_eq!(decimal76_38(&sent(&text)), numeric::decimal76_38(text.as_bytes()));
        }

        #[test]
        fn days_and_instants_become_what_their_text_becomes(days: i32, near in -1_000_000i32..3_000_000, us: i64) {
            for days in [days, near] {
                let raw = days.to_be_bytes();
                prop_assert_eq!(date(&raw), datetime::date(Wire::Date.printed(&raw).as_bytes()));
            }
            for us in [us, i64::from(near) * US_PER_DAY + us % US_PER_DAY] {
                let raw = us.to_be_bytes();
                prop_assert_eq!(instant(&raw), datetime::timestamp(Wire::DateTime.printed(&raw).as_bytes()));
                prop_assert_eq!(instant(&raw), datetime::timestamp_utc(Wire::Timestamp.printed(&raw).as_bytes()));
            }
        }

        #[test]
        fn no_bytes_panic(raw: Vec<u8>, header: [u16; 4], digits: Vec<u16>) {
            let numeric: Vec<u8> = header.iter().chain(&digits).flat_map(|w| w.to_be_bytes()).collect();
            let matching: Vec<u8> = [digits.len() as u16, header[1], NEGATIVE, header[3] % 64].iter().chain(&digits).flat_map(|w| w.to_be_bytes()).collect();
            for raw in [&raw, &numeric, &matching] {
                let _ = (boolean(raw), int(raw), oid(raw), float(raw), double(raw), uuid(raw), jsonb(raw), date(raw), instant(raw));
                let _ = (decimal38_9(raw), decimal76_38(raw));
                for wire in [Wire::Text, Wire::Bool, Wire::Numeric, Wire::Jsonb, Wire::Date, Wire::DateTime, Wire::Timestamp] {
                    let _ = wire.printed(raw);
                }
            }
        }
    }
}
