//! Tables and their versions.
//!
//! Owns: when a version begins, what must be copied. Does not own: where rows go (`route`). Invariants: a row is
//! written to the newest version that its shape fits; a version is listed as pending before its first row is
//! committed; what changed without a message is copied anew.

mod route;

pub(crate) use route::Arrived;

use super::edit::{Edit, store_schema};
use super::membership::mark;
use super::source::{Observed, privacy};
use crate::batch::Torn;
use crate::config::{Config, Mode};
use crate::error::{Error, Result};
use crate::lake::{Pending, PublicationMark, TableChange, TableMark, Watermark, rfc3339};
use crate::lsn::Lsn;
use crate::postgres::catalogue::{Table, TableKind};
use crate::postgres::fingerprint::{leaves_differ, rewritten, same_rows, same_shape};
use crate::schema::version::{Fit, Privacy, TableSchema};
use crate::snapshot::CopyJob;
use crate::store::Store;
use crate::table_name::TableName;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A table with its versions: the current one and those that wait, the newest last.
#[derive(Debug)]
struct Entry {
    mark: TableMark,
    versions: Vec<Arc<TableSchema>>,
    table: Option<Table>,
    /// Columns that never arrive, as they were told last.
    unlisted: Vec<String>,
}

impl Entry {
    /// The fingerprint that the table had when it was last looked at.
    fn newest_fingerprint(&self) -> &str {
        self.mark.pending.last().map_or(&self.mark.fingerprint, |p| &p.fingerprint)
    }

    /// Whether its partitions are others than when it was last looked at. (A shape that only the stream had has no fingerprint.)
    fn moves(&self, now: &str) -> bool {
        let looked_at = self.mark.pending.iter().rev().map(|p| &p.fingerprint).find(|fingerprint| !fingerprint.is_empty());
        leaves_differ(looked_at.unwrap_or(&self.mark.fingerprint), now)
    }
}

/// All streamed tables.
#[derive(Debug)]
pub(crate) struct Registry {
    entries: BTreeMap<TableName, Entry>,
    publication: Option<PublicationMark>,
    edits: Vec<Edit>,
    /// Partitions came or went, or a table joined that may have been one.
    moved: bool,
}

