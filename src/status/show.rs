//! The status as text for people and as a JSON document.
//!
//! Owns: both forms. Invariants: both say the same; the document's fields are only ever added to.

use super::attention::Attention;
use super::{Files, Lake, Source, distance, lag_secs, span};
use crate::lake::{SlotState, TableMark};
use crate::postgres::server::Blocker;
use crate::postgres::slot::Slot;
use crate::postgres::unstreamable::LeftOut;
use bytesize::ByteSize;
use serde_json::{Value, json};
use std::fmt::Write;

/// What is said of a table that waits for its copy.
const STANDS_STILL: &str = "stands still until its copy is committed";

/// The JSON document. `lag_secs` is the age of the last commit if anything was written since, else 0.
pub(super) fn document(lake: &Lake, source: &Result<Source, String>, found: &[Attention]) -> Value {
    let watermark = &lake.watermark;
    let tables: Vec<Value> = watermark
        .tables
        .iter()
        .map(|(name, mark)| {
            let files = lake.files.get(name).copied().unwrap_or_default();
            json!({
                "table": name, "mode": mark.mode.as_str(), "version": mark.version, "snapshot": mark.snapshot, "pending": versions(mark),
                "pending_since": watermark.pending_since.get(name), "reason": reason(mark), "aside": mark.aside, "changes": mark.changes, "note": waits(mark).then_some(STANDS_STILL), "files": files.count, "rows": files.rows, "bytes": files.bytes,
            })
        })
        .collect();
    let retired: Vec<Value> = watermark
        .retired
        .iter()
        .map(|(name, retired)| json!({"table": name, "version": retired.version, "since": retired.since, "note": "no longer replicated"}))
        .collect();
    let mut document = json!({
        "lake": lake.url, "through": watermark.through, "epoch": watermark.epoch, "seq": watermark.seq, "writer": watermark.writer,
        "slot_state": watermark.slot_state, "commit_time": watermark.commit_time, "age_secs": lake.age_secs,
        "lag_bytes": null, "lag_secs": null, "slot": null, "tables": tables, "retired": retired, "left_out": [], "blockers": [],
        "warning": found.first().map(|one| one.text.clone()), "attention": found,
    });
    if let Ok(source) = source {
        let lag = watermark.through.map(|through| distance(through, source.current_wal));
        document["current_wal"] = json!(source.current_wal);
        document["lag_bytes"] = json!(lag);
        document["lag_secs"] = json!(lag_secs(lake, lag));
        document["slot"] = source.slot.as_ref().map_or(Value::Null, |slot| slot_document(slot, source));
        document["blockers"] = source.blockers.iter().map(blocker_document).collect();
        let left_out = |out: &LeftOut| json!({"table": out.table, "why": out.why.to_string(), "fix": out.fix});
        document["left_out"] = source.left_out.iter().map(left_out).collect();
    }
    document
}

fn slot_document(slot: &Slot, source: &Source) -> Value {
    json!({
        "name": slot.name, "active": slot.active, "wal_status": slot.wal_status, "safe_wal_size": slot.safe_wal_size,
        "confirmed_flush": slot.confirmed_flush, "restart_lsn": slot.restart_lsn,
        "restart_lag_bytes": slot.restart_lsn.map(|restart| distance(restart, source.current_wal)),
        "lost": slot.is_lost(), "invalidation_reason": slot.invalidation_reason, "failover": slot.failover, "synced": slot.synced,
    })
}

fn blocker_document(blocker: &Blocker) -> Value {
    json!({
        "pid": blocker.pid, "user": blocker.user, "database": blocker.database, "application": blocker.application,
        "state": blocker.state, "transaction_secs": blocker.transaction_secs,
    })
}

