//! The configuration: `huella.toml` and the environment, checked as a whole before anything starts.
//!
//! Owns: names, defaults and rules of every key. Does not own: connection parameters inside `source.url`
//! (`postgres`), the lake's URL beyond its kind (`store`), whether tables exist (`check`).
//! Invariants: the environment wins; unknown keys are errors; all problems are reported at once; no secret is in a
//! message or in `Debug`. Relative paths are relative to the current directory, whatever file they stand in.

mod reader;
mod secret;
mod secret_files;
mod sections;
mod tables;
#[cfg(test)]
mod tests;

pub use secret::{Secret, hide_passwords};

use crate::error::{Error, Result};
use crate::table_name::TableName;
use reader::Reader;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// File that is read when none is named, if it exists.
pub const DEFAULT_FILE: &str = "huella.toml";

/// The whole configuration, valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// The PostgreSQL database.
    pub source: Source,
    /// Where the files go.
    pub lake: Lake,
    /// When a micro-batch is cut.
    pub batch: Batch,
    /// The first copy.
    pub snapshot: Snapshot,
    /// Rewriting of small files.
    pub compact: Compact,
    /// Health, metrics, status page.
    pub http: Http,
    /// The `[[table]]` blocks; `None` means every table of schema public that has a key.
    pub tables: Option<Vec<TableConfig>>,
    /// BigQuery, if configured.
    pub bigquery: Option<BigQuery>,
    /// Dataform, if configured.
    pub dataform: Option<Dataform>,
    /// `HUELLA_HASH_KEY`, the key of hashed columns; there whenever a table hashes.
    pub hash_key: Option<Secret>,
    /// The file that was read, if it holds a password and others may read it.
    pub exposed_file: Option<PathBuf>,
    /// `--rehash`: another hash key than before begins new versions. Of the command line alone: a setting would undo its own check.
    pub rehash: bool,
}

/// `[source]`.
#[derive(Debug, Clone)]
pub struct Source {
    /// `postgresql://…`, password and all.
    pub url: Secret,
    /// Extra root certificate (PEM).
    pub tls_ca: Option<PathBuf>,
    /// Replication slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Whether the slot is kept in step on standbys (17+).
    pub failover: bool,
    /// What becomes of tables that appear later, where no `[[table]]` says which are meant.
    pub new_tables: NewTables,
}

/// `source.new_tables`: what becomes of a table that appears in schema public after the first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NewTables {
    /// It is published and copied.
    #[default]
    Add,
    /// It stays out, and is named.
    Ignore,
}

/// `[lake]`.
#[derive(Debug, Clone)]
pub struct Lake {
    /// `gs://bucket/prefix`, `file:///absolute`, `/absolute`, or a directory relative to the current one.
    pub url: String,
}

/// `[batch]`: whichever limit comes first.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Longest time from a change's arrival to its commit.
    pub max_age: Duration,
    /// Bytes of rows in a batch.
    pub max_bytes: u64,
    /// Budget of everything buffered, bytes; at least twice `max_bytes`.
    pub memory: u64,
    /// How often, at most, an idle stream commits its position.
    pub heartbeat: Duration,
}

/// `[snapshot]`.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Parallel copies; the machine's cores unless given.
    pub workers: usize,
    /// Whether a first start copies the tables.
    pub initial: bool,
}

/// `[compact]`.
#[derive(Debug, Clone)]
pub struct Compact {
    /// How long a file outlives the last list that named it: longer than the longest query.
    pub grace: Duration,
    /// Days older than this keep only the last row of each key; `None`: every row is kept for ever.
    pub fold_after: Option<Duration>,
    /// Former versions of a table that were superseded longer ago than this leave the lake; `None`: they are kept for ever.
    pub keep_versions: Option<Duration>,
    /// Bytes of a compacted file, about.
    pub file_size: u64,
}

/// `[http]`.
#[derive(Debug, Clone)]
pub struct Http {
    /// Where to listen; `None`: nowhere.
    pub listen: Option<SocketAddr>,
}

/// How a table is replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// First copy, then every change.
    #[default]
    Stream,
    /// A catalogue: copied as a whole, never streamed.
    Snapshot,
}

impl Mode {
    /// As it is written in the configuration and in the lake.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Stream => "stream",
            Mode::Snapshot => "snapshot",
        }
    }

    /// The default, which documents leave out.
    pub fn is_stream(&self) -> bool {
        *self == Mode::Stream
    }
}