impl Registry {
    /// Reads the versions that the watermark names.
    pub(crate) async fn load(store: &dyn Store, watermark: &Watermark) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for (name, table) in watermark.streamed() {
            let mut numbers: Vec<u32> = table.version.into_iter().chain(table.pending.iter().map(|p| p.version)).collect();
            numbers.sort_unstable();
            numbers.dedup();
            let mut versions = Vec::new();
            for version in numbers {
                let schema = crate::commit::schema(store, name, version).await?;
                versions.push(Arc::new(schema));
            }
            entries.insert(name.clone(), Entry { mark: table.clone(), versions, table: None, unlisted: Vec::new() });
        }
        Ok(Self { entries, publication: watermark.source.publication.clone(), edits: Vec::new(), moved: false })
    }

    /// The watermark as it will be once what is under way is committed, as far as tables go.
    pub(crate) fn ahead_of(&self, watermark: &Watermark) -> Watermark {
        let mut ahead = watermark.clone();
        ahead.tables.retain(|_, mark| mark.mode == Mode::Snapshot);
        ahead.tables.extend(self.entries.iter().map(|(name, entry)| (name.clone(), entry.mark.clone())));
        ahead
    }

    /// A streamed table as it was when it was last compared.
    pub(crate) fn table(&self, name: &TableName) -> Option<&Table> {
        self.entries.get(name)?.table.as_ref()
    }

    /// Names of all streamed tables.
    pub(crate) fn names(&self) -> BTreeSet<TableName> {
        self.entries.keys().cloned().collect()
    }

    /// Compares with the source as it is now; what changed becomes edits and copies.
    pub(crate) async fn compare(&mut self, store: &dyn Store, config: &Config, observed: &Observed, copy_new: bool) -> Result<()> {
        let now = mark(config, &observed.publication);
        let before = self.publication.clone();
        if let Some(before) = &before
            && before.oid != now.oid
        {
            return Err(Error::source_refused(format!(
                "publication {:?} was dropped and created again: changes in between were not sent. Run `huella run --resnapshot`",
                now.name
            )));
        }
        let all = before.as_ref().is_some_and(|b| b.xmin != now.xmin);
        for (name, table) in &observed.tables {
            let edited = all
                || before.as_ref().is_some_and(|b| {
                    b.tables.get(name) != now.tables.get(name) || (now.tables.get(name) == Some(&(0, 0)) && b.schemas != now.schemas)
                });
            self.compare_table(store, config, table, edited.then_some(observed.position), copy_new).await?;
            self.tell_unlisted(config, observed, name);
        }
        if before.as_ref() != Some(&now) {
            self.publication = Some(now.clone());
            self.edits.push(Edit::Publication(now));
        }
        let gone: Vec<TableName> = self.entries.keys().filter(|n| !observed.tables.contains_key(*n)).cloned().collect();
        for name in gone {
            tracing::warn!(table = %name, "the table is no longer replicated; its files stay");
            self.entries.remove(&name);
            self.edits.push(Edit::Forget(name));
        }
        Ok(())
    }

    /// Says once of each column that it never arrives.
    fn tell_unlisted(&mut self, config: &Config, observed: &Observed, name: &TableName) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let now = observed.unlisted.get(name).map(|unlisted| unlisted.columns.clone()).unwrap_or_default();
        if let Some(unlisted) = observed.unlisted.get(name).filter(|_| now != entry.unlisted) {
            let columns = unlisted.columns.join(",");
            if config.table(name).is_some_and(|table| table.exclude_at_source) {
                tracing::warn!(table = %name, columns, mend = unlisted.mend, "columns stay at the source that the configuration does not exclude: name them under exclude, or let them through");
            } else {
                tracing::info!(table = %name, columns, "the publication's column list leaves columns out");
            }
        }
        entry.unlisted = now;
    }

    /// Whether the publication's membership of a table is the one that was last compared; if not, the next look decides what is copied.
    pub(crate) fn knows(&self, config: &Config, observed: &Observed, name: &TableName) -> bool {
        let now = mark(config, &observed.publication);
        self.publication.as_ref().is_some_and(|known| {
            (known.oid, known.xmin, &known.schemas) == (now.oid, now.xmin, &now.schemas) && known.tables.get(name) == now.tables.get(name)
        })
    }

    /// A row came without all of its values: only a copy behind its transaction has them.
    pub(crate) async fn torn(&mut self, store: &Arc<dyn Store>, config: &Config, torn: &Torn) -> Result<()> {
        self.copy_behind(store, config, &torn.table, torn.commit_lsn, torn.reason).await
    }

    /// A partition was truncated by itself, in the transaction with this commit: what the others hold stays, and only a copy tells them apart.
    pub(crate) async fn truncated_in_part(&mut self, store: &Arc<dyn Store>, config: &Config, leaf: u32, commit: Lsn) -> Result<()> {
        let of = |entry: &Entry| entry.table.as_ref().is_some_and(|table| table.leaves.iter().any(|l| l.oid == leaf));
        let Some(name) = self.entries.iter().find(|(_, entry)| of(entry)).map(|(name, _)| name.clone()) else { return Ok(()) };
        self.copy_behind(store, config, &name, commit, "a partition was truncated by itself").await
    }

    /// A copy of a table is needed that lies behind this commit.
    async fn copy_behind(&mut self, store: &Arc<dyn Store>, config: &Config, name: &TableName, commit: Lsn, reason: &str) -> Result<()> {
        let Some(entry) = self.entries.get_mut(name) else { return Ok(()) };
        let Some((table, version)) = entry.table.clone().zip(entry.versions.last().cloned()) else {
            return Err(Error::bug(format!("{name}: rows of a table that was not looked at")));
        };
        let since = Some(Lsn(commit.0 + 1));
        match entry.mark.pending.last_mut() {
            // One copy makes up for all of them; it has to lie behind the last one.
            Some(pending) if pending.version == version.version && pending.since.is_some() => {
                if pending.since < since {
                    pending.since = since;
                    let (pending, oid) = (pending.clone(), entry.mark.oid);
                    self.edits.push(Edit::Pending { table: name.clone(), oid, pending });
                }
                Ok(())
            }
            _ => self.begin(store.as_ref(), &privacy(config, &table.name), &table, Some(version), since, reason).await,
        }
    }

    async fn compare_table(
        &mut self,
        store: &dyn Store,
        config: &Config,
        table: &Table,
        edited_below: Option<Lsn>,
        copy_new: bool,
    ) -> Result<()> {
        let edited = edited_below.is_some();
        let privacy = privacy(config, &table.name);
        let Some(entry) = self.entries.get_mut(&table.name) else {
            let version = next_version(store, &table.name).await?;
            let schema = TableSchema::begin(table, version, &privacy);
            store_schema(store, &schema).await?;
            let (oid, fingerprint) = (table.oid, table.fingerprint.clone());
            let name = table.name.clone();
            let mut mark = TableMark {
                oid,
                mode: Mode::Stream,
                version: None,
                snapshot: None,
                fingerprint: fingerprint.clone(),
                pending: Vec::new(),
                content: None,
                changes: Vec::new(),
            };
            if copy_new {
                tracing::info!(table = %name, version, "a table joins; it is copied first");
                let pending = Pending { version, fingerprint, since: None, reason: Some("its first copy".to_owned()) };
                mark.pending.push(pending.clone());
                self.edits.push(Edit::Pending { table: name.clone(), oid, pending });
            } else {
                mark.version = Some(version);
                self.edits.push(Edit::Adopted { table: name.clone(), oid, version, fingerprint });
            }
            self.entries.insert(name, Entry { mark, versions: vec![Arc::new(schema)], table: Some(table.clone()), unlisted: Vec::new() });
            return Ok(());
        };
        entry.table = Some(table.clone());
        let newest = entry.newest_fingerprint().to_owned();
        let schema = entry.versions.last().cloned().ok_or_else(|| Error::bug(format!("{}: a table without a version", table.name)))?;
        let privacy_changed = !schema.honours(&privacy, table)?;
        if !edited && !privacy_changed && newest == table.fingerprint {
            return Ok(());
        }
        let (reason, version) = match schema.fit_catalogue(table, &privacy) {
            _ if privacy_changed => ("the configuration's exclude, hash or include changed, or the hash key".to_owned(), None),
            Fit::Breaks(reason) => (reason, None),
            Fit::Same(_) if edited => ("its publication was edited".to_owned(), Some(schema)),
            Fit::Same(_) if leaves_changed(&newest, table) || rewritten(&newest, &table.fingerprint) => {
                ("the catalogue says that rows may have changed without a message".to_owned(), Some(schema))
            }
            Fit::Same(_) => {
                // An identity, say; or a shape that the version got before a crash, whose line in the log is older.
                if !same_shape(&newest, &table.fingerprint) {
                    note(&mut self.edits, &table.name, schema.version, "its definition changed; the version's columns have it already");
                }
                return self.keep(&table.name.clone(), table.fingerprint.clone());
            }
            Fit::Extends { schema: extended, copy, what, .. } => {
                let extended = Arc::new(*extended);
                store_schema(store, &extended).await?;
                note(&mut self.edits, &table.name, extended.version, &what);
                if let Some(last) = entry.versions.last_mut() {
                    *last = Arc::clone(&extended);
                }
                match copy {
                    Some(reason) => (reason, Some(extended)),
                    None if rewritten(&newest, &table.fingerprint) || leaves_differ(&newest, &table.fingerprint) => {
                        (anew(&what), Some(extended))
                    }
                    None if edited => ("its publication was edited".to_owned(), Some(extended)),
                    None => return self.keep(&table.name.clone(), table.fingerprint.clone()),
                }
            }
        };
        self.begin(store, &privacy, table, version, edited_below, &reason).await
    }

    /// A compatible change: the newest version has a new fingerprint.
    fn keep(&mut self, name: &TableName, fingerprint: String) -> Result<()> {
        if let Some(entry) = self.entries.get_mut(name) {
            self.moved |= entry.moves(&fingerprint);
            if let Some(pending) = entry.mark.pending.last_mut() {
                pending.fingerprint = fingerprint.clone();
                let (pending, oid) = (pending.clone(), entry.mark.oid);
                self.edits.push(Edit::Pending { table: name.clone(), oid, pending });
            } else {
                entry.mark.fingerprint = fingerprint.clone();
                self.edits.push(Edit::Fingerprint { table: name.clone(), fingerprint });
            }
        }
        Ok(())
    }

    /// A copy is needed: within `version`, or into a new one.
    async fn begin(
        &mut self,
        store: &dyn Store,
        privacy: &Privacy,
        table: &Table,
        version: Option<Arc<TableSchema>>,
        since: Option<Lsn>,
        reason: &str,
    ) -> Result<()> {
        let name = &table.name;
        let Some(entry) = self.entries.get_mut(name) else { return Ok(()) };
        self.moved |= entry.moves(&table.fingerprint);
        let schema = match version {
            Some(schema) => schema,
            None => {
                let number = entry.versions.iter().map(|v| v.version).max().unwrap_or(0) + 1;
                let schema = Arc::new(TableSchema::begin(table, number, privacy));
                store_schema(store, &schema).await?;
                entry.versions.push(Arc::clone(&schema));
                schema
            }
        };
        tracing::warn!(table = %name, version = schema.version, reason, "the table is copied anew and stands still until then");
        self.edits.push(changed(name, schema.version, reason));
        let (oid, version, fingerprint) = (table.oid, schema.version, table.fingerprint.clone());
        entry.mark.pending.retain(|p| p.version != version);
        let pending = Pending { version, fingerprint, since, reason: Some(reason.to_owned()) };
        entry.mark.pending.push(pending.clone());
        self.edits.push(Edit::Pending { table: name.clone(), oid, pending });
        Ok(())
    }

    fn newest(&self, name: &TableName) -> Result<Arc<TableSchema>> {
        let newest = self.entries.get(name).and_then(|entry| entry.versions.last());
        newest.cloned().ok_or_else(|| Error::bug(format!("{name}: a table without a version")))
    }

    /// Changes that go with the next piece.
    pub(crate) fn take_edits(&mut self) -> Vec<Edit> {
        std::mem::take(&mut self.edits)
    }

    /// Whether partitions came or went since this was last asked: in fingerprints that were taken in, for others will be seen again.
    pub(crate) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Whether changes wait for the next commit.
    pub(crate) fn has_edits(&self) -> bool {
        !self.edits.is_empty()
    }

    /// What a committed watermark says of the tables.
    pub(crate) fn committed(&mut self, watermark: &Watermark) {
        for (name, entry) in &mut self.entries {
            let Some(mark) = watermark.tables.get(name) else { continue };
            if mark.version != entry.mark.version || mark.snapshot != entry.mark.snapshot {
                entry.mark.oid = mark.oid;
                entry.mark.version = mark.version;
                entry.mark.snapshot = mark.snapshot;
                if let (Some(version), Some(snapshot)) = (mark.version, mark.snapshot) {
                    // What was asked for meanwhile, and is still on its way to the watermark, goes on waiting.
                    entry.mark.pending.retain(|p| p.outlives(version, &mark.fingerprint, snapshot));
                    entry.mark.fingerprint = mark.fingerprint.clone();
                }
                let keep: Vec<u32> = mark.version.into_iter().chain(entry.mark.pending.iter().map(|p| p.version)).collect();
                entry.versions.retain(|v| keep.contains(&v.version));
            }
        }
    }

    /// Tables whose newest version waits for its copy.
    pub(crate) fn pending(&self) -> BTreeSet<TableName> {
        self.entries.iter().filter(|(_, e)| !e.mark.pending.is_empty()).map(|(n, _)| n.clone()).collect()
    }

    /// The job of copying a table as it is under the lock; `None` if its shape is not the pending one (the next comparison will see that).
    pub(crate) fn job(&self, locked: &Table, filter: Option<String>) -> Option<CopyJob> {
        let entry = self.entries.get(&locked.name)?;
        let pending = entry.mark.pending.last()?;
        let schema = entry.versions.iter().find(|v| v.version == pending.version)?;
        same_rows(&pending.fingerprint, &locked.fingerprint).then(|| CopyJob::new(Arc::clone(schema), locked, filter))
    }
}

