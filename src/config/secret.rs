//! Text that must never be printed, and the hiding of passwords in text that is.
//!
//! Owns: `Secret`, `hide_passwords`. Does not own: where secrets come from.
//! Invariants: neither `Debug` nor `Display` of a secret has a byte of it; hiding too much is right, hiding too little is not.

use std::fmt;

/// A secret: a connection URL with its password, a key. Printed as `[secret]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one who needs it. Never for a message.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

const HIDDEN: &str = "***";

/// The text without what may be a password: `scheme://user:PASSWORD@…` and everything behind `password=`.
///
/// Everything between the user's colon and the *last* `@` is hidden, because a password that was not
/// percent-encoded may hold any character, `@` and `/` too.
pub fn hide_passwords(text: &str) -> String {
    let mut shown = text.to_owned();
    if let Some(at) = shown.to_ascii_lowercase().find("password=") {
        shown.truncate(at + "password=".len());
        shown.push_str(HIDDEN);
    }
    let begin = shown.find("://").map_or(0, |at| at + "://".len());
    if let Some(end) = shown[begin..].rfind('@').map(|at| begin + at)
        && let Some(colon) = shown[begin..end].find(':').map(|at| begin + at)
    {
        shown.replace_range(colon + 1..end, HIDDEN);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("hush");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "[secret] [secret] Some([secret])");
        assert_eq!(secret.expose(), "hush");
    }

    #[test]
    fn passwords_are_hidden_wherever_they_stand() {
        for (text, want) in [
            ("postgresql://u:hush@h:1/d?sslmode=require", "postgresql://u:***@h:1/d?sslmode=require"),
            ("postgresql://u:hu/hush@h/d", "postgresql://u:***@h/d"),
            ("postgresql://u:hu@hush@h/d", "postgresql://u:***@h/d"),
            ("postgresql://u:hu:hush#@h/d", "postgresql://u:***@h/d"),
            ("postgresql://u:@h/d", "postgresql://u:***@h/d"),
            ("postgresql://h/d?user=u&password=hush&sslmode=require", "postgresql://h/d?user=u&password=***"),
            ("host=h PASSWORD='hu sh' user=u", "host=h PASSWORD=***"),
            ("u:hush@h/d", "u:***@h/d"),
            ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
            ("gs://bucket/prefix", "gs://bucket/prefix"),
        ] {
            assert_eq!(hide_passwords(text), want);
        }
    }
}
