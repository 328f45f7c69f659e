//! `huella snapshot`: full copies made by a process of its own, and handed to whoever holds the lake.
//!
//! Owns: which tables are copied, the proposal, waiting until it is taken, taking it where nobody runs. Does not own: copying
//! (`snapshot`), what a writer does with a proposal (`proposals`). Invariants: only a holder of the epoch moves the watermark; all tables
//! of one call become current in one commit; a crash leaves orphans, or a whole proposal that the next writer takes or finds void.

use super::membership::mark;
use super::proposals::{Found, Together, remove};
use super::registry::{next_version, put_schema};
use super::source::{self, privacy};
use super::supervise::{Mode, run_until_taken};
use crate::commit::{self, Change, FileNamer, chain_since, claim, load, put_document, random, writer_id};
use crate::config::{Config, Mode as TableMode};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::lake::{FORMAT, Proposal, ProposedTable, Tenure, Watermark, schema_name};
use crate::lsn::CommitSeq;
use crate::postgres::catalogue::{self, Table};
use crate::postgres::{ConnectOptions, Replication, System, connect_sql, slot};
use crate::schema::HashKey;
use crate::schema::version::{Fit, TableSchema};
use crate::snapshot::{Copied, CopyJob, Prepared, content, copy_all, prepare, prepare_catalogues};
use crate::stdout;
use crate::store::Store;
use crate::table_name::TableName;
use crate::wait::TELL_EVERY;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_postgres::Client;

/// A void proposal is made anew this often: something changed the tables each time, and a person should look.
const ATTEMPTS: u32 = 5;
/// How often the watermark is looked at while the writer is waited for.
const POLL: Duration = Duration::from_millis(500);
/// A writer that commits nothing for so many heartbeats, and holds no slot as long, is not there.
const HEARTBEATS: u32 = 3;

/// What is to be copied.
struct Plan {
    catalogues: Vec<TableName>,
    streamed: Vec<TableName>,
}

/// What was seen of a writer that may be gone.
#[derive(Default)]
struct Absence {
    /// Since when nobody streams from the slot, as far as this process has looked.
    slot_free_since: Option<Instant>,
}

/// How a proposal ended.
enum Ended {
    Taken(CommitSeq),
    Void(String),
}

/// What a proposal says of a table beside its copy.
#[derive(Debug, Clone, Default)]
struct Offered {
    /// Version that was current.
    base: Option<u32>,
    /// Digest of a snapshot table's rows.
    content: Option<String>,
    /// Schema document of the copy's version.
    document: String,
}

/// What all steps need.
struct Offer<'a> {
    config: &'a Config,
    options: ConnectOptions,
    store: Arc<dyn Store>,
    hash_key: Option<HashKey>,
    id: String,
}

/// Copies `names` (none: the tables in mode snapshot) and waits until the copies are committed; prints a line for each table.
///
/// # Errors
/// `Kind::Usage` for a table that is neither configured nor in the lake; `Kind::Lake` where no first start was made; `Kind::SourceRefused`
/// for a table that cannot be copied whole; `Kind::Retry` if its definition keeps changing.
pub async fn snapshot(config: Config, names: &[TableName], mut stop: watch::Receiver<bool>) -> Result<()> {
    let offer = Offer {
        options: ConnectOptions::parse(config.source.url.expose(), config.source.tls_ca.as_deref())?,
        store: crate::store::open(&config.lake.url).await?,
        hash_key: config.hash_key.as_ref().map(|key| HashKey::new(key.expose().as_bytes())),
        id: writer_id(),
        config: &config,
    };
    let mut reason = String::new();
    for _ in 0..ATTEMPTS {
        let watermark = offer.standing().await?;
        let plan = Plan::of(&config, &watermark, names)?;
        if plan.catalogues.is_empty() && plan.streamed.is_empty() {
            return stdout::line("no table is in mode = \"snapshot\": nothing to copy");
        }
        let Some(proposal) = offer.copies(&plan, &watermark).await? else { return Ok(()) };
        let path = proposal.path(random());
        put_document(offer.store.as_ref(), &path, proposal.to_body()).await?;
        failpoint::hit("snapshot.after_proposal");
        let found = Found { path, proposal };
        match offer.hand_over(&found, watermark.seq, &mut stop).await? {
            Ended::Taken(seq) => return found.proposal.tables.iter().try_for_each(|table| stdout::line(&copied(table, seq))),
            Ended::Void(why) => {
                tracing::warn!(reason = why, "the copy was void, copying again");
                reason = why;
            }
        }
    }
    Err(Error::retry(format!("the copies were void {ATTEMPTS} times: {reason}")))
}

