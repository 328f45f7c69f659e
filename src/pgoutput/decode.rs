//! From bytes to one [`Message`].
//!
//! Owns: the field order of each message, checks of tags and counts. Does not own: which message may follow which.
//! Invariants: every byte is read or the message is refused; allocations are bounded by the message's length.

use super::envelope::unix_us;
use super::message::{Begin, Commit, Message, Relation, RelationColumn, ReplicaIdentity, Truncate};
use super::reader::{DecodeError, Fault, Reader};
use super::tuple::{OldKind, OldTuple, Tuple};

/// Smallest column of a Relation message: flags, empty name, oid, modifier.
const COLUMN_BYTES_MIN: usize = 1 + 1 + 4 + 4;

/// Decodes one `pgoutput` message: the payload of one [`Envelope::Data`](super::Envelope::Data).
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let message = match reader.u8("kind of message")? {
        b'I' => insert(&mut reader)?,
        b'U' => update(&mut reader)?,
        b'D' => delete(&mut reader)?,
        b'B' => Message::Begin(begin(&mut reader)?),
        b'C' => Message::Commit(commit(&mut reader)?),
        b'R' => Message::Relation(relation(&mut reader)?),
        b'T' => Message::Truncate(truncate(&mut reader)?),
        b'O' => {
            reader.lsn("origin's commit LSN")?;
            reader.string("origin's name")?;
            Message::Origin
        }
        b'Y' => {
            reader.u32("type's id")?;
            reader.string("type's schema")?;
            reader.string("type's name")?;
            Message::Type
        }
        b'M' => logical(&mut reader)?,
        // Stream start, stop, commit, abort; begin prepare, prepare, commit prepared, rollback prepared, stream prepare.
        kind @ (b'S' | b'E' | b'c' | b'A' | b'b' | b'P' | b'K' | b'r' | b'p') => return Ok(Message::Unasked(kind)),
        kind => return Err(DecodeError { what: "kind of message", offset: 0, fault: Fault::UnknownMessage(kind) }),
    };
    reader.end()?;
    Ok(message)
}

fn begin(reader: &mut Reader<'_>) -> Result<Begin, DecodeError> {
    Ok(Begin {
        final_lsn: reader.lsn("transaction's final LSN")?,
        commit_time_us: unix_us(reader.i64("commit time")?),
        xid: reader.u32("transaction id")?,
    })
}

fn commit(reader: &mut Reader<'_>) -> Result<Commit, DecodeError> {
    let offset = reader.offset();
    if reader.u8("commit flags")? != 0 {
        return Err(undefined("commit flags", offset));
    }
    Ok(Commit {
        commit_lsn: reader.lsn("commit LSN")?,
        end_lsn: reader.lsn("transaction's end LSN")?,
        commit_time_us: unix_us(reader.i64("commit time")?),
    })
}

fn relation(reader: &mut Reader<'_>) -> Result<Relation, DecodeError> {
    let id = reader.u32("relation's id")?;
    let namespace = match reader.string("relation's schema")? {
        "" => "pg_catalog",
        namespace => namespace,
    }
    .to_owned();
    let name = reader.string("relation's name")?.to_owned();
    let offset = reader.offset();
    let identity = match reader.u8("replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        _ => return Err(undefined("replica identity", offset)),
    };
    let count = usize::from(reader.u16("number of columns")?);
    // The count is only a claim: never reserve more than the bytes at hand could fill.
    let mut columns = Vec::with_capacity(count.min(reader.rest().len() / COLUMN_BYTES_MIN));
    for _ in 0..count {
        columns.push(RelationColumn {
            key: reader.u8("column flags")? & 1 != 0, // other bits are reserved: PostgreSQL's own reader ignores them
            name: reader.string("column's name")?.to_owned(),
            type_oid: reader.u32("column's type")?,
            typmod: reader.i32("column's type modifier")?,
        });
    }
    Ok(Relation { id, namespace, name, identity, columns })
}

#[inline]
fn insert<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = reader.u32("relation of an insert")?;
    let offset = reader.offset();
    match reader.u8("new tuple's tag")? {
        b'N' => Ok(Message::Insert { relation, new: Tuple::read(reader)? }),
        _ => Err(undefined("new tuple's tag", offset)),
    }
}

#[inline]
fn update<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = reader.u32("relation of an update")?;
    let mut offset = reader.offset();
    let mut tag = reader.u8("tuple's tag")?;
    let mut old = None;
    if let Some(kind) = old_kind(tag) {
        old = Some(OldTuple { kind, tuple: Tuple::read(reader)? });
        offset = reader.offset();
        tag = reader.u8("new tuple's tag")?;
    }
    match tag {
        b'N' => Ok(Message::Update { relation, old, new: Tuple::read(reader)? }),
        _ => Err(undefined("new tuple's tag", offset)),
    }
}

#[inline]
fn delete<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = reader.u32("relation of a delete")?;
    let offset = reader.offset();
    match old_kind(reader.u8("old tuple's tag")?) {
        Some(kind) => Ok(Message::Delete { relation, old: OldTuple { kind, tuple: Tuple::read(reader)? } }),
        None => Err(undefined("old tuple's tag", offset)),
    }
}

fn old_kind(tag: u8) -> Option<OldKind> {
    match tag {
        b'K' => Some(OldKind::Key),
        b'O' => Some(OldKind::Full),
        _ => None,
    }
}

fn truncate(reader: &mut Reader<'_>) -> Result<Truncate, DecodeError> {
    let offset = reader.offset();
    let count = usize::try_from(reader.i32("number of relations")?).map_err(|_| undefined("number of relations", offset))?;
    let flags = reader.u8("truncate flags")?;
    let mut relations = Vec::with_capacity(count.min(reader.rest().len() / size_of::<u32>()));
    for _ in 0..count {
        relations.push(reader.u32("truncated relation")?);
    }
    Ok(Truncate { relations, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 })
}

fn logical<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let transactional = reader.u8("logical message's flags")? & 1 != 0;
    let lsn = reader.lsn("logical message's LSN")?;
    let prefix = reader.string("logical message's prefix")?;
    reader.sized("logical message's content")?;
    Ok(Message::Logical { transactional, lsn, prefix })
}

fn undefined(what: &'static str, offset: usize) -> DecodeError {
    DecodeError { what, offset, fault: Fault::Undefined }
}
