//! What a session announces the rows of partitions as, before PostgreSQL 15.
//!
//! There the server decides it at a relation's first change of a session and stays with it: after ATTACH or DETACH a partition's rows go on
//! coming under the name of before, in that session (seen on 14; from 15 on it looks again). What came under a wrong name is
//! superseded by copies of all tables concerned, taken while a session streams that began behind the change.
//!
//! Owns: since which position a session must have begun, for copies to begin. Invariants: a session that may announce wrongly
//! makes no copies; it ends as soon as the lake has passed the change; what is not known for sure (a new process) counts as changed.

use crate::error::Error;
use crate::lsn::Lsn;

/// The first version that looks again.
const LOOKS_AGAIN: i32 = 150_000;

/// What the present session is worth.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    /// This server does not look again.
    stays: bool,
    /// Where the present session began.
    start: Lsn,
    /// Sessions that began below this may announce wrongly.
    behind: Option<Lsn>,
    /// This process has looked before.
    known: bool,
    /// Where the session began that the server could not decode for.
    undecodable: Option<Lsn>,
}

impl Announced {
    /// A session begins, of a server of this version, at this position.
    pub(crate) fn begin(&mut self, version: i32, start: Lsn) {
        self.stays = version < LOOKS_AGAIN;
        self.start = start;
        self.behind = self.behind.filter(|behind| self.stays && start < *behind);
    }

    /// Partitions moved, or may have moved, below this position.
    pub(crate) fn moved(&mut self, position: Lsn) {
        if self.stays {
            self.behind = self.behind.max(Some(position));
        }
    }

    /// What a session's first look found, at this position. `waiting`: tables wait for copies that a process before this one asked for.
    pub(crate) fn looked(&mut self, moved: bool, waiting: bool, position: Lsn) {
        if moved || (waiting && !self.known) {
            self.moved(position);
        }
        self.known = true;
    }

    /// Whether the server keeps to what it announced first.
    pub(crate) fn stays(&self) -> bool {
        self.stays
    }

    /// The position that the lake must reach before a session can begin that may copy; `None`: this one may.
    pub(crate) fn behind(&self) -> Option<Lsn> {
        self.behind
    }

    /// The server cannot put rows into the form of what it took their table for (42804): a partition that was detached and then lost a
    /// column. A session that begins behind the detaching takes it for what it is; one that began where this one does will not.
    pub(crate) fn undecodable(&mut self, error: Error) -> Error {
        if self.undecodable.replace(self.start) != Some(self.start) {
            return Error::retry("the server cannot decode the rows of a partition that was detached in this session").with_source(error);
        }
        Error::source_refused(
            "a partition was detached and lost a column of its root's, and this server goes on sending its rows as the root's, which it cannot (14 \
             only): they cannot be decoded. Run `huella run --resnapshot`: it makes the slot anew and copies every table; history is kept",
        )
        .with_source(error)
    }

    /// Whether a copy with this point may count: one that was prepared for a session before this one, or just before partitions moved, lies where
    /// a session may have announced wrongly.
    pub(crate) fn may_copy(&self, point: Lsn) -> bool {
        !self.stays || (self.behind.is_none() && point >= self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_session_that_began_behind_the_move_may_copy() {
        let mut announced = Announced::default();
        announced.begin(140_000, Lsn(10));
        assert_eq!(announced.behind(), None);
        assert!(announced.may_copy(Lsn(10)) && !announced.may_copy(Lsn(9)), "a copy prepared for a session before");
        announced.moved(Lsn(20));
        assert!(!announced.may_copy(Lsn(19)) && !announced.may_copy(Lsn(21)), "prepared before they moved, or noticed just now");
        announced.moved(Lsn(15));
        announced.begin(140_000, Lsn(19));
        assert_eq!(announced.behind(), Some(Lsn(20)), "an acknowledgement was lost");
        announced.begin(140_000, Lsn(20));
        assert_eq!(announced.behind(), None);
        announced.moved(Lsn(30));
        announced.begin(150_000, Lsn(20));
        assert_eq!(announced.behind(), None, "upgraded");
        announced.moved(Lsn(40));
        assert_eq!(announced.behind(), None);
    }

    #[test]
    fn rows_that_cannot_be_decoded_are_tried_once_from_each_position() {
        let mut announced = Announced::default();
        let failed = || Error::retry("42804");
        for start in [10, 20] {
            announced.begin(140_000, Lsn(start));
            assert!(announced.undecodable(failed()).is_retry());
        }
        announced.begin(140_000, Lsn(20));
        assert!(!announced.undecodable(failed()).is_retry());
    }

    #[test]
    fn copies_that_a_former_process_asked_for_count_as_asked_for_by_a_move() {
        let mut announced = Announced::default();
        announced.begin(140_000, Lsn(10));
        announced.looked(false, true, Lsn(20));
        assert_eq!(announced.behind(), Some(Lsn(20)));
        announced.begin(140_000, Lsn(20));
        announced.looked(false, true, Lsn(30));
        assert_eq!(announced.behind(), None);
    }
}
