//! PostgreSQL's `pgoutput` messages and their replication envelope, decoded from bytes.
//!
//! Owns: protocol version 1 (what we ask for), text and binary cells, the standby status update.
//! Does not own: sockets, types and values of cells, the meaning of positions.
//! Invariants: pure; no bytes make it panic or allocate more than their own length justifies; a row costs no
//! allocation; every byte of a message is accounted for (rest bytes are an error); neither an error nor
//! a `Debug` text holds a cell's value.
//!
//! Source of the format: PostgreSQL's manual, "Logical Replication Message Formats" and "Streaming Replication
//! Protocol"; where the manual is silent, `src/backend/replication/logical/proto.c`.

mod decode;
mod envelope;
mod message;
#[cfg(test)]
mod properties;
mod reader;
mod tuple;

pub use decode::decode;
pub use envelope::{Envelope, PG_EPOCH_US, envelope, status_update};
pub use message::{Begin, Commit, Message, Relation, RelationColumn, ReplicaIdentity, Truncate};
pub use reader::{DecodeError, Fault};
pub use tuple::{Cell, Cells, OldKind, OldTuple, Tuple};
