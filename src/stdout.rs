//! What commands say, written to standard output; and the rule which characters may reach a terminal or a log as they are.
//!
//! Owns: the only handle of standard output (clippy.toml forbids others); that a reader who has seen enough (`| head`) is no error. Does not
//! own: logs (stderr, `observe`), which escape by the same rule.
//! Invariant: text of others (names, messages of servers) forges no line, moves no cursor and turns no text around.

use crate::error::{Error, Result};
use serde::Serialize;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal, Write};

/// Writes one line. What would begin another one in `text` is escaped; see [`lines`]. A closed pipe is no error: nobody reads on.
///
/// # Errors
/// `Kind::Retry` if standard output cannot be written otherwise (a full disk).
pub fn line(text: &str) -> Result<()> {
    write(&format!("{}\n", escaped(text)))
}

/// Writes each text as a line.
///
/// # Errors
/// As [`line`].
pub fn lines<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<()> {
    write(&texts.into_iter().map(|text| format!("{}\n", escaped(text.as_ref()))).collect::<String>())
}

/// Writes a JSON document, indented.
///
/// # Errors
/// As [`line`].
pub fn json(document: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(document).map_err(|e| Error::bug("writing JSON").with_source(e))?;
    write(&format!("{}\n", escaped_json(&text)))
}

/// Writes to standard error what comes before there is a log.
#[allow(clippy::disallowed_methods)] // the one place
pub fn complain(texts: &[String]) {
    let text: String = texts.iter().map(|text| format!("{}\n", escaped(text))).collect();
    let _ = std::io::stderr().write_all(text.as_bytes()); // nobody is left to be told
}

/// Whether a person reads standard output.
#[allow(clippy::disallowed_methods)] // the one place
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

#[allow(clippy::disallowed_methods)] // the one place
fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::retry("cannot write to standard output").with_source(error)),
        _ => Ok(()),
    }
}

/// Whether a character may do more than be seen: control characters, line separators, marks that change the direction of what follows
/// (CVE-2021-42574), and those that nobody sees.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{e0000}'..='\u{e007f}')
}

/// The text as it may stand in a line.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    Cow::Owned(line)
}

/// As [`escaped`], of JSON, which stays the same document: serde_json escapes the first 32 control characters only.
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    let is_unsafe = |c: char| c != '\n' && is_unsafe(c);
    if !json.contains(is_unsafe) {
        return Cow::Borrowed(json);
    }
    let mut text = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(text, "\\u{unit:04x}").expect("writing to a String cannot fail");
            }
        } else {
            text.push(c);
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "x\nERROR forged\r\x1b[31m\u{7f}\u{9b}2J\u{202e}dorp\u{2066}\u{200b}\u{2028}\u{feff}\u{e0041}ñ";

    #[test]
    fn what_could_do_more_than_be_seen_is_escaped() {
        let line = escaped(HOSTILE);
        assert!(!line.contains(is_unsafe) && line.ends_with('ñ'), "{line}");
        assert!(line.starts_with("x\\nERROR forged\\r\\u{1b}[31m\\u{7f}\\u{9b}2J\\u{202e}dorp"), "{line}");
        assert!(matches!(escaped("año, \"x\" — 日本"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_stays_the_same_document() {
        let document = serde_json::json!({"name": HOSTILE, HOSTILE: [1, "\u{10ffff}"]});
        let text = serde_json::to_string_pretty(&document).unwrap();
        let safe = escaped_json(&text);
        assert!(!safe.contains(|c| c != '\n' && is_unsafe(c)), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), document);
    }
}
