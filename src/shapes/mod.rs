//! Shapes of tables: what the lake knows of them, and what each thing that is learned of the source means for it. Pure: no I/O, no clock but for
//! the time of a note.
//!
//! Two things are tracked, and neither writes the other's state:
//! - the **layout**, by the wire alone: a RELATION says which columns the rows after it have, and so into which version they go
//!   ([`Tracked::place`]). The server decodes with the catalog as it was at the row, so this is exact;
//! - the **content**, by catalog against catalog: whether a row that was written before now reads differently at the source, without a message
//!   ([`Tracked::look`]). It compares the look that was last reconciled with the new one. Each difference is either on the list of harmless ones, or
//!   the table owes a copy that is taken after it.
//!
//! Owns: versions, debts, edits of the watermark. Does not own: which columns fit a version (`schema::version`), what a look holds
//! (`postgres::look`), storing documents and committing (`replicate`). Invariants: nothing changes but by edits, which the compare-and-swap of
//! the watermark carries together with the rows they belong to; a version's layout runs ahead of the stream only while the table owes a copy,
//! which supersedes every row before it; a debt ends only with a copy at or after the position at which it was noticed.

mod edit;
mod tracked;
mod wire;

pub use edit::{Edit, TableEdit};
pub use tracked::{Arrival, Context, Place, Seen, Tracked};
pub use wire::{unknown_columns, wire_table};