/// A change within a version: a line in the log, and in `status`.
fn note(edits: &mut Vec<Edit>, table: &TableName, version: u32, what: &str) {
    tracing::info!(table = %table, version, change = what, "schema changed within the version");
    edits.push(changed(table, version, what));
}

fn changed(table: &TableName, version: u32, what: &str) -> Edit {
    let at = rfc3339(chrono::Utc::now().timestamp_micros());
    Edit::Changed { table: table.clone(), change: TableChange { at, version, what: what.to_owned() } }
}

fn anew(what: &str) -> String {
    format!("every row was written anew, or its partitions changed ({what})")
}

/// A fingerprint that changed though no column did: leaves, identity, a default that old rows take.
fn leaves_changed(before: &str, now: &Table) -> bool {
    !same_shape(before, &now.fingerprint) && (now.kind == TableKind::Partitioned || now.columns.iter().any(|c| c.has_missing))
}

/// The first version number that no folder of the table has used.
pub(super) async fn next_version(store: &dyn Store, table: &TableName) -> Result<u32> {
    let prefix = format!("{}/v", crate::lake::table_folder(table));
    let found = crate::commit::persist("list a table's folder", || store.list(&prefix)).await?;
    let number = |path: &str| path.strip_prefix(&prefix)?.split('/').next()?.parse::<u32>().ok();
    Ok(found.iter().filter_map(|m| number(&m.path)).max().map_or(1, |n| n + 1))
}
