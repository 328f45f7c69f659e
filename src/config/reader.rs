//! The values that file and environment give, taken one by one; what is wrong with them is collected.
//!
//! Owns: merging (the environment wins), unknown keys, the list of problems and its text. Does not own: which
//! keys there are and their rules (`sections`, `tables`).
//! Invariants: nothing is reported before everything was read; the value of an unknown key is never shown (it may
//! be a secret in the wrong place), nor the text around a syntax error; passwords in shown values are hidden.

use super::secret::{Secret, hide_passwords};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Value;

/// Sections of the file, also the second word of the environment's names.
const SECTIONS: [&str; 9] = ["source", "lake", "batch", "snapshot", "compact", "http", "table", "bigquery", "dataform"];

/// Environment names that are no key of a section; each is read where its duty is.
const OTHER_NAMES: [&str; 6] = ["HUELLA_HASH_KEY", "HUELLA_LOG", "HUELLA_LOG_FORMAT", "HUELLA_CONFIG", "HUELLA_FAULTS", "HUELLA_FAILPOINT"];

/// Longest value that a message repeats.
const SHOWN_CHARS_MAX: usize = 120;

/// A value with where it came from.
struct Given {
    value: Value,
    /// The environment's name, or `None` for the file.
    variable: Option<String>,
    taken: bool,
}

/// The merged values and the problems found so far.
pub(super) struct Reader {
    file: Option<PathBuf>,
    /// By full key: `batch.max_age`, `table[1].name`.
    values: BTreeMap<String, Given>,
    /// Keys that were asked for, for the message about an unknown one.
    known: Vec<String>,
    sections: Vec<String>,
    /// Number of `[[table]]` blocks; `None` if there is no such key at all.
    tables: Option<usize>,
    problems: Vec<String>,
}

impl Reader {
    /// Merges the file's text (if there is a file) and the environment; `problems` are those found before.
    ///
    /// # Errors
    /// `Kind::Config` if the text is not TOML; everything else waits for [`Reader::finish`].
    pub(super) fn new(file: Option<(&Path, &str)>, env: &[(String, String)], problems: Vec<String>) -> Result<Self> {
        let mut reader = Self {
            file: file.map(|(path, _)| path.to_owned()),
            values: BTreeMap::new(),
            known: Vec::new(),
            sections: Vec::new(),
            tables: None,
            problems,
        };
        if let Some((path, text)) = file {
            let document: toml::Table = toml::from_str(text).map_err(|error| syntax_error(path, text, &error))?;
            reader.read_document(document);
        }
        reader.read_environment(env);
        Ok(reader)
    }

    fn read_document(&mut self, document: toml::Table) {
        for (section, value) in document {
            match value {
                Value::Table(_) if section == "table" => self.problem("table", "is a list: write [[table]], one block for each table"),
                Value::Table(keys) if SECTIONS.contains(&section.as_str()) => {
                    for (key, value) in keys {
                        self.give(format!("{section}.{key}"), value, None);
                    }
                    self.sections.push(section);
                }
                Value::Array(blocks) if section == "table" => self.read_tables(blocks, None),
                Value::Table(_) | Value::Array(_) => {
                    self.problem(&format!("[{section}]"), &format!("there is no such section; there are {}", SECTIONS.join(", ")));
                }
                _ => self.problem(&section, "there is no such key outside the sections"),
            }
        }
    }

    fn read_tables(&mut self, blocks: Vec<Value>, variable: Option<&str>) {
        self.values.retain(|key, _| !key.starts_with("table["));
        self.tables = Some(blocks.len());
        for (index, block) in blocks.into_iter().enumerate() {
            let block_key = format!("table[{}]", index + 1);
            match block {
                Value::Table(keys) => {
                    for (key, value) in keys {
                        self.give(format!("{block_key}.{key}"), value, variable);
                    }
                }
                _ => self.problem(&block_key, "is not a table with keys such as name and mode"),
            }
        }
    }

