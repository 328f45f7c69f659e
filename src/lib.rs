//! huella keeps a lake of Parquet files in step with a PostgreSQL database.
//!
//! Data flows one way: `postgres` → `pgoutput` → `batch` (with `schema`) → `commit` (with `lake`, `store`);
//! `replicate` and `snapshot` drive it, `cli` is the outside. Imports follow the same direction.

pub mod error;
pub mod lsn;
pub mod postgres;
pub mod store;