/// A `[[table]]` block.
#[derive(Debug, Clone)]
pub struct TableConfig {
    /// The table.
    pub name: TableName,
    /// How it is replicated.
    pub mode: Mode,
    /// Columns that are dropped in the decoder.
    pub exclude: Vec<String>,
    /// Whether `exclude` is also a column list of the publication.
    pub exclude_at_source: bool,
    /// Columns that are replaced by their HMAC-SHA-256.
    pub hash: Vec<String>,
    /// The only columns that are published, besides the key's; `None`: all that are not excluded.
    pub include: Option<Vec<String>>,
}

/// `[bigquery]`.
#[derive(Debug, Clone)]
pub struct BigQuery {
    /// Project.
    pub project: String,
    /// Location of the datasets.
    pub location: String,
    /// Dataset of the external tables.
    pub raw_dataset: String,
    /// Dataset of the merged tables.
    pub silver_dataset: String,
}

/// Which state of the Dataform repository is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Code {
    /// A branch, tag or commit.
    GitCommitish(String),
    /// A release configuration.
    ReleaseConfig(String),
}

/// `[dataform]`.
#[derive(Debug, Clone)]
pub struct Dataform {
    /// `projects/P/locations/L/repositories/R`.
    pub repository: String,
    /// What is run.
    pub code: Code,
    /// Tags of the actions to run; empty: all.
    pub tags: Vec<String>,
    /// Account that runs them.
    pub service_account: Option<String>,
    /// The service's URL; `None`: Google's.
    pub endpoint: Option<String>,
    /// A cut that is older makes a run fail: what looks merged would be of the past.
    pub max_age: Duration,
    /// How long the service may take to answer a creation, before it is asked what became of it.
    pub call_timeout: Duration,
}

impl Config {
    /// Reads the file (`path`, else `huella.toml` if it exists) and the environment.
    ///
    /// `env` gives names and values, as [`environment`] does for this process.
    ///
    /// # Errors
    /// `Kind::Config`: the file cannot be read or is not TOML; otherwise one line for each problem.
    pub fn load(path: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let (env, problems) = secret_files::read(env.into_iter().collect());
        let file = match path {
            Some(path) => Some((path, read(path)?)),
            None if Path::new(DEFAULT_FILE).exists() => Some((Path::new(DEFAULT_FILE), read(Path::new(DEFAULT_FILE))?)),
            None => None,
        };
        let mut config = Self::merge(file.as_ref().map(|(path, text)| (*path, text.as_str())), &env, problems)?;
        config.exposed_file = config.exposed_file.filter(|path| is_readable_by_others(path));
        Ok(config)
    }

    /// As [`Config::load`], with the file's text (and its path for messages); no other file is looked at.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: Option<(&Path, &str)>, env: &[(String, String)]) -> Result<Self> {
        Self::merge(file, env, Vec::new())
    }

    fn merge(file: Option<(&Path, &str)>, env: &[(String, String)], problems: Vec<String>) -> Result<Self> {
        let variable = |name: &str| env.iter().rev().find(|(one, text)| one == name && !text.is_empty()).map(|(_, text)| text.as_str());
        let mut reader = Reader::new(file, env, problems)?;
        let hash_key = sections::hash_key(&mut reader, variable("HUELLA_HASH_KEY"));
        let config = Config {
            source: Source::read(&mut reader),
            lake: Lake::read(&mut reader),
            batch: Batch::read(&mut reader),
            snapshot: Snapshot::read(&mut reader),
            compact: Compact::read(&mut reader),
            http: Http::read(&mut reader, variable("PORT")),
            tables: TableConfig::read_all(&mut reader, hash_key.is_some()),
            bigquery: BigQuery::read(&mut reader),
            dataform: Dataform::read(&mut reader),
            hash_key,
            rehash: false,
            exposed_file: reader.file_with_secret(),
        };
        reader.finish()?;
        Ok(config)
    }

    /// The block of a table, if it has one.
    pub fn table(&self, name: &TableName) -> Option<&TableConfig> {
        self.tables.iter().flatten().find(|table| table.name == *name)
    }
}

fn is_readable_by_others(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).is_ok_and(|about| about.mode() & 0o044 != 0)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| Error::config(format!("cannot read {}", path.display())).with_source(error))
}

/// The variables of this process that matter to the configuration.
///
/// # Errors
/// `Kind::Config` if one of them is not UTF-8.
pub fn environment() -> Result<Vec<(String, String)>> {
    let ours = |name: &str| name.starts_with("HUELLA_") || name == "PORT";
    std::env::vars_os()
        .filter_map(|(name, text)| Some((name.into_string().ok().filter(|name| ours(name))?, text)))
        .map(|(name, text)| match text.into_string() {
            Ok(text) => Ok((name, text)),
            Err(_) => Err(Error::config(format!("{name}: is not UTF-8"))),
        })
        .collect()
}
