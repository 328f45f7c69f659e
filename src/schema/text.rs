//! Text, bytea and the text kept in `_exceptions`.
//!
//! Owns: UTF-8 checks, hex both ways. Does not own: which types are text (`types`).
//! Invariant: what is valid passes byte for byte.

use super::Unfit;

/// The text itself, if it is UTF-8 (a database in SQL_ASCII can send anything).
#[inline]
pub fn utf8(raw: &[u8]) -> Result<&str, Unfit> {
    std::str::from_utf8(raw).map_err(|_| Unfit)
}

/// A bytea's bytes, appended to `out`: hex behind `\x`, two digits a byte. The older "escape" format is refused:
/// sessions pin `bytea_output = hex`. `out` holds garbage behind its old length if the text is refused.
#[inline]
pub fn bytea(raw: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    let digits = raw.strip_prefix(b"\\x").ok_or(Unfit)?;
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(Unfit);
    }
    // Looked at once, at the end: a bad digit leaves a high nibble in `seen`, and the loop has no branch.
    let mut seen = 0;
    out.extend(pairs.map(|pair| {
        let (high, low) = (NIBBLE[usize::from(pair[0])], NIBBLE[usize::from(pair[1])]);
        seen |= high | low;
        high << 4 | low & 0x0F
    }));
    if seen > 0x0F { Err(Unfit) } else { Ok(()) }
}

/// Value of each hex digit, 0xFF for every other byte.
const NIBBLE: [u8; 256] = {
    let mut table = [0xFF; 256];
    let mut digit = 0;
    while digit < 16 {
        let lower = b"0123456789abcdef"[digit as usize];
        table[lower as usize] = digit;
        table[lower.to_ascii_uppercase() as usize] = digit;
        digit += 1;
    }
    table
};

/// A byte as two lower-case hex digits.
#[inline]
pub fn hex_pair(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0x0F)]]
}

/// The source's text for `_exceptions`; text that is not UTF-8 as PostgreSQL prints bytes, `\x` and hex.
pub fn exception_text(raw: &[u8]) -> String {
    match std::str::from_utf8(raw) {
        Ok(text) => text.to_owned(),
        Err(_) => "\\x".chars().chain(raw.iter().flat_map(|&byte| hex_pair(byte)).map(char::from)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(text: &[u8]) -> Result<Vec<u8>, Unfit> {
        let mut out = Vec::new();
        bytea(text, &mut out).map(|()| out)
    }

    #[test]
    fn bytea_is_hex_only() {
        assert_eq!(decoded(b"\\x"), Ok(vec![]));
        assert_eq!(decoded(b"\\x00ff10"), Ok(vec![0x00, 0xFF, 0x10]));
        assert_eq!(decoded(b"\\xDEad"), Ok(vec![0xDE, 0xAD]));
        for bad in [&b""[..], b"x00", b"\\x0", b"\\x0g", b"\\xg0", b"abc", b"\\000", b"\\X00", b"\\x 0", b"\\x\xff\xff"] {
            assert_eq!(decoded(bad), Err(Unfit), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_kept_as_hex() {
        assert_eq!(exception_text("añ\n".as_bytes()), "añ\n");
        assert_eq!(exception_text(b"a\xf1"), "\\x61f1");
        assert_eq!(exception_text(b""), "");
    }

    proptest! {
        #[test]
        fn bytea_round_trips(bytes: Vec<u8>) {
            let text: Vec<u8> = b"\\x".iter().copied().chain(bytes.iter().flat_map(|&b| hex_pair(b))).collect();
            prop_assert_eq!(decoded(&text), Ok(bytes));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = (decoded(&bytes), utf8(&bytes), exception_text(&bytes));
        }
    }
}
