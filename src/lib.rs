//! huella keeps a lake of Parquet files in step with a PostgreSQL database.
//!
//! Data flows one way: `postgres` → `pgoutput` → `batch` (with `schema`) → `commit` (with `lake`, `store`);
//! `replicate` and `snapshot` drive it, `cli` is the outside. Imports follow the same direction.

#![warn(clippy::disallowed_methods)]
#![deny(clippy::print_stdout, clippy::print_stderr)] // `stdout` and the log escape what others wrote

pub mod batch;
pub mod check;
pub mod cli;
pub mod commit;
pub mod compact;
pub mod config;
pub mod daily;
pub mod dataform;
pub mod error;
pub mod failpoint;
pub mod files;
pub mod forget;
pub mod lake;
pub mod lsn;
pub mod observe;
pub mod pgoutput;
pub mod postgres;
pub mod publish;
pub mod replicate;
pub mod schema;
pub mod shapes;
pub mod snapshot;
pub mod status;
pub mod stdout;
pub mod store;
pub mod table_name;
pub mod teardown;
pub mod verify;
pub mod wait;
