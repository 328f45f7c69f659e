//! Judges the replication slot against the lake: there, ours, alive, neither ahead nor too far behind.
//!
//! Owns: those rules. Does not own: room for slots (`server`).

use super::{Facts, Finding, Known, Wanted, size};
use crate::lsn::Lsn;
use crate::postgres::slot::Slot;

/// Less room than this may be gone before anybody looks.
const SAFE_SMALL: i64 = 128 << 20;
const RESNAPSHOT: &str = "huella run --resnapshot (a new slot and a new copy of every table; history is kept)";

pub(super) fn judge(wanted: &Wanted, facts: &Facts, known: Option<&Known>) -> Vec<Finding> {
    let subject = format!("slot {}", wanted.slot);
    let mut findings = Vec::new();
    findings.extend(behind_the_lake(facts, known));
    findings.extend(failover(&subject, wanted, facts));
    match &facts.slot {
        None => findings.push(missing(&subject, wanted, known)),
        Some(slot) => match foreign(&subject, slot, facts).or_else(|| lost(&subject, slot)) {
            Some(problem) => findings.push(problem),
            None => findings.extend(usable(&subject, slot, wanted, facts, known)),
        },
    }
    findings
}

/// After a restore to an earlier point the server accepts our position and drops what is committed below it, silently.
fn behind_the_lake(facts: &Facts, known: Option<&Known>) -> Option<Finding> {
    let (through, end) = (known?.through?, facts.server.current_wal_lsn);
    let text = format!("its WAL ends at {end}, before the lake's watermark {through}: it was restored to an earlier point");
    (end < through).then(|| Finding::problem("server-restored", "server", text).mend(RESNAPSHOT))
}

/// Failover slots came with this version.
const FAILOVER_SLOTS: i32 = 170_000;

fn failover(subject: &str, wanted: &Wanted, facts: &Facts) -> Vec<Finding> {
    let set = facts.slot.as_ref().is_some_and(|slot| slot.failover);
    if !wanted.failover {
        let text = "standbys keep it in step (failover), though source.failover is off: that is left as it is";
        return set.then(|| Finding::ok("slot-failover", subject, text)).into_iter().collect();
    }
    if facts.server.version_num < FAILOVER_SLOTS {
        let text = "source.failover needs PostgreSQL 17: this server cannot keep a slot in step on a standby";
        return vec![Finding::problem("slot-failover-version", subject, text).mend("set source.failover = false")];
    }
    let text = if set { "standbys keep it in step (failover)" } else { "the next start has standbys keep it in step (failover)" };
    let mut findings = vec![Finding::ok("slot-failover", subject, text)];
    if facts.server.synchronized_standby_slots.as_deref().is_none_or(|slots| slots.trim().is_empty()) {
        let text = "synchronized_standby_slots is empty: the lake may hold changes that a standby does not have yet when it is promoted";
        let mend = "at the primary: ALTER SYSTEM SET synchronized_standby_slots = '<the standby's physical slot>', then pg_reload_conf(); \
                    at the standby sync_replication_slots = on and hot_standby_feedback = on";
        findings.push(Finding::warning("slot-failover-ahead", subject, text).mend(mend));
    }
    findings
}

fn missing(subject: &str, wanted: &Wanted, known: Option<&Known>) -> Finding {
    if Known::ready(known) {
        return Finding::problem("slot-missing", subject, "it is missing, but the lake has begun: changes since then are gone")
            .mend(RESNAPSHOT);
    }
    let then = if wanted.initial { "and then copies the tables" } else { "and copies nothing (snapshot.initial = false)" };
    Finding::ok("slot", subject, format!("not there yet: the first start makes it {then}"))
}

