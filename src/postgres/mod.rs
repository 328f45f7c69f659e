//! Everything that speaks to the PostgreSQL server: sessions for SQL, the replication connection, the catalogue.
//!
//! Owns: connection options, TLS, authentication, the replication protocol's commands and its byte stream.
//! Does not own: what the bytes mean (`pgoutput`), when a position is durable (`commit`).
//! Invariants: no secret in an error, a log line or a `Debug` text; only an LSN that was handed to
//! [`ReplicationStream::acknowledge`] is ever reported to the server as flushed.

mod auth;
pub mod catalogue;
mod certificate;
pub mod column_list;
mod column_type;
mod copy;
pub mod error;
mod frames;
mod limits;
pub mod look;
mod options;
mod passfile;
pub mod publication;
mod reader;
mod replication;
mod rows;
pub mod server;
pub mod slot;
mod socket;
mod sql;
mod sql_error;
mod status;
mod stream;
mod tls;
mod transport;
pub mod unstreamable;
mod wire;

pub use copy::CopySession;
pub use error::{DbError, sqlstate};
pub use frames::{Event, Frames, ServerNotice};
pub use options::{ConnectOptions, FIRST_CONNECTION, SslMode};
pub use reader::StreamSetup;
pub use replication::{ExportedSlot, Replication, System};
pub use rows::{Cell, SqlRow, one};
pub use sql::{connect_sql, connect_streaming};
pub use stream::ReplicationStream;
