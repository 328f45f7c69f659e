//! Named places where a test may kill or stop the process. Empty in release builds.
//!
//! Owns: `HUELLA_FAILPOINT="point=abort|stop|hang[@n]"` (debug builds only): at the n-th passage (default the
//! first) the process kills itself with SIGKILL, stops itself with SIGSTOP until somebody continues it, or that thread never goes on.

/// Every failpoint of the protocol; the crash matrix goes through this list.
pub const POINTS: &[&str] = &[
    "swap.unanswered",
    "claim.before_cas",
    "claim.after_cas",
    "start.after_create",
    "start.after_slot",
    "start.after_import",
    "start.after_promote",
    "start.after_ready",
    "snapshot.after_first_file",
    "snapshot.between_ranges",
    "snapshot.after_files",
    "snapshot.after_commit",
    "snapshot.after_proposal",
    "snapshot.after_alone",
    "commit.after_data",
    "commit.after_manifest",
    "commit.after_cas",
    "commit.before_ack",
    "commit.after_ack",
    "compact.after_file",
    "compact.after_checkpoint",
    "compact.after_record",
    "compact.after_marks",
    "compact.after_prune",
    "compact.after_delete",
    "forget.after_receipt",
    "forget.after_swap",
    "forget.after_publish",
    "publish.after_schema",
    "publish.after_rowless",
    "publish.after_manifest",
    "publish.after_cut",
];

/// Passes a failpoint.
#[cfg(debug_assertions)]
pub fn hit(point: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    struct Plan {
        point: String,
        /// None: this thread hangs.
        signal: Option<i32>,
        left: AtomicU64,
    }
    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    debug_assert!(POINTS.contains(&point), "{point} is missing in POINTS");
    let plan = PLAN.get_or_init(|| {
        let text = std::env::var("HUELLA_FAILPOINT").ok()?;
        let (point, rest) = text.split_once('=')?;
        let (action, nth) = rest.split_once('@').unwrap_or((rest, "1"));
        let signal = match action {
            "hang" => None,
            "stop" => Some(libc::SIGSTOP),
            _ => Some(libc::SIGKILL),
        };
        Some(Plan { point: point.to_owned(), signal, left: AtomicU64::new(nth.parse().ok()?) })
    });
    if let Some(plan) = plan
        && plan.point == point
        && plan.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) == Ok(1)
    {
        let Some(signal) = plan.signal else {
            loop {
                std::thread::park();
            }
        };
        // SAFETY: a signal to the own process; no memory is involved.
        unsafe { libc::kill(libc::getpid(), signal) };
        // The signal stops or ends the process a moment later; this thread must not get ahead meanwhile.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// Passes a failpoint: nothing in release builds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit(_point: &'static str) {}