    fn read_environment(&mut self, env: &[(String, String)]) {
        for (variable, text) in env {
            let Some(rest) = variable.strip_prefix("HUELLA_").filter(|_| !OTHER_NAMES.contains(&variable.as_str())) else { continue };
            if rest == "TABLE" {
                // A list has no name per key in the environment: it is given whole.
                match toml::from_str::<toml::Table>(&format!("table = {text}")).ok().and_then(|mut one| one.remove("table")) {
                    Some(Value::Array(blocks)) => self.read_tables(blocks, Some(variable)),
                    _ => self
                        .problem(variable, r#"is not a TOML list such as [{name = "public.a"}, {name = "public.b", mode = "snapshot"}]"#),
                }
                continue;
            }
            let named = SECTIONS.iter().find_map(|section| {
                let key = rest.strip_prefix(&section.to_ascii_uppercase())?.strip_prefix('_')?;
                Some((*section, key.to_ascii_lowercase()))
            });
            match named {
                Some(("table", _)) => self.problem(variable, "tables are set together, as the TOML list HUELLA_TABLE"),
                Some((section, key)) => {
                    self.give(format!("{section}.{key}"), Value::String(text.clone()), Some(variable));
                    self.sections.push(section.to_owned());
                }
                // Not of our sections (the name of an image's own setting, say): none of our business.
                None => {}
            }
        }
    }

    fn give(&mut self, key: String, value: Value, variable: Option<&str>) {
        self.values.insert(key, Given { value, variable: variable.map(str::to_owned), taken: false });
    }

    /// Whether file or environment says anything in this section.
    pub(super) fn has_section(&self, section: &str) -> bool {
        self.sections.iter().any(|one| one == section)
    }

    /// Whether the key was given, rightly or wrongly.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Number of `[[table]]` blocks.
    pub(super) fn tables(&self) -> Option<usize> {
        self.tables
    }

    /// Takes a value; one that `read` cannot use is a problem with this rule.
    fn take<T>(&mut self, key: &str, rule: &str, read: impl FnOnce(&Value, bool) -> Option<T>) -> Option<T> {
        self.known.push(key.to_owned());
        let given = self.values.get_mut(key)?;
        given.taken = true;
        let value = read(&given.value, given.variable.is_some());
        if value.is_none() {
            self.refuse(key, rule);
        }
        value
    }

    /// A text that passes `check`.
    pub(super) fn text(&mut self, key: &str, rule: &str, check: impl FnOnce(&str) -> bool) -> Option<String> {
        self.take(key, rule, |value, _| value.as_str().filter(|text| check(text)).map(str::to_owned))
    }

    /// A secret that passes `check`. What was given is in no message, whatever it looks like: it may be the right secret in the wrong form.
    pub(super) fn secret(&mut self, key: &str, rule: &str, check: impl FnOnce(&str) -> bool) -> Option<Secret> {
        self.known.push(key.to_owned());
        let given = self.values.get_mut(key)?;
        given.taken = true;
        let secret = given.value.as_str().filter(|text| check(text)).map(Secret::new);
        if secret.is_none() {
            let name = self.shown_name(key);
            self.problems.push(format!("{name} = (not shown): {rule}"));
        }
        secret
    }

    /// The file, if a password comes from it.
    pub(super) fn file_with_secret(&self) -> Option<PathBuf> {
        let secret = |key: &str| self.values.get(key).filter(|given| given.variable.is_none()).and_then(|given| given.value.as_str());
        let in_url = secret("source.url").is_some_and(|url| hide_passwords(url) != url);
        self.file.clone().filter(|_| in_url || secret("source.password").is_some())
    }

    /// A text that must be there and pass `check`; empty (and a problem) otherwise.
    pub(super) fn required(&mut self, key: &str, rule: &str, check: impl FnOnce(&str) -> bool) -> String {
        self.require(key, rule);
        self.text(key, rule, check).unwrap_or_default()
    }

    /// A problem, if the key was not given.
    pub(super) fn require(&mut self, key: &str, rule: &str) {
        if !self.has(key) {
            let elsewhere = match key.split_once('.') {
                Some((section, name)) if SECTIONS.contains(&section) => {
                    format!(" (or HUELLA_{}_{} in the environment)", section.to_ascii_uppercase(), name.to_ascii_uppercase())
                }
                _ => String::new(),
            };
            self.problem(key, &format!("is required{elsewhere}; {rule}"));
        }
    }

    /// A text that `read` can turn into something.
    pub(super) fn parsed<T>(&mut self, key: &str, rule: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        self.take(key, rule, |value, _| read(value.as_str()?))
    }

    /// A duration with its unit, within the range.
    pub(super) fn duration(&mut self, key: &str, least: Duration, most: Duration, default: Duration) -> Duration {
        let shown = humantime::format_duration;
        let rule = format!("must be a time with its unit, {} to {}", shown(least), shown(most));
        let read = |text: &str| humantime::parse_duration(text.trim()).ok().filter(|time| (least..=most).contains(time));
        self.parsed(key, &rule, read).unwrap_or(default)
    }

    /// A size in bytes (`"32MiB"`, or a plain number), within the range.
    pub(super) fn size(&mut self, key: &str, least: u64, most: u64, default: u64) -> u64 {
        let shown = |bytes: u64| bytesize::ByteSize(bytes).display().iec().to_string();
        let rule = format!("must be a size such as \"32MiB\", {} to {}", shown(least), shown(most));
        let read = |value: &Value, _: bool| {
            let size = match value {
                Value::Integer(bytes) => u64::try_from(*bytes).ok(),
                Value::String(text) => text.trim().parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()),
                _ => None,
            };
            size.filter(|bytes| (least..=most).contains(bytes))
        };
        self.take(key, &rule, read).unwrap_or(default)
    }

