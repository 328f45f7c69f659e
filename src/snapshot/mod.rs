//! Full copies of tables at one consistent point, while the stream goes on.
//!
//! Owns: locks, the exported snapshot, COPY, the files of a copy. Does not own: when a copy becomes current
//! (`replicate`). Invariants: the tables are locked before the snapshot exists and until the last file is
//! durable; the exporting connection stays silent until every worker has imported; a copy begins with the
//! TRUNCATE row at `(S, -1)`.

mod catalogue;
mod copy;
mod prepare;
mod text;

pub use catalogue::{content, prepare_catalogues};
pub use copy::{Copied, CopyJob, copy_all};
pub use prepare::{Prepared, prepare};
