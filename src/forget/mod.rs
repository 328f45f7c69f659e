//! `huella forget`: every row of one key leaves every live file, of all versions of its table.
//!
//! Owns: the order of the work, the refusals, the receipt. Does not own: which rows (`target`, `scan`, `trace`), the source's word (`source`), making
//! files count and their deletion (`compact`). The law is in `commit/PROTOCOL.md`, "Forgetting".
//! Invariants: nothing is touched while the source has the row, or the lake has not come to its deletion; the state of every table is the
//! same before and after, also for a reader who has merged a part of the past; no value is in a receipt, a log, a name or a message.

mod scan;
mod source;
mod target;
mod trace;

use crate::commit::{self, persist, put_document};
use crate::compact::keys::{each_row, looked_at};
use crate::compact::removal::{Removal, Versions};
use crate::compact::{Bits, Edit, merged};
use crate::config::{Config, Mode};
use crate::error::{Error, Kind, Result};
use crate::lake::{FORMAT, Forgotten, LiveFile, PROPOSALS, Proposal, TableMark, WaitingDelete, rfc3339};
use crate::lsn::Lsn;
use crate::schema::HashKey;
use crate::schema::version::TableSchema;
use crate::store::Store;
use crate::table_name::TableName;
use crate::verify::point;
use crate::{failpoint, publish, stdout};
use scan::Files;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use target::{Given, Seed};
use trace::{Event, Op};

/// Looks, at most, until no other process replaces the same files meanwhile: each of theirs makes a few files of many.
const LOOKS_MAX: u32 = 10;

/// What is asked for.
#[derive(Debug)]
pub struct Asked {
    /// Table.
    pub table: TableName,
    /// Values in the order of the key's columns, or `column=value` for each.
    pub key: Vec<String>,
    /// Values of hashed columns are given as hashes.
    pub hashed: bool,
}

/// Takes all rows of a key out of the lake.
///
/// # Errors
/// `Kind::Usage` for a table or values that do not fit; `Kind::Source` while the source has the row, or the lake has not come to its deletion;
/// `Kind::Retry` while a copy is under way; `Kind::Found` if a version could not be searched.
pub async fn run(config: &Config, asked: &Asked) -> Result<()> {
    let store = crate::store::open(&config.lake.url).await?;
    let hash = config.hash_key.as_ref().map(|key| HashKey::new(key.expose().as_bytes()));
    let mut removal = Removal::open(config, Arc::clone(&store)).await?;
    let job = Job { config, store, table: &asked.table, hash };
    let versions = job.versions(&removal).await?;
    let given = target::given(job.current(&removal, &versions)?, &asked.key, asked.hashed)?;
    let (given, through) = job.gone(&removal, given).await?;
    for _ in 0..LOOKS_MAX {
        removal.refresh().await?;
        let versions = job.versions(&removal).await?;
        let current = job.current(&removal, &versions)?;
        let (seeds, unsearched) = target::seeds(&versions, current, &given, job.hash.as_ref())?;
        let mut plan = job.plan(&removal, &versions, current.version, &seeds).await?;
        let edits = std::mem::take(&mut plan.edits);
        let (path, receipt) = job.receipt(&versions, plan, through).await?;
        if edits.is_empty() || removal.take_out(&versions, edits, &path).await? {
            failpoint::hit("forget.after_swap");
            job.tell(&mut removal, &path, receipt).await?;
            return searched_all(job.table, &unsearched);
        }
        persist("delete a receipt of nothing", || job.store.delete(&path)).await?;
        tracing::info!(table = %job.table, "another process replaced the same files meanwhile: looking again");
    }
    Err(Error::retry(format!("{}: its files are replaced again and again by others: start again when they are done", job.table)))
}

/// A version that could not be searched may hold rows: that is no success.
fn searched_all(table: &TableName, unsearched: &[u32]) -> Result<()> {
    if unsearched.is_empty() {
        return Ok(());
    }
    let list = unsearched.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    Err(Error::found(format!(
        "{table}: version {list} was not searched, because it has no such column, or has it in clear where a hash was given, or under \
         another hash key: give the plain value with that HUELLA_HASH_KEY, or let former versions go with [compact] keep_versions"
    )))
}

/// What is done with which rows.
#[derive(Default)]
struct Plan {
    edits: HashMap<String, Edit>,
    /// Files with edits.
    files: u64,
    rows: u64,
    waiting: Vec<WaitingDelete>,
}

struct Job<'a> {
    config: &'a Config,
    store: Arc<dyn Store>,
    table: &'a TableName,
    hash: Option<HashKey>,
}