    /// A whole number within the range.
    pub(super) fn count(&mut self, key: &str, least: usize, most: usize) -> Option<usize> {
        let read = |value: &Value, from_env: bool| {
            let number = match value {
                Value::Integer(number) => usize::try_from(*number).ok(),
                Value::String(text) if from_env => text.trim().parse().ok(),
                _ => None,
            };
            number.filter(|number| (least..=most).contains(number))
        };
        self.take(key, &format!("must be a whole number, {least} to {most}"), read)
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        let read = |value: &Value, from_env: bool| match value {
            Value::Boolean(flag) => Some(*flag),
            Value::String(text) if from_env => text.trim().parse().ok(),
            _ => None,
        };
        self.take(key, "must be true or false", read).unwrap_or(default)
    }

    /// A list of different texts, each passing `check`; comma-separated in the environment.
    pub(super) fn texts(&mut self, key: &str, rule: &str, check: impl Fn(&str) -> bool) -> Vec<String> {
        let read = |value: &Value, from_env: bool| {
            let texts: Vec<String> = match value {
                Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>()?,
                Value::String(text) if from_env => text.split(',').map(|item| item.trim().to_owned()).collect(),
                _ => return None,
            };
            let different = texts.iter().enumerate().all(|(at, text)| !texts[..at].contains(text));
            (different && texts.iter().all(|text| check(text))).then_some(texts)
        };
        self.take(key, &format!("must be a list of different {rule}"), read).unwrap_or_default()
    }

    /// Records that a given value breaks a rule.
    pub(super) fn refuse(&mut self, key: &str, rule: &str) {
        let Some(given) = self.values.get(key) else { return self.problem(key, rule) };
        self.problems.push(format!("{} = {}: {rule}", self.shown_name(key), shown(&given.value)));
    }

    /// The key as it was given: its variable's name, if it came from the environment.
    fn shown_name(&self, key: &str) -> String {
        match self.values.get(key).and_then(|given| given.variable.as_ref()) {
            Some(variable) if !key.starts_with("table[") => variable.clone(),
            _ => key.to_owned(),
        }
    }

    /// Records a problem that has no value to show.
    pub(super) fn problem(&mut self, key: &str, rule: &str) {
        self.problems.push(format!("{key}: {rule}"));
    }

    /// Succeeds if nothing was wrong and nothing was left over.
    ///
    /// # Errors
    /// `Kind::Config`, with one line for each problem.
    pub(super) fn finish(mut self) -> Result<()> {
        let unknown: Vec<(String, Option<String>)> =
            self.values.iter().filter(|(_, given)| !given.taken).map(|(key, given)| (key.clone(), given.variable.clone())).collect();
        for (key, variable) in unknown {
            let section = key.rsplit_once('.').map_or(key.as_str(), |(section, _)| section);
            let known: Vec<&str> = self.known.iter().filter_map(|one| one.strip_prefix(section)?.strip_prefix('.')).collect();
            let rule = format!("there is no such key; there are {}", known.join(", "));
            let name = variable.filter(|_| !key.starts_with("table[")).unwrap_or(key);
            self.problem(&name, &rule);
        }
        if self.problems.is_empty() {
            return Ok(());
        }
        let place = self.file.map_or_else(|| "the environment".to_owned(), |path| path.display().to_string());
        Err(Error::config(format!("configuration refused ({place}):")).with_details(self.problems))
    }
}

/// The value as a message repeats it.
fn shown(value: &Value) -> String {
    let text = hide_passwords(&match value {
        Value::String(text) => format!("{text:?}"),
        other => serde_json::to_string(other).unwrap_or_default(),
    });
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The parser's own text repeats the line, which may hold a password: only what and where is kept.
fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let line =
        error.span().map_or(1, |span| 1 + text.as_bytes()[..span.start.min(text.len())].iter().filter(|byte| **byte == b'\n').count());
    Error::config(format!("{} is not TOML: line {line}: {}", path.display(), error.message()))
}
