//! Full copies of tables at one consistent point.
//!
//! Owns: locks, the temporary slot with its snapshot, which rows each worker copies, binary COPY into Parquet files.
//! Does not own: when a copy is needed and when it becomes current (`replicate`). Invariants: locks are taken before the
//! snapshot and held until the last file is durable; nothing is sent on the exporting connection until every worker has
//! imported; a copy begins with the TRUNCATE row at `(S, -1)`; a table is handed over whole or not at all.

mod catalogue;
mod copy;
mod group;
mod job;
mod output;
mod plan;
mod prepare;
mod work;

pub use catalogue::{content, prepare_catalogues};
pub use copy::{copy_all, copy_tables};
pub use group::{locks_each, next_group};
pub use job::{Copied, CopyJob, Sink};
pub use prepare::{Prepared, prepare};
