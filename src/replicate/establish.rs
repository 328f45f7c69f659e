//! The first start, and making everything anew after a lost slot.
//!
//! Owns: the first watermark, the slot's making, the versions that wait for their first copy. Invariants: at any
//! moment a crash leaves either no watermark, or one that says `creating` (which the next start goes on with),
//! or a slot at exactly the watermark; a slot that we did not intend is never dropped.

use super::membership::{self, mark};
use super::registry::{next_version, put_schema};
use super::source::{self, privacy};
use super::writer::Writer;
use crate::commit::{Change, Held, claim, create, damage, epoch_used, load, load_any};
use crate::config::{Config, Mode as TableMode};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::lake::{Pending, PublicationMark, SlotState, Source, TableMark, WATERMARK_FORMAT, Watermark, rfc3339, schema_name};
use crate::lsn::{CommitSeq, Epoch, Lsn};
use crate::postgres::catalogue::Table;
use crate::postgres::error::screened;
use crate::postgres::slot::Dropped;
use crate::postgres::{self, Replication, System, connect_sql, publication, server, slot};
use crate::schema::version::{Fit, TableSchema};
use crate::shapes::{Edit, TableEdit};
use crate::snapshot::{CopyJob, next_group, prepare};
use crate::table_name::TableName;
use crate::wait::TELL_EVERY;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

/// Pause between two looks at somebody else's first start.
const TURN_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two looks for a first table, and how often the wait is told.
const EMPTY_PAUSE: Duration = Duration::from_secs(2);
const EMPTY_TOLD_EVERY: Duration = Duration::from_secs(60);
/// How long a slot's holder that was fenced may need to leave.
const HOLDER_PATIENCE: Duration = Duration::from_secs(20);

/// Whether there was something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Established {
    /// The lake stood already.
    Before,
    /// It was established; the claim is held.
    Now,
}

/// Establishes the lake if it is not, or if `resnapshot` asks for it.
pub(crate) async fn establish(writer: &mut Writer, resnapshot: bool) -> Result<Established> {
    let standing = standing(writer, resnapshot).await?;
    if !resnapshot && standing.as_ref().is_some_and(|w| w.slot_state == SlotState::Ready) {
        return Ok(Established::Before);
    }
    let client = connect_sql(&writer.options).await?;
    let info = source::check_server(&client, &writer.config).await?;
    // Of two first starts one goes on, the other waits here until that has ended or died.
    turn(&client, &writer.config.source.slot, writer.take_over).await?;
    let standing = self::standing(writer, resnapshot).await?;
    if !resnapshot && standing.as_ref().is_some_and(|w| w.slot_state == SlotState::Ready) {
        return Ok(Established::Before);
    }
    let begun = standing.as_ref().filter(|w| w.through.is_some());
    let known = begun.map(|w| w.streamed().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>());
    let tables = first_tables(writer, &client, known.as_ref()).await?;
    let mut replication = Replication::connect(&writer.options).await?;
    let system = replication.identify_system().await?;
    replication.terminate().await;
    if standing.is_none() && !writer.config.snapshot.initial {
        return adopt(writer, &client, &tables, &system, &info.database).await;
    }
    let left_behind = damaged(writer, standing.as_ref()).await?;
    let held = intend(writer, &client, standing, resnapshot, &system, &info.database).await?;
    free_slot(&client, &writer.config.source.slot).await?;
    let before = held.watermark().source.publication.clone();
    prepare_publication(&client, &writer.config, &tables, resnapshot, before.as_ref()).await?;
    promote(writer, &client, held, &tables, &system, left_behind).await?;
    // Until the slot is held: a second first start that came in between would take it, and fence this one.
    writer.turn = Some(client);
    Ok(Established::Now)
}

/// The watermark there is; of a former layout only if everything begins again.
async fn standing(writer: &Writer, resnapshot: bool) -> Result<Option<Watermark>> {
    let store = writer.store.as_ref();
    let found = if resnapshot { load_any(store).await? } else { load(store).await? };
    Ok(found.map(|(watermark, _)| watermark))
}

