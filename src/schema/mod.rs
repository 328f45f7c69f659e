//! What a source's column becomes in the lake: its type, its name, and every one of its cells.
//!
//! Owns: PostgreSQL type → lake type, PostgreSQL text → Arrow values, column names in the lake. Does not own:
//! reading the catalogue (`postgres`), cutting batches (`batch`). Pure: no I/O.
//! Invariant: a cell is either exact or refused (`Unfit`); nothing is rounded or clamped, and no bytes from outside panic.

pub mod array;
pub mod binary;
pub mod builder;
pub mod datetime;
pub mod hash;
pub mod names;
pub mod numeric;
pub mod privacy;
pub mod text;
pub mod types;
pub mod version;

pub use binary::Wire;
pub use builder::ColumnBuilder;
pub use hash::HashKey;
pub use names::{LakeNames, lake_names, source_name};
pub use text::exception_text;
pub use types::{Conversion, Element, LakeType, PgType, conversion};

/// Text that the lake's type cannot hold: the cell is NULL, and `_exceptions` keeps the source's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value does not fit the lake's type")]
pub struct Unfit;
