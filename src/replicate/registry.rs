//! Tables, their versions, and where the rows of a relation go.
//!
//! Owns: which version a shape belongs to, when a version begins, what must be copied. Invariants: a row is
//! written to the newest version that its shape fits; a version is listed as pending before its first row is
//! committed; what changed without a message is copied anew.

use super::edit::{Edit, store_schema};
use super::source::{Observed, mark, privacy};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lake::{Pending, PublicationMark, TableMark, Watermark};
use crate::lsn::Lsn;
use crate::pgoutput::Relation;
use crate::postgres::catalogue::{Table, TableKind};
use crate::postgres::fingerprint::{rewritten, same_rows, same_shape};
use crate::schema::version::{Fit, Layout, TableSchema};
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
}

impl Entry {
    /// The fingerprint that the table had when it was last looked at.
    fn newest_fingerprint(&self) -> &str {
        self.mark.pending.last().map_or(&self.mark.fingerprint, |p| &p.fingerprint)
    }
}

/// All streamed tables.
#[derive(Debug)]
pub(crate) struct Registry {
    entries: BTreeMap<TableName, Entry>,
    publication: Option<PublicationMark>,
    edits: Vec<Edit>,
}

impl Registry {
    /// Reads the versions that the watermark names.
    pub(crate) async fn load(store: &dyn Store, watermark: &Watermark) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for (name, table) in &watermark.tables {
            let mut numbers: Vec<u32> = table.version.into_iter().chain(table.pending.iter().map(|p| p.version)).collect();
            numbers.sort_unstable();
            numbers.dedup();
            let mut versions = Vec::new();
            for version in numbers {
                let schema = crate::commit::schema(store, name, version).await?;
                versions.push(Arc::new(schema));
            }
            entries.insert(name.clone(), Entry { mark: table.clone(), versions, table: None });
        }
        Ok(Self { entries, publication: watermark.source.publication.clone(), edits: Vec::new() })
    }

    /// Names of all streamed tables.
    pub(crate) fn names(&self) -> BTreeSet<TableName> {
        self.entries.keys().cloned().collect()
    }

    /// Compares with the source as it is now; what changed becomes edits and copies.
    pub(crate) async fn compare(&mut self, store: &dyn Store, config: &Config, observed: &Observed, copy_new: bool) -> Result<()> {
        let now = mark(&config.source.publication, &observed.publication);
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
            let mut mark = TableMark { oid, version: None, snapshot: None, fingerprint: fingerprint.clone(), pending: Vec::new() };
            if copy_new {
                tracing::info!(table = %name, version, "a table joins; it is copied first");
                let pending = Pending { version, fingerprint, since: None };
                mark.pending.push(pending.clone());
                self.edits.push(Edit::Pending { table: name.clone(), oid, pending });
            } else {
                mark.version = Some(version);
                self.edits.push(Edit::Adopted { table: name.clone(), oid, version, fingerprint });
            }
            self.entries.insert(name, Entry { mark, versions: vec![Arc::new(schema)], table: Some(table.clone()) });
            return Ok(());
        };
        entry.table = Some(table.clone());
        let newest = entry.newest_fingerprint().to_owned();
        if !edited && newest == table.fingerprint {
            return Ok(());
        }
        let schema = entry.versions.last().cloned().ok_or_else(|| Error::bug(format!("{}: a table without a version", table.name)))?;
        let privacy_changed = schema
            .columns
            .iter()
            .any(|c| !c.dropped && (privacy.exclude.contains(&c.source) || c.hashed != privacy.hash.contains(&c.source)));
        let (reason, version) = match schema.fit_catalogue(table, &privacy) {
            _ if privacy_changed => ("the configuration's exclude or hash changed".to_owned(), None),
            Fit::Breaks(reason) => (reason, None),
            Fit::Same(_) if edited => ("its publication was edited".to_owned(), Some(schema)),
            Fit::Same(_) if leaves_changed(&newest, table) || rewritten(&newest, &table.fingerprint) => {
                ("the catalogue says that rows may have changed without a message".to_owned(), Some(schema))
            }
            Fit::Same(_) => return self.keep(&table.name.clone(), table.fingerprint.clone()),
            Fit::Extends { schema: extended, copy, what, .. } => {
                let extended = Arc::new(*extended);
                store_schema(store, &extended).await?;
                tracing::info!(table = %table.name, version = extended.version, change = what, "schema changed within the version");
                if let Some(last) = entry.versions.last_mut() {
                    *last = Arc::clone(&extended);
                }
                match copy {
                    Some(reason) => (reason, Some(extended)),
                    None if rewritten(&newest, &table.fingerprint) => (format!("every row was written anew ({what})"), Some(extended)),
                    None if edited => ("its publication was edited".to_owned(), Some(extended)),
                    None => return self.keep(&table.name.clone(), table.fingerprint.clone()),
                }
            }
        };
        self.begin(store, config, table, version, edited_below, &reason).await
    }

    /// A compatible change: the newest version has a new fingerprint.
    fn keep(&mut self, name: &TableName, fingerprint: String) -> Result<()> {
        if let Some(entry) = self.entries.get_mut(name) {
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
        config: &Config,
        table: &Table,
        version: Option<Arc<TableSchema>>,
        since: Option<Lsn>,
        reason: &str,
    ) -> Result<()> {
        let name = &table.name;
        let Some(entry) = self.entries.get_mut(name) else { return Ok(()) };
        let schema = match version {
            Some(schema) => schema,
            None => {
                let number = entry.versions.iter().map(|v| v.version).max().unwrap_or(0) + 1;
                let schema = Arc::new(TableSchema::begin(table, number, &privacy(config, name)));
                store_schema(store, &schema).await?;
                entry.versions.push(Arc::clone(&schema));
                schema
            }
        };
        tracing::warn!(table = %name, version = schema.version, reason, "the table is copied anew and stands still until then");
        let (oid, version, fingerprint) = (table.oid, schema.version, table.fingerprint.clone());
        entry.mark.pending.retain(|p| p.version != version);
        let pending = Pending { version, fingerprint, since };
        entry.mark.pending.push(pending.clone());
        self.edits.push(Edit::Pending { table: name.clone(), oid, pending });
        Ok(())
    }

    /// The table that a relation belongs to, if its rows are replicated.
    pub(crate) fn table_of(&self, relation: &Relation) -> Option<TableName> {
        let by_oid = |e: &Entry| {
            e.mark.oid == relation.id
                || e.table.as_ref().is_some_and(|t| t.oid == relation.id || t.leaves.iter().any(|l| l.oid == relation.id))
        };
        let name = TableName::new(&relation.namespace, &relation.name);
        self.entries.iter().find(|(_, e)| by_oid(e)).map(|(n, _)| n.clone()).or_else(|| self.entries.contains_key(&name).then_some(name))
    }

    /// Where the rows of a shape go; a shape that fits no version begins one. `table`: the catalogue now.
    pub(crate) async fn route(
        &mut self,
        store: &dyn Store,
        config: &Config,
        name: &TableName,
        relation: &Relation,
        table: Option<&Table>,
    ) -> Result<(Arc<TableSchema>, Arc<Layout>)> {
        let privacy = privacy(config, name);
        let Some(entry) = self.entries.get_mut(name) else { return Err(Error::bug(format!("{name} is not replicated"))) };
        let mut relation = relation.clone();
        if let Some(table) = table.filter(|t| t.leaves.iter().any(|l| l.oid == relation.id)) {
            relation.id = table.oid;
        }
        let mut why = String::new();
        for index in (0..entry.versions.len()).rev() {
            let schema = Arc::clone(&entry.versions[index]);
            match schema.fit_relation(&relation, table, &privacy) {
                Fit::Same(layout) => return Ok((schema, Arc::new(layout))),
                Fit::Extends { schema: extended, layout, copy, what } => {
                    let extended = Arc::new(*extended);
                    store_schema(store, &extended).await?;
                    tracing::info!(table = %name, version = extended.version, change = what, "schema changed within the version");
                    entry.versions[index] = Arc::clone(&extended);
                    let newest = entry.newest_fingerprint();
                    let anew = table.filter(|t| rewritten(newest, &t.fingerprint)).map(|_| format!("every row was written anew ({what})"));
                    if let (Some(reason), Some(table)) = (copy.or(anew), table) {
                        self.begin(store, config, table, Some(Arc::clone(&extended)), None, &reason).await?;
                    } else if let Some(table) = table {
                        self.keep(name, table.fingerprint.clone())?;
                    }
                    return Ok((extended, Arc::new(layout)));
                }
                Fit::Breaks(reason) => why = reason,
            }
        }
        // A new version needs the catalogue; if that is ahead of the stream already, these rows are superseded by the copy.
        let table = table.ok_or_else(|| Error::retry(format!("{name}: {why}, and the table is no longer in the catalogue")))?;
        self.begin(store, config, table, None, None, &why).await?;
        let schema = self.entries[name].versions.last().cloned().ok_or_else(|| Error::bug("a version was just begun"))?;
        match schema.fit_relation(&relation, Some(table), &privacy) {
            Fit::Same(layout) | Fit::Extends { layout, .. } => Ok((schema, Arc::new(layout))),
            Fit::Breaks(reason) => Err(Error::retry(format!("{name}: the shape on the wire is older than the catalogue's ({reason})"))),
        }
    }

    /// Changes that go with the next piece.
    pub(crate) fn take_edits(&mut self) -> Vec<Edit> {
        std::mem::take(&mut self.edits)
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
    pub(crate) fn job(&self, locked: &Table) -> Option<CopyJob> {
        let entry = self.entries.get(&locked.name)?;
        let pending = entry.mark.pending.last()?;
        let schema = entry.versions.iter().find(|v| v.version == pending.version)?;
        same_rows(&pending.fingerprint, &locked.fingerprint).then(|| CopyJob {
            schema: Arc::clone(schema),
            fingerprint: pending.fingerprint.clone(),
            kind: if locked.kind == TableKind::Partitioned { TableKind::Partitioned } else { TableKind::Ordinary },
            filter: None,
        })
    }
}

/// A fingerprint that changed though no column did: leaves, identity, a default that old rows take.
fn leaves_changed(before: &str, now: &Table) -> bool {
    !same_shape(before, &now.fingerprint) && (now.kind == TableKind::Partitioned || now.columns.iter().any(|c| c.has_missing))
}

/// The first version number that no folder of the table has used.
pub(super) async fn next_version(store: &dyn Store, table: &TableName) -> Result<u32> {
    let prefix = format!("tables/{}.{}/v", crate::lake::escape(&table.schema), crate::lake::escape(&table.name));
    let found = crate::commit::persist("list a table's folder", || store.list(&prefix)).await?;
    let number = |path: &str| path.strip_prefix(&prefix)?.split('/').next()?.parse::<u32>().ok();
    Ok(found.iter().filter_map(|m| number(&m.path)).max().map_or(1, |n| n + 1))
}
