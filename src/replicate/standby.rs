//! What is done while another session holds the slot: standing by, ending a holder that is dead, leaving a live one alone.
//!
//! Owns: the judgement of who is dead. Does not own: getting the slot (`takeover`). Invariants: idle is not dead: a holder is ended only if
//! it does not answer, commits nothing of what there is to commit, or a person asks for it; whoever stands by says so, and claims nothing.

use crate::config::Batch;
use crate::lake::Watermark;
use crate::lsn::{CommitSeq, Epoch, Lsn};
use crate::postgres::server::ServerInfo;
use crate::postgres::slot::Holder;
use crate::wait::TELL_EVERY;
use std::time::Duration;
use tokio::time::Instant;

/// Beyond `wal_sender_timeout`: what a dying walsender may need.
const SLOT_PATIENCE: Duration = Duration::from_secs(30);
/// `wal_sender_timeout = 0` means never; this is PostgreSQL's default.
const DEFAULT_SENDER_TIMEOUT: Duration = Duration::from_secs(60);
/// Beyond the age or heartbeat at which a healthy writer commits what it has: what the commit itself may need.
const COMMIT_PATIENCE: Duration = Duration::from_secs(30);

/// What becomes of a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It lives, as far as can be seen.
    Lives,
    /// It is to be ended, for this reason.
    End(String),
}

/// One wait for the slot.
#[derive(Debug)]
pub(super) struct Standby {
    /// Without an answer for so long a holder is dead.
    silence_max: Duration,
    /// With something to commit, and nothing committed, for so long it is dead as well.
    overdue_after: Duration,
    /// Since when the watermark stands still although WAL lies beyond it.
    owing_since: Option<Instant>,
    seen: Option<Mark>,
    told: Option<Instant>,
}

/// What every write of the watermark changes.
type Mark = (Epoch, CommitSeq, String, Option<String>);

impl Standby {
    /// The rules that follow from the server's settings and ours (those of the holder are taken to be the same).
    pub(super) fn begin(info: &ServerInfo, batch: &Batch) -> Self {
        let timeout = match info.wal_sender_timeout_ms {
            0 => DEFAULT_SENDER_TIMEOUT,
            ms => Duration::from_millis(ms.unsigned_abs()),
        };
        let silence_max = timeout + SLOT_PATIENCE;
        // A batch that is allowed to grow old is not overdue before.
        let overdue_after = silence_max.max(batch.max_age.max(batch.heartbeat) + COMMIT_PATIENCE);
        Self { silence_max, overdue_after, owing_since: None, seen: None, told: None }
    }

    /// Judges the holder by what the server and the lake say now.
    pub(super) fn judge(&mut self, holder: &Holder, watermark: &Watermark, now: Instant) -> Verdict {
        let mark = (watermark.epoch, watermark.seq, watermark.commit_time.clone(), watermark.alive_at.clone());
        let moved = self.seen.as_ref() != Some(&mark);
        self.seen = Some(mark);
        let owes = watermark.through.is_some_and(|through| holder.flushed > through);
        if moved || !owes {
            self.owing_since = None;
        }
        if owes {
            self.owing_since.get_or_insert(now);
        }
        if let Some(silent) = holder.silent.filter(|silent| *silent >= self.silence_max) {
            return Verdict::End(format!("it has not answered the server for {} s", silent.as_secs()));
        }
        match self.owing_since.map(|since| now.duration_since(since)).filter(|owing| *owing >= self.overdue_after) {
            Some(owing) => Verdict::End(format!("there are changes and it committed nothing for {} s", owing.as_secs())),
            None => Verdict::Lives,
        }
    }

    /// A holder was ended: what comes after it is judged afresh.
    pub(super) fn ended_one(&mut self) {
        (self.owing_since, self.seen) = (None, None);
    }