/// Waits for the session-level lock that only one establishing process holds; it ends with `client`.
async fn turn(client: &Client, slot: &str, mut take_over: bool) -> Result<()> {
    let mut told: Option<Instant> = None;
    loop {
        let sql = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext('huella'), pg_catalog.hashtext($1))";
        if postgres::one(client, "taking the turn for a first start", sql, &[(&slot, Type::TEXT)]).await?.get(0)? {
            return Ok(());
        }
        let holder = server::advisory_holder(client, slot).await?;
        if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            tracing::info!(
                slot,
                server_pid = holder,
                "another process makes the first start, waiting until it has (`huella run --take-over` ends its session)"
            );
            told = Some(Instant::now());
        }
        if let Some(pid) = holder.filter(|_| std::mem::take(&mut take_over)) {
            tracing::warn!(pid, "ending the session of another first start: --take-over was asked for");
            server::terminate(client, pid).await?;
        }
        tokio::time::sleep(TURN_PAUSE).await;
    }
}

/// The tables to begin with; `known`: those of a lake that has begun. Without a list an always-on writer waits for the first one: beside a new project it would else be restarted in vain
/// until somebody makes a table.
async fn first_tables(writer: &Writer, client: &Client, known: Option<&BTreeSet<TableName>>) -> Result<Vec<Table>> {
    let mut told: Option<Instant> = None;
    loop {
        let wanted = match known {
            Some(known) => source::wanted(client, &writer.config, known, &writer.ended).await?,
            // Nothing is a new table yet (`source.new_tables`).
            None => source::wanted_first(client, &writer.config).await?,
        };
        for (table, reason) in &wanted.unfit {
            tracing::error!(table = %table, reason, "the table cannot be replicated any more; the others are copied without it");
        }
        let tables = wanted.fit();
        if !tables.is_empty() {
            return Ok(tables);
        }
        if writer.config.tables.is_some() {
            return Err(Error::source_refused("there is no table to stream: [[table]] names none in mode \"stream\""));
        }
        if writer.target.is_some() {
            return Err(Error::source_refused(
                "there is no table to stream yet: none of schema public can be streamed (`huella check` names those that cannot). \
                 Make one with a primary key, or name tables of other schemas under [[table]]",
            ));
        }
        if told.is_none_or(|at| at.elapsed() >= EMPTY_TOLD_EVERY) {
            tracing::warn!(
                "no table of schema public can be streamed yet, waiting for the first one (`huella check` names those that cannot)"
            );
            told = Some(Instant::now());
        }
        tokio::time::sleep(EMPTY_PAUSE).await;
    }
}

fn blank(writer: &Writer, system: &System, database: &str) -> Watermark {
    Watermark {
        format: WATERMARK_FORMAT,
        epoch: Epoch(1),
        writer: writer.id.clone(),
        tenure: writer.tenure,
        seq: CommitSeq(0),
        through: None,
        last_transaction: None,
        slot_state: SlotState::Creating,
        commit: None,
        commit_time: rfc3339(chrono::Utc::now().timestamp_micros()),
        alive_at: None,
        source: Source {
            system_identifier: system.identifier.clone(),
            timeline: system.timeline,
            database: database.to_owned(),
            slot: writer.config.source.slot.clone(),
            publication: None,
        },
        tables: BTreeMap::new(),
        pending_since: BTreeMap::new(),
        retired: BTreeMap::new(),
    }
}

/// Whether the lake's history is damaged, so that it is left behind: a copy of everything begins a new one.
async fn damaged(writer: &Writer, standing: Option<&Watermark>) -> Result<bool> {
    let Some(standing) = standing.filter(|watermark| watermark.through.is_some()) else { return Ok(false) };
    let found = damage(writer.store.as_ref(), standing, usize::MAX).await?;
    if let Some(what) = &found {
        tracing::warn!(what, "the lake is damaged: its history is left behind, and a new one begins with a copy of everything");
    }
    Ok(found.is_some())
}

