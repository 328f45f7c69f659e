//! Which files are rewritten together.
//!
//! Owns: the rule what is small, what is closed, and in which runs files can be read one after the other. Pure.
//! Invariants: a second plan right after the work is empty; within a run no row of a file lies behind a row of the next one.

use crate::lake::{FileKind, LiveFile, Position, Span, day_of};
use crate::lsn::Lsn;
use crate::table_name::TableName;
use std::collections::BTreeMap;

/// Files below this part of the target are worth rewriting; so is the rest that a former run left.
const SMALL: u64 = 4;

/// Files of one table, version and day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) table: TableName,
    pub(super) version: u32,
    pub(super) day: String,
    pub(super) files: Vec<LiveFile>,
}

/// All files by table, version and day.
pub(super) fn by_day<'a>(files: impl Iterator<Item = &'a LiveFile>) -> Vec<Group> {
    let mut groups: BTreeMap<(&TableName, u32, &str), Vec<LiveFile>> = BTreeMap::new();
    for live in files {
        // Every data file lies in a day's folder; what does not was not written by this program and is left alone.
        let Some(day) = day_of(&live.file.path) else { continue };
        groups.entry((&live.file.table, live.file.version, day)).or_default().push(live.clone());
    }
    let group =
        |((table, version, day), files): ((&TableName, u32, &str), _)| Group { table: table.clone(), version, day: day.to_owned(), files };
    groups.into_iter().map(group).collect()
}

/// The small files of days before `before`, where there are several.
pub(super) fn groups(live: &[LiveFile], before: &str, file_size: u64) -> Vec<Group> {
    let small = |live: &&LiveFile| live.file.bytes < file_size / SMALL && day_of(&live.file.path).is_some_and(|day| day < before);
    let mut groups = by_day(live.iter().filter(small));
    groups.retain(|group| group.files.len() > 1);
    groups
}

/// Files whose first and last row must be read before they can be put in order: copies, and those that share their commit with another
/// one of the group. All else is ordered by the ranges of the commits, which never overlap.
pub(super) fn unplaced(files: &[LiveFile]) -> Vec<usize> {
    let mut commits: BTreeMap<(Lsn, Lsn), u32> = BTreeMap::new();
    for live in files.iter().filter(|live| live.span.is_none()) {
        *commits.entry((live.after, live.through)).or_default() += 1;
    }
    let shares = |live: &LiveFile| live.file.kind == FileKind::Snapshot || commits[&(live.after, live.through)] > 1;
    files.iter().enumerate().filter(|(_, live)| live.span.is_none() && shares(live)).map(|(at, _)| at).collect()
}

/// Where a file's rows lie at most.
fn range(live: &LiveFile) -> Span {
    // Streamed rows have ordinals from 1: the next commit's range may begin where this one's ends.
    live.span.unwrap_or(Span { first: (live.after, 1), last: (Lsn(live.through.0.saturating_sub(1)), i64::MAX) })
}

/// Puts files in runs, each in the order of its rows; runs overlap, so they are merged.
pub(super) fn runs(mut files: Vec<LiveFile>) -> Vec<Vec<LiveFile>> {
    files.sort_by_key(|live| (range(live).first, range(live).last)); // stable: equal ones in the order of their commits
    let mut runs: Vec<(Position, Vec<LiveFile>)> = Vec::new();
    for live in files {
        let span = range(&live);
        match runs.iter_mut().find(|(end, _)| *end <= span.first) {
            Some((end, run)) => {
                *end = span.last;
                run.push(live);
            }
            None => runs.push((span.last, vec![live])),
        }
    }
    runs.into_iter().map(|(_, run)| run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::DataFile;
    use crate::lsn::CommitSeq;

    fn file(name: &str, day: &str, bytes: u64, kind: FileKind, after: u64, through: u64) -> LiveFile {
        let path = format!("tables/public.t/v1/dt={day}/{name}.parquet");
        let file = DataFile { path, table: TableName::new("public", "t"), version: 1, rows: 1, bytes, crc32c: String::new(), kind };
        LiveFile { file, seq: CommitSeq(through), after: Lsn(after), through: Lsn(through), snapshot: None, span: None, folded: false }
    }

    fn names(runs: &[Vec<LiveFile>]) -> Vec<Vec<&str>> {
        let name = |live: &'_ LiveFile| live.file.path.len() - "x.parquet".len();
        runs.iter().map(|run| run.iter().map(|live| &live.file.path[name(live)..name(live) + 1]).collect()).collect()
    }

    #[test]
    fn only_several_small_files_of_closed_days_are_rewritten() {
        use FileKind::Stream;
        let live = [
            file("a", "2026-11-22", 10, Stream, 0, 10),
            file("b", "2026-11-22", 1000, Stream, 10, 20),
            file("c", "2026-11-22", 10, Stream, 20, 30),
            file("d", "2026-11-23", 10, Stream, 30, 40),
            file("e", "2026-11-24", 10, Stream, 40, 50),
            file("f", "2026-11-24", 10, Stream, 50, 60),
        ];
        let groups = groups(&live, "2026-11-24", 1000);
        assert_eq!(groups.len(), 1);
        assert_eq!((groups[0].day.as_str(), names(&[groups[0].files.clone()])), ("2026-11-22", vec![vec!["a", "c"]]));
    }

    #[test]
    fn copies_and_files_of_one_commit_are_placed_by_their_rows() {
        use FileKind::{Snapshot, Stream};
        let mut files = vec![
            file("a", "d", 1, Stream, 0, 10),
            file("b", "d", 1, Stream, 10, 20),
            file("c", "d", 1, Stream, 10, 20),
            file("s", "d", 1, Snapshot, 20, 30),
            file("t", "d", 1, Snapshot, 20, 30),
        ];
        assert_eq!(unplaced(&files), [1, 2, 3, 4]);
        let mut place = |at: usize, first: (u64, i64), last: (u64, i64)| {
            files[at].span = Some(Span { first: (Lsn(first.0), first.1), last: (Lsn(last.0), last.1) });
        };
        place(1, (12, 5), (12, 9)); // the later part of a transaction
        place(2, (11, 1), (12, 4));
        place(3, (5, 0), (5, 0)); // a copy at 5 becomes visible after rows above it
        place(4, (5, -1), (5, 0));
        assert_eq!(names(&runs(files)), [vec!["a", "c", "b"], vec!["t", "s"]]);
    }

    #[test]
    fn a_transaction_may_begin_exactly_where_the_last_commit_ended() {
        let files = vec![file("b", "d", 1, FileKind::Stream, 10, 20), file("a", "d", 1, FileKind::Stream, 0, 10)];
        assert_eq!(names(&runs(files)), [vec!["a", "b"]]);
    }
}
