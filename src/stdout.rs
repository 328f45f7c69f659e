//! Results of commands, written to standard output.
//!
//! Owns: the rule that a reader who has seen enough (`| head`) is no error. Does not own: logs (stderr, `observe`).

use crate::error::{Error, Result};
use std::io::{ErrorKind, Write};

/// Writes `text` and ends it with a line break. A closed pipe is no error: nobody reads on.
///
/// # Errors
/// `Kind::Retry` if standard output cannot be written otherwise (a full disk).
pub fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::retry("cannot write to standard output").with_source(error)),
        _ => Ok(()),
    }
}
