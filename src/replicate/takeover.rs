//! Take-over: the slot first, the epoch second.
//!
//! Owns: getting the slot, the refusals that compare slot, server and watermark. Does not own: who else may hold it (`standby`).
//! Invariants: the lake is claimed only by who holds the slot; until then nothing is acknowledged; a hole is refused, never passed over.

use super::source::{primary, refuse_by_version};
use super::standby::{Standby, Verdict};
use super::writer::Writer;
use crate::commit::{CLAIM_MANIFESTS_MAX, claim, damage, load, refusal};
use crate::config::Source;
use crate::error::{Error, Result};
use crate::lake::Watermark;
use crate::lsn::Lsn;
use crate::postgres::slot::Slot;
use crate::postgres::{ConnectOptions, Replication, ReplicationStream, StreamSetup, System, connect_sql, slot, sqlstate};
use crate::wait;
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::Client;

/// Pause between two looks at a slot that is in use.
const SLOT_PAUSE: Duration = Duration::from_millis(500);
/// The same after its holder was ended: who is quicker than a process that connects again gets the slot.
const SLOT_PAUSE_SHORT: Duration = Duration::from_millis(20);
/// How often the watermark is read meanwhile: a standby may stand by for months.
const WATERMARK_EVERY: Duration = Duration::from_secs(5);

/// A stream of the slot that is held.
pub(crate) struct Taken {
    pub(crate) stream: ReplicationStream,
    pub(crate) client: Client,
    /// Where the slot stands, and its stream began.
    pub(crate) confirmed: Lsn,
}

struct Acquired {
    stream: ReplicationStream,
    timeline: u32,
    /// Of the server.
    version: i32,
}

/// Gets the slot, judges it against the watermark, claims the epoch (or confirms it after a reconnection). `None`: another writer holds the
/// slot and has brought the lake to where this one was to end.
pub(crate) async fn take_over(writer: &mut Writer) -> Result<Option<Taken>> {
    let client = connect_sql(&writer.options).await?;
    let Some(Acquired { stream, timeline, version }) = acquire(writer, &client).await? else { return Ok(None) };
    let found = slot::read(&client, &writer.config.source.slot).await?;
    let confirmed = found.and_then(|s| s.confirmed_flush).unwrap_or(Lsn::ZERO);
    match writer.held.as_mut() {
        Some(held) => {
            held.confirm().await?;
            refuse_ahead(held.watermark(), confirmed, &writer.config.source.slot)?;
            if held.watermark().source.timeline != timeline {
                held.edit(|w| w.source.timeline = timeline).await?;
            }
        }
        None => {
            // What the lake claims to have is looked at before anything is built on it, and acknowledged.
            if let Some(what) = damage(writer.store.as_ref(), &standing(writer).await?, CLAIM_MANIFESTS_MAX).await? {
                return Err(refusal(&what));
            }
            let name = writer.config.source.slot.clone();
            let edit = |w: &mut Watermark| w.source.timeline = timeline;
            let held = claim(writer.store.clone(), (&writer.id, writer.tenure), |w| refuse_ahead(w, confirmed, &name), edit).await?;
            writer.take_over = false;
            tracing::info!(epoch = held.watermark().epoch.0, through = %held.watermark().position(), "took the lake over");
            writer.held = Some(held);
        }
    }
    writer.announced.begin(version, confirmed);
    Ok(Some(Taken { stream, client, confirmed }))
}

/// The watermark as it stands: ours if we hold it, else the lake's.
async fn standing(writer: &Writer) -> Result<Watermark> {
    match load(writer.store.as_ref()).await? {
        Some((watermark, _)) => Ok(watermark),
        None => Err(Error::lake("watermark.json is gone: restore it, or begin a new lake with another lake.url")),
    }
}

