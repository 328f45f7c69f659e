//! All streamed tables of a session: what is asked of the source and stored in the lake for the transitions of `shapes`.
//!
//! Owns: the tables, their documents' storing, edits on their way to the next commit. Does not own: what a change means (`shapes`), when the
//! source is looked at (`session`). Invariants: a document is stored before the edit that names it is handed over; edits keep their order.

use super::membership::mark;
use super::source::{Observed, privacy};
use crate::batch::Torn;
use crate::commit::put_document;
use crate::config::{Config, Mode};
use crate::error::{Error, Result};
use crate::lake::{PublicationMark, Watermark, rfc3339, table_prefix};
use crate::lsn::{Epoch, Lsn};
use crate::pgoutput::Relation;
use crate::postgres::catalogue::Table;
use crate::postgres::look::Look;
use crate::schema::version::{TableSchema, WireTypes};
use crate::shapes::{Arrival, Context, Edit, Place, Seen, TableEdit, Tracked};
use crate::snapshot::CopyJob;
use crate::store::Store;
use crate::table_name::TableName;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Documents that are read or written at once: a far store answers in tens of milliseconds, one after the other that adds up.
const DOCUMENTS_AHEAD: usize = 32;

/// All streamed tables.
pub(crate) struct Registry {
    store: Arc<dyn Store>,
    config: Config,
    epoch: Epoch,
    tables: BTreeMap<TableName, Tracked>,
    /// The catalog as it was looked at last, which may be ahead of the stream.
    views: BTreeMap<TableName, Table>,
    /// Columns that never arrive, as they were told last.
    unlisted: BTreeMap<TableName, Vec<String>>,
    publication: Option<PublicationMark>,
    edits: Vec<Edit>,
    /// Partitions came or went, or a table joined that may have been one.
    moved: bool,
}

impl Registry {
    /// Reads the versions that the watermark names.
    pub(crate) async fn load(store: &Arc<dyn Store>, config: &Config, watermark: &Watermark) -> Result<Self> {
        let wanted = watermark.streamed().flat_map(|(name, mark)| {
            let versions: BTreeSet<u32> = mark.version.into_iter().chain(mark.pending.iter().map(|p| p.version)).collect();
            versions.into_iter().map(move |version| (name, version))
        });
        let schemas: Vec<TableSchema> = futures_util::stream::iter(wanted)
            .map(|(name, version)| crate::commit::schema(store.as_ref(), watermark, name, version))
            .buffered(DOCUMENTS_AHEAD)
            .try_collect()
            .await?;
        let mut versions = BTreeMap::<TableName, Vec<Arc<TableSchema>>>::new();
        schemas.into_iter().for_each(|schema| versions.entry(schema.table.clone()).or_default().push(Arc::new(schema)));
        let tracked = |name: &TableName| versions.get(name).cloned().unwrap_or_default();
        Ok(Self {
            store: Arc::clone(store),
            config: config.clone(),
            epoch: watermark.epoch,
            tables: watermark.streamed().map(|(name, mark)| (name.clone(), Tracked::new(mark.clone(), tracked(name)))).collect(),
            views: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            publication: watermark.source.publication.clone(),
            edits: Vec::new(),
            moved: false,
        })
    }

    /// The watermark as it will be once what is under way is committed, as far as tables go.
    pub(crate) fn ahead_of(&self, watermark: &Watermark) -> Watermark {
        let mut ahead = watermark.clone();
        ahead.tables.retain(|_, mark| mark.mode == Mode::Snapshot);
        ahead.tables.extend(self.tables.iter().map(|(name, tracked)| (name.clone(), tracked.mark().clone())));
        ahead
    }

    /// A streamed table as the catalog had it when it was last looked at.
    pub(crate) fn view(&self, name: &TableName) -> Option<&Table> {
        self.views.get(name)
    }

