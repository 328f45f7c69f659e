//! Micro-batches: change rows in Arrow builders, when they are cut, and their Parquet files.
//!
//! Owns: the metadata columns, ordinals, the boundary between complete transactions and the one that is
//! arriving, encoding. Does not own: types of cells (`schema`), uploading and committing (`commit`).
//! Invariants: rows stand in the order of changes; a piece with a boundary holds whole transactions only; what
//! is buffered stays below the limit but for a single row that is larger.

mod batcher;
mod copied;
mod parquet;
mod table;

pub use batcher::{Batcher, LastTransaction, Piece, Replay, Target, Torn};
pub use copied::{CopyBatch, CopyColumn};
pub use parquet::{EncodedFile, GrowingFile, encode, options};
pub use table::{SealedTable, TableBatch, Transaction};
