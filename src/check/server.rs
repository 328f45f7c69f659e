//! Judges the server and the role: version, wal_level, standby, limits, room for slots, attributes.
//!
//! Owns: those rules. Does not own: the slot's own state (`slot`), rights on tables (`tables`).

use super::{Facts, Finding, Known, Severity, names, size};
use crate::postgres::server::{NOT_A_STANDBY, Role, ServerInfo};

/// Versions that are supported: older ones lack what is needed, newer ones are not tried.
const OLDEST: i32 = 14;
const NEWEST: i32 = 18;
/// Below this a slot is lost within minutes of a stalled consumer.
const KEEP_SIZE_SMALL_MB: i64 = 1024;
/// Below this a busy moment of ours costs the connection.
const SENDER_TIMEOUT_SHORT_MS: i64 = 10_000;

pub(super) fn judge(facts: &Facts, known: Option<&Known>) -> Vec<Finding> {
    let info = &facts.server;
    let mut findings = vec![version(info)];
    findings.extend(identity(info, known));
    findings.extend(standby(info));
    findings.extend(wal_level(info));
    findings.extend(replication(&info.role));
    findings.extend(slots_left(facts));
    findings.extend(senders_left(facts));
    findings.extend(headroom(facts));
    findings.extend(timeout(info));
    findings.extend(info.waits_for_us().map(|why| Finding::problem("server-synchronous", "server", why).mend(NOT_A_STANDBY)));
    findings
}

fn version(info: &ServerInfo) -> Finding {
    let (major, minor) = (info.version_num / 10_000, info.version_num % 10_000);
    let text = format!("PostgreSQL {major}.{minor}");
    if major < OLDEST {
        let text = format!("{text} is too old: {OLDEST} to {NEWEST} are supported");
        Finding::problem("server-version", "server", text).mend("upgrade the server")
    } else if major > NEWEST {
        Finding::warning("server-version", "server", format!("{text} is newer than what was tried: {OLDEST} to {NEWEST}"))
    } else {
        Finding::ok("server-version", "server", text)
    }
}

fn identity(info: &ServerInfo, known: Option<&Known>) -> Option<Finding> {
    let (is, was) = (info.system_identifier.as_ref()?, &known?.system_identifier);
    let text = format!("this is another cluster (system identifier {is}) than the lake's ({was})");
    let mend = "point source.url at the lake's cluster, or begin anew from this one: huella run --resnapshot";
    (is != was).then(|| Finding::problem("server-cluster", "server", text).mend(mend))
}

fn standby(info: &ServerInfo) -> Option<Finding> {
    let text = "it is a standby: no publication can be made there, and its slot would follow another timeline";
    info.in_recovery.then(|| Finding::problem("server-standby", "server", text).mend("use the primary's address in source.url"))
}

fn wal_level(info: &ServerInfo) -> Option<Finding> {
    let text = format!("wal_level is {}, and must be logical", info.wal_level);
    let mend = "ALTER SYSTEM SET wal_level = 'logical', then restart the server";
    (info.wal_level != "logical").then(|| Finding::problem("wal-level", "server", text).mend(mend))
}

fn replication(role: &Role) -> Option<Finding> {
    let may = role.superuser || role.replication;
    let text = "it has no REPLICATION attribute (it cannot be inherited)";
    let mend = format!("as a superuser: ALTER ROLE {} REPLICATION", crate::table_name::quote_ident(&role.name));
    (!may).then(|| Finding::problem("role-replication", format!("role {}", role.name), text).mend(mend))
}

/// A copy takes a temporary slot for a moment, also beside a running stream.
fn slots_left(facts: &Facts) -> Option<Finding> {
    let info = &facts.server;
    let left = (info.max_replication_slots - info.slots_used).max(0);
    let (needed, severity, text) = match facts.slot {
        None => (2, Severity::Problem, "the first start needs two, its own and a temporary one while it copies"),
        Some(_) => (1, Severity::Warning, "a copy of a table needs one for a while"),
    };
    let text = format!("{left} of {} replication slots are free; {text}", info.max_replication_slots);
    let mend = "drop a slot that nobody uses (pg_replication_slots), or raise max_replication_slots (needs a restart)";
    Some(match left < needed {
        true => Finding::new(severity, "slots-left", "slots", text).mend(mend),
        false => Finding::ok("slots-left", "slots", text),
    })
}

fn senders_left(facts: &Facts) -> Option<Finding> {
    let info = &facts.server;
    let left = (info.max_wal_senders - info.senders_used).max(0);
    let streaming = facts.slot.as_ref().is_some_and(|slot| slot.active);
    let text = format!("{left} of {} streaming sessions (max_wal_senders) are free", info.max_wal_senders);
    let mend = "raise max_wal_senders (needs a restart)";
    match (left, streaming) {
        (0, false) => Some(Finding::problem("senders-left", "server", format!("{text}: the stream needs one, a copy another")).mend(mend)),
        (0, true) => Some(Finding::warning("senders-left", "server", format!("{text}: a copy needs one")).mend(mend)),
        (1, false) => Some(Finding::warning("senders-left", "server", format!("{text}: the stream needs one, a copy another")).mend(mend)),
        _ => None,
    }
}