/// Records the intent to make the slot, before anything is made.
async fn intend(
    writer: &Writer,
    client: &Client,
    standing: Option<Watermark>,
    resnapshot: bool,
    system: &System,
    database: &str,
) -> Result<Held> {
    let name = &writer.config.source.slot;
    match standing {
        None => {
            if slot::read(client, name).await?.is_some() {
                return Err(Error::source_refused(format!(
                    "replication slot {name:?} exists and the lake is empty. Set [snapshot] initial = false to go on from its position without a copy, \
                     or choose another source.slot, or drop it: SELECT pg_drop_replication_slot('{name}')"
                )));
            }
            let held = create(Arc::clone(&writer.store), blank(writer, system, database)).await?;
            held.ok_or_else(|| Error::retry("another first start was quicker"))
        }
        Some(found) => {
            if found.source.slot != *name {
                return Err(Error::lake(format!(
                    "the lake belongs to slot {:?}, not {name:?}: correct source.slot or lake.url",
                    found.source.slot
                )));
            }
            if found.slot_state == SlotState::Creating && found.through.is_none() && found.source.system_identifier != system.identifier {
                return Err(Error::source_refused("the lake's first start was begun on another cluster: use another lake.url"));
            }
            if resnapshot {
                tracing::warn!("making the slot anew and copying every table");
            }
            // Where an earlier watermark was put back, names of its next epochs are used already.
            let used = epoch_used(writer.store.as_ref()).await?;
            let creating = |w: &mut Watermark| (w.slot_state, w.epoch) = (SlotState::Creating, w.epoch.max(Epoch(used.0 + 1)));
            claim(Arc::clone(&writer.store), (&writer.id, writer.tenure), |_| Ok(()), creating).await
        }
    }
}

/// Drops the slot that the intent names; whoever holds it was fenced by the claim.
async fn free_slot(client: &Client, name: &str) -> Result<()> {
    let since = Instant::now();
    loop {
        match slot::drop_if_inactive(client, name).await? {
            Dropped::Gone | Dropped::Absent => return Ok(()),
            Dropped::Active => {
                if since.elapsed() > HOLDER_PATIENCE
                    && let Some(pid) = slot::read(client, name).await?.and_then(|s| s.active_pid)
                {
                    tracing::warn!(pid, "ending the session that holds the slot");
                    slot::terminate_holder(client, name, pid).await?;
                }
                tokio::time::sleep(TURN_PAUSE).await;
            }
        }
    }
}

async fn prepare_publication(
    client: &Client,
    config: &Config,
    tables: &[Table],
    resnapshot: bool,
    before: Option<&PublicationMark>,
) -> Result<()> {
    let name = &config.source.publication;
    if resnapshot
        && let Some(found) = publication::read(client, name).await?
        && !(found.insert && found.update && found.delete && found.truncate)
        && found.owner_is_me
    {
        let sql = format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')", crate::table_name::quote_ident(name));
        client.batch_execute(&sql).await.map_err(|e| Error::source_refused(format!("{sql} was refused")).with_source(screened(e)))?;
    }
    let known = before.map(|mark| mark.tables.keys().cloned().collect()).unwrap_or_default();
    let left_out = membership::ensure(client, config, tables, true, before, &known).await?;
    for (table, reason) in left_out {
        tracing::warn!(table = %table, reason, "the table is left out for now; the others are copied without it");
    }
    Ok(())
}