    /// Names of all streamed tables.
    pub(crate) fn names(&self) -> BTreeSet<TableName> {
        self.tables.keys().cloned().collect()
    }

    /// What the last look reconciled of each table's partitions.
    pub(crate) fn reconciled(&self) -> BTreeMap<TableName, Look> {
        let partitioned = self.tables.iter().filter(|(_, tracked)| !tracked.mark().reconciled.leaves.is_empty());
        partitioned.map(|(name, tracked)| (name.clone(), tracked.mark().reconciled.clone())).collect()
    }

    /// A look was taken: which table a relation belongs to is decided by it from now on. What it means for the lake waits until the stream has
    /// brought what was committed before it ([`Self::reconcile`]).
    ///
    /// # Errors
    /// `Kind::Source` if the publication was made again: changes in between were not sent.
    pub(crate) fn viewed(&mut self, observed: &Observed) -> Result<()> {
        let now = mark(&self.config, &observed.publication);
        if self.publication.as_ref().is_some_and(|before| before.oid != now.oid) {
            return Err(Error::source_refused(format!(
                "publication {:?} was dropped and created again: changes in between were not sent. Run `huella run --resnapshot`",
                now.name
            )));
        }
        self.views = observed.tables.clone();
        Ok(())
    }

    /// Compares with the source as it was looked at, once the stream has brought all that was committed before; what changed becomes edits and
    /// debts. `false`: for a table the look was too old, and another one is needed.
    pub(crate) async fn reconcile(&mut self, observed: &Observed) -> Result<bool> {
        let now = mark(&self.config, &observed.publication);
        let before = self.publication.clone();
        let all = before.as_ref().is_some_and(|b| b.xmin != now.xmin);
        let mut whole = true;
        for (name, table) in &observed.tables {
            let edited = all
                || before.as_ref().is_some_and(|b| {
                    b.tables.get(name) != now.tables.get(name) || (now.tables.get(name) == Some(&(0, 0)) && b.schemas != now.schemas)
                });
            whole &= self.reconcile_table(observed, table, edited).await?;
            self.tell_unlisted(observed, name);
        }
        if before.as_ref() != Some(&now) {
            self.publication = Some(now.clone());
            self.edits.push(Edit::Publication(now));
        }
        let at = rfc3339(chrono::Utc::now().timestamp_micros());
        for name in self.names().into_iter().filter(|name| !observed.tables.contains_key(name)) {
            tracing::warn!(table = %name, "the table is no longer replicated; its files stay");
            self.tables.remove(&name);
            self.edits.push(Edit::Retire { table: name, at: at.clone() });
        }
        Ok(whole)
    }

    async fn reconcile_table(&mut self, observed: &Observed, table: &Table, edited: bool) -> Result<bool> {
        let name = &table.name;
        let privacy = privacy(&self.config, name);
        let listed = observed.publication.tables.get(name).is_some_and(|published| (published.oid, published.xmin) != (0, 0));
        let cx = Context { name, privacy: &privacy, epoch: self.epoch, listed };
        let unfit = observed.unfit.get(name).map(String::as_str);
        let Some(tracked) = self.tables.get_mut(name) else {
            if unfit.is_none() {
                self.join(&cx, table, observed.position).await?;
            }
            return Ok(true);
        };
        self.moved |= tracked.mark().reconciled.leaves != table.look.leaves;
        let seen = Seen { table, snapshot: &observed.snapshot, from: observed.from, position: observed.position, edited, unfit };
        let (whole, edits) = tracked.look(&cx, &seen)?;
        self.record(name, edits).await?;
        Ok(whole)
    }

    async fn join(&mut self, cx: &Context<'_>, table: &Table, position: Lsn) -> Result<()> {
        let version = next_version(self.store.as_ref(), cx.name).await?;
        let (tracked, schema) = Tracked::join(cx, table, version, position);
        let document = tracked.mark().schemas.get(&version).cloned().unwrap_or_default();
        put_schema(self.store.as_ref(), &schema, &document).await?;
        tracing::info!(table = %cx.name, version, "a table joins; it is copied first");
        self.edits.push(Edit::Join { table: cx.name.clone(), mark: Box::new(tracked.mark().clone()) });
        self.tables.insert(cx.name.clone(), tracked);
        Ok(())
    }

