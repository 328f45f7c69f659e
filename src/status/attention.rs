//! What of the state needs a person.
//!
//! Owns: those rules, their codes and texts. Does not own: the facts (`status`), how they are shown (`show`), whether a first start would
//! work (`check`, which uses the same codes). Invariant: what passes by itself is not here, or monitoring would cry wolf.

use super::{Lake, MaxLag, Source, distance, lag_secs, span};
use crate::lake::{SlotState, Watermark};
use bytesize::ByteSize;
use chrono::{DateTime, Utc};
use serde::Serialize;

/// A table may wait for its copy so long before somebody should look: what a large copy may take is hours, but then it was expected.
const PENDING_SECS_MAX: i64 = 3600;
const RESNAPSHOT: &str = "`huella run --resnapshot` (a new slot and a new copy of every table; history is kept)";

/// One thing that needs a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Attention {
    /// For programs; never changed once it was released.
    pub(super) code: &'static str,
    /// What is the case.
    pub(super) text: String,
    /// What to do.
    pub(super) fix: String,
}

fn attention(code: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Attention {
    Attention { code, text: text.into(), fix: fix.into() }
}

/// Judges lake and source at the time `now`.
pub(super) fn judge(lake: &Lake, source: &Result<Source, String>, max_lag: Option<MaxLag>, now: DateTime<Utc>) -> Vec<Attention> {
    let mut found = match source {
        Ok(source) => of_the_source(&lake.watermark, source),
        Err(error) => vec![attention(
            "source-unreachable",
            format!("the source cannot be reached, so slot and lag are not known: {error}"),
            "`huella check` tells why",
        )],
    };
    found.extend(pending(&lake.watermark, now));
    found.extend(aside(&lake.watermark));
    if let (Ok(source), Some(max_lag)) = (source, max_lag) {
        found.extend(lagging(lake, source, max_lag));
    }
    found
}

fn of_the_source(watermark: &Watermark, source: &Source) -> Vec<Attention> {
    let (name, was) = (&watermark.source.slot, &watermark.source.system_identifier);
    if let Some(is) = source.system_identifier.as_ref().filter(|is| *is != was) {
        let text = format!("the server is another cluster (system identifier {is}) than the lake's ({was})");
        return vec![attention("server-cluster", text, format!("point source.url at the lake's cluster, or {RESNAPSHOT}"))];
    }
    // Before the slot is there nothing can be missing.
    let Some(through) = source.through.filter(|_| watermark.slot_state == SlotState::Ready) else { return Vec::new() };
    let mut found = Vec::new();
    if source.current_wal < through {
        let text = format!(
            "the server's WAL ends at {}, before the lake's watermark {through}: it was restored to an earlier point",
            source.current_wal
        );
        found.push(attention("server-restored", text, RESNAPSHOT));
    }
    match &source.slot {
        None => {
            found.push(attention("slot-missing", format!("slot {name} is missing: changes since the watermark may be gone"), RESNAPSHOT))
        }
        Some(slot) if slot.is_lost() => {
            found.push(attention("slot-lost", format!("slot {name} is lost: the WAL that it needs is gone"), RESNAPSHOT));
        }
        Some(slot) => found.extend(slot.confirmed_flush.filter(|confirmed| *confirmed > through).map(|confirmed| {
            let text = format!("slot {name} stands at {confirmed}, ahead of the lake's watermark {through}: somebody else consumed it");
            attention("slot-ahead", text, RESNAPSHOT)
        })),
    }
    if let Some(known) = &watermark.source.publication {
        let text = match source.publication_oid {
            None => Some("is gone"),
            Some(oid) if oid != known.oid => Some("was dropped and created again"),
            Some(_) => None,
        };
        found.extend(text.map(|text| {
            let text = format!("publication {:?} {text}: changes made without it are not in the stream", known.name);
            attention("publication-missing", text, RESNAPSHOT)
        }));
    }
    found
}

fn pending(watermark: &Watermark, now: DateTime<Utc>) -> Vec<Attention> {
    let late = |since: &String| {
        let secs = now.signed_duration_since(DateTime::parse_from_rfc3339(since).ok()?).num_seconds();
        (secs > PENDING_SECS_MAX).then_some(secs)
    };
    let late = watermark.pending_since.iter().filter_map(|(table, since)| Some((table, since, late(since)?)));
    late.map(|(table, since, secs)| {
        let text = format!("{table} has waited for its copy since {since}, {}: readers see it as it was before", span(secs as f64));
        attention("table-pending", text, "look for the reason in the log of `huella run`, and at the blockers below")
    })
    .collect()
}

fn aside(watermark: &Watermark) -> impl Iterator<Item = Attention> {
    let aside = watermark.tables.iter().filter_map(|(table, mark)| Some((table, mark.aside.as_ref()?)));
    aside.map(|(table, reason)| {
        let text = format!("{table} is set aside, its changes are left out: {reason}");
        attention("table-aside", text, "do what the reason says; the table is copied again by itself then")
    })
}

fn lagging(lake: &Lake, source: &Source, max_lag: MaxLag) -> Option<Attention> {
    let lag = distance(lake.watermark.through?, source.current_wal);
    let secs = lag_secs(lake, Some(lag)).unwrap_or(0.0);
    let over = match max_lag {
        MaxLag::Bytes(max) => lag > max,
        MaxLag::Time(max) => secs > max.as_secs_f64(),
    };
    let text = format!("the lake lags by {} and {}, more than {max_lag} (--max-lag)", ByteSize(lag), span(secs));
    over.then(|| attention("lag", text, "see whether `huella run` is active, and its log"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::postgres::slot::Slot;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn lake(more: &str) -> Lake {
        let text = format!(
            r#"{{"format": 1, "epoch": 1, "writer": "w", "seq": 3, "through": "0/100", "slot_state": "ready", "commit": null, "commit_time": "", {more}
             "source": {{"system_identifier": "7", "timeline": 1, "database": "d", "slot": "s",
                         "publication": {{"name": "p", "oid": 5, "xmin": 1, "tables": {{}}}}}}, "tables": {{}}}}"#
        );
        let watermark = serde_json::from_str(&text).unwrap();
        Lake { url: String::new(), watermark, age_secs: Some(61.0), files: BTreeMap::new() }
    }

    fn source() -> Source {
        let slot = Slot {
            name: "s".into(),
            plugin: Some("pgoutput".into()),
            database: Some("d".into()),
            active: true,
            active_pid: Some(7),
            confirmed_flush: Some(Lsn(0x100)),
            restart_lsn: Some(Lsn(0x90)),
            wal_status: Some("reserved".into()),
            safe_wal_size: None,
            invalidation_reason: None,
            temporary: false,
            two_phase: false,
            failover: false,
            synced: false,
            inactive_for: None,
        };
        Source {
            current_wal: Lsn(0x200),
            slot: Some(slot),
            blockers: Vec::new(),
            system_identifier: Some("7".into()),
            publication_oid: Some(5),
            through: Some(Lsn(0x100)),
            left_out: Vec::new(),
        }
    }

    fn codes(lake: &Lake, source: Source, max_lag: Option<MaxLag>) -> Vec<&'static str> {
        let now = DateTime::parse_from_rfc3339("2026-11-24T12:00:00Z").unwrap().to_utc();
        judge(lake, &Ok(source), max_lag, now).iter().map(|found| found.code).collect()
    }

    #[test]
    fn a_state_as_it_should_be_needs_nobody() {
        assert_eq!(codes(&lake(""), source(), None), [""; 0]);
        assert_eq!(codes(&lake(""), source(), Some(MaxLag::Bytes(0x100))), [""; 0]);
        assert_eq!(codes(&lake(r#""pending_since": {"public.t": "2026-11-24T11:30:00Z"},"#), source(), None), [""; 0]);
    }

    #[test]
    fn each_thing_that_needs_a_person_has_its_code() {
        type Spoil = fn(&mut Source);
        let cases: [(Spoil, &str); 7] = [
            (|s| s.slot = None, "slot-missing"),
            (|s| s.slot.as_mut().unwrap().wal_status = Some("lost".into()), "slot-lost"),
            (|s| s.slot.as_mut().unwrap().confirmed_flush = Some(Lsn(0x101)), "slot-ahead"),
            (|s| s.current_wal = Lsn(0xff), "server-restored"),
            (|s| s.system_identifier = Some("8".into()), "server-cluster"),
            (|s| s.publication_oid = None, "publication-missing"),
            (|s| s.publication_oid = Some(6), "publication-missing"),
        ];
        for (spoil, code) in cases {
            let mut source = source();
            spoil(&mut source);
            assert_eq!(codes(&lake(""), source, None), [code]);
        }
        let now = Utc::now();
        assert_eq!(judge(&lake(""), &Err("no route".into()), None, now)[0].code, "source-unreachable");
        assert_eq!(codes(&lake(r#""pending_since": {"public.t": "2026-11-24T10:59:59Z"},"#), source(), None), ["table-pending"]);
        assert_eq!(codes(&lake(""), source(), Some(MaxLag::Bytes(0xff))), ["lag"]);
        assert_eq!(codes(&lake(""), source(), Some(MaxLag::Time(Duration::from_secs(60)))), ["lag"]);
    }
}
