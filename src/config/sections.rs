//! The sections of the configuration: which keys there are, their defaults and their rules.
//!
//! Owns: every rule but those of `[[table]]`. Does not own: how values are found and reported (`reader`); what only the
//! connection or the store can judge (sslmode, certificates, rights).

use super::reader::Reader;
use super::secret::{Secret, hide_passwords};
use super::{Batch, BigQuery, Code, Compact, Dataform, Http, Lake, NewTables, Snapshot, Source};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A column's cells of one batch lie in one Arrow array, whose offsets have 31 bits: half of that, for the last row comes on top of the limit,
/// and PostgreSQL sends none that is larger than 1 GiB.
const BATCH_BYTES_MAX: u64 = GIB;

/// NAMEDATALEN − 1: longest name of PostgreSQL, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 63;

/// Longest heartbeat: an idle slot holds back at most this much time of other schemas' WAL.
const HEARTBEAT_MAX: Duration = Duration::from_secs(3600);
/// Least budget: below it the Arrow builders of a few wide tables alone would fill it.
const MEMORY_MIN: u64 = 8 * MIB;
/// More workers than this only wait for one another on the server's disk.
const WORKERS_MAX: usize = 64;
/// Least grace of a replaced file: for trials; a reader's longest query decides.
const GRACE_MIN: Duration = Duration::from_secs(1);
/// Oldest published cut that a Dataform run may end well with: a daily job that was left out once is not yet an alarm.
const CUT_AGE: Duration = Duration::from_secs(2 * 86_400);
/// What the Dataform service is given to answer a creation; the client of Google's libraries takes the same.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Least length of the key of hashes: a national id has few bits, so the key must carry the secrecy.
const HASH_KEY_BYTES_MIN: usize = 16;

impl Source {
    pub(super) fn read(reader: &mut Reader) -> Self {
        let scheme = |url: &str| url.starts_with("postgresql://") || url.starts_with("postgres://");
        let rule = "must be postgresql://user@host:port/database";
        reader.require("source.url", rule);
        let url = reader.secret("source.url", rule, |url| scheme(url) && !url.contains(char::is_whitespace) && !url.contains('\0'));
        let password = reader.secret("source.password", "must be a password without NUL", |text| !text.is_empty() && !text.contains('\0'));
        let mut url = url.map(|url| url.expose().to_owned()).unwrap_or_default();
        if let Some(password) = password {
            if hide_passwords(&url) == url {
                url.push_str(if url.contains('?') { "&password=" } else { "?password=" });
                url.extend(password.expose().bytes().map(|byte| format!("%{byte:02X}")));
            } else {
                reader.problem("source.password", "source.url has a password too: choose one");
            }
        }
        let tls_ca = reader.text("source.tls_ca", "must be a file's path", |path| !path.is_empty()).map(PathBuf::from);
        let slot_rule = format!("must be 1 to {NAME_BYTES_MAX} of a-z, 0-9 and _");
        let slot = reader.text("source.slot", &slot_rule, |name| {
            (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        });
        let publication_rule = format!("must be a name of 1 to {NAME_BYTES_MAX} bytes");
        let publication = reader.text("source.publication", &publication_rule, is_name);
        let new_tables = reader.parsed("source.new_tables", r#"must be "add" or "ignore""#, |text| match text {
            "add" => Some(NewTables::Add),
            "ignore" => Some(NewTables::Ignore),
            _ => None,
        });
        Source {
            url: Secret::new(url),
            tls_ca,
            slot: slot.unwrap_or_else(|| "huella".to_owned()),
            publication: publication.unwrap_or_else(|| "huella".to_owned()),
            failover: reader.flag("source.failover", false),
            new_tables: new_tables.unwrap_or_default(),
        }
    }

    /// The URL without its password, for messages.
    pub fn shown_url(&self) -> String {
        hide_passwords(self.url.expose())
    }
}

impl Lake {
    pub(super) fn read(reader: &mut Reader) -> Self {
        let rule = "must be gs://bucket/prefix or a directory: file:///absolute, /absolute or ./relative";
        let url = reader.required("lake.url", rule, |url| {
            let bucket = url.strip_prefix("gs://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
            let relative = matches!(url, "." | "..") || url.starts_with("./") || url.starts_with("../");
            (bucket || relative || url.starts_with('/') || url.starts_with("file:///")) && !url.contains(char::is_control)
        });
        Lake { url }
    }
}

impl Batch {
    pub(super) fn read(reader: &mut Reader) -> Self {
        let secs = Duration::from_secs;
        let batch = Batch {
            max_age: reader.duration("batch.max_age", Duration::from_millis(100), secs(86_400), secs(60)),
            max_bytes: reader.size("batch.max_bytes", KIB, BATCH_BYTES_MAX, 32 * MIB),
            memory: reader.size("batch.memory", MEMORY_MIN, 64 * GIB, 128 * MIB),
            heartbeat: reader.duration("batch.heartbeat", secs(1), HEARTBEAT_MAX, secs(60)),
        };
        // One batch is written while the next one fills: both count.
        if batch.memory < batch.max_bytes.saturating_mul(2) {
            let both = "batch.memory must be at least twice batch.max_bytes: one batch is written while the next one fills";
            let key = if reader.has("batch.memory") { "batch.memory" } else { "batch.max_bytes" };
            reader.refuse(key, both);
        }
        batch
    }
}

impl Snapshot {
    pub(super) fn read(reader: &mut Reader) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get().min(WORKERS_MAX));
        Snapshot {
            workers: reader.count("snapshot.workers", 1, WORKERS_MAX).unwrap_or_else(cores),
            initial: reader.flag("snapshot.initial", true),
        }
    }
}