    /// Stores the documents that the edits name, says what changed, and queues them for the next commit.
    async fn record(&mut self, name: &TableName, edits: Vec<TableEdit>) -> Result<()> {
        // A debt that is new comes after its note; one that is only owed from a later position on is no news.
        let mut noted = false;
        for (at, edit) in edits.iter().enumerate() {
            let before = std::mem::replace(&mut noted, matches!(edit, TableEdit::Changed(_)));
            match edit {
                TableEdit::Schema { document, schema } => put_schema(self.store.as_ref(), schema, document).await?,
                TableEdit::Changed(_) if matches!(edits.get(at + 1), Some(TableEdit::Owe(_))) => {}
                TableEdit::Changed(change) => {
                    tracing::info!(table = %name, version = change.version, change = change.what, "the table changed")
                }
                TableEdit::Owe(_) if !before => {}
                TableEdit::Owe(owed) => {
                    let reason = owed.reason.as_deref();
                    tracing::warn!(table = %name, version = owed.version, reason, since = owed.since.map(tracing::field::display), "re-copying the table; until then readers keep what they have");
                }
                TableEdit::Aside(Some(reason)) => {
                    tracing::error!(table = %name, reason, "the table cannot be replicated any more and is set aside; the others go on");
                }
                TableEdit::Aside(None) => tracing::info!(table = %name, "the table can be replicated again"),
                TableEdit::Reconciled(_) | TableEdit::Current { .. } => {}
            }
        }
        self.edits.extend(edits.into_iter().map(|edit| Edit::Table { table: name.clone(), edit }));
        Ok(())
    }

    /// Says once of each column that it never arrives.
    fn tell_unlisted(&mut self, observed: &Observed, name: &TableName) {
        let now = observed.unlisted.get(name).map(|unlisted| unlisted.columns.clone()).unwrap_or_default();
        let known = self.unlisted.entry(name.clone()).or_default();
        if let Some(unlisted) = observed.unlisted.get(name).filter(|_| now != *known) {
            let columns = unlisted.columns.join(",");
            if self.config.table(name).is_some_and(|table| table.exclude_at_source) {
                tracing::warn!(table = %name, columns, fix = unlisted.mend, "columns stay at the source that the configuration does not exclude: name them under exclude, or let them through");
            } else {
                tracing::info!(table = %name, columns, "the publication's column list leaves columns out");
            }
        }
        *known = now;
    }

    /// Whether the publication's membership of a table is the one that was last compared; if not, the next look decides what is copied.
    fn knows(&self, observed: &Observed, name: &TableName) -> bool {
        let now = mark(&self.config, &observed.publication);
        self.publication.as_ref().is_some_and(|known| {
            (known.oid, known.xmin, &known.schemas) == (now.oid, now.xmin, &now.schemas) && known.tables.get(name) == now.tables.get(name)
        })
    }

    fn listed(&self, name: &TableName) -> bool {
        self.publication.as_ref().is_some_and(|known| known.tables.get(name).is_some_and(|row| *row != (0, 0)))
    }

    /// The table that a relation belongs to, if its rows are replicated.
    pub(crate) fn table_of(&self, relation: &Relation) -> Option<TableName> {
        let mut streamed = self.tables.keys();
        let shows = |name: &&TableName| {
            self.views.get(*name).is_some_and(|t| t.oid == relation.id || t.leaves.iter().any(|leaf| leaf.oid == relation.id))
        };
        // Names change: the catalog's present view counts before what the lake was made from, and both before the name.
        let now = streamed.find(shows).cloned();
        let began = || self.tables.iter().find(|(_, tracked)| tracked.mark().oid == relation.id).map(|(name, _)| name.clone());
        let name = TableName::new(&relation.namespace, &relation.name);
        now.or_else(began).or_else(|| self.tables.contains_key(&name).then_some(name))
    }

