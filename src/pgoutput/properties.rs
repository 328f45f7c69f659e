//! Properties of the decoder: whatever is encoded comes back, and no bytes at all make it panic.
//!
//! Owns: an encoder of every message, for tests only. Does not own: captures of a real server (`tests/golden.rs`).

use super::*;
use crate::lsn::Lsn;
use proptest::collection::vec;
use proptest::prelude::*;

/// A cell that owns its value.
type Value = (u8, Vec<u8>);
/// A message's bytes and what they must decode to, as text made by [`show`].
type Example = (Vec<u8>, String);

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn put_tuple(bytes: &mut Vec<u8>, tag: u8, row: &[Value]) {
    bytes.push(tag);
    bytes.extend((row.len() as u16).to_be_bytes());
    for (kind, value) in row {
        bytes.push(*kind);
        if matches!(kind, b't' | b'b') {
            bytes.extend((value.len() as u32).to_be_bytes());
            bytes.extend(value);
        }
    }
}

/// Everything that a message says, values included (its `Debug` hides them).
fn show(message: &Message<'_>) -> String {
    let old = |old: &OldTuple<'_>| format!("{:?} {}", old.kind, show_values(old.tuple.cells().map(value)));
    match message {
        Message::Insert { relation, new } => format!("insert {relation} {}", show_values(new.cells().map(value))),
        Message::Update { relation, old: before, new } => {
            format!("update {relation} {:?} {}", before.as_ref().map(old), show_values(new.cells().map(value)))
        }
        Message::Delete { relation, old: before } => format!("delete {relation} {}", old(before)),
        other => format!("{other:?}"),
    }
}

fn value(cell: Cell<'_>) -> Value {
    match cell {
        Cell::Null => (b'n', vec![]),
        Cell::Unchanged => (b'u', vec![]),
        Cell::Text(value) => (b't', value.to_vec()),
        Cell::Binary(value) => (b'b', value.to_vec()),
    }
}

fn show_values(values: impl ExactSizeIterator<Item = Value>) -> String {
    format!("{} {:?}", values.len(), values.collect::<Vec<_>>())
}

fn row() -> impl Strategy<Value = Vec<Value>> {
    let empty = prop::sample::select(vec![b'n', b'u']).prop_map(|kind| (kind, vec![]));
    let full = (prop::sample::select(vec![b't', b'b']), vec(any::<u8>(), 0..40));
    vec(prop_oneof![empty, full], 0..12)
}

fn name() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..8).prop_map(|chars| chars.into_iter().filter(|&c| c != '\0').collect())
}

fn transaction() -> impl Strategy<Value = Example> {
    (any::<u64>(), any::<u64>(), any::<i64>(), any::<u32>(), any::<bool>()).prop_map(|(lsn, end, time, xid, begins)| {
        let commit_time_us = time.saturating_add(PG_EPOCH_US);
        let [lsn_bytes, end_bytes, time_bytes] = [lsn.to_be_bytes(), end.to_be_bytes(), time.to_be_bytes()];
        if begins {
            let bytes = [b"B", &lsn_bytes[..], &time_bytes, &xid.to_be_bytes()].concat();
            (bytes, show(&Message::Begin(Begin { final_lsn: Lsn(lsn), commit_time_us, xid })))
        } else {
            let bytes = [b"C\0", &lsn_bytes[..], &end_bytes, &time_bytes].concat();
            (bytes, show(&Message::Commit(Commit { commit_lsn: Lsn(lsn), end_lsn: Lsn(end), commit_time_us })))
        }
    })
}

fn relation() -> impl Strategy<Value = Example> {
    let identities = vec![
        (b'd', ReplicaIdentity::Default),
        (b'n', ReplicaIdentity::Nothing),
        (b'f', ReplicaIdentity::Full),
        (b'i', ReplicaIdentity::Index),
    ];
    let column = (any::<bool>(), name(), any::<u32>(), any::<i32>());
    let column = column.prop_map(|(key, name, type_oid, typmod)| RelationColumn { key, name, type_oid, typmod });
    (any::<u32>(), name(), name(), prop::sample::select(identities), vec(column, 0..6)).prop_map(|(id, schema, name, identity, columns)| {
        let mut bytes = [b"R", &id.to_be_bytes()[..]].concat();
        put_string(&mut bytes, &schema);
        put_string(&mut bytes, &name);
        bytes.push(identity.0);
        bytes.extend((columns.len() as u16).to_be_bytes());
        for column in &columns {
            bytes.push(u8::from(column.key));
            put_string(&mut bytes, &column.name);
            bytes.extend(column.type_oid.to_be_bytes());
            bytes.extend(column.typmod.to_be_bytes());
        }
        let namespace = if schema.is_empty() { "pg_catalog".into() } else { schema };
        (bytes, show(&Message::Relation(Relation { id, namespace, name, identity: identity.1, columns })))
    })
}

