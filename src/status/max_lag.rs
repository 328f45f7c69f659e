//! `--max-lag`: how far the lake may lag before somebody has to look.
//!
//! Owns: its two forms. Does not own: what the lag is (`attention`).

use bytesize::ByteSize;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A limit of the lag: so much WAL, or so much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxLag {
    /// WAL that the lake does not have.
    Bytes(u64),
    /// Age of the last commit, if there is WAL that the lake does not have.
    Time(Duration),
}

impl FromStr for MaxLag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let bytes = || text.parse::<ByteSize>().ok().map(|size| MaxLag::Bytes(size.as_u64()));
        // `10m` are minutes here, and `10M` would be months there: neither is a size.
        let is_time = text.ends_with(|c: char| "smhd".contains(c)) || text.ends_with("min") || text.ends_with("ms");
        let time = || humantime::parse_duration(text).ok().filter(|_| is_time).map(MaxLag::Time);
        time().or_else(bytes).ok_or_else(|| "give a size of WAL such as 64MiB, or a time such as 10min".to_owned())
    }
}

impl fmt::Display for MaxLag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxLag::Bytes(bytes) => write!(f, "{}", ByteSize(*bytes)),
            MaxLag::Time(time) => write!(f, "{}", humantime::format_duration(*time)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_size_or_a_time() {
        let time = |secs| Ok(MaxLag::Time(Duration::from_secs(secs)));
        for (text, want) in [
            ("10min", time(600)),
            ("10m", time(600)),
            ("90s", time(90)),
            ("1h 30m", time(5400)),
            ("64MiB", Ok(MaxLag::Bytes(64 << 20))),
            ("10MB", Ok(MaxLag::Bytes(10_000_000))),
            ("1000", Ok(MaxLag::Bytes(1000))),
            ("0", Ok(MaxLag::Bytes(0))),
        ] {
            assert_eq!(text.parse(), want, "{text}");
        }
        for text in ["", "much", "-1", "10 apples"] {
            assert!(text.parse::<MaxLag>().is_err(), "{text}");
        }
    }
}
