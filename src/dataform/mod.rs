//! What the Dataform project needs to know of the lake.
//!
//! Owns: `huella_tables.json` (what tables there are) and the compilation variable `huella_cut` (how far they are). Does not own: the
//! project's SQL. Invariants: both come from the lake's own documents alone; a table's name in BigQuery, once given, stays.

mod generate;
mod names;
mod vars;

pub use generate::run as generate;
pub use vars::huella_cut;