/// The same for people, line by line.
pub(super) fn text(lake: &Lake, source: &Result<Source, String>, found: &[Attention]) -> Vec<String> {
    let watermark = &lake.watermark;
    let mut out = Vec::new();
    let mut say = |label: &str, text: String| out.push(format!("{label:<10} {text}"));
    say("lake", lake.url.clone());
    let age = lake.age_secs.map_or(String::new(), |age| format!(", {} ago", span(age)));
    let through = watermark.through.map_or("nothing yet (a first start is under way)".to_owned(), |lsn| lsn.to_string());
    say("through", format!("{through} (commit {} at {}{age})", watermark.seq.0, watermark.commit_time));
    say("writer", format!("{} (epoch {})", watermark.writer, watermark.epoch.0));
    for one in found {
        say("problem", format!("{} [{}] → {}", one.text, one.code, one.fix));
    }
    if let Ok(source) = source {
        if let Some(through) = watermark.through {
            let lag = distance(through, source.current_wal);
            let secs = lag_secs(lake, Some(lag)).map_or(String::new(), |secs| format!(", {}", span(secs)));
            say("lag", format!("{}{secs} (the server's WAL ends at {})", ByteSize(lag), source.current_wal));
        }
        match &source.slot {
            Some(slot) => say("slot", slot_text(slot, source)),
            None => say("slot", format!("{}: not there", watermark.source.slot)),
        }
    }
    if watermark.slot_state == SlotState::Creating {
        say("slot", "its creation is under way, or was interrupted: `huella run` goes on with it".to_owned());
    }
    for (name, mark) in &watermark.tables {
        say("table", format!("{name}: {}", table_text(mark, lake.files.get(name).copied().unwrap_or_default())));
        for change in &mark.changes {
            say("changed", format!("{name}, version {} at {}: {}", change.version, change.at, change.what));
        }
    }
    for (name, retired) in &watermark.retired {
        say("retired", format!("{name}: no longer replicated since {}; its files stay", retired.since));
    }
    for out in source.iter().flat_map(|source| &source.left_out) {
        say("left out", format!("{}: {} → {}", out.table, out.why, out.fix));
    }
    for blocker in source.iter().flat_map(|source| &source.blockers) {
        say("blocker", format!("a copy waits for the end of this transaction: {blocker}"));
    }
    out
}

fn slot_text(slot: &Slot, source: &Source) -> String {
    let mut text = format!("{}: {}", slot.name, if slot.active { "active" } else { "inactive (no `huella run` streams from it)" });
    let mut add = |part: String| write!(text, ", {part}").expect("writing to a String cannot fail");
    if let Some(status) = &slot.wal_status {
        add(format!("WAL {status}"));
    }
    match slot.safe_wal_size {
        Some(bytes) => add(format!("lost after {} more", ByteSize(u64::try_from(bytes).unwrap_or(0)))),
        None if slot.is_lost() => {}
        None => add("no limit of WAL".to_owned()),
    }
    if slot.failover {
        add("kept in step on standbys (failover)".to_owned());
    }
    if let Some(confirmed) = slot.confirmed_flush {
        add(format!("confirmed {confirmed}"));
    }
    if let Some(restart) = slot.restart_lsn {
        add(format!("keeps {}", ByteSize(distance(restart, source.current_wal))));
    }
    text
}

fn table_text(mark: &TableMark, files: Files) -> String {
    let version = mark.version.map_or("no version yet".to_owned(), |version| format!("version {version}"));
    let mode = if mark.mode.is_stream() { "" } else { "catalogue, " };
    let mut text = format!("{mode}{version}, {} files, {} rows, {}", files.count, files.rows, ByteSize(files.bytes));
    if let Some(snapshot) = mark.snapshot {
        write!(text, ", copied at {snapshot}").expect("writing to a String cannot fail");
    }
    if mark.aside.is_some() {
        text.push_str("; set aside (see above)");
    }
    if waits(mark) {
        let pending: Vec<String> = versions(mark).iter().map(u32::to_string).collect();
        write!(text, "; version {} is pending: {STANDS_STILL}", pending.join(", ")).expect("writing to a String cannot fail");
        if let Some(reason) = reason(mark) {
            write!(text, " ({reason})").expect("writing to a String cannot fail");
        }
    }
    text
}

fn waits(mark: &TableMark) -> bool {
    mark.version.is_none() || !mark.pending.is_empty()
}

/// Why the newest version waits.
fn reason(mark: &TableMark) -> Option<&str> {
    mark.pending.last()?.reason.as_deref()
}

fn versions(mark: &TableMark) -> Vec<u32> {
    mark.pending.iter().map(|pending| pending.version).collect()
}