async fn acquire(writer: &Writer, client: &Client) -> Result<Option<Acquired>> {
    let source = &writer.config.source;
    let info = primary(client).await?;
    refuse_by_version(&writer.config, info.version_num)?;
    let mut standby = Standby::begin(&info, &writer.config.batch);
    loop {
        let mut replication = Replication::connect(&writer.options).await?;
        let system = replication.identify_system().await?;
        let watermark = ours(writer, standing(writer).await?)?;
        check_cluster(&watermark, &system, &mut replication, &writer.options).await?;
        let slot = check_slot(client, &source.slot, &info.database).await?;
        let error = match start(replication, source, slot.failover).await {
            Ok(stream) => return Ok(Some(Acquired { stream, timeline: system.timeline, version: info.version_num })),
            Err(error) => error,
        };
        match sqlstate(&error) {
            Some("55006") => {}
            _ if slot::read(client, &source.slot).await?.is_none_or(|s| s.is_lost()) => {
                return check_slot(client, &source.slot, &info.database).await.and_then(|_| Err(error));
            }
            _ => return Err(error),
        }
        if !until_free(writer, client, &mut standby).await? {
            return Ok(None);
        }
    }
}

/// Waits until nobody holds the slot; ends who is dead, or whoever holds it if a person asked for that. False: another writer has done
/// what this one was to do.
async fn until_free(writer: &Writer, client: &Client, standby: &mut Standby) -> Result<bool> {
    let slot = &writer.config.source.slot;
    let mut watermark = ours(writer, standing(writer).await?)?;
    let (mut read, mut ended) = (Instant::now(), false);
    loop {
        // Nobody, or for a moment nobody that can be seen: the next attempt to start tells.
        let Some(holder) = slot::holder(client, slot).await? else { return Ok(true) };
        if read.elapsed() >= if writer.target.is_some() { SLOT_PAUSE } else { WATERMARK_EVERY } {
            let before = watermark.through;
            (watermark, read) = (ours(writer, standing(writer).await?)?, Instant::now());
            if watermark.through != before {
                wait::moved(); // by the other's hands
            }
        }
        if let Some(target) = writer.target.filter(|target| writer.held.is_none() && watermark.position() >= *target) {
            tracing::info!(%target, through = %watermark.position(), "another writer has brought the lake past all that was in the WAL at the start; it is left alone");
            warn_of_pending(&watermark);
            return Ok(false);
        }
        let now = Instant::now();
        standby.tell(slot, &holder, &watermark, writer.target, now);
        let verdict = match standby.judge(&holder, &watermark, now) {
            Verdict::Lives if writer.take_over => Verdict::End("--take-over was asked for".to_owned()),
            verdict => verdict,
        };
        if let Verdict::End(why) = verdict {
            // The watermark may have been read seconds ago: a live holder is not ended for that.
            watermark = ours(writer, standing(writer).await?)?;
            if writer.take_over || standby.judge(&holder, &watermark, now) != Verdict::Lives {
                tracing::warn!(slot, pid = holder.pid, why, "ending its session: the slot's holder ({holder})");
                ended = slot::terminate_holder(client, slot, holder.pid).await?;
                standby.ended_one();
            }
        }
        tokio::time::sleep(if ended { SLOT_PAUSE_SHORT } else { SLOT_PAUSE }).await;
    }
}

/// The watermark, if nobody has taken the lake from us meanwhile.
fn ours(writer: &Writer, watermark: Watermark) -> Result<Watermark> {
    match &writer.held {
        Some(held) if watermark.epoch > held.watermark().epoch => Err(Error::fenced(format!(
            "writer {} took the lake over with epoch {} while this one was away; nothing of ours was lost",
            watermark.writer, watermark.epoch.0
        ))),
        _ => Ok(watermark),
    }
}

fn warn_of_pending(watermark: &Watermark) {
    let pending = watermark.streamed().filter(|(_, mark)| mark.version.is_none() || !mark.pending.is_empty());
    let names: Vec<String> = pending.map(|(name, _)| name.to_string()).collect();
    if !names.is_empty() {
        tracing::warn!(tables = names.join(", "), "these tables still wait for a copy, which that writer makes");
    }
}

/// Starts the stream; before, the only time when the slot is ours and idle, it is made what the configuration wants.
async fn start(mut replication: Replication, source: &Source, failover: bool) -> Result<ReplicationStream> {
    if source.failover && !failover {
        replication.enable_failover(&source.slot).await?;
        tracing::info!(slot = %source.slot, "standbys keep the slot in step from now on (failover)");
    }
    replication.start(&source.slot, &source.publication, Lsn::ZERO, StreamSetup::default()).await
}

