//! `state/dataform.json`: the last Dataform run, so that one cut is merged by one invocation.
//!
//! Owns: its fields, its compare-and-swap. Invariant: the compilation is recorded before it is invoked, so that an invocation whose
//! recording was lost is found by its compilation.

use crate::commit::persist;
use crate::error::{Error, Result};
use crate::lake::FORMAT;
use crate::store::{Generation, Store, StoreError};
use serde::{Deserialize, Serialize};

const PATH: &str = "state/dataform.json";

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
    /// `RUNNING`, or how it ended.
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
        loop {
            let answer = match self.generation {
                Some(generation) => self.store.replace_if(PATH, body.clone(), generation).await,
                None => self.store.put_new(PATH, body.clone()).await,
            };
            match answer {
                Ok(generation) => {
                    (self.generation, self.last) = (Some(generation), Some(run));
                    return Ok(());
                }
                Err(error @ StoreError::Refused { .. }) => return Err(error.into()),
                Err(_) => {}
            }
            // Ambiguous: only what stands there counts.
            let found = persist("read the record of Dataform runs back", || self.store.get(PATH)).await?;
            match found {
                Some(found) if found.body == body => {
                    (self.generation, self.last) = (Some(found.generation), Some(run));
                    return Ok(());
                }
                found if found.as_ref().map(|object| object.generation) != self.generation => {
                    return Err(Error::retry("another process runs Dataform for this lake: start again, and it is waited for"));
                }
                _ => tokio::time::sleep(self.store.min_replace_interval()).await,
            }
        }
    }
}
