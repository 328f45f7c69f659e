//! Decoding and walking a row allocates nothing: counted by the allocator itself.

use huella::pgoutput::{Cell, Message, decode};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell as Counter;

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
