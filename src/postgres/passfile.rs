//! The password file, in libpq's format: `host:port:database:user:password`, one entry a line.
//!
//! Owns: matching and unescaping, the check of the file's rights. Does not own: which file is read.
//! Invariant: a file that others can read is not used, as in libpq; a missing one is no error.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What an entry must match.
pub(super) struct Key<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// The password of the first matching entry of `file`.
pub(super) fn look_up(file: &Path, key: &Key<'_>) -> Option<String> {
    let meta = std::fs::metadata(file).ok()?;
    if !meta.is_file() {
        tracing::warn!(file = %file.display(), "the password file is not a plain file and is ignored");
        return None;
    }
    if meta.mode() & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "the password file can be read by others and is ignored; chmod 0600 it");
        return None;
    }
    match std::fs::read_to_string(file) {
        Ok(text) => find(&text, key),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the password file cannot be read");
            None
        }
    }
}

fn find(text: &str, key: &Key<'_>) -> Option<String> {
    let port = key.port.to_string();
    // libpq files its default socket directories under "localhost".
    let host = if matches!(key.host, "/var/run/postgresql" | "/tmp") { "localhost" } else { key.host };
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for wanted in [host, &port, key.database, key.user] {
            let (field, after) = next_field(rest)?;
            if field != wanted && !(field == "*" && rest.starts_with("*:")) {
                return None;
            }
            rest = after;
        }
        // A password may hold plain colons: it is everything that is left.
        let password = unescape(rest.trim_end_matches('\r'));
        (!password.is_empty()).then_some(password)
    })
}

/// The unescaped text before the next plain colon, and what follows it.
fn next_field(text: &str) -> Option<(String, &str)> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => return Some((unescape(&text[..at]), &text[at + 1..])),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KEY: Key<'static> = Key { host: "db.example", port: 5432, database: "d:b", user: "ana" };

    #[test]
    fn the_first_matching_entry_wins() {
        let text =
            "# db.example:5432:*:ana:comment\nother:*:*:*:no\ndb.example:1:*:*:no\ndb.example:5432:d\\:b:ana:p:w\\\\\\:x\n*:*:*:*:later";
        assert_eq!(find(text, &KEY).as_deref(), Some("p:w\\:x"));
        assert_eq!(find("*:*:*:*:any\r\n", &KEY).as_deref(), Some("any"));
        assert_eq!(find("::\nshort:line\n\\*:*:*:*:literal star", &KEY), None);
    }

    #[test]
    fn socket_directories_are_found_under_localhost() {
        let key = Key { host: "/var/run/postgresql", ..KEY };
        assert_eq!(find("localhost:*:*:*:pw", &key).as_deref(), Some("pw"));
    }

    #[test]
    fn a_file_that_others_can_read_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pass");
        std::fs::write(&file, "*:*:*:*:pw").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(look_up(&file, &KEY), None);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(look_up(&file, &KEY).as_deref(), Some("pw"));
        assert_eq!(look_up(&dir.path().join("absent"), &KEY), None);
    }
}
