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

/// Columns of a row: PostgreSQL's own limit (MaxTupleAttributeNumber). More would only cost time, column by column.
const COLUMNS_MAX: usize = 1664;

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
        empty if empty.is_empty() => "pg_catalog".to_owned(),
        namespace => namespace.into_owned(),
    };
    let name = reader.string("relation's name")?.into_owned();
    let offset = reader.offset();
    let identity = match reader.u8("replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        _ => return Err(undefined("replica identity", offset)),
    };
    let offset = reader.offset();
    let count = usize::from(reader.u16("number of columns")?);
    if count > COLUMNS_MAX {
        return Err(undefined("number of columns", offset));
    }
    // The count is only a claim: never reserve more than the bytes at hand could fill.
    let mut columns = Vec::with_capacity(count.min(reader.rest().len() / COLUMN_BYTES_MIN));
    for _ in 0..count {
        columns.push(RelationColumn {
            key: reader.u8("column flags")? & 1 != 0, // other bits are reserved: PostgreSQL's own reader ignores them
            name: reader.string("column's name")?.into_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::pgoutput::{Cell, PG_EPOCH_US};

    fn fault(bytes: &[u8]) -> (usize, Fault) {
        let error = decode(bytes).unwrap_err();
        (error.offset, error.fault)
    }

    #[test]
    fn begin_and_commit_give_positions_and_times() {
        let begin = Begin { final_lsn: Lsn(0x0102), commit_time_us: PG_EPOCH_US - 1, xid: 0xFFFF_FFFF };
        assert_eq!(decode(b"B\0\0\0\0\0\0\x01\x02\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"), Ok(Message::Begin(begin)));
        let commit = Commit { commit_lsn: Lsn(1), end_lsn: Lsn(2), commit_time_us: PG_EPOCH_US + 3 };
        let bytes = b"C\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03";
        assert_eq!(decode(bytes), Ok(Message::Commit(commit)));
    }

    #[test]
    fn a_commit_with_flags_is_refused() {
        assert_eq!(fault(b"C\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03"), (1, Fault::Undefined));
    }

    #[test]
    fn a_relation_gives_names_identity_and_columns() {
        let bytes = b"R\0\0\0\x05s\0t\0f\0\x02\x01id\0\0\0\0\x17\xFF\xFF\xFF\xFF\0n\0\0\0\x06\xA4\0\x0A\0\x06";
        let column = |key, name: &str, type_oid, typmod| RelationColumn { key, name: name.into(), type_oid, typmod };
        let expected = Relation {
            id: 5,
            namespace: "s".into(),
            name: "t".into(),
            identity: ReplicaIdentity::Full,
            columns: vec![column(true, "id", 23, -1), column(false, "n", 1700, 0xA_0006)],
        };
        assert_eq!(decode(bytes), Ok(Message::Relation(expected)));
    }

    #[test]
    fn an_empty_schema_name_is_pg_catalog() {
        let Message::Relation(relation) = decode(b"R\0\0\0\x05\0t\0n\0\0").unwrap() else { panic!() };
        assert_eq!((relation.namespace.as_str(), relation.columns.len()), ("pg_catalog", 0));
    }

    #[test]
    fn a_relation_with_bad_identity_or_without_names_is_refused() {
        assert_eq!(fault(b"R\0\0\0\x05s\0t\0x\0\0"), (9, Fault::Undefined));
        assert_eq!(fault(b"R\0\0\0\x05schema"), (5, Fault::Unterminated));
    }

    /// One such table, which is not replicated, must not end the stream of the others.
    #[test]
    fn names_that_are_not_utf8_are_read_all_the_same() {
        let Message::Relation(relation) = decode(b"R\0\0\0\x05s\xFF\0t\xF1o\0d\0\x01\0\xF1\0\0\0\0\x17\0\0\0\0").unwrap() else { panic!() };
        assert_eq!((relation.namespace.as_str(), relation.name.as_str()), ("s\u{FFFD}", "t\u{FFFD}o"));
        assert_eq!(relation.columns[0].name, "\u{FFFD}");
        assert_eq!(decode(b"Y\0\0\0\x01\xFF\0\xFF\0"), Ok(Message::Type));
    }

    #[test]
    fn row_changes_give_relation_and_tuples() {
        let (id, row, key) = (b"\0\0\x40\x01", b"\0\x02t\0\0\0\x01an", b"\0\x02nu");
        let join = |parts: &[&[u8]]| parts.concat();
        let cells = |tuple: Tuple<'_>| tuple.cells().map(|cell| format!("{cell:?}")).collect::<Vec<_>>().join(" ");

        let bytes = join(&[b"I", id, b"N", row]);
        let Message::Insert { relation: 0x4001, new } = decode(&bytes).unwrap() else { panic!() };
        assert_eq!(new.cells().collect::<Vec<_>>(), [Cell::Text(b"a"), Cell::Null]);

        let bytes = join(&[b"U", id, b"N", row]);
        assert!(matches!(decode(&bytes), Ok(Message::Update { old: None, .. })));

        for (tag, kind) in [(b"K", OldKind::Key), (b"O", OldKind::Full)] {
            let bytes = join(&[b"U", id, tag, key, b"N", row]);
            let Message::Update { relation: 0x4001, old: Some(old), new } = decode(&bytes).unwrap() else { panic!() };
            assert_eq!((old.kind, cells(old.tuple), cells(new)), (kind, "Null Unchanged".into(), "Text(1 bytes) Null".into()));

            let bytes = join(&[b"D", id, tag, key]);
            let Message::Delete { relation: 0x4001, old } = decode(&bytes).unwrap() else { panic!() };
            assert_eq!((old.kind, old.tuple.len()), (kind, 2));
        }
    }

    #[test]
    fn tuples_under_a_wrong_tag_are_refused() {
        assert_eq!(fault(b"I\0\0\0\x01K\0\x01n"), (5, Fault::Undefined));
        assert_eq!(fault(b"D\0\0\0\x01N\0\x01n"), (5, Fault::Undefined));
        assert_eq!(fault(b"U\0\0\0\x01X\0\x01n"), (5, Fault::Undefined));
        assert_eq!(fault(b"U\0\0\0\x01K\0\x01nO\0\x01n"), (9, Fault::Undefined));
    }

    #[test]
    fn a_truncate_gives_tables_and_options() {
        let expected = Truncate { relations: vec![1, 2], cascade: false, restart_identity: true };
        assert_eq!(decode(b"T\0\0\0\x02\x02\0\0\0\x01\0\0\0\x02"), Ok(Message::Truncate(expected)));
        assert_eq!(fault(b"T\xFF\xFF\xFF\xFF\0"), (1, Fault::Undefined));
    }

    #[test]
    fn a_claimed_count_reserves_no_more_than_the_message_could_hold() {
        assert_eq!(fault(b"T\x7F\xFF\xFF\xFF\0\0\0\0\x01"), (10, Fault::Short { needed: 4, left: 0 }));
        assert_eq!(fault(b"R\0\0\0\x05s\0t\0d\x06\x80"), (12, Fault::Short { needed: 1, left: 0 }));
        assert_eq!(fault(b"R\0\0\0\x05s\0t\0d\x06\x81"), (10, Fault::Undefined), "more columns than a table can have");
    }

    #[test]
    fn messages_that_carry_no_rows_are_read_to_their_end() {
        assert_eq!(decode(b"O\0\0\0\0\0\0\0\x01name\0"), Ok(Message::Origin));
        assert_eq!(decode(b"Y\0\0\0\x01public\0mood\0"), Ok(Message::Type));
        let expected = Message::Logical { transactional: true, lsn: Lsn(9), prefix: "p".into() };
        assert_eq!(decode(b"M\x01\0\0\0\0\0\0\0\x09p\0\0\0\0\x02\0\xFF"), Ok(expected));
        assert_eq!(fault(b"Y\0\0\0\x01public\0mood\0x"), (17, Fault::Trailing(1)));
    }

    #[test]
    fn messages_of_other_protocols_are_named_and_unknown_ones_refused() {
        for kind in *b"SEcAbPKrp" {
            assert_eq!(decode(&[kind, 1, 2]), Ok(Message::Unasked(kind)));
        }
        assert_eq!(fault(b""), (0, Fault::Short { needed: 1, left: 0 }));
        assert_eq!(fault(b"Z"), (0, Fault::UnknownMessage(b'Z')));
    }
}
