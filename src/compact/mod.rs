//! `huella compact`: small files of closed days become large ones; what nobody needs any more is deleted.
//!
//! Owns: the order of the work, the report. Does not own: which files (`plan`), their rows (`rewrite`, `fold`), the record (`ledger`),
//! deletion (`sweep`). The law is in `commit/PROTOCOL.md`, "Compaction".
//! Invariants: the watermark and its commits are never written; the state of every table is the same before and after, whatever a
//! crash leaves; several of these, a writer and readers may be at work at once.

mod fold;
mod forgotten;
mod input;
pub(crate) mod keys;
mod ledger;
mod plan;
mod reduce;
pub(crate) mod removal;
mod retire;
mod rewrite;
mod stopwatch;
mod sweep;

use crate::commit;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lake::{LiveFile, Watermark};
use crate::schema::version::TableSchema;
use crate::table_name::TableName;
use chrono::{NaiveDate, Utc};
pub(crate) use forgotten::merged;
use indicatif::{ProgressBar, ProgressStyle};
use ledger::{Ledger, Replacement};
pub(crate) use rewrite::{Bits, Edit};
use rewrite::{Work, rewrite};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use stopwatch::Stopwatch;

/// Replacements are made to count this often: each writes the list of all live files.
const COMMIT_EVERY: Duration = Duration::from_secs(60);

/// Compacts the days before `before` (today, if `None`).
///
/// # Errors
/// `Kind::Usage` if `before` lies in the future; `Kind::Lake` if there is no lake, or a file is damaged (it is left as it is).
pub async fn run(config: &Config, before: Option<NaiveDate>) -> Result<()> {
    let now = Utc::now();
    let before = before.unwrap_or_else(|| now.date_naive());
    if before > now.date_naive() {
        return Err(Error::usage(format!("--before {before}: only days that are over (UTC) can be compacted")));
    }
    let store = crate::store::open(&config.lake.url).await?;
    let mut ledger = Ledger::open(Arc::clone(&store), config.compact.grace).await?;
    forgotten::count(store.as_ref(), config.compact.grace, now).await?;
    // First the list as it is: from here on every file that is replaced stands in a checkpoint before.
    ledger.commit(Vec::new(), Stopwatch::start()).await?;
    let sum = |live: &[LiveFile]| (live.len() as u64, live.iter().map(|live| live.file.bytes).sum::<u64>());
    let (files_before, bytes_before) = sum(&ledger.live);
    let mut job = Job {
        work: Work { store, file_size: config.compact.file_size, run: commit::random() },
        schemas: HashMap::new(),
        part: 0,
        done: Vec::new(),
        begun: Stopwatch::start(),
        late: 0,
    };
    job.compact(&mut ledger, &before.to_string()).await?;
    let (mut dropped, mut retired) = (0, 0);
    if let Some(age) = config.compact.fold_after {
        dropped = job.fold(&mut ledger, &(now - age).date_naive().min(before).to_string()).await?;
    }
    if let Some(keep) = config.compact.keep_versions {
        let old = retire::retired(&ledger.live, &ledger.watermark, keep, now);
        retired = old.len();
        if !old.is_empty() {
            // Whatever came too late is found by the next run.
            let replacement = Replacement { old, ..Replacement::default() };
            ledger.commit(vec![replacement], Stopwatch::start()).await?;
        }
    }
    forgotten::finish(&mut ledger, &job.work, &mut job.part).await?;
    let (files_after, bytes_after) = sum(&ledger.live);
    let swept = sweep::sweep(&mut ledger, Utc::now()).await?;
    forgotten::settle(&ledger, Utc::now()).await?;
    tracing::info!(
        files_before,
        bytes_before,
        files_after,
        bytes_after,
        rows_folded = dropped,
        files_of_former_versions = retired,
        replaced_by_others = job.late,
        files_deleted = swept.files,
        bytes_deleted = swept.bytes,
        manifests_deleted = swept.manifests,
        files_waiting = swept.waiting,
        %before,
        "compacted"
    );
    Ok(())
}

