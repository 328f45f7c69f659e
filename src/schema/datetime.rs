//! Dates and timestamps from PostgreSQL's ISO text.
//!
//! Owns: the proleptic Gregorian calendar of the years 0001 to 9999, all that BigQuery knows. Does not own: time of day and
//! intervals (text), time zones (sessions pin UTC).
//! Invariant: `infinity`, BC, and years beyond 9999 do not fit; neither does a zone other than UTC.

use super::Unfit;

const US_PER_SECOND: i64 = 1_000_000;
const US_PER_DAY: i64 = 86_400 * US_PER_SECOND;

/// `YYYY-MM-DD` as days since 1970-01-01.
#[inline]
pub fn date(raw: &[u8]) -> Result<i32, Unfit> {
    let &[y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1] = raw else {
        return Err(Unfit);
    };
    let year = pair(y0, y1)? * 100 + pair(y2, y3)?;
    let (month, day) = (pair(m0, m1)?, pair(d0, d1)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i32::from(leap),
        _ => return Err(Unfit),
    };
    if year == 0 || day == 0 || day > last {
        return Err(Unfit);
    }
    // Counted in years that begin in March, so that the leap day is the last of its year.
    let march_year = year - i32::from(month <= 2);
    let (century_of_400, year_of_400) = (march_year / 400, march_year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Ok(century_of_400 * 146_097 + year_of_400 * 365 + year_of_400 / 4 - year_of_400 / 100 + day_of_year - 719_468)
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff]` as microseconds since 1970-01-01 00:00.
#[inline]
pub fn timestamp(raw: &[u8]) -> Result<i64, Unfit> {
    let (days, time) = raw.split_at_checked(10).ok_or(Unfit)?;
    let &[b' ', h0, h1, b':', m0, m1, b':', s0, s1, ref fraction @ ..] = time else {
        return Err(Unfit);
    };
    let (hour, minute, second) = (pair(h0, h1)?, pair(m0, m1)?, pair(s0, s1)?);
    if hour > 23 || minute > 59 || second > 59 {
        return Err(Unfit);
    }
    let seconds = i64::from((hour * 60 + minute) * 60 + second);
    Ok(i64::from(date(days)?) * US_PER_DAY + seconds * US_PER_SECOND + microseconds(fraction)?)
}

/// The same followed by `+00`: a session in UTC prints no other zone.
#[inline]
pub fn timestamp_utc(raw: &[u8]) -> Result<i64, Unfit> {
    timestamp(raw.strip_suffix(b"+00").ok_or(Unfit)?)
}

/// Nothing, or a point and one to six digits.
#[inline]
fn microseconds(fraction: &[u8]) -> Result<i64, Unfit> {
    let digits = match fraction {
        [] => return Ok(0),
        [b'.', digits @ ..] if (1..=6).contains(&digits.len()) => digits,
        _ => return Err(Unfit),
    };
    let mut value = 0;
    for &byte in digits {
        value = value * 10 + i64::from(digit(byte)?);
    }
    Ok(value * [100_000, 10_000, 1_000, 100, 10, 1][digits.len() - 1])
}

#[inline]
fn digit(byte: u8) -> Result<i32, Unfit> {
    let digit = byte.wrapping_sub(b'0');
    if digit <= 9 { Ok(i32::from(digit)) } else { Err(Unfit) }
}

#[inline]
fn pair(tens: u8, ones: u8) -> Result<i32, Unfit> {
    Ok(digit(tens)? * 10 + digit(ones)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{Datelike, NaiveDate};
    use proptest::prelude::*;

    #[test]
    fn every_day_of_the_calendar_is_right() {
        let mut day = NaiveDate::from_ymd_opt(1, 1, 1).unwrap();
        let mut expected = -719_162;
        while day.year() <= 9999 {
            assert_eq!(date(format!("{:04}-{:02}-{:02}", day.year(), day.month(), day.day()).as_bytes()), Ok(expected), "{day}");
            expected += 1;
            day = day.succ_opt().unwrap();
        }
        assert_eq!(expected - 1, 2_932_896); // 9999-12-31
    }

    #[test]
    fn what_is_no_day_of_the_common_era_does_not_fit() {
        let bad = [
            "",
            "infinity",
            "-infinity",
            "0001-01-01 BC",
            "10000-01-01",
            "0000-01-01",
            "2023-02-29",
            "1900-02-29",
            "2024-02-30",
            "2024-13-01",
            "2024-00-10",
            "2024-01-00",
            "2024-04-31",
            "2024-1-1",
            "01/02/2024",
            "2024-01-01 ",
            "-001-01-01",
            "2024-0a-01",
        ];
        for text in bad {
            assert_eq!(date(text.as_bytes()), Err(Unfit), "{text}");
        }
        assert!(date(b"2000-02-29").is_ok() && date(b"2024-02-29").is_ok());
    }

    #[test]
    fn timestamps_hold_to_the_microsecond_at_both_edges() {
        assert_eq!(timestamp(b"1970-01-01 00:00:00"), Ok(0));
        assert_eq!(timestamp(b"1969-12-31 23:59:59.999999"), Ok(-1));
        assert_eq!(timestamp(b"0001-01-01 00:00:00"), Ok(-62_135_596_800_000_000));
        assert_eq!(timestamp(b"9999-12-31 23:59:59.999999"), Ok(253_402_300_799_999_999));
        assert_eq!(timestamp(b"2024-01-01 00:00:00.5"), Ok(1_704_067_200_500_000));
        assert_eq!(timestamp_utc(b"2024-01-01 00:00:00.000001+00"), Ok(1_704_067_200_000_001));
    }

    #[test]
    fn what_is_no_instant_of_the_common_era_does_not_fit() {
        let bad = [
            "",
            "infinity",
            "-infinity",
            "2024-01-01",
            "2024-01-01 24:00:00",
            "2024-01-01 23:60:00",
            "2024-01-01 23:59:60",
            "2024-01-01 1:00:00",
            "2024-01-01T00:00:00",
            "2024-01-01 00:00:00.",
            "2024-01-01 00:00:00.1234567",
            "2024-01-01 00:00:00.x",
            "0044-03-15 00:00:00 BC",
            "10000-01-01 00:00:00",
            "294276-12-31 23:59:59.999999",
            "2024-01-01 00:00:00+01",
            "ñ024-01-01 00:00:00",
        ];
        for text in bad {
            assert_eq!(timestamp(text.as_bytes()), Err(Unfit), "{text}");
            assert_eq!(timestamp_utc(format!("{text}+00").as_bytes()), Err(Unfit), "{text}");
        }
        for text in ["2024-01-01 00:00:00", "2024-01-01 00:00:00+01", "2024-01-01 00:00:00-00", "0044-03-15 00:00:00+00 BC", "infinity"] {
            assert_eq!(timestamp_utc(text.as_bytes()), Err(Unfit), "{text}");
        }
        assert_eq!(timestamp(b"2024-01-01 00:00:00+00"), Err(Unfit));
    }

    proptest! {
        #[test]
        fn timestamps_round_trip(us in -62_135_596_800_000_000i64..=253_402_300_799_999_999) {
            let text = chrono::DateTime::from_timestamp_micros(us).unwrap().format("%Y-%m-%d %H:%M:%S%.6f").to_string();
            prop_assert_eq!(timestamp(text.as_bytes()), Ok(us));
            let trimmed = text.trim_end_matches('0');
            if !trimmed.ends_with([':', '.']) && trimmed.len() > 19 {
                prop_assert_eq!(timestamp(trimmed.as_bytes()), Ok(us));
            }
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, text in "[0-9 :.+-]{8,30}") {
            let _ = (date(&bytes), timestamp(&bytes), timestamp_utc(&bytes));
            let _ = (date(text.as_bytes()), timestamp(text.as_bytes()), timestamp_utc(text.as_bytes()));
        }
    }
}