impl Compact {
    pub(super) fn read(reader: &mut Reader) -> Self {
        let day = Duration::from_secs(86_400);
        let mut age = |key| {
            let given = reader.has(key);
            let age = reader.duration(key, day, day * 36_500, day);
            given.then_some(age)
        };
        let (fold_after, keep_versions) = (age("compact.fold_after"), age("compact.keep_versions"));
        Compact {
            grace: reader.duration("compact.grace", GRACE_MIN, day * 365, day),
            fold_after,
            keep_versions,
            file_size: reader.size("compact.file_size", 64 * KIB, GIB, 128 * MIB),
        }
    }
}

impl Http {
    /// `port` is the environment's `PORT`, which the platform sets and which therefore wins over the file's port. The platform's requests come
    /// from outside, so that without an address of its own it means every address.
    pub(super) fn read(reader: &mut Reader, port: Option<&str>) -> Self {
        let rule = r#"must be an address and a port such as "127.0.0.1:8080" or "[::]:8080", or "" for none"#;
        let read = |text: &str| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
        let mut listen = reader
            .parsed("http.listen", rule, read)
            .unwrap_or_else(|| Some(SocketAddr::from((if port.is_some() { [0, 0, 0, 0] } else { [127, 0, 0, 1] }, 8080))));
        match port.map(|text| (text, text.parse::<u16>())) {
            None => {}
            Some((_, Ok(port))) => listen.iter_mut().for_each(|address| address.set_port(port)),
            Some((text, Err(_))) => reader.problem(&format!("PORT = {text:?}"), "must be a port, 0 to 65535"),
        }
        Http { listen }
    }
}

impl BigQuery {
    pub(super) fn read(reader: &mut Reader) -> Option<Self> {
        if !reader.has_section("bigquery") {
            return None;
        }
        let dataset_rule = "must be 1 to 1024 letters, digits and _";
        let dataset = |name: &str| (1..=1024).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        Some(BigQuery {
            project: reader.required("bigquery.project", "must be a project's id", |id| is_word(id, "-.:")),
            location: reader.required("bigquery.location", "must be a location such as us-central1 or EU", |name| is_word(name, "-")),
            raw_dataset: reader.text("bigquery.raw_dataset", dataset_rule, dataset).unwrap_or_else(|| "raw".to_owned()),
            silver_dataset: reader.text("bigquery.silver_dataset", dataset_rule, dataset).unwrap_or_else(|| "silver".to_owned()),
        })
    }
}

impl Dataform {
    pub(super) fn read(reader: &mut Reader) -> Option<Self> {
        if !reader.has_section("dataform") {
            return None;
        }
        let repository_rule = "must be projects/P/locations/L/repositories/R";
        let repository = reader.required("dataform.repository", repository_rule, |path| {
            let parts: Vec<&str> = path.split('/').collect();
            matches!(parts[..], ["projects", p, "locations", l, "repositories", r] if [p, l, r].iter().all(|part| is_word(part, "-_.:")))
        });
        let is_text = |text: &str| !text.is_empty() && !text.contains(char::is_control);
        let commitish = reader.text("dataform.git_commitish", "must be a branch, tag or commit", is_text);
        let release = reader.text("dataform.release_config", "must be a release configuration's name", is_text);
        if reader.has("dataform.git_commitish") == reader.has("dataform.release_config") {
            reader.problem("dataform", "needs one of git_commitish and release_config, and not both");
        }
        let secs = Duration::from_secs;
        Some(Dataform {
            max_age: reader.duration("dataform.max_age", secs(1), secs(86_400) * 36_500, CUT_AGE),
            call_timeout: reader.duration("dataform.call_timeout", secs(1), secs(600), CALL_TIMEOUT),
            repository,
            code: release.map(Code::ReleaseConfig).unwrap_or_else(|| Code::GitCommitish(commitish.unwrap_or_default())),
            tags: reader.texts("dataform.tags", "tags", is_text),
            // Whoever can read the way there has the token.
            endpoint: reader.text(
                "dataform.endpoint",
                "must be an https:// URL (http:// only of this machine: 127.0.0.1, [::1], localhost)",
                |url| {
                    url.parse::<url::Url>().is_ok_and(|url| match url.scheme() {
                        "https" => url.has_host(),
                        "http" => is_loopback(&url),
                        _ => false,
                    })
                },
            ),
            service_account: reader.text("dataform.service_account", "must be a service account's address", |address| {
                address.split_once('@').is_some_and(|(name, host)| is_word(name, "-.") && is_word(host, "-."))
            }),
        })
    }
}

/// The key of hashed columns, from the environment alone. Its value is in no message.
pub(super) fn hash_key(reader: &mut Reader, text: Option<&str>) -> Option<Secret> {
    let text = text?;
    if text.len() < HASH_KEY_BYTES_MIN {
        reader
            .problem("HUELLA_HASH_KEY", &format!("must have at least {HASH_KEY_BYTES_MIN} bytes; `openssl rand -hex 32` makes a good one"));
    }
    Some(Secret::new(text))
}

fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// A name that PostgreSQL can hold.
pub(super) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains('\0')
}

fn is_word(text: &str, more: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}
