//! What the Dataform project needs to know of the lake, and running it.
//!
//! Owns: `huella_tables.json` (what tables there are), the compilation variable `huella_cut` (how far they are), one run for each published
//! cut. Does not own: the project's SQL. Invariants: both come from the lake's own documents alone; a table's name in BigQuery, once given, stays.

mod api;
mod generate;
mod names;
mod record;
mod run;
mod vars;

pub use generate::{publish as publish_tables, run as generate};
pub use run::run;
pub use vars::huella_cut;