fn foreign(subject: &str, slot: &Slot, facts: &Facts) -> Option<Finding> {
    let mend = "choose another name (source.slot), or drop that slot if nobody uses it";
    let why = match (slot.plugin.as_deref(), slot.database.as_deref()) {
        _ if slot.temporary => "it is a temporary slot of another session".to_owned(),
        _ if slot.synced => "it is a standby's copy of the primary's slot".to_owned(),
        (None, _) => "it is a physical slot".to_owned(),
        (Some(plugin), _) if plugin != "pgoutput" => format!("its plugin is {plugin}, not pgoutput"),
        (_, Some(database)) if database != facts.server.database => {
            format!("it belongs to database {database}, not {}", facts.server.database)
        }
        _ => return None,
    };
    Some(Finding::problem("slot-foreign", subject, why).mend(mend))
}

fn lost(subject: &str, slot: &Slot) -> Option<Finding> {
    let reason = slot.invalidation_reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let text = format!("it is lost{reason}: the WAL that it needs is gone");
    slot.is_lost().then(|| Finding::problem("slot-lost", subject, text).mend(RESNAPSHOT))
}

fn usable(subject: &str, slot: &Slot, wanted: &Wanted, facts: &Facts, known: Option<&Known>) -> Vec<Finding> {
    let Some(confirmed) = slot.confirmed_flush else {
        return vec![Finding::problem("slot-unfinished", subject, "it has no position: its making was never finished").mend("drop it")];
    };
    let mut findings = Vec::new();
    match known.and_then(|known| known.through) {
        Some(through) if confirmed > through => {
            let text = format!("it stands at {confirmed}, ahead of the lake's watermark {through}: somebody else consumed it");
            return vec![Finding::problem("slot-ahead", subject, text).mend(RESNAPSHOT)];
        }
        Some(_) => findings.push(Finding::ok("slot", subject, state(slot, confirmed, facts))),
        None => findings.push(before_the_first_start(subject, slot, confirmed, wanted)),
    }
    findings.extend(room(subject, slot));
    findings
}

fn state(slot: &Slot, confirmed: Lsn, facts: &Facts) -> String {
    let behind = facts.server.current_wal_lsn.0.saturating_sub(confirmed.0);
    let who = match slot.active_pid {
        Some(pid) => format!("streamed by pid {pid}"),
        None => "nobody streams from it".to_owned(),
    };
    format!("at {confirmed}, {} behind; {who}", size(i64::try_from(behind).unwrap_or(i64::MAX)))
}

fn before_the_first_start(subject: &str, slot: &Slot, confirmed: Lsn, wanted: &Wanted) -> Finding {
    if slot.active {
        return Finding::problem("slot-taken", subject, "somebody streams from it, and it is not this lake")
            .mend("choose another name (source.slot)");
    }
    if wanted.initial {
        let text = "it is there, but the lake has not begun: a first copy makes its own slot";
        return Finding::problem("slot-before-the-lake", subject, text).mend(format!(
            "drop it (SELECT pg_drop_replication_slot('{}')), or adopt it at its position: snapshot.initial = false",
            slot.name.replace('\'', "''")
        ));
    }
    Finding::ok("slot", subject, format!("the first start adopts it at {confirmed} and copies nothing (snapshot.initial = false)"))
}

fn room(subject: &str, slot: &Slot) -> Option<Finding> {
    let mend = "let huella run and catch up, or raise max_slot_wal_keep_size";
    if slot.wal_status.as_deref() == Some("unreserved") {
        return Some(Finding::warning("slot-room", subject, "it is about to be lost: its WAL goes with the next checkpoint").mend(mend));
    }
    let safe = slot.safe_wal_size.filter(|safe| *safe < SAFE_SMALL)?;
    Some(Finding::warning("slot-room", subject, format!("it is lost after {} more of WAL", size(safe))).mend(mend))
}

#[cfg(test)]
mod tests {
    use super::super::facts::{facts, problems, slot, wanted, warnings};
    use super::*;

    fn at(through: u64) -> Option<Known> {
        Some(Known { through: Some(Lsn(through)), system_identifier: "1".into(), ..Known::default() })
    }

    fn judged(slot: Option<Slot>, known: Option<Known>) -> Vec<Finding> {
        let mut facts = facts(&[]);
        facts.slot = slot;
        judge(&wanted(&[]), &facts, known.as_ref())
    }

