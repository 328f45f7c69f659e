//! How far a copy is: a bar on a terminal, a log line every now and then elsewhere, never both.
//!
//! Owns: the bar, and the way of log lines past it. Does not own: what is copied (`snapshot`).
//! Invariant: while a bar stands, nothing is written to the terminal but through [`Stderr`].

use crate::stdout::escaped;
use crate::table_name::TableName;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Log lines of one table come this often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Whether bars are drawn at all.
static BARS: AtomicBool = AtomicBool::new(false);
/// The bar that stands.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Bars from now on, in place of log lines: for a person at a terminal.
pub(super) fn draw_bars() {
    BARS.store(true, Ordering::Relaxed);
}

fn bar() -> Option<ProgressBar> {
    BAR.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A copy of several tables.
#[derive(Debug)]
pub struct Copying {
    bar: Option<ProgressBar>,
}

impl Copying {
    /// Begins. `weight`: the size of all tables, in whatever unit.
    pub fn begin(weight: u64) -> Arc<Self> {
        let bar = BARS.load(Ordering::Relaxed).then(|| {
            let style = ProgressStyle::with_template("copying {wide_bar} {percent:>3}% {msg}");
            let bar = ProgressBar::new(weight.max(1)).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            *BAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
            bar
        });
        Arc::new(Self { bar })
    }

    /// One of its tables.
    pub fn table(self: &Arc<Self>, name: &TableName, weight: u64) -> TableProgress {
        TableProgress {
            whole: Arc::clone(self),
            name: name.clone(),
            weight,
            done: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            logged: Mutex::new(Instant::now()),
        }
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            *BAR.lock().unwrap_or_else(PoisonError::into_inner) = None;
            bar.finish_and_clear();
        }
    }
}

/// A table's part of a copy.
#[derive(Debug)]
pub struct TableProgress {
    whole: Arc<Copying>,
    name: TableName,
    weight: u64,
    done: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
    logged: Mutex<Instant>,
}

impl TableProgress {
    /// Rows and bytes came.
    pub fn add(&self, rows: u64, bytes: u64) {
        let rows = self.rows.fetch_add(rows, Ordering::Relaxed) + rows;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(bar) = &self.whole.bar {
            bar.set_message(format!("{}: {rows} rows, {} MiB", escaped(&self.name.to_string()), bytes >> 20));
            return;
        }
        let Ok(mut logged) = self.logged.try_lock() else { return }; // the other worker does it
        if logged.elapsed() >= LOG_EVERY {
            *logged = Instant::now();
            let percent = self.done.load(Ordering::Relaxed) * 100 / self.weight.max(1);
            tracing::info!(table = %self.name, rows, bytes, percent, "still copying");
        }
    }

    /// A part of this weight is done.
    pub fn done(&self, weight: u64) {
        self.done.fetch_add(weight, Ordering::Relaxed);
        if let Some(bar) = &self.whole.bar {
            bar.inc(weight);
        }
    }
}

/// Whether a person reads standard error.
#[allow(clippy::disallowed_methods)] // asked, not written
pub(super) fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Standard error for log lines: a bar steps aside for each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stderr;

#[allow(clippy::disallowed_methods)] // of lines that `logs` has escaped
impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match bar() {
            Some(bar) => bar.suspend(|| io::stderr().write(line)),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Stderr;

    fn make_writer(&'a self) -> Stderr {
        *self
    }
}