fn copied(table: &ProposedTable, seq: CommitSeq) -> String {
    let files = table.files.len();
    format!("{}: version {}, {} rows in {files} files as of {}, commit {}", table.table, table.version, table.rows, table.snapshot, seq.0)
}

impl Plan {
    fn of(config: &Config, watermark: &Watermark, names: &[TableName]) -> Result<Self> {
        let mut plan = Plan { catalogues: Vec::new(), streamed: Vec::new() };
        if names.is_empty() {
            let catalogues = config.tables.iter().flatten().filter(|t| t.mode == TableMode::Snapshot);
            plan.catalogues = catalogues.map(|t| t.name.clone()).collect();
        }
        for name in names {
            if config.table(name).is_some_and(|t| t.mode == TableMode::Snapshot) {
                plan.catalogues.push(name.clone());
            } else if watermark.streamed().any(|(known, mark)| known == name && mark.version.is_some()) {
                plan.streamed.push(name.clone());
            } else if watermark.streamed().any(|(known, _)| known == name) {
                return Err(Error::retry(format!("{name} waits for its first copy, which `huella run` makes")));
            } else {
                return Err(Error::usage(format!(
                    "{name} is neither streamed into the lake nor configured as a catalogue ([[table]] with mode = \"snapshot\")"
                )));
            }
        }
        for list in [&mut plan.catalogues, &mut plan.streamed] {
            list.sort();
            list.dedup();
        }
        Ok(plan)
    }
}

