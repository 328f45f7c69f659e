//! Secrets that are given as files: `NAME_FILE` holds the path, the file the value.
//!
//! Owns: which names may be given so, reading the files. Does not own: what the values mean (`sections`).
//! Invariant: no message has a byte of a file; a secret is given once.

use std::io::Read;

/// Names that may also be given as `NAME_FILE`: every secret that there is.
const SECRETS: [&str; 3] = ["HUELLA_SOURCE_URL", "HUELLA_SOURCE_PASSWORD", "HUELLA_HASH_KEY"];
/// More is no secret, but the wrong file.
const BYTES_MAX: u64 = 64 << 10;

/// The environment with each `NAME_FILE` of a secret replaced by `NAME` and the file's text; and what was wrong with them, for people.
pub(super) fn read(env: Vec<(String, String)>) -> (Vec<(String, String)>, Vec<String>) {
    let mut problems = Vec::new();
    let given: Vec<String> = env.iter().filter(|(_, text)| !text.is_empty()).map(|(name, _)| name.clone()).collect();
    let has_file = |name: &str| given.iter().any(|file| file.strip_suffix("_FILE") == Some(name));
    let env = env.into_iter().filter(|(name, text)| !(text.is_empty() && has_file(name))).filter_map(|(name, text)| {
        let Some(secret) = name.strip_suffix("_FILE").filter(|secret| SECRETS.contains(secret)) else { return Some((name, text)) };
        if text.is_empty() {
            return None;
        }
        if given.iter().any(|other| other == secret) {
            problems.push(format!("{name} = {text:?}: {secret} is set too: choose one"));
            return None;
        }
        match contents(&text) {
            Ok(value) => Some((secret.to_owned(), value)),
            Err(why) => {
                problems.push(format!("{name} = {text:?}: must be a readable file that holds {secret}: {why}"));
                None
            }
        }
    });
    let env = env.collect();
    (env, problems)
}

/// The file's text without the line break that editors put at its end.
fn contents(path: &str) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(format!("it is larger than {BYTES_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn a_file_stands_for_its_text() {
        let folder = tempfile::tempdir().unwrap();
        for (text, want) in [("hush", "hush"), ("hush\n", "hush"), ("hush\r\n", "hush"), ("hush \n\n", "hush \n")] {
            let path = folder.path().join("secret");
            std::fs::write(&path, text).unwrap();
            let given = vec![of("HUELLA_HASH_KEY_FILE", path.to_str().unwrap()), of("HUELLA_LOG", "x"), of("HUELLA_LOG_FILE", "y")];
            let (env, problems) = read(given);
            assert_eq!(env, [of("HUELLA_HASH_KEY", want), of("HUELLA_LOG", "x"), of("HUELLA_LOG_FILE", "y")]);
            assert_eq!(problems, [""; 0]);
        }
    }

    #[test]
    fn what_cannot_be_read_or_is_given_twice_is_said_without_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.to_str().unwrap().to_owned()
        };
        for (given, says) in [
            (vec![of("HUELLA_SOURCE_URL_FILE", "/nowhere/at/all")], "No such file"),
            (vec![of("HUELLA_SOURCE_URL_FILE", &path("empty", b"\n"))], "it is empty"),
            (vec![of("HUELLA_SOURCE_URL_FILE", &path("bytes", b"hush\xff"))], "not UTF-8"),
            (vec![of("HUELLA_SOURCE_URL_FILE", &path("large", &[b'h'; 70_000]))], "larger than"),
            (vec![of("HUELLA_HASH_KEY_FILE", &path("twice", b"hush")), of("HUELLA_HASH_KEY", "hush")], "is set too"),
        ] {
            let (env, problems) = read(given);
            assert!(problems.len() == 1 && problems[0].contains(says) && !problems[0].contains("hush"), "{problems:?}");
            assert!(!env.iter().any(|(name, _)| name.ends_with("_FILE")));
        }
        let file = path("empty beside", b"hush");
        let (env, _) = read(vec![of("HUELLA_HASH_KEY_FILE", &file), of("HUELLA_HASH_KEY", "")]);
        assert_eq!(env, [of("HUELLA_HASH_KEY", "hush")], "an empty variable is none");
        assert_eq!(read(vec![of("HUELLA_HASH_KEY_FILE", ""), of("HUELLA_HASH_KEY", "k")]).0, [of("HUELLA_HASH_KEY", "k")]);
    }
}