/// How long a stalled consumer may stall, and whether one rewrite of a table can cost the slot.
fn headroom(facts: &Facts) -> Vec<Finding> {
    let subject = "max_slot_wal_keep_size";
    let mend = "raise max_slot_wal_keep_size (Supabase: supabase postgres-config update --config max_slot_wal_keep_size=…)";
    let limit_mb = facts.server.max_slot_wal_keep_size_mb;
    if limit_mb < 0 {
        let text = "it has no limit: while huella stands still, WAL grows until the server's disk is full";
        return vec![Finding::warning("wal-keep-size", subject, text).mend("set a limit that the disk can bear, and watch the slot's lag")];
    }
    let minutes = limit_mb / 60;
    let text = format!("{limit_mb} MB: at 1 MB/s of WAL the slot outlives a stop of {minutes} minutes");
    let first = match limit_mb < KEEP_SIZE_SMALL_MB {
        true => Finding::warning("wal-keep-size", subject, text).mend(mend),
        false => Finding::ok("wal-keep-size", subject, text),
    };
    let limit = limit_mb.saturating_mul(1 << 20);
    let large: Vec<_> = facts.streamed().filter(|(_, table)| table.bytes > limit).map(|(_, table)| table).collect();
    let mut findings = vec![first];
    if !large.is_empty() {
        let list = names(large.iter().map(|table| format!("{} ({})", table.name, size(table.bytes))));
        let text = format!("one UPDATE of a whole table writes more WAL than the slot may keep: {list}");
        findings.push(Finding::warning("wal-keep-size-table", subject, text).mend(mend));
    }
    findings
}

fn timeout(info: &ServerInfo) -> Option<Finding> {
    let short = (1..SENDER_TIMEOUT_SHORT_MS).contains(&info.wal_sender_timeout_ms);
    let text = format!("wal_sender_timeout is {} ms: a short hiccup of the network ends the stream", info.wal_sender_timeout_ms);
    short.then(|| Finding::warning("sender-timeout", "server", text).mend("leave it at its default, 60 s"))
}

#[cfg(test)]
mod tests {
    use super::super::facts::{facts, problems, slot, table, warnings};
    use super::*;

    fn known(system_identifier: &str) -> Known {
        Known { system_identifier: system_identifier.into(), ..Known::default() }
    }

    #[test]
    fn a_list_of_standbys_that_has_our_name_is_seen() {
        let mut info = facts(&[]).server;
        for (names, waits) in [
            ("", false),
            ("*", true),
            ("FIRST 1 (s1, *)", true),
            ("ANY 2 (a, \"Huella\", b)", true),
            ("huella", true),
            ("huella2, not_huella", false),
            ("FIRST 1(\"huella\")", true),
        ] {
            names.clone_into(&mut info.synchronous_standby_names);
            assert_eq!(info.waits_for_us().is_some(), waits, "{names}");
        }
    }

    #[test]
    fn a_server_as_it_should_be_has_no_problem() {
        let findings = judge(&facts(&[table("a")]), Some(&known("1")));
        assert!(findings.iter().all(|f| f.severity == Severity::Ok), "{findings:?}");
    }

    #[test]
    fn each_fault_of_the_server_is_a_finding_of_its_own() {
        type Spoil = fn(&mut ServerInfo);
        let cases: [(Spoil, &str); 5] = [
            (|info| info.version_num = 130_012, "too old"),
            (|info| info.wal_level = "replica".into(), "wal_level is replica"),
            (|info| info.in_recovery = true, "standby"),
            (|info| info.role.replication = false, "REPLICATION"),
            (|info| info.system_identifier = Some("2".into()), "another cluster"),
        ];
        for (spoil, text) in cases {
            let mut facts = facts(&[]);
            spoil(&mut facts.server);
            let problems = problems(judge(&facts, Some(&known("1"))));
            assert!(problems.len() == 1 && problems[0].text.contains(text) && problems[0].mend.is_some(), "{problems:?}");
        }
        let mut superuser = facts(&[]);
        (superuser.server.role.replication, superuser.server.role.superuser) = (false, true);
        assert_eq!(problems(judge(&superuser, None)), []);
        let mut newer = facts(&[]);
        newer.server.version_num = 190_000;
        assert_eq!((problems(judge(&newer, None)).len(), warnings(judge(&newer, None)).len()), (0, 1));
    }

    #[test]
    fn a_first_start_needs_two_slots_and_a_running_one_a_spare() {
        let mut facts = facts(&[]);
        facts.server.slots_used = facts.server.max_replication_slots - 1;
        assert!(problems(judge(&facts, None))[0].text.contains("1 of 10"));
        facts.slot = Some(slot());
        assert_eq!(problems(judge(&facts, None)), []);
        facts.server.slots_used += 1;
        assert!(warnings(judge(&facts, None))[0].text.contains("0 of 10"));
    }

    #[test]
    fn senders_count_the_running_stream() {
        let mut facts = facts(&[]);
        facts.slot = Some(slot());
        facts.server.senders_used = facts.server.max_wal_senders;
        assert_eq!(problems(judge(&facts, None)).len(), 1);
        facts.slot = Some(crate::postgres::slot::Slot { active: true, ..slot() });
        assert_eq!((problems(judge(&facts, None)).len(), warnings(judge(&facts, None)).len()), (0, 1));
    }

    #[test]
    fn headroom_is_judged_by_time_and_by_the_largest_table() {
        let mut large = table("large");
        large.bytes = 3 << 30;
        let mut facts = facts(&[table("small"), large]);
        facts.server.max_slot_wal_keep_size_mb = 2048;
        let found = warnings(judge(&facts, None));
        assert!(found.len() == 1 && found[0].text.contains("public.large (3.0 GiB)"), "{found:?}");
        facts.server.max_slot_wal_keep_size_mb = 512;
        assert!(warnings(judge(&facts, None))[0].text.contains("8 minutes"));
        facts.server.max_slot_wal_keep_size_mb = -1;
        assert!(warnings(judge(&facts, None))[0].text.contains("no limit"));
    }
}