/// Locks, makes and promotes the slot, and says `ready` with every table pending.
async fn promote(
    writer: &mut Writer,
    client: &Client,
    mut held: Held,
    tables: &[Table],
    system: &System,
    leaves_history: bool,
) -> Result<()> {
    let config = &writer.config;
    // The others are copied later, at points of their own.
    let names = next_group(tables.iter().map(|table| (table.name.clone(), Some(table))), writer.copy_workers());
    let all = source::observe(client, config, tables.to_vec()).await?;
    let published = mark(config, &all.publication);
    let prepared = prepare(&writer.options, &names, writer.copy_workers()).await?;
    let observed = source::observe(client, config, prepared.tables.clone()).await?;
    if mark(config, &observed.publication) != published {
        // What was sent between the consistent point and the edit was chosen by other rules than the copy's.
        return Err(Error::retry("the publication was edited while the slot was made"));
    }
    let mut filters = prepared.filters(&config.source.publication).await?;
    let copied_slot = slot::copy(client, &prepared.slot, &config.source.slot).await?;
    if copied_slot != prepared.point {
        return Err(Error::retry(format!("the promoted slot stands at {copied_slot}, not at {}", prepared.point)));
    }
    failpoint::hit("start.after_promote");
    let before = held.watermark().clone();
    let (point, through) = (prepared.point, before.through);
    let broken = leaves_history
        || through.is_some_and(|t| point < t)
        || (through.is_some() && (before.source.system_identifier != system.identifier || before.source.timeline != system.timeline));
    let mut jobs = Vec::new();
    let mut edits = vec![Edit::Publication(mark(config, &observed.publication))];
    let later = all.tables.values().filter(|table| !names.contains(&table.name));
    for table in observed.tables.values().chain(later) {
        let schema = version_for(writer, &before, table, broken).await?;
        let document = schema_name(before.epoch, &format!("r{:016x}", crate::commit::random()));
        put_schema(held.store().as_ref(), &schema, &document).await?;
        edits.extend(owed(&before, table, schema.version, document, point));
        if !names.contains(&table.name) {
            continue;
        }
        let filter = filters.remove(&table.oid);
        if filter.is_some() != observed.publication.tables.get(&table.name).is_some_and(|published| published.row_filter) {
            return Err(Error::retry(format!("the publication's row filter of {} was changed just now", table.name)));
        }
        jobs.push(CopyJob::new(Arc::new(schema), table, filter));
    }
    let gone = before.streamed().filter(|(name, _)| !all.tables.contains_key(*name));
    let at = rfc3339(chrono::Utc::now().timestamp_micros());
    edits.extend(gone.map(|(name, _)| Edit::Retire { table: name.clone(), at: at.clone() }));
    let identity = system.clone();
    let ready = move |w: &mut Watermark| {
        w.through = Some(point);
        w.last_transaction = None; // the new slot sends nothing again
        w.slot_state = SlotState::Ready;
        w.source.system_identifier = identity.identifier;
        w.source.timeline = identity.timeline;
        if broken {
            // Positions begin anew: a catalogue's next copy begins a version, whatever its S. Until then its last one stands.
            let catalogues = w.tables.values_mut().filter(|mark| mark.mode == TableMode::Snapshot);
            catalogues.for_each(|mark| (mark.snapshot, mark.content) = (None, None));
        }
        edits.iter().for_each(|edit| edit.apply(w));
        if leaves_history {
            // What readers have is lost or in doubt: a table has no version until its copy is there, and a snapshot table is unknown.
            w.tables.retain(|_, mark| mark.mode == TableMode::Stream);
            w.tables.values_mut().for_each(|mark| (mark.version, mark.snapshot) = (None, None));
        }
    };
    match through {
        None => held.edit(ready).await?,
        // What lies between the old position and this one is superseded by the copies; the commit covers it, so that the chain has no gap.
        Some(_) => held.commit(Change { through: point, reset: broken, leaves_history, ..Change::default() }, ready).await?,
    }
    failpoint::hit("start.after_ready");
    tracing::info!(through = %point, tables = jobs.len(), "the slot stands; streaming while the tables are copied");
    writer.held = Some(held);
    writer.prepared = Some((prepared, jobs));
    Ok(())
}

/// A table that owes the copy which is prepared at `point`: a new one, or one that the lake has.
fn owed(before: &Watermark, table: &Table, version: u32, document: String, point: Lsn) -> Vec<Edit> {
    let name = &table.name;
    let known = before.tables.get(name).filter(|mark| mark.mode == TableMode::Stream);
    let reason = if known.is_some() { "a new copy of everything was asked for" } else { "its first copy" };
    let mut mark = known.cloned().unwrap_or_else(|| TableMark::new(table.oid, TableMode::Stream, table.look.clone()));
    mark.schemas.insert(version, document);
    mark.aside = None;
    let pending = Pending { version, since: Some(point), reason: Some(reason.to_owned()) };
    TableEdit::Owe(pending).apply(&mut mark);
    TableEdit::Reconciled(Box::new(table.look.clone())).apply(&mut mark);
    vec![Edit::Join { table: name.clone(), mark: Box::new(mark) }]
}