impl Job<'_> {
    /// The schemas of all versions that have files, and of the current one.
    async fn versions(&self, removal: &Removal) -> Result<Versions> {
        let mut numbers: BTreeSet<u32> =
            removal.all().iter().filter(|live| live.file.table == *self.table).map(|live| live.file.version).collect();
        numbers.extend(self.mark(removal).and_then(|mark| mark.version));
        let mut versions = Versions::new();
        for number in numbers {
            versions.insert(number, Arc::new(commit::schema(self.store.as_ref(), removal.watermark(), self.table, number).await?));
        }
        if versions.is_empty() {
            return Err(Error::usage(format!("the lake has no rows of {}: `huella status` names its tables", self.table)));
        }
        Ok(versions)
    }

    fn mark<'r>(&self, removal: &'r Removal) -> Option<&'r TableMark> {
        removal.watermark().tables.get(self.table)
    }

    /// The version that readers use; of a table that is not replicated any more, the last one.
    fn current<'v>(&self, removal: &Removal, versions: &'v Versions) -> Result<&'v TableSchema> {
        let number = self.mark(removal).and_then(|mark| mark.version);
        let found = number.map_or_else(|| versions.values().next_back(), |number| versions.get(&number));
        found.map(Arc::as_ref).ok_or_else(|| Error::bug(format!("{}: a current version that was not read", self.table)))
    }

    /// Refuses while the source has the row, while a copy may still bring it, and while the lake has not come to its deletion. Returns what
    /// was given as the source prints it, and the position at which it said so.
    async fn gone(&self, removal: &Removal, given: Vec<Given>) -> Result<(Vec<Given>, Lsn)> {
        let cut = point::cut(self.config, removal.watermark(), std::slice::from_ref(self.table)).await?;
        let mark = self.mark(removal);
        let streamed = mark.is_some_and(|mark| mark.mode == Mode::Stream);
        let Some(table) = cut.tables.first() else {
            tracing::warn!(table = %self.table, "the table is not at the source any more, so only the lake says that the row is gone");
            if streamed {
                self.reached(&cut).await?;
            }
            return Ok((given, cut.point));
        };
        let given = source::refuse_present(&cut.client, table, &given, self.hash.as_ref()).await?;
        let watermark = if streamed { self.reached(&cut).await? } else { removal.watermark().clone() };
        let pending = watermark.tables.get(self.table).is_some_and(|mark| !mark.pending.is_empty());
        if pending || self.is_proposed().await? || !source::copies_under_way(&cut.client, table).await?.is_empty() {
            return Err(Error::retry(format!(
                "{}: a copy of it is under way, or waits to be taken in, and may have read the row before it was deleted: forget it again once \
                 `huella status` shows no pending copy",
                self.table
            )));
        }
        Ok((given, cut.point))
    }

    async fn reached(&self, cut: &point::Cut) -> Result<crate::lake::Watermark> {
        cut.reached(self.config, self.store.as_ref()).await.map_err(|error| match error.kind() {
            Kind::Retry => Error::source_refused(format!(
                "{}: the lake has not come to the deletion yet, and would bring rows of this key again: let `huella run` catch up, then forget it",
                self.table
            ))
            .with_source(error),
            _ => error,
        })
    }

    /// Whether a finished copy of the table waits for the writer.
    async fn is_proposed(&self) -> Result<bool> {
        for meta in persist("list proposals", || self.store.list(PROPOSALS)).await? {
            let Some(object) = persist("read a proposal", || self.store.get(&meta.path)).await? else { continue };
            let proposal =
                Proposal::parse(&meta.path, &object.body).map_err(|e| Error::lake("a proposal cannot be read").with_source(e))?;
            if proposal.tables.iter().any(|proposed| proposed.table == *self.table) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks for the rows in all files.
    async fn plan(&self, removal: &Removal, versions: &Versions, current: u32, seeds: &BTreeMap<u32, Seed>) -> Result<Plan> {
        let mut files = Files::new();
        for live in removal.live(versions) {
            files.entry(live.file.version).or_default().push(live);
        }
        let (mut history, loose) = scan::first(&self.store, versions, &files, seeds).await?;
        let (mut looked_for, mut found) = (BTreeSet::new(), trace::trace(&history));
        loop {
            let wanted: BTreeSet<_> = found.wanted.difference(&looked_for).copied().collect();
            if wanted.is_empty() && found.watched.is_empty() {
                break;
            }
            scan::again(&self.store, versions, &files, &mut history, &wanted, &found.watched).await?;
            looked_for.extend(wanted);
            found = trace::trace(&history);
        }
        let floor = history.floors.get(&current).and_then(|floors| floors.last().copied());
        let replicated = self.mark(removal).is_some();
        let above = |event: &Event| floor.is_none_or(|floor| event.position > floor);
        let left: i64 = loose
            .iter()
            .filter(|(of, event)| *of == current && above(event))
            .map(|(_, event)| if event.op == Op::Delete { -1 } else { 1 })
            .sum();
        if replicated && (found.open.contains(&current) || left != 0) {
            return Err(self.still_there(removal));
        }
        let merged = merged(self.store.as_ref()).await?;
        let needed = |version: u32, event: &Event| {
            replicated && version == current && event.op == Op::Delete && above(event) && event.position.0 >= merged
        };
        let mut plan = Plan::default();
        for (version, event) in found.ours.iter().filter(|(version, event)| needed(*version, event)) {
            plan.waiting.push(WaitingDelete { version: *version, at: event.position });
        }
        let kept: HashSet<(u32, u32)> =
            found.ours.iter().filter(|(version, event)| needed(*version, event)).map(|(_, event)| event.place).collect();
        let whole = self.not_reduced(versions, current, files.get(&current).map_or(&[], Vec::as_slice), &kept).await?;
        for (version, event) in found.ours.iter().chain(&loose) {
            let (file, row) = (&files[version][event.place.0 as usize].file, event.place.1 as usize);
            let edit = || Edit { keep: Bits::first(file.rows), reduce: Bits::default() };
            if *version != current || !kept.contains(&event.place) {
                plan.edits.entry(file.path.clone()).or_insert_with(edit).keep.clear(row);
                plan.rows += 1;
            } else if whole.contains(&event.place) {
                plan.edits.entry(file.path.clone()).or_insert_with(edit).reduce.set(row);
            }
        }
        plan.files = plan.edits.len() as u64;
        Ok(plan)
    }

    /// Those of the DELETE rows that hold more than their key.
    async fn not_reduced(
        &self,
        versions: &Versions,
        current: u32,
        files: &[LiveFile],
        kept: &HashSet<(u32, u32)>,
    ) -> Result<HashSet<(u32, u32)>> {
        let numbers: Vec<u32> = kept.iter().map(|(file, _)| *file).collect::<BTreeSet<_>>().into_iter().collect();
        let some: Vec<LiveFile> = numbers.iter().map(|file| files[*file as usize].clone()).collect();
        let schema = &versions[&current];
        let all: Vec<String> = schema.columns.iter().map(|column| column.name.clone()).collect();
        let (kept, numbers) = (Arc::new(kept.clone()), Arc::new(numbers));
        each_row(
            &self.store,
            schema,
            &some,
            looked_at(schema, &all),
            HashSet::new(),
            move |found: &mut HashSet<_>, file, number, row, at| {
                let place = (numbers[file as usize], number);
                if kept.contains(&place) && !row.is_reduced(at) {
                    found.insert(place);
                }
                Ok(())
            },
        )
        .await
    }

    fn still_there(&self, removal: &Removal) -> Error {
        let next = match self.mark(removal).map(|mark| mark.mode) {
            Some(Mode::Snapshot) => format!("its last copy still has the row: `huella snapshot {}` first, then forget it", self.table),
            _ => "the lake's state still has the row, under this key or under one that it was given since: delete it at the source, let \
                  `huella run` bring the deletion, then forget it"
                .to_owned(),
        };
        Error::source_refused(format!("{}: {next}", self.table))
    }

    /// Writes the receipt, which counts once the record of compaction names it.
    async fn receipt(&self, versions: &Versions, plan: Plan, through: Lsn) -> Result<(String, Forgotten)> {
        let receipt = Forgotten {
            format: FORMAT,
            table: self.table.clone(),
            versions: versions.keys().copied().collect(),
            through,
            files: plan.files,
            rows: plan.rows,
            waiting: plan.waiting,
            begun: rfc3339(chrono::Utc::now().timestamp_micros()),
            replaced: None,
            gone_after: None,
            gone: None,
        };
        let path = receipt.path(commit::random());
        put_document(self.store.as_ref(), &path, receipt.to_body()).await?;
        failpoint::hit("forget.after_receipt");
        Ok((path, receipt))
    }

    /// Completes the receipt, lets the published manifests follow, and begins the grace of the files that held the rows.
    async fn tell(&self, removal: &mut Removal, path: &str, mut receipt: Forgotten) -> Result<()> {
        let store = self.store.as_ref();
        receipt.replaced_at(chrono::Utc::now(), self.config.compact.grace);
        commit::put_or_replace(store, path, receipt.to_body()).await?;
        // Manifests keep the files that they name; readers of the cut would go on reading the rows.
        if publish::current(store).await?.is_some()
            && let Err(error) = publish::run(self.config).await
        {
            tracing::warn!(error = %error.full(), "the published manifests still name the old files: `huella publish` again");
        }
        failpoint::hit("forget.after_publish");
        removal.sweep().await?;
        tracing::info!(table = %self.table, rows = receipt.rows, files = receipt.files, waiting = receipt.waiting.len(), receipt = path, "forgotten");
        let mut told =
            vec![format!("{}: {} rows of this key are gone from the live files ({} rewritten)", self.table, receipt.rows, receipt.files)];
        if !receipt.waiting.is_empty() {
            let rows = receipt.waiting.len();
            told.push(format!(
                "{rows} DELETE rows keep the key alone until the published cut is merged; then `huella compact` takes them out"
            ));
        }
        let when = receipt.gone_after.as_deref().unwrap_or("its grace");
        told.push(format!("the first `huella compact` after {when} deletes the files that held them"));
        told.push(store.uri(path));
        stdout::lines(told)
    }
}