impl Offer<'_> {
    /// The watermark of a lake whose first start is done.
    async fn standing(&self) -> Result<Watermark> {
        match load(self.store.as_ref()).await? {
            Some((watermark, _)) if watermark.through.is_some() => Ok(watermark),
            _ => Err(Error::lake(format!(
                "{} has no lake yet, or its first start is not complete: `huella run` (or `huella run --until-caught-up`) makes it",
                self.store.uri("")
            ))),
        }
    }

    /// Copies what is planned; `None` if nothing changed.
    async fn copies(&self, plan: &Plan, watermark: &Watermark) -> Result<Option<Proposal>> {
        let mut replication = Replication::connect(&self.options).await?;
        let system = replication.identify_system().await?;
        replication.terminate().await;
        self.refuse_foreign(watermark, &system)?;
        let mut tables = Vec::new();
        if !plan.catalogues.is_empty() {
            tables.extend(self.catalogues(&plan.catalogues, watermark).await?);
        }
        if !plan.streamed.is_empty() {
            tables.extend(self.streamed(&plan.streamed, watermark).await?);
        }
        let (system_identifier, timeline) = (system.identifier, system.timeline);
        Ok((!tables.is_empty()).then(|| Proposal { format: FORMAT, writer: self.id.clone(), system_identifier, timeline, tables }))
    }

    fn refuse_foreign(&self, watermark: &Watermark, system: &System) -> Result<()> {
        if (&watermark.source.system_identifier, watermark.source.timeline) != (&system.identifier, system.timeline) {
            return Err(Error::source_refused(format!(
                "{} is another cluster or timeline than the lake follows: `huella run` says what to do",
                self.options.describe()
            )));
        }
        Ok(())
    }

    /// The catalogues that changed, all as of one point.
    async fn catalogues(&self, names: &[TableName], watermark: &Watermark) -> Result<Vec<ProposedTable>> {
        // Before any lock: what is not there, or no table, is the configuration's fault, and LOCK TABLE would only say that it failed.
        let client = connect_sql(&self.options).await?;
        let there = catalogue::tables(&client, names).await?;
        for name in names {
            let table = there.iter().find(|t| t.name == *name);
            let gone = || Error::source_refused(format!("table {name} does not exist: correct [[table]] name, or create it"));
            source::refuse_unfit_catalogue(self.config, table.ok_or_else(gone)?)?;
        }
        let prepared = prepare_catalogues(&self.options, names, self.config.snapshot.workers).await?;
        let mut jobs = Vec::new();
        let mut offered = BTreeMap::new();
        for name in names {
            let table = prepared.tables.iter().find(|t| t.name == *name);
            let table = table.ok_or_else(|| Error::retry(format!("table {name} went away just now")))?;
            source::refuse_unfit_catalogue(self.config, table)?;
            let (schema, changed) = self.catalogue_version(table, watermark).await?;
            let job = CopyJob::new(Arc::new(schema), table, None);
            let digest = content(&prepared, &job, self.hash_key.as_ref()).await?;
            let mark = watermark.tables.get(name).filter(|m| m.mode == TableMode::Snapshot);
            if !changed && mark.is_some_and(|m| m.snapshot.is_some() && m.content.as_ref() == Some(&digest)) {
                stdout::line(&format!("{name}: unchanged"))?;
                continue;
            }
            let document = schema_name(watermark.epoch, &format!("r{:016x}", random()));
            put_schema(self.store.as_ref(), &job.schema, &document).await?;
            offered.insert(name.clone(), Offered { base: mark.and_then(|m| m.version), content: Some(digest), document });
            jobs.push(job);
        }
        let copied = self.copy(prepared, jobs, watermark).await?;
        Ok(copied.into_iter().map(|c| proposed(c, TableMode::Snapshot, &offered)).collect())
    }

    /// The version that a catalogue's present shape belongs to, and whether the lake must be told of it whatever the rows say.
    async fn catalogue_version(&self, table: &Table, watermark: &Watermark) -> Result<(TableSchema, bool)> {
        let hidden = privacy(self.config, &table.name);
        let mark = watermark.tables.get(&table.name).filter(|m| m.mode == TableMode::Snapshot && m.snapshot.is_some());
        if let Some(version) = mark.and_then(|m| m.version) {
            let known = commit::schema(self.store.as_ref(), watermark, &table.name, version).await?;
            if known.honours(&hidden, table)? {
                match known.fit_catalogue(table, &hidden) {
                    Fit::Same(_) => return Ok((known, false)),
                    Fit::Extends { schema, .. } => return Ok((*schema, true)),
                    Fit::Breaks(reason) => tracing::info!(table = %table.name, reason, "the catalogue begins a new version"),
                }
            }
        }
        Ok((TableSchema::begin(table, next_version(self.store.as_ref(), &table.name).await?, &hidden), true))
    }

    /// Streamed tables, all as of one slot's consistent point, in the versions that stand.
    async fn streamed(&self, names: &[TableName], watermark: &Watermark) -> Result<Vec<ProposedTable>> {
        let prepared = prepare(&self.options, names, self.config.snapshot.workers).await?;
        let client = connect_sql(&self.options).await?;
        let name = &self.config.source.publication;
        let observed = source::observe(&client, self.config, prepared.tables.clone()).await?;
        let mut filters = prepared.filters(name).await?;
        // A copy reads by the publication as it is behind S: only if that is the one the writer streams by do the two agree.
        if watermark.source.publication.as_ref() != Some(&mark(self.config, &observed.publication)) {
            return Err(Error::retry("the publication was edited: wait until `huella run` has followed, then ask again"));
        }
        let mut jobs = Vec::new();
        let mut offered = BTreeMap::new();
        for name in names {
            let changes = |why: &str| Error::retry(format!("{name} {why}: wait until `huella run` has followed, then ask again"));
            let table = observed.tables.get(name).ok_or_else(|| changes("is not there, or not in the publication"))?;
            let mark = watermark.tables.get(name).ok_or_else(|| changes("is no longer in the lake"))?;
            let unchanged = mark.pending.is_empty() && mark.aside.is_none() && mark.reconciled.same_rows(&table.look, true);
            let Some(version) = mark.version.filter(|_| unchanged) else {
                return Err(changes("has another definition than the lake, or is being copied"));
            };
            let schema = commit::schema(self.store.as_ref(), watermark, name, version).await?;
            if !schema.honours(&privacy(self.config, name), table)? {
                return Err(changes("has another exclude, hash or include in the configuration, or another hash key, than in the lake"));
            }
            jobs.push(CopyJob::new(Arc::new(schema), table, filters.remove(&table.oid)));
            let document = mark.schemas.get(&version).cloned().unwrap_or_default();
            offered.insert(name.clone(), Offered { base: Some(version), content: None, document });
        }
        let copied = self.copy(prepared, jobs, watermark).await?;
        Ok(copied.into_iter().map(|c| proposed(c, TableMode::Stream, &offered)).collect())
    }

    async fn copy(&self, prepared: Prepared, jobs: Vec<CopyJob>, watermark: &Watermark) -> Result<Vec<Copied>> {
        let (sender, mut done) = mpsc::channel(1);
        let namer = Arc::new(FileNamer::outside(watermark));
        // No stream is buffered beside it.
        let limit = usize::try_from(self.config.batch.memory / 2).unwrap_or(usize::MAX);
        let copying = copy_all(prepared, jobs, Arc::clone(&self.store), namer, self.hash_key.clone(), limit, sender);
        let collecting = async {
            let mut copied = Vec::new();
            while let Some(table) = done.recv().await {
                copied.push(table);
            }
            copied
        };
        let (ended, copied) = tokio::join!(copying, collecting);
        ended.map(|()| copied)
    }

    /// Waits until a writer takes the proposal; where none runs, becomes one.
    async fn hand_over(&self, found: &Found, seen: CommitSeq, stop: &mut watch::Receiver<bool>) -> Result<Ended> {
        let client = connect_sql(&self.options).await?;
        let (mut told, mut absence) = (None, Absence::default());
        loop {
            let there = commit::persist("look for the proposal", || self.store.head(&found.path)).await?.is_some();
            // The object is removed after the commit: gone and not in the chain means void.
            let watermark = self.standing().await?;
            if let Some(seq) = self.taken(found, &watermark, seen).await? {
                return Ok(Ended::Taken(seq));
            }
            if !there {
                let why = found.proposal.judge(&watermark).err();
                return Ok(Ended::Void(why.unwrap_or_else(|| "the writer removed it".to_owned())));
            }
            if *stop.borrow() {
                return Err(Error::retry("asked to stop; the copies are handed over, and the next writer takes them"));
            }
            if self.nobody_writes(&client, &watermark, &mut absence).await? {
                match self.alone(found, stop).await {
                    // A writer began meanwhile: it takes it.
                    Err(error) if error.kind() == Kind::Fenced || error.is_retry() => {
                        tracing::debug!(error = %error.full(), "not alone any more")
                    }
                    Ok(Some(ended)) => return Ok(ended),
                    Ok(None) => {}
                    Err(error) => return Err(error),
                }
            } else if told.is_none_or(|at: Instant| at.elapsed() >= TELL_EVERY) {
                told = Some(Instant::now());
                match absence.slot_free_since {
                    None => tracing::info!(
                        proposal = found.path,
                        writer = watermark.writer,
                        "the copies are handed to the writer, which takes them at its next heartbeat"
                    ),
                    Some(_) => tracing::info!(
                        proposal = found.path,
                        writer = watermark.writer,
                        "nobody streams from the slot now; waiting {} heartbeats for the writer to come back before its place is taken",
                        HEARTBEATS
                    ),
                }
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s) => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// The commit that names the proposal, if one since `seen` does.
    async fn taken(&self, found: &Found, watermark: &Watermark, seen: CommitSeq) -> Result<Option<CommitSeq>> {
        let since = chain_since(self.store.as_ref(), watermark, seen).await?;
        Ok(since.iter().find(|m| m.proposals.contains(&found.path)).map(|m| m.seq))
    }

    /// Whether it is plain that no writer is there: it said that it left, or slot and watermark have both stood still for three heartbeats. One
    /// that merely cannot reach the source comes back within that time, or begins again behind us (`Tenure::Passing`).
    async fn nobody_writes(&self, client: &Client, watermark: &Watermark, absence: &mut Absence) -> Result<bool> {
        let slot = slot::read(client, &watermark.source.slot).await?;
        let bound = self.config.batch.heartbeat * HEARTBEATS;
        let unused_for = match slot {
            Some(slot) if slot.active => {
                absence.slot_free_since = None;
                return Ok(false);
            }
            Some(slot) => slot.inactive_for,
            None => None,
        };
        let observed = absence.slot_free_since.get_or_insert_with(Instant::now).elapsed();
        if watermark.tenure == Tenure::Left {
            return Ok(true);
        }
        let age = chrono::DateTime::parse_from_rfc3339(&watermark.commit_time)
            .ok()
            .and_then(|at| chrono::Utc::now().signed_duration_since(at).to_std().ok());
        Ok(age.is_some_and(|age| age >= bound) && observed.max(unused_for.unwrap_or_default()) >= bound)
    }

    /// Nobody runs: catalogues are committed by claiming the epoch, streamed tables by streaming until the copy's point.
    async fn alone(&self, found: &Found, stop: &mut watch::Receiver<bool>) -> Result<Option<Ended>> {
        if found.proposal.tables.iter().any(|t| t.mode == TableMode::Stream) {
            tracing::info!("no writer runs: streaming until the copies' position is reached");
            run_until_taken(self.config.clone(), Mode { until_caught_up: true, ..Mode::default() }, stop.clone()).await?;
            return Ok(None); // the next look says whether it was taken or void
        }
        let void = |w: &Watermark| found.proposal.judge(w);
        let admit = |w: &Watermark| void(w).map_err(Error::retry);
        tracing::info!("no writer runs: committing the catalogues by a claim of the lake");
        let mut held = match claim(Arc::clone(&self.store), (&self.id, Tenure::Passing), admit, |_| {}).await {
            Ok(held) => held,
            Err(error) => {
                return match void(&self.standing().await?) {
                    Err(reason) => {
                        remove(&self.store, &found.path);
                        Ok(Some(Ended::Void(reason)))
                    }
                    Ok(()) => Err(error),
                };
            }
        };
        let copies = Together::from(found.clone());
        let change = Change {
            through: held.watermark().position(),
            files: copies.files,
            snapshots: copies.marks,
            proposals: copies.proposal.into_iter().collect(),
            ..Change::default()
        };
        // One write says both: what was committed, and that nobody holds the lake any more.
        let edit = |watermark: &mut Watermark| {
            copies.edits.iter().for_each(|edit| edit.apply(watermark));
            watermark.tenure = Tenure::Left;
        };
        held.commit(change, edit).await?;
        let seq = held.watermark().seq;
        failpoint::hit("snapshot.after_alone");
        // The commit stands whatever becomes of the object: the next writer finds it settled.
        if let Err(error) = self.store.delete(&found.path).await {
            tracing::debug!(error = %error, "the settled proposal could not be removed now");
        }
        Ok(Some(Ended::Taken(seq)))
    }
}

fn proposed(copied: Copied, mode: TableMode, offered: &BTreeMap<TableName, Offered>) -> ProposedTable {
    let Offered { base, content, document } = offered.get(&copied.mark.table).cloned().unwrap_or_default();
    ProposedTable {
        table: copied.mark.table,
        mode,
        oid: copied.oid,
        base,
        version: copied.mark.version,
        schema: document,
        look: *copied.look,
        snapshot: copied.mark.snapshot,
        rows: copied.mark.rows,
        content,
        files: copied.files,
    }
}
