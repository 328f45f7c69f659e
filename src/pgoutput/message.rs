//! The messages of `pgoutput`.
//!
//! Owns: their shapes. Does not own: how they are read (`decode`), rows (`tuple`).
//! Invariant: times are microseconds since 1970-01-01 UTC, positions are [`Lsn`]s.

use super::tuple::{OldTuple, Tuple};
use crate::lsn::Lsn;

/// One message. Rows borrow from the bytes they were decoded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins.
    Begin(Begin),
    /// The transaction that began last is complete.
    Commit(Commit),
    /// The transaction came to the source from another node; where from does not matter here.
    Origin,
    /// A table's shape as it was when the following rows were written. Repeated in every session.
    Relation(Relation),
    /// A type that is not built in; its values come as text all the same.
    Type,
    /// A row was inserted.
    Insert {
        /// Id of the Relation message that describes the row.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// Id of the Relation message that describes the rows.
        relation: u32,
        /// The old key if it changed, the old row under REPLICA IDENTITY FULL, else nothing.
        old: Option<OldTuple<'a>>,
        /// The row after the update.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// Id of the Relation message that describes the row.
        relation: u32,
        /// What is known of the deleted row.
        old: OldTuple<'a>,
    },
    /// Tables were emptied.
    Truncate(Truncate),
    /// A message written by `pg_logical_emit_message`; sent only with the option `messages`. Its content is passed over.
    Logical {
        /// Whether it belongs to the transaction that is arriving.
        transactional: bool,
        /// Where it lies in the WAL.
        lsn: Lsn,
        /// Who it is for.
        prefix: std::borrow::Cow<'a, str>,
    },
    /// A message of the streaming or two-phase protocols (versions 2 to 4), by its first byte. They are never asked
    /// for, so what it holds is not looked at.
    Unasked(u8),
}

/// The beginning of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Position of the transaction's commit record: known before its first row.
    pub final_lsn: Lsn,
    /// When it committed, in microseconds since 1970-01-01 UTC.
    pub commit_time_us: i64,
    /// Transaction id (32 bits: it wraps).
    pub xid: u32,
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Position of the commit record; equals Begin's `final_lsn`.
    pub commit_lsn: Lsn,
    /// Position behind the transaction; the next one's commit record may begin exactly here.
    pub end_lsn: Lsn,
    /// When it committed, in microseconds since 1970-01-01 UTC.
    pub commit_time_us: i64,
}

/// A table's name and columns as far as the publication sends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// The table's oid; rows refer to it.
    pub id: u32,
    /// Schema. The wire's empty string is already replaced by the `pg_catalog` that it stands for.
    pub namespace: String,
    /// Table.
    pub name: String,
    /// What old tuples hold.
    pub identity: ReplicaIdentity,
    /// Columns in the order of the rows' cells. Dropped and (before 18) generated columns are absent.
    pub columns: Vec<RelationColumn>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Whether it belongs to the replica identity; under FULL all columns do.
    pub key: bool,
    /// Its name.
    pub name: String,
    /// Its type's oid.
    pub type_oid: u32,
    /// Its type's modifier (length, precision and scale), -1 without.
    pub typmod: i32,
}

/// `pg_class.relreplident`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing: updates and deletes carry no old key.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of a unique index.
    Index,
}

/// TRUNCATE of one or several tables in one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// Ids of the tables' Relation messages; those that CASCADE reached as well.
    pub relations: Vec<u32>,
    /// CASCADE was given.
    pub cascade: bool,
    /// RESTART IDENTITY was given.
    pub restart_identity: bool,
}
