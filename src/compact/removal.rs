//! Rows taken out of live files, of whatever day: what `forget` asks for.
//!
//! Owns: the files that are written for it, making them count. Does not own: which rows (`forget`), the record (`ledger`), deletion (`sweep`).
//! Invariants: as of any replacement: it counts whole or not at all, and only while all that it replaces is live; a file
//! without an edit is left alone.

use super::forgotten;
use super::ledger::{Ledger, Replacement};
use super::plan::by_day;
use super::rewrite::{Edit, Edits, Work, rewrite};
use super::stopwatch::Stopwatch;
use super::sweep;
use crate::commit;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lake::{LiveFile, Watermark};
use crate::schema::version::TableSchema;
use crate::store::Store;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The schemas of a table's versions.
pub(crate) type Versions = BTreeMap<u32, Arc<TableSchema>>;

/// The live files, and what may be done with their rows.
pub(crate) struct Removal {
    ledger: Ledger,
    work: Work,
    part: u64,
}

impl Removal {
    /// Looks at the lake.
    pub(crate) async fn open(config: &Config, store: Arc<dyn Store>) -> Result<Self> {
        let ledger = Ledger::open(Arc::clone(&store), config.compact.grace).await?;
        Ok(Self { ledger, work: Work { store, file_size: config.compact.file_size, run: commit::random() }, part: 0 })
    }

    /// Looks again, and writes the list down as it stands: from here on every file that is replaced stands in a checkpoint.
    pub(crate) async fn refresh(&mut self) -> Result<()> {
        self.ledger.commit(Vec::new(), Stopwatch::start()).await.map(|_| ())
    }

    /// The watermark of the last look.
    pub(crate) fn watermark(&self) -> &Watermark {
        &self.ledger.watermark
    }

    /// All live files, as of the last look.
    pub(crate) fn all(&self) -> &[LiveFile] {
        &self.ledger.live
    }

    /// A table's live files of all versions, as of the last look.
    pub(crate) fn live(&self, schemas: &Versions) -> Vec<LiveFile> {
        let of_table = |live: &&LiveFile| schemas.get(&live.file.version).is_some_and(|schema| schema.table == live.file.table);
        self.ledger.live.iter().filter(of_table).cloned().collect()
    }

    /// Makes edits of a table's files count, all at once; `false` if another process was quicker with one of them: look again. `receipt` is the
    /// document that says what they are.
    pub(crate) async fn take_out(&mut self, schemas: &Versions, edits: HashMap<String, Edit>, receipt: &str) -> Result<bool> {
        take_out(&mut self.ledger, &self.work, &mut self.part, schemas, edits, Some(receipt.to_owned())).await
    }

    /// Notes what nothing names any more, and deletes what may go by now.
    pub(crate) async fn sweep(&mut self) -> Result<()> {
        let now = chrono::Utc::now();
        forgotten::count(self.work.store.as_ref(), self.ledger.grace, now).await?;
        sweep::sweep(&mut self.ledger, now).await.map(|_| ())
    }
}

/// As [`Removal::take_out`].
pub(super) async fn take_out(
    ledger: &mut Ledger,
    work: &Work,
    part: &mut u64,
    schemas: &Versions,
    edits: HashMap<String, Edit>,
    receipt: Option<String>,
) -> Result<bool> {
    let begun = Stopwatch::start();
    let groups = by_day(ledger.live.iter().filter(|live| edits.contains_key(&live.file.path)));
    let edits: Edits = Some(Arc::new(edits));
    let mut replacement = Replacement { receipt: receipt.clone(), ..Replacement::default() };
    for group in groups {
        let schema = schemas.get(&group.version);
        let schema = schema.ok_or_else(|| Error::bug(format!("{}: version {} was not read", group.table, group.version)))?;
        let folded = group.files.iter().all(|live| live.folded);
        replacement.old.extend(group.files.iter().map(|live| live.file.path.clone()));
        let mut new = rewrite(work, &group, Arc::clone(schema), edits.clone(), part).await?;
        new.iter_mut().for_each(|live| live.folded = folded);
        replacement.new.extend(new);
    }
    if ledger.commit(vec![replacement], begun).await? == 0 {
        return Ok(true);
    }
    // A reply may have been lost, and others have built on what counted.
    let record = commit::compaction(work.store.as_ref()).await?.map(|(record, _)| record.checkpoints).unwrap_or_default();
    Ok(receipt.is_some() && record.iter().any(|mark| mark.receipt == receipt))
}
