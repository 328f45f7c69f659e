//! Decoding and walking a row allocates nothing, and a copied row only what its columns grow by: counted by the allocator itself.

#![allow(clippy::unwrap_used)] // a broken test may panic

use huella::batch::{CopyBatch, CopyColumn, Transaction};
use huella::lsn::Lsn;
use huella::pgoutput::{Cell, Message, decode};
use huella::schema::version::{SchemaColumn, TableSchema};
use huella::schema::{Conversion, Wire};
use huella::table_name::TableName;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell as Counter;
use std::sync::Arc;

struct Counting;

thread_local! {
    static ALLOCATIONS: Counter<u64> = const { Counter::new(0) };
}

// SAFETY: passes everything on to the system's allocator; the counter is thread-local and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_row_costs_no_allocation() {
    let rows: [&[u8]; 3] = [
        b"I\0\0\0\x01N\0\x03t\0\0\0\x05hellonb\0\0\0\x02\0\x01",
        b"U\0\0\0\x01O\0\x02nt\0\0\0\x01aN\0\x02nu",
        b"D\0\0\0\x01K\0\x02t\0\0\0\x01an",
    ];
    let before = ALLOCATIONS.get();
    let mut bytes = 0;
    for row in rows {
        let tuple = match decode(row) {
            Ok(Message::Insert { new, .. } | Message::Update { new, .. }) => new,
            Ok(Message::Delete { old, .. }) => old.tuple,
            _ => panic!("not a row"),
        };
        for cell in tuple.cells() {
            if let Cell::Text(value) | Cell::Binary(value) = cell {
                bytes += value.len();
            }
        }
    }
    assert_eq!((bytes, ALLOCATIONS.get() - before), (8, 0));
    drop(std::hint::black_box(Vec::<u8>::with_capacity(10)));
    assert_eq!(ALLOCATIONS.get() - before, 1, "the allocator does not count");
}

#[test]
fn a_copied_row_costs_no_allocation_of_its_own() {
    let kinds = [
        (Conversion::Int64, Wire::Int, &7i64.to_be_bytes()[..]),
        (Conversion::Decimal38_9, Wire::Numeric, &[0, 2, 0, 0, 0, 0, 0, 2, 0, 12, 13, 72]),
        (Conversion::Text, Wire::Text, b"transferencia"),
        (Conversion::Text, Wire::Uuid, &[1; 16]),
        (Conversion::Timestamp, Wire::Timestamp, &7i64.to_be_bytes()),
        (Conversion::Boolean, Wire::Bool, &[1]),
    ];
    let column = |(n, (conversion, _, _)): (usize, &(Conversion, Wire, &[u8]))| SchemaColumn {
        name: format!("c{n}"),
        source: format!("c{n}"),
        attnum: 1,
        type_oid: 0,
        typmod: -1,
        source_type: String::new(),
        lake_type: conversion.lake_type(),
        conversion: *conversion,
        hashed: false,
        dropped: false,
    };
    let columns = kinds.iter().enumerate().map(column).collect();
    let schema = Arc::new(TableSchema {
        table: TableName::new("public", "t"),
        version: 1,
        oid: 1,
        columns,
        key: Vec::new(),
        excluded: Vec::new(),
        excluded_names: Default::default(),
        hash_key: None,
    });
    let fetched: Vec<_> = kinds.iter().enumerate().map(|(index, (_, wire, _))| CopyColumn { index, wire: Some(*wire) }).collect();
    let at = Transaction { commit_lsn: Lsn(1), commit_time_us: 0, xid: None };
    let mut batch = CopyBatch::new(&schema, &fetched, at, None).unwrap();
    let mut row = (kinds.len() as i16).to_be_bytes().to_vec();
    for (_, _, value) in kinds {
        row.extend((value.len() as i32).to_be_bytes());
        row.extend(value);
    }
    let rows = 20_000;
    let before = ALLOCATIONS.get();
    for _ in 0..rows {
        batch.message(&row).unwrap();
    }
    let allocations = ALLOCATIONS.get() - before;
    assert!(allocations < 250, "{allocations} allocations for {rows} rows");
    assert_eq!(batch.take().unwrap().num_rows(), rows);
}