    /// Whether a relation is a partition of a table some of whose other partitions are not among `relations`.
    pub(crate) fn is_part(&self, relation: u32, relations: &[u32]) -> bool {
        self.views.values().flat_map(|table| table.leaves.iter().map(move |leaf| (table, leaf.oid))).any(|(table, leaf)| {
            leaf == relation && !relations.contains(&table.oid) && !table.leaves.iter().all(|leaf| relations.contains(&leaf.oid))
        })
    }

    /// Whether a relation's rows belong to the table as the catalog has it now, or to what it was when its versions began. If not,
    /// they belong to nothing that is replicated yet: should that join, it is copied after them.
    pub(crate) fn is_of(&self, table: &Table, relation: u32) -> bool {
        let began = self.tables.get(&table.name).is_some_and(|tracked| tracked.began_as(relation));
        table.oid == relation || table.leaves.iter().any(|leaf| leaf.oid == relation) || began
    }

    /// Whether a table's rows are left out for now.
    pub(crate) fn is_aside(&self, name: &TableName) -> bool {
        self.tables.get(name).is_some_and(|tracked| tracked.mark().aside.is_some())
    }

    /// Where the rows of a RELATION go.
    pub(crate) async fn place(&mut self, name: &TableName, arrival: &Arrival<'_>) -> Result<Place> {
        let privacy = privacy(&self.config, name);
        let cx = Context { name, privacy: &privacy, epoch: self.epoch, listed: self.listed(name) };
        let tracked = self.tables.get_mut(name).ok_or_else(|| Error::bug(format!("{name} is not replicated")))?;
        let leaves = tracked.mark().reconciled.leaves.clone();
        let (place, edits) = tracked.place(&cx, arrival)?;
        self.moved |= leaves != tracked.mark().reconciled.leaves;
        self.record(name, edits).await?;
        Ok(place)
    }

    /// Types whose base has to be known to place a RELATION.
    pub(crate) fn unknown_types(relation: &Relation, table: Option<&Table>) -> Vec<(u32, i32)> {
        crate::shapes::unknown_columns(relation, table).map(|c| (c.type_oid, c.typmod)).collect()
    }

    /// A row came without all of its values: only a copy after its transaction has them.
    pub(crate) async fn torn(&mut self, torn: &Torn) -> Result<()> {
        self.owe_after(&torn.table, torn.commit_lsn, torn.reason).await
    }

    /// A partition was truncated by itself, in the transaction with this commit: what the others hold stays, and only a copy tells them apart.
    pub(crate) async fn truncated_in_part(&mut self, leaf: u32, commit: Lsn) -> Result<()> {
        let of = |name: &&TableName| self.views.get(*name).is_some_and(|table| table.leaves.iter().any(|l| l.oid == leaf));
        let Some(name) = self.tables.keys().find(of).cloned() else { return Ok(()) };
        self.owe_after(&name, commit, "a partition was truncated by itself").await
    }

    async fn owe_after(&mut self, name: &TableName, commit: Lsn, reason: &str) -> Result<()> {
        let edits = self.tables.get_mut(name).map(|tracked| tracked.owe_after(commit, reason)).unwrap_or_default();
        self.record(name, edits).await
    }

    /// Whether a relation that belongs to no table announced itself right before rows of this table: it may be a partition that no look has shown.
    pub(crate) fn is_new_leaf(&self, name: &TableName, relation: u32) -> bool {
        self.tables.get(name).is_some_and(|tracked| tracked.mark().reconciled.leaves.has(relation) != Some(true))
    }