    /// Says, at once and then every half minute, who is waited for.
    pub(super) fn tell(&mut self, slot: &str, holder: &Holder, watermark: &Watermark, target: Option<Lsn>, now: Instant) {
        if self.told.is_some_and(|told| now.duration_since(told) < TELL_EVERY) {
            return;
        }
        self.told = Some(now);
        let (host, pid) = whose(&watermark.writer);
        let until = match target {
            Some(target) => format!("waiting until it has brought the lake to {target}"),
            None => "standing by, and taking over when the slot is free (`huella run --take-over` ends the holder)".to_owned(),
        };
        tracing::info!(
            slot, host, pid, server_pid = holder.pid, through = %watermark.position(),
            "the slot is in use by another writer ({holder}; the lake's writer: pid {pid} on host {host}): {until}"
        );
    }
}

/// Host and pid of a writer's name (`host-pid-random`).
fn whose(writer: &str) -> (&str, &str) {
    let named = writer.rsplit_once('-').and_then(|(rest, _)| rest.rsplit_once('-'));
    named.unwrap_or((writer, "?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watermark(seq: u64, through: u64) -> Watermark {
        let text = format!(
            r#"{{"format": 1, "epoch": 1, "writer": "a-host-42-00ff", "seq": {seq}, "through": "{}", "slot_state": "ready", "commit": null,
                "commit_time": "2026-11-24T03:22:10Z", "source": {{"system_identifier": "1", "timeline": 1, "database": "d", "slot": "s", "publication": null}}, "tables": {{}}}}"#,
            Lsn(through)
        );
        serde_json::from_str(&text).unwrap()
    }

    fn holder(silent_secs: Option<u64>, flushed: u64) -> Holder {
        let silent = silent_secs.map(Duration::from_secs);
        Holder { pid: 7, address: None, application: Some("huella".into()), silent, flushed: Lsn(flushed) }
    }

    fn standby() -> Standby {
        let secs = Duration::from_secs;
        Standby { silence_max: secs(90), overdue_after: secs(90), owing_since: None, seen: None, told: None }
    }

    #[test]
    fn an_idle_holder_that_answers_is_never_dead() {
        let (mut standby, begun) = (standby(), Instant::now());
        for secs in 0..1000 {
            let now = begun + Duration::from_secs(secs);
            assert_eq!(standby.judge(&holder(Some(secs % 10), 100), &watermark(1, 100), now), Verdict::Lives, "{secs}");
            assert_eq!(standby.judge(&holder(None, 100), &watermark(1, 100), now), Verdict::Lives, "{secs}");
        }
    }

    #[test]
    fn a_holder_that_does_not_answer_is_dead() {
        let (mut standby, now) = (standby(), Instant::now());
        assert_eq!(standby.judge(&holder(Some(89), 100), &watermark(1, 100), now), Verdict::Lives);
        assert!(matches!(standby.judge(&holder(Some(90), 100), &watermark(1, 100), now), Verdict::End(why) if why.contains("90 s")));
    }

    #[test]
    fn a_holder_that_commits_nothing_of_what_there_is_is_dead_and_a_slow_one_is_not() {
        let (mut standby, begun) = (standby(), Instant::now());
        let at = |secs| begun + Duration::from_secs(secs);
        assert_eq!(standby.judge(&holder(Some(0), 100), &watermark(1, 100), at(0)), Verdict::Lives);
        assert_eq!(standby.judge(&holder(Some(0), 200), &watermark(1, 100), at(80)), Verdict::Lives);
        assert_eq!(standby.judge(&holder(Some(0), 200), &watermark(1, 100), at(169)), Verdict::Lives);
        // A commit, even one that is still below the end of the WAL, is a sign of life.
        assert_eq!(standby.judge(&holder(Some(0), 300), &watermark(2, 150), at(170)), Verdict::Lives);
        assert_eq!(standby.judge(&holder(Some(0), 300), &watermark(2, 150), at(259)), Verdict::Lives);
        assert!(
            matches!(standby.judge(&holder(Some(0), 300), &watermark(2, 150), at(260)), Verdict::End(why) if why.contains("committed nothing"))
        );
        standby.ended_one();
        assert_eq!(standby.judge(&holder(Some(0), 300), &watermark(2, 150), at(261)), Verdict::Lives);
    }

    #[test]
    fn a_writer_is_named_by_host_and_pid() {
        assert_eq!(whose("my-host-42-00ff"), ("my-host", "42"));
        assert_eq!(whose("odd"), ("odd", "?"));
    }
}