fn change() -> impl Strategy<Value = Example> {
    let old = prop::option::of((any::<bool>(), row()));
    (any::<u32>(), old, prop::option::of(row())).prop_map(|(relation, old, new)| {
        let kind = match (&old, &new) {
            (None, Some(_)) if relation % 2 == 0 => b'I',
            (_, Some(_)) => b'U',
            (_, None) => b'D',
        };
        let mut bytes = [&[kind], &relation.to_be_bytes()[..]].concat();
        let before = |(full, row): &(bool, Vec<Value>)| {
            let kind = if *full { OldKind::Full } else { OldKind::Key };
            format!("{kind:?} {}", show_values(row.clone().into_iter()))
        };
        // A delete always has an old row, if only an empty one.
        let old = if kind == b'D' { Some(old.unwrap_or_default()) } else { old };
        if let Some((full, row)) = &old {
            put_tuple(&mut bytes, if *full { b'O' } else { b'K' }, row);
        }
        let after = new.map(|row| {
            put_tuple(&mut bytes, b'N', &row);
            show_values(row.into_iter())
        });
        let old = old.as_ref().map(before);
        let text = match (kind, after) {
            (b'I', Some(after)) => format!("insert {relation} {after}"),
            (b'U', Some(after)) => format!("update {relation} {old:?} {after}"),
            _ => format!("delete {relation} {}", old.unwrap()),
        };
        (bytes, text)
    })
}

fn truncate() -> impl Strategy<Value = Example> {
    (vec(any::<u32>(), 0..5), any::<bool>(), any::<bool>()).prop_map(|(relations, cascade, restart_identity)| {
        let mut bytes = [b"T", &(relations.len() as u32).to_be_bytes()[..]].concat();
        bytes.push(u8::from(cascade) | u8::from(restart_identity) << 1);
        relations.iter().for_each(|id| bytes.extend(id.to_be_bytes()));
        (bytes, show(&Message::Truncate(Truncate { relations, cascade, restart_identity })))
    })
}

fn rest() -> impl Strategy<Value = Example> {
    (0..3, any::<u64>(), any::<bool>(), name(), vec(any::<u8>(), 0..20)).prop_map(|(kind, lsn, transactional, prefix, content)| {
        let (mut bytes, message) = match kind {
            0 => ([b"O", &lsn.to_be_bytes()[..]].concat(), Message::Origin),
            1 => ([b"Y", &lsn.to_be_bytes()[..4], b"schema\0"].concat(), Message::Type),
            _ => {
                let bytes = [&[b'M', u8::from(transactional)], &lsn.to_be_bytes()[..]].concat();
                (bytes, Message::Logical { transactional, lsn: Lsn(lsn), prefix: prefix.as_str().into() })
            }
        };
        put_string(&mut bytes, &prefix);
        if kind == 2 {
            bytes.extend((content.len() as u32).to_be_bytes());
            bytes.extend(content);
        }
        let text = show(&message);
        (bytes, text)
    })
}

fn example() -> impl Strategy<Value = Example> {
    prop_oneof![2 => transaction(), 2 => relation(), 6 => change(), 1 => truncate(), 1 => rest()]
}

/// Decodes and walks everything, so that a lazy fault would show.
fn walk(bytes: &[u8]) {
    match decode(bytes) {
        Ok(message) => drop(show(&message)),
        Err(error) => assert!(error.offset <= bytes.len() && !error.to_string().is_empty()),
    }
    if let Err(error) = envelope(bytes) {
        assert!(error.offset <= bytes.len());
    }
}

proptest! {
    #[test]
    fn what_is_encoded_comes_back((bytes, expected) in example()) {
        let message = decode(&bytes).unwrap();
        prop_assert_eq!(show(&message), expected);
    }

    #[test]
    fn a_message_cut_or_lengthened_is_refused((bytes, _) in example()) {
        for end in 0..bytes.len() {
            prop_assert!(decode(&bytes[..end]).is_err(), "{} of {} bytes", end, bytes.len());
        }
        let longer = [&bytes[..], &[0]].concat();
        prop_assert_eq!(decode(&longer).unwrap_err().fault, Fault::Trailing(1));
    }

    #[test]
    fn mutated_messages_never_panic((bytes, _) in example(), edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = bytes;
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            walk(&bytes);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        walk(&bytes);
    }

    #[test]
    fn random_bytes_behind_a_known_kind_never_panic(
        kind in prop::sample::select(b"BCORYIUDTMwk".to_vec()),
        mut bytes in vec(prop_oneof![Just(0u8), Just(1), Just(0xFF), any::<u8>(), prop::sample::select(b"KONntub".to_vec())], 1..60),
    ) {
        bytes[0] = kind;
        walk(&bytes);
    }

    #[test]
    fn an_envelope_gives_back_what_it_holds(start: u64, end: u64, time: i64, payload in vec(any::<u8>(), 0..40), reply: bool) {
        let sent_us = time.saturating_add(PG_EPOCH_US);
        let (start_bytes, end_bytes, time_bytes) = (start.to_be_bytes(), end.to_be_bytes(), time.to_be_bytes());
        let data = [b"w", &start_bytes[..], &end_bytes, &time_bytes, &payload].concat();
        prop_assert_eq!(envelope(&data), Ok(Envelope::Data { start: Lsn(start), end: Lsn(end), sent_us, payload: &payload }));
        let keepalive = [b"k", &end_bytes[..], &time_bytes, &[u8::from(reply)]].concat();
        prop_assert_eq!(envelope(&keepalive), Ok(Envelope::Keepalive { wal_end: Lsn(end), sent_us, reply_requested: reply }));
    }
}