    /// See [`Tracked::leaf_announced`].
    pub(crate) async fn leaf_announced(&mut self, name: &TableName, leaf: u32, commit: Lsn, table: Option<&Table>) -> Result<()> {
        let edits = self.tables.get_mut(name).map(|tracked| tracked.leaf_announced(leaf, commit, table)).unwrap_or_default();
        self.record(name, edits).await
    }

    /// What a copy at `snapshot` is made of, from the tables as they are under its lock; those that it cannot be made for are left out.
    pub(crate) async fn jobs(&mut self, observed: &Observed, snapshot: Lsn, filters: &mut BTreeMap<u32, String>) -> Result<Vec<CopyJob>> {
        let mut jobs = Vec::new();
        for (name, table) in observed.tables.iter().filter(|(name, _)| !observed.unfit.contains_key(*name)) {
            if !self.knows(observed, name) {
                continue;
            }
            let privacy = privacy(&self.config, name);
            let cx = Context { name, privacy: &privacy, epoch: self.epoch, listed: self.listed(name) };
            let Some(tracked) = self.tables.get_mut(name) else { continue };
            let (schema, edits) = tracked.lock(&cx, table, snapshot)?;
            self.record(name, edits).await?;
            jobs.extend(schema.map(|schema| CopyJob::new(schema, table, filters.remove(&table.oid))));
        }
        Ok(jobs)
    }

    /// Copies of another process are on their way to the next commit.
    pub(crate) fn taking<'a>(&mut self, copies: impl Iterator<Item = (&'a TableName, &'a Look)>) {
        for (name, look) in copies {
            if let Some(tracked) = self.tables.get_mut(name) {
                tracked.copied_elsewhere(look.clone());
            }
        }
    }

    /// Changes that go with the next piece.
    pub(crate) fn take_edits(&mut self) -> Vec<Edit> {
        std::mem::take(&mut self.edits)
    }

    /// Whether partitions came or went since this was last asked: in looks that were taken in, for others will be seen again.
    pub(crate) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Whether changes wait for the next commit.
    pub(crate) fn has_edits(&self) -> bool {
        !self.edits.is_empty()
    }

    /// What a committed watermark says of the tables.
    pub(crate) fn committed(&mut self, watermark: &Watermark) {
        for (name, tracked) in &mut self.tables {
            if let Some(mark) = watermark.tables.get(name) {
                tracked.committed(mark);
            }
        }
    }

    /// Tables that owe a copy, and can be copied.
    pub(crate) fn pending(&self) -> BTreeSet<TableName> {
        let owes = |tracked: &Tracked| !tracked.mark().pending.is_empty() && tracked.mark().aside.is_none();
        self.tables.iter().filter(|(_, tracked)| owes(tracked)).map(|(name, _)| name.clone()).collect()
    }
}

/// Stores a version's schema document.
pub(super) async fn put_schema(store: &dyn Store, schema: &TableSchema, document: &str) -> Result<()> {
    let path = format!("{}/{document}", table_prefix(&schema.table, schema.version));
    put_document(store, &path, schema.to_json().into()).await
}

/// What is below these types.
pub(super) async fn wire_types(client: &tokio_postgres::Client, declared: Vec<(u32, i32)>) -> Result<WireTypes> {
    if declared.is_empty() {
        return Ok(WireTypes::new());
    }
    let types = crate::postgres::catalogue::base_types(client, &declared).await?;
    Ok(declared.into_iter().zip(types).collect())
}

/// The first version number that no folder of the table has used.
pub(super) async fn next_version(store: &dyn Store, table: &TableName) -> Result<u32> {
    let prefix = format!("{}/v", crate::lake::table_folder(table));
    let found = crate::commit::persist("list a table's folder", || store.list(&prefix)).await?;
    let number = |path: &str| path.strip_prefix(&prefix)?.split('/').next()?.parse::<u32>().ok();
    Ok(found.iter().filter_map(|m| number(&m.path)).max().map_or(1, |n| n + 1))
}
