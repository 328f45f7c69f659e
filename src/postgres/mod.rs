//! The source: what PostgreSQL's catalogue, publications, slots and server say.

pub mod catalogue;
mod column_type;
pub mod fingerprint;
pub mod publication;
pub mod server;
pub mod slot;

mod sql_error;
