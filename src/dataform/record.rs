//! `state/dataform.json`: the last Dataform run, so that one cut is merged by one invocation.
//!
//! Owns: its fields, its compare-and-swap. Invariant: the compilation is recorded before it is invoked, so that an invocation whose
//! recording was lost is found by its compilation.

use crate::commit::{Swapped, persist, swap};
use crate::error::{Error, Result};
use crate::lake::FORMAT;
use crate::store::{Generation, Store};
use serde::{Deserialize, Serialize};

const PATH: &str = "state/dataform.json";

/// State of a run that the service refused to start: there is no invocation to look for.
pub(super) const REFUSED: &str = "REFUSED";

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    /// Layout number.
    pub(super) format: u32,
    /// Commit of the published cut.
    pub(super) cut: String,
    /// Compilation variable: two runs of one cut that differ in it (a table was copied) are two.
    pub(super) variable: String,
    /// Compilation's resource name.
    pub(super) compilation: String,
    /// The repository's commit that was compiled.
    pub(super) code: String,
    /// Invocation's resource name.
    #[serde(default)]
    pub(super) invocation: Option<String>,
    /// `RUNNING`, or how it ended; [`REFUSED`]: the service did not start it.
    pub(super) state: String,
    /// When the record was written, RFC 3339, UTC.
    pub(super) time: String,
}

/// The record, with the generation that a change must replace.
pub(super) struct Record<'a> {
    store: &'a dyn Store,
    generation: Option<Generation>,
    pub(super) last: Option<Run>,
}

impl<'a> Record<'a> {
    /// Reads it.
    pub(super) async fn read(store: &'a dyn Store) -> Result<Self> {
        let object = persist("read the record of Dataform runs", || store.get(PATH)).await?;
        let Some(object) = object else { return Ok(Self { store, generation: None, last: None }) };
        let last: Run = serde_json::from_slice(&object.body)
            .map_err(|e| Error::lake(format!("{PATH} cannot be read; delete it, and the next run begins anew")).with_source(e))?;
        if last.format != FORMAT {
            return Err(Error::lake(format!("{PATH} has format {}; this program reads format {FORMAT}", last.format)));
        }
        Ok(Self { store, generation: Some(object.generation), last: Some(last) })
    }

    /// Replaces it.
    ///
    /// # Errors
    /// `Kind::Retry` if another process recorded a run meanwhile.
    pub(super) async fn write(&mut self, mut run: Run) -> Result<()> {
        run.time = crate::lake::rfc3339(chrono::Utc::now().timestamp_micros());
        let body: bytes::Bytes = serde_json::to_vec_pretty(&run).map_err(|e| Error::bug("writing JSON").with_source(e))?.into();
        match swap(self.store, PATH, self.generation, body).await? {
            Swapped::Landed(generation) => {
                (self.generation, self.last) = (Some(generation), Some(run));
                Ok(())
            }
            Swapped::Moved(_) | Swapped::Gone => {
                Err(Error::retry("another process runs Dataform for this lake: start again, and it is waited for"))
            }
        }
    }
}
