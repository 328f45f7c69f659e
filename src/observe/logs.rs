//! Logs: text for people, Cloud Logging's JSON for machines, one line an event, to stderr.
//!
//! Owns: formats, levels (`HUELLA_LOG`), the panic hook. Does not own: what is logged.
//! Invariants: an event is one line and one write; standard output belongs to the commands; a panic is logged at
//! ERROR, once. Levels mean: ERROR a person must look, WARN odd but handled, INFO the story, DEBUG the details.

use super::progress;
use crate::error::{Error, Result};
use crate::stdout::{escaped, escaped_json, is_unsafe};
use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use std::fmt;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// Level when `HUELLA_LOG` says nothing: our own story, and the warnings of libraries.
pub const DEFAULT_FILTER: &str = "warn,huella=info";

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// Cloud Logging's structured JSON.
    Json,
}

impl Format {
    /// The format asked for, else text on a terminal and JSON elsewhere.
    pub fn choose(asked: Option<Format>) -> Format {
        asked.unwrap_or(if progress::is_terminal() { Format::Text } else { Format::Json })
    }
}

/// Sets up logs and the panic hook for the whole process; once, at the start.
///
/// `filter` is the text of `HUELLA_LOG` (`info`, `huella=debug,warn`, …), `None` or empty for the default.
///
/// # Errors
/// `Kind::Config` if the filter cannot be read.
pub fn init(asked: Option<Format>, filter: Option<&str>) -> Result<()> {
    let filter = filter.filter(|text| !text.trim().is_empty()).unwrap_or(DEFAULT_FILTER);
    let filter = filter.parse::<EnvFilter>().map_err(|error| {
        Error::config(format!("HUELLA_LOG = {filter:?}: must be levels such as \"info\" or \"warn,huella=debug\"")).with_source(error)
    })?;
    let format = Format::choose(asked);
    let colour = progress::is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|text| text.is_empty());
    tracing::subscriber::set_global_default(subscriber(format, colour, filter, progress::Stderr))
        .map_err(|error| Error::bug("logs are set up twice").with_source(error))?;
    if format == Format::Text && progress::is_terminal() {
        progress::draw_bars();
    }
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn subscriber<W>(format: Format, colour: bool, filter: EnvFilter, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Text => Box::new(registry.with(layer.event_format(Text))),
        // The fields of spans are kept as JSON too, to be merged into the event's.
        Format::Json => {
            Box::new(registry.with(layer.fmt_fields(tracing_subscriber::fmt::format::JsonFields::new()).event_format(CloudLogging)))
        }
    }
}

/// One ERROR event in place of the default hook's several lines. The payload is the message of an `expect` or an
/// assertion of ours, which by rule carries no cell and no secret.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("(no message)");
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), |at| format!("{}:{}", at.file(), at.line()));
    let backtrace = std::backtrace::Backtrace::capture();
    let thread = std::thread::current();
    let task = thread.name().unwrap_or("unnamed");
    match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => {
            tracing::error!(place, thread = task, %backtrace, "panic, a fault of huella: {message}");
        }
        _ => tracing::error!(place, thread = task, "panic, a fault of huella: {message}"),
    }
}

/// `12:30:45 INFO  message  key=value …`: UTC, short, in columns.
struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        let (begin, dim, end) = match writer.has_ansi_escapes() {
            true => (colour(level), "\x1b[2m", "\x1b[0m"),
            false => ("", "", ""),
        };
        write!(writer, "{dim}{}{end} {begin}{level:<5}{end} ", Utc::now().format("%H:%M:%S"))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        write!(writer, "{}", escaped(&fields.message))?;
        for (name, value) in &fields.others {
            let text = value.as_str().map_or_else(|| value.to_string(), bare_or_quoted);
            write!(writer, " {dim}{name}={end}{text}")?;
        }
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                write!(writer, " {dim}{}{end}", escaped(fields))?;
            }
        }
        if !event.metadata().target().starts_with("huella") {
            write!(writer, " {dim}({}){end}", event.metadata().target())?;
        }
        writeln!(writer)
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[1;31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[2m",
    }
}

fn bare_or_quoted(text: &str) -> String {
    let bare = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || is_unsafe(c) || c == '"' || c == '=');
    if bare { text.to_owned() } else { escaped(&format!("{text:?}")).into_owned() }
}

/// Cloud Logging's structured lines: <https://cloud.google.com/logging/docs/structured-logging>.
struct CloudLogging;

/// Keys that Cloud Logging takes out of the line; a field of that name gets `_` behind it.
const RESERVED: [&str; 5] = ["severity", "message", "time", "timestamp", "httpRequest"];

impl<S, N> FormatEvent<S, N> for CloudLogging
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = Map::new();
        line.insert("severity".into(), severity(*metadata.level()).into());
        line.insert("time".into(), Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true).into());
        line.insert("message".into(), fields.message.into());
        let mut put = |name: &str, value: Value| {
            let reserved = RESERVED.contains(&name) || name.starts_with("logging.googleapis.com/");
            line.insert(if reserved { format!("{name}_") } else { name.to_owned() }, value);
        };
        // From the outermost span inwards, then the event: the nearest wins.
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let formatted = extensions.get::<FormattedFields<N>>();
            if let Some(Ok(Value::Object(fields))) = formatted.map(|fields| serde_json::from_str(fields)) {
                fields.into_iter().for_each(|(name, value)| put(&name, value));
            }
        }
        fields.others.into_iter().for_each(|(name, value)| put(name, value));
        line.insert("logging.googleapis.com/labels".into(), json!({"target": metadata.target()}));
        if let Some(place) = source_location(metadata) {
            line.insert("logging.googleapis.com/sourceLocation".into(), place);
        }
        writeln!(writer, "{}", escaped_json(&Value::Object(line).to_string()))
    }
}

fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        _ => "DEBUG",
    }
}

fn source_location(metadata: &Metadata<'_>) -> Option<Value> {
    // `line` is an int64, which protobuf's JSON writes as text.
    Some(json!({"file": metadata.file()?, "line": metadata.line()?.to_string(), "function": metadata.module_path()?}))
}

/// The fields of an event: the message apart, the others with their JSON types, in the order they were written.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", value) => self.message = value.to_string(),
            // `r#type` and its like: the name without the mark.
            (name, value) => self.others.push((name.trim_start_matches("r#"), value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, serde_json::Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_i128(&mut self, field: &Field, value: i128) {
        self.put(field, value.to_string().into());
    }
    fn record_u128(&mut self, field: &Field, value: u128) {
        self.put(field, value.to_string().into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        self.put(field, text.into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, colour: bool, filter: &str, work: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(format, colour, filter.parse().unwrap(), move || writer.clone());
        tracing::subscriber::with_default(subscriber, work);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_has_cloud_loggings_fields_and_ours_beside_them() {
        let text = logged(Format::Json, false, DEFAULT_FILTER, || {
            let _outer = tracing::info_span!("stream", slot = "huella", rows = 1).entered();
            tracing::warn!(rows = 5_u64, lag = 0.5, table = "public.a", severity = "odd", lsn = ?crate::lsn::Lsn(1 << 32), "committed\n\"now\"");
        });
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        for (key, want) in [
            ("severity", json!("WARNING")),
            ("message", json!("committed\n\"now\"")),
            ("rows", json!(5)),
            ("lag", json!(0.5)),
            ("table", json!("public.a")),
            ("severity_", json!("odd")),
            ("lsn", json!("1/0")),
            ("slot", json!("huella")),
            ("logging.googleapis.com/labels", json!({"target": "huella::observe::logs::tests"})),
        ] {
            assert_eq!(line[key], want, "{key} in {text}");
        }
        let place = &line["logging.googleapis.com/sourceLocation"];
        assert!(place["file"].as_str().unwrap().ends_with("logs.rs") && place["line"].as_str().unwrap().parse::<u32>().is_ok());
        assert!(chrono::DateTime::parse_from_rfc3339(line["time"].as_str().unwrap()).is_ok());
    }

    #[test]
    fn severities_are_cloud_loggings() {
        let text = logged(Format::Json, false, "trace", || {
            tracing::error!("e");
            tracing::info!("i");
            tracing::debug!("d");
            tracing::trace!("t");
        });
        let severities: Vec<String> =
            text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["severity"].to_string()).collect();
        assert_eq!(severities, ["\"ERROR\"", "\"INFO\"", "\"DEBUG\"", "\"DEBUG\""]);
    }

    #[test]
    fn text_is_one_plain_line() {
        let text = logged(Format::Text, false, DEFAULT_FILTER, || {
            let _span = tracing::info_span!("copy", worker = 2).entered();
            tracing::info!(rows = 5, what = "two words", table = "public.a", "copied\nall\x1b[31m");
        });
        assert!(text.ends_with(" INFO  copied\\nall\\u{1b}[31m rows=5 what=\"two words\" table=public.a worker=2\n"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    /// Names and messages of others.
    #[test]
    fn nothing_in_a_line_turns_text_around_or_begins_another() {
        let hostile = "a\u{202e}b\u{9b}c\nERROR d";
        for format in [Format::Text, Format::Json] {
            let text = logged(format, false, DEFAULT_FILTER, || {
                let _span = tracing::info_span!("s", of = hostile).entered();
                tracing::info!(table = hostile, other = "a\u{202e}b", shown = %hostile, debug = ?hostile, "{hostile}");
            });
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.trim_end().contains(is_unsafe), "{text:?}");
            let json = serde_json::from_str::<Value>(&text);
            assert!(format == Format::Text || json.is_ok_and(|line| line["table"] == hostile && line["message"] == hostile), "{text}");
        }
    }

    #[test]
    fn colours_only_where_asked() {
        let work = || tracing::error!(a = 1, "x");
        assert!(logged(Format::Text, true, DEFAULT_FILTER, work).contains("\x1b[1;31mERROR\x1b[0m"));
        assert!(!logged(Format::Text, false, DEFAULT_FILTER, work).contains('\x1b'));
    }

    #[test]
    fn by_default_our_story_and_the_warnings_of_others() {
        let text = logged(Format::Text, false, DEFAULT_FILTER, || {
            tracing::info!("ours");
            tracing::debug!("details");
            tracing::info!(target: "hyper", "theirs");
            tracing::warn!(target: "hyper", "their warning");
        });
        let said: Vec<bool> = ["ours", "details", "theirs", "their warning (hyper)"].iter().map(|one| text.contains(one)).collect();
        assert_eq!(said, [true, false, false, true], "{text}");
    }

    #[test]
    fn a_wrong_filter_is_refused_by_name() {
        let error = init(None, Some("huella=loudly")).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Config);
        assert!(error.full().contains("HUELLA_LOG"), "{}", error.full());
    }

    #[test]
    fn a_panic_is_one_error_line() {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(log_panic));
        let text = logged(Format::Json, false, DEFAULT_FILTER, || {
            let _ = std::panic::catch_unwind(|| panic!("the sky fell"));
        });
        std::panic::set_hook(before);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert_eq!(lines[0]["severity"], "ERROR");
        assert!(lines[0]["message"].as_str().unwrap().contains("the sky fell"));
        assert!(lines[0]["place"].as_str().unwrap().contains("logs.rs"));
    }
}