/// The version that a table's new copy belongs to: its current one if the shape is the same, else the next.
async fn version_for(writer: &Writer, before: &Watermark, table: &Table, broken: bool) -> Result<TableSchema> {
    let hidden = privacy(&writer.config, &table.name);
    let Some(known) = before.tables.get(&table.name).filter(|mark| mark.mode == TableMode::Stream) else {
        return Ok(TableSchema::begin(table, next_version(writer.store.as_ref(), &table.name).await?, &hidden));
    };
    let newest = known.newest().unwrap_or(0);
    if newest > 0 {
        match crate::commit::schema(writer.store.as_ref(), before, &table.name, newest).await {
            // Positions of another table's columns say nothing of this one's names.
            Ok(schema) if broken || schema.oid != table.oid => schema.guard_key(&hidden)?,
            Ok(schema) if schema.honours(&hidden, table)? && matches!(schema.fit_catalogue(table, &hidden), Fit::Same(_)) => {
                return Ok(schema);
            }
            Err(error) if error.is_retry() => return Err(error),
            Ok(_) | Err(_) => {} // what cannot be read is not gone on with
        }
    }
    Ok(TableSchema::begin(table, next_version(writer.store.as_ref(), &table.name).await?.max(newest + 1), &hidden))
}

/// `initial = false`: goes on from a slot's position, without a copy.
async fn adopt(writer: &mut Writer, client: &Client, tables: &[Table], system: &System, database: &str) -> Result<Established> {
    let config = &writer.config;
    membership::ensure(client, config, tables, true, None, &BTreeSet::new()).await?;
    let observed = source::observe(client, config, tables.to_vec()).await?;
    let made = slot::read(client, &config.source.slot).await?.is_none();
    if made {
        client
            .execute("SELECT pg_catalog.pg_create_logical_replication_slot($1::text::name, 'pgoutput')", &[&config.source.slot])
            .await
            .map_err(|e| Error::retry("making the replication slot").with_source(screened(e)))?;
    }
    let found = slot::read(client, &config.source.slot).await?;
    let through: Lsn =
        found.and_then(|s| s.confirmed_flush).ok_or_else(|| Error::source_refused("the slot has no position: it is lost or physical"))?;
    // What a table was before it was published, the slot's past does not tell: neither of one that was added just now, nor of one that somebody
    // (a start of ours that was interrupted, say) added after the slot was made.
    let since = slot::catalog_xmin(client, &config.source.slot).await?;
    let precedes = |xid: u32| since.is_some_and(|since| (xid.wrapping_sub(since) as i32) < 0);
    let publication = &observed.publication;
    let covered = |table: &Table| {
        let published = publication.tables.get(&table.name);
        made || published.is_some_and(|row| precedes(if row.oid == 0 { publication.xmin } else { row.xmin }))
    };
    let mut watermark = blank(writer, system, database);
    watermark.slot_state = SlotState::Ready;
    watermark.through = Some(through);
    Edit::Publication(mark(config, &observed.publication)).apply(&mut watermark);
    for table in observed.tables.values() {
        let schema = TableSchema::begin(table, 1, &privacy(config, &table.name));
        let document = schema_name(watermark.epoch, &format!("r{:016x}", crate::commit::random()));
        put_schema(writer.store.as_ref(), &schema, &document).await?;
        let mut mark = TableMark::new(table.oid, TableMode::Stream, table.look.clone());
        mark.schemas.insert(1, document);
        if covered(table) {
            mark.version = Some(1);
        } else {
            let reason = "it may not have been published at the slot's position, so that changes since then are missing";
            tracing::warn!(table = %table.name, reason, "copying the table, though snapshot.initial is false");
            mark.pending.push(Pending { version: 1, since: Some(observed.position), reason: Some(reason.to_owned()) });
        }
        Edit::Join { table: table.name.clone(), mark: Box::new(mark) }.apply(&mut watermark);
    }
    match create(Arc::clone(&writer.store), watermark).await? {
        Some(held) => {
            tracing::info!(through = %through, "goes on from the slot's position, without a first copy");
            writer.held = Some(held);
            Ok(Established::Now)
        }
        None => Err(Error::retry("another first start was quicker")),
    }
}