/// Refuses another cluster, a WAL that ends below the watermark, and a foreign timeline.
async fn check_cluster(watermark: &Watermark, system: &System, replication: &mut Replication, options: &ConnectOptions) -> Result<()> {
    let (source, through) = (&watermark.source, watermark.position());
    let mend = "if this is meant, run `huella run --resnapshot` (every table is copied anew, history is kept)";
    if source.system_identifier != system.identifier {
        return Err(Error::source_refused(format!(
            "{} is another cluster (system identifier {}) than the lake follows ({}); {mend}",
            options.describe(),
            system.identifier,
            source.system_identifier
        )));
    }
    if let Some(database) = &system.database
        && *database != source.database
    {
        return Err(Error::source_refused(format!(
            "the lake follows database {:?}, not {database:?}: correct source.url or lake.url",
            source.database
        )));
    }
    if system.xlogpos < through {
        return Err(Error::source_refused(format!(
            "the server's WAL ends at {}, behind the lake's watermark {through}: it was restored to an earlier point; {mend}",
            system.xlogpos
        )));
    }
    if source.timeline != system.timeline {
        let history = replication.timeline_history(system.timeline).await?;
        if !descends(&history, source.timeline, through) {
            return Err(Error::source_refused(format!(
                "timeline {} of the server does not descend from the lake's (timeline {} up to {through}); {mend}",
                system.timeline, source.timeline
            )));
        }
        tracing::warn!(from = source.timeline, to = system.timeline, "the server was promoted to a new timeline after the watermark");
    }
    Ok(())
}

/// Whether a timeline history file says that `timeline` was left at or after `through`.
fn descends(history: &str, timeline: u32, through: Lsn) -> bool {
    history.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let number = fields.next().and_then(|f| f.parse::<u32>().ok());
        let switch = fields.next().and_then(|f| f.parse::<Lsn>().ok());
        number == Some(timeline) && switch.is_some_and(|s| s >= through)
    })
}

/// Refuses a slot that is missing, lost, or not ours to use.
async fn check_slot(client: &Client, name: &str, database: &str) -> Result<Slot> {
    let mend = "Run `huella run --resnapshot`: it makes the slot anew and copies every table; history is kept";
    let Some(slot) = slot::read(client, name).await? else {
        return Err(Error::source_refused(format!(
            "replication slot {name:?} is missing: changes since the watermark may be gone. {mend}"
        )));
    };
    if slot.is_lost() {
        let why = match slot.invalidation_reason.as_deref() {
            None | Some("wal_removed") => "its WAL was removed (max_slot_wal_keep_size)",
            Some(reason) => reason,
        };
        return Err(Error::source_refused(format!("replication slot {name:?} is lost: {why}. {mend}")));
    }
    if slot.plugin.as_deref() != Some("pgoutput") || slot.database.as_deref() != Some(database) {
        return Err(Error::source_refused(format!(
            "replication slot {name:?} belongs to something else (plugin {:?}, database {:?}): choose another source.slot",
            slot.plugin, slot.database
        )));
    }
    Ok(slot)
}

/// The slot must not be ahead of the watermark: what lies between is gone.
fn refuse_ahead(watermark: &Watermark, confirmed: Lsn, slot: &str) -> Result<()> {
    let through = watermark.position();
    if confirmed > through {
        return Err(Error::source_refused(format!(
            "replication slot {slot:?} was moved to {confirmed}, beyond the lake's watermark {through}: the changes between are gone. \
             Run `huella run --resnapshot`: it copies every table; history is kept"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_left_before_the_watermark_is_no_ancestor() {
        let history = "1\t0/3000000\tno recovery target specified\n2\t0/5000000\tbefore 2026\n";
        assert!(descends(history, 1, Lsn(0x300_0000)));
        assert!(!descends(history, 1, Lsn(0x300_0001)));
        assert!(descends(history, 2, Lsn(0x400_0000)));
        assert!(!descends(history, 3, Lsn(1)));
    }
}
