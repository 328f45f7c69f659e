//! Former versions of tables that nobody needs any more.
//!
//! Owns: which they are. Does not own: making it count (`ledger`), deletion (`sweep`). Pure.
//! Invariants: the current version of a table, those after it, and tables that are not replicated any more are left alone; a version is taken for
//! superseded no earlier than it was.

use crate::lake::{LiveFile, Watermark, day_of};
use crate::table_name::TableName;
use chrono::{DateTime, NaiveDate, Utc};
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// Paths of the files of versions that were superseded longer than `keep` ago. A version became current by its copy; the first day of the version
/// after it is the day of that copy or one before it, and the whole of that day counts for it.
pub(super) fn retired(live: &[LiveFile], watermark: &Watermark, keep: Duration, now: DateTime<Utc>) -> HashSet<String> {
    // Rows that arrived before a version's copy did not make it current. Where the copy's rows are folded away, the first that are left are younger.
    let mut copied: BTreeMap<(&TableName, u32), NaiveDate> = BTreeMap::new();
    let mut any: BTreeMap<(&TableName, u32), NaiveDate> = BTreeMap::new();
    for live in live {
        let Some(day) = day_of(&live.file.path).and_then(|day| day.parse::<NaiveDate>().ok()) else { continue };
        let begin = |days: &mut BTreeMap<_, _>| {
            days.entry((&live.file.table, live.file.version)).and_modify(|first: &mut NaiveDate| *first = day.min(*first)).or_insert(day);
        };
        begin(&mut any);
        if live.snapshot.is_some() {
            begin(&mut copied);
        }
    }
    let is_retired = |live: &&LiveFile| {
        let current = watermark.tables.get(&live.file.table).and_then(|mark| mark.version);
        let Some(current) = current.filter(|current| live.file.version < *current) else { return false };
        let after = (&live.file.table, live.file.version + 1)..=(&live.file.table, current);
        let superseded = copied.range(after.clone()).next().or_else(|| any.range(after).next()).map(|(_, day)| *day);
        let over = superseded.and_then(|day| day.succ_opt()).and_then(|day| day.and_hms_opt(0, 0, 0));
        over.is_some_and(|over| now.signed_duration_since(over.and_utc()).to_std().is_ok_and(|past| past >= keep))
    };
    live.iter().filter(is_retired).map(|live| live.file.path.clone()).collect()
}