struct Job {
    work: Work,
    schemas: HashMap<(TableName, u32), Arc<TableSchema>>,
    part: u64,
    /// Replacements that do not count yet.
    done: Vec<Replacement>,
    /// Since when.
    begun: Stopwatch,
    /// Replacements that another process was quicker with.
    late: usize,
}

impl Job {
    async fn compact(&mut self, ledger: &mut Ledger, before: &str) -> Result<()> {
        let groups = plan::groups(&ledger.live, before, self.work.file_size);
        let bar = bar(groups.iter().flat_map(|group| &group.files).map(|live| live.file.bytes).sum(), "compacting");
        for group in groups {
            bar.set_message(format!("{} {}", group.table, group.day));
            let schema = self.schema(&ledger.watermark, &group.table, group.version).await?;
            let new = rewrite(&self.work, &group, schema, None, &mut self.part).await?;
            let rows = |files: &[LiveFile]| files.iter().map(|live| live.file.rows).sum::<u64>();
            if rows(&new) != rows(&group.files) {
                return Err(Error::bug(format!(
                    "{} dt={}: {} rows became {}: nothing was replaced",
                    group.table,
                    group.day,
                    rows(&group.files),
                    rows(&new)
                )));
            }
            let old = group.files.iter().map(|live| live.file.path.clone()).collect();
            self.done.push(Replacement { old, new, receipt: None });
            bar.inc(group.files.iter().map(|live| live.file.bytes).sum());
            if self.begun.elapsed() >= COMMIT_EVERY {
                self.settle(ledger).await?;
            }
        }
        bar.finish_and_clear();
        self.settle(ledger).await
    }

    /// Drops rows that later old ones have made void; returns how many.
    async fn fold(&mut self, ledger: &mut Ledger, before: &str) -> Result<u64> {
        let mut dropped = 0;
        let tables: Vec<(TableName, u32)> =
            ledger.watermark.tables.iter().filter_map(|(name, mark)| Some((name.clone(), mark.version?))).collect();
        let bar = bar(tables.len() as u64, "folding");
        let cut = crate::publish::current(self.work.store.as_ref()).await?.map(|(cut, _)| cut.through);
        for (table, version) in tables {
            bar.set_message(table.to_string());
            let schema = self.schema(&ledger.watermark, &table, version).await?;
            let Some(plan) = keys::plan(&self.work, &ledger.live, &schema, before, cut).await? else { continue };
            let mut replacement = Replacement::default();
            for group in plan.groups {
                let unchanged = |live: &LiveFile| plan.edits.get(&live.file.path).is_some_and(|edit| edit.changes_nothing(live.file.rows));
                let untouched = group.files.iter().all(unchanged);
                replacement.old.extend(group.files.iter().map(|live| live.file.path.clone()));
                let mut new = if untouched {
                    group.files
                } else {
                    let before: u64 = group.files.iter().map(|live| live.file.rows).sum();
                    let new = rewrite(&self.work, &group, Arc::clone(&schema), Some(Arc::clone(&plan.edits)), &mut self.part).await?;
                    dropped += before - new.iter().map(|live| live.file.rows).sum::<u64>();
                    new
                };
                new.iter_mut().for_each(|live| live.folded = !live.reaches(plan.horizon));
                replacement.new.extend(new);
            }
            self.done.push(replacement);
            self.settle(ledger).await?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(dropped)
    }

    /// Makes what is done count.
    async fn settle(&mut self, ledger: &mut Ledger) -> Result<()> {
        let done = std::mem::take(&mut self.done);
        let begun = std::mem::replace(&mut self.begun, Stopwatch::start());
        if !done.is_empty() {
            self.late += ledger.commit(done, begun).await?;
        }
        Ok(())
    }

    async fn schema(&mut self, watermark: &Watermark, table: &TableName, version: u32) -> Result<Arc<TableSchema>> {
        if let Some(schema) = self.schemas.get(&(table.clone(), version)) {
            return Ok(Arc::clone(schema));
        }
        let schema = Arc::new(commit::schema(self.work.store.as_ref(), watermark, table, version).await?);
        self.schemas.insert((table.clone(), version), Arc::clone(&schema));
        Ok(schema)
    }
}

/// A bar on a terminal; nothing elsewhere.
fn bar(length: u64, doing: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent}% {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_prefix(doing)
}
