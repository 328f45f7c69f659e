//! Any bytes as a `pgoutput` message: an error or a message whose rows can be walked to their end.

#![no_main]
#![allow(dead_code, unreachable_pub, unused_imports)] // taken in by path, used in part

#[path = "../../../src/lsn.rs"]
mod lsn;
#[path = "../../../src/pgoutput/mod.rs"]
mod pgoutput;

use pgoutput::{Cell, Message, Tuple};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match pgoutput::decode(bytes) {
        Ok(Message::Insert { new, .. }) => walk(new),
        Ok(Message::Update { old, new, .. }) => {
            old.into_iter().for_each(|old| walk(old.tuple));
            walk(new);
        }
        Ok(Message::Delete { old, .. }) => walk(old.tuple),
        Ok(_) => {}
        Err(error) => assert!(error.offset <= bytes.len()),
    }
});

fn walk(row: Tuple<'_>) {
    let mut cells = row.cells();
    let mut wire_bytes = 0;
    for left in (0..row.len()).rev() {
        wire_bytes += match cells.next().expect("a row has as many cells as it says") {
            Cell::Null | Cell::Unchanged => 1,
            Cell::Text(value) | Cell::Binary(value) => 1 + 4 + value.len(),
        };
        assert_eq!(cells.len(), left);
    }
    assert!(cells.next().is_none());
    assert_eq!(wire_bytes, row.wire_bytes(), "cells lie back to back");
}