    #[test]
    fn a_slot_at_or_before_the_watermark_is_fine() {
        for through in [1000, 1001] {
            let findings = judged(Some(slot()), at(through));
            assert_eq!((problems(findings.clone()).len(), warnings(findings).len()), (0, 0));
        }
        assert_eq!(problems(judged(None, None)), []);
    }

    #[test]
    fn holes_are_refused_with_the_mend() {
        let lost = Slot { wal_status: Some("lost".into()), restart_lsn: None, ..slot() };
        let invalid = Slot { invalidation_reason: Some("idle_timeout".into()), ..slot() };
        let cases = [
            (judged(Some(slot()), at(999)), "ahead"),
            (judged(None, at(999)), "missing"),
            (judged(Some(lost), at(1000)), "lost"),
            (judged(Some(invalid), at(1000)), "idle_timeout"),
            (judged(Some(slot()), at(0xFFFF_FFFF)), "restored"),
        ];
        for (findings, text) in cases {
            let problems = problems(findings);
            assert!(problems.len() == 1 && problems[0].text.contains(text), "{text}: {problems:?}");
            assert!(problems[0].mend.as_ref().is_some_and(|mend| mend.contains("--resnapshot")), "{problems:?}");
        }
    }

    #[test]
    fn a_slot_that_is_not_ours_is_refused() {
        for (slot, text) in [
            (Slot { plugin: None, database: None, ..slot() }, "physical"),
            (Slot { plugin: Some("wal2json".into()), ..slot() }, "wal2json"),
            (Slot { database: Some("other".into()), ..slot() }, "database other"),
            (Slot { temporary: true, ..slot() }, "temporary"),
            (Slot { confirmed_flush: None, ..slot() }, "never finished"),
        ] {
            let problems = problems(judged(Some(slot), at(1000)));
            assert!(problems.len() == 1 && problems[0].text.contains(text), "{problems:?}");
        }
    }

    #[test]
    fn before_the_first_start_a_slot_is_adopted_only_if_asked() {
        assert_eq!(problems(judged(Some(slot()), None)).len(), 1);
        let mut facts = facts(&[]);
        facts.slot = Some(slot());
        let adopt = Wanted { initial: false, ..wanted(&[]) };
        assert_eq!(problems(judge(&adopt, &facts, None)), []);
        facts.slot = Some(Slot { active: true, active_pid: Some(7), ..slot() });
        assert_eq!(problems(judge(&adopt, &facts, None)).len(), 1);
    }

    #[test]
    fn failover_needs_its_version_and_standbys_that_are_waited_for() {
        let asked = Wanted { failover: true, ..wanted(&[]) };
        let mut facts = facts(&[]);
        let found = problems(judge(&asked, &facts, None));
        assert!(found.len() == 1 && found[0].text.contains("PostgreSQL 17"), "{found:?}");
        facts.server.version_num = 170_010;
        let found = judge(&asked, &facts, None);
        assert!(problems(found.clone()).is_empty() && warnings(found.clone())[0].code == "slot-failover-ahead", "{found:?}");
        facts.server.synchronized_standby_slots = Some("standby_1".into());
        assert_eq!(warnings(judge(&asked, &facts, None)), []);
        facts.slot = Some(Slot { failover: true, ..slot() });
        assert!(judge(&asked, &facts, at(1000).as_ref()).iter().any(|f| f.code == "slot-failover" && f.text.starts_with("standbys keep")));
    }

    #[test]
    fn little_room_is_a_warning() {
        let tight = Slot { safe_wal_size: Some(1 << 20), ..slot() };
        assert!(warnings(judged(Some(tight), at(1000)))[0].text.contains("1.0 MiB"));
        let dying = Slot { wal_status: Some("unreserved".into()), safe_wal_size: Some(-5), ..slot() };
        assert!(warnings(judged(Some(dying), at(1000)))[0].text.contains("about to be lost"));
    }
}
