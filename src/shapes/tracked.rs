//! A table as it will be once what is under way is committed, and the transitions of it.
//!
//! Owns: when a version begins, when a copy is owed, what a copy is made of. Does not own: storing, committing, asking the source.
//! Invariants: see the room's head.

use super::edit::TableEdit;
use super::wire::{nameless, wire_table};
use crate::error::{Error, Result};
use crate::lake::{Pending, TableChange, TableMark, rfc3339, schema_name};
use crate::lsn::{Epoch, Lsn};
use crate::pgoutput::Relation;
use crate::postgres::catalogue::Table;
use crate::postgres::look::Look;
use crate::postgres::server::Snapshot;
use crate::schema::version::{Fit, Layout, Privacy, TableSchema, WireTypes};
use crate::table_name::TableName;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// What holds for all transitions of a table.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The table's name in the lake.
    pub name: &'a TableName,
    /// What the configuration keeps from the lake.
    pub privacy: &'a Privacy,
    /// Epoch of the claim: documents are named after it.
    pub epoch: Epoch,
    /// The publication names the table itself, so that it cannot leave it and come back unseen.
    pub listed: bool,
}

/// A RELATION message, and what is known beside it.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The message; a partition's as well as its root's.
    pub relation: &'a Relation,
    /// The catalog's view of the table, which has what the arriving transaction did and perhaps more; `None`: it has no such table.
    pub table: Option<&'a Table>,
    /// End of the server's WAL after the catalog was read.
    pub position: Lsn,
    /// What is below the types of columns that the catalog does not have.
    pub types: &'a WireTypes,
    /// The arriving transaction.
    pub xid: Option<u32>,
}

/// Where the rows of a RELATION go.
#[derive(Debug, Clone)]
pub struct Place {
    /// Version.
    pub schema: Arc<TableSchema>,
    /// How their columns lie in it.
    pub layout: Arc<Layout>,
}

/// A look at the catalog, once the stream has brought all that was committed before it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The table.
    pub table: &'a Table,
    /// What had been committed when it was taken.
    pub snapshot: &'a Snapshot,
    /// End of the server's WAL before and after.
    pub from: Lsn,
    /// See `from`.
    pub position: Lsn,
    /// The publication was edited as far as it concerns the table.
    pub edited: bool,
    /// Why the table cannot be replicated, if so.
    pub unfit: Option<&'a str>,
}

/// A table with its versions.
#[derive(Debug, Clone)]
pub struct Tracked {
    mark: TableMark,
    /// The current version and those that wait, the newest last.
    versions: Vec<Arc<TableSchema>>,
    /// The transaction that last brought another layout: a look that has not seen it is of no use.
    brought_by: Option<u32>,
    /// End of the server's WAL at the newest view of the catalog that was taken into account: an older look is of no use.
    seen: Lsn,
    /// The catalog under the lock of a copy that is under way.
    copying: Option<Look>,
}

impl Tracked {
    /// A table as the watermark has it; `versions`: the current one and those that wait.
    pub fn new(mark: TableMark, mut versions: Vec<Arc<TableSchema>>) -> Self {
        versions.sort_by_key(|schema| schema.version);
        Self { mark, versions, brought_by: None, seen: Lsn::ZERO, copying: None }
    }

    /// A table that joins at `position`: all of it is owed.
    pub fn join(cx: &Context<'_>, table: &Table, version: u32, position: Lsn) -> (Self, Arc<TableSchema>) {
        let schema = Arc::new(TableSchema::begin(table, version, cx.privacy));
        let mut mark = TableMark::new(table.oid, crate::config::Mode::Stream, table.look.clone());
        mark.schemas.insert(version, document_name(cx.epoch, &schema));
        mark.pending.push(Pending { version, since: Some(position), reason: Some("its first copy".to_owned()) });
        let mut tracked = Self::new(mark, vec![Arc::clone(&schema)]);
        tracked.seen = position;
        (tracked, schema)
    }

    /// As it will be in the watermark.
    pub fn mark(&self) -> &TableMark {
        &self.mark
    }

    /// The newest version: the one that rows of the present layout go to.
    pub fn newest(&self) -> Result<&Arc<TableSchema>> {
        self.versions.last().ok_or_else(|| Error::bug("a table without a version"))
    }

    /// Whether a version began from this relation.
    pub fn began_as(&self, relation: u32) -> bool {
        self.mark.oid == relation || self.versions.iter().any(|version| version.oid == relation)
    }

    /// Where the rows of a RELATION go: into the newest version that their layout fits; one that fits none begins a version.
    ///
    /// # Errors
    /// `Kind::Config` if a private column would come in under another name.
    pub fn place(&mut self, cx: &Context<'_>, arrival: &Arrival<'_>) -> Result<(Place, Vec<TableEdit>)> {
        let mut out = Vec::new();
        let table = arrival.table;
        let mut relation = arrival.relation.clone();
        if let Some(root) = table.filter(|t| t.leaves.iter().any(|leaf| leaf.oid == relation.id)) {
            relation.id = root.oid;
        }
        if let Some(table) = table {
            self.newest()?.guard(cx.privacy, table)?;
        }
        let (hidden, kept_out) = self.hidden(cx, &relation, table);
        // Of a table that was dropped, and created again since, the catalog says nothing any more.
        let of = table.filter(|table| table.oid == relation.id);
        let (place, why) = match self.fit(cx, &relation, of, &hidden, arrival.types, &mut out) {
            Ok(place) => (place, None),
            Err(why) => (self.begin_for(cx, &relation, arrival, &hidden, &why, &mut out)?, Some(why)),
        };
        if !out.is_empty() {
            self.brought_by = arrival.xid;
        }
        if let Some(table) = table {
            let of_newest = self.newest()?.oid == table.oid;
            let reason = match why {
                Some(why) => Some(why),
                None if kept_out => Some("a column came whose name the catalog does not have any more".to_owned()),
                None if of_newest => changed(&self.mark.reconciled, cx, table),
                None => None,
            };
            if let Some(reason) = reason {
                self.owe(arrival.position, &reason, &mut out);
                self.reconcile(&table.look, arrival.position, &mut out);
            }
        }
        Ok((place, out))
    }

    /// The newest version that a layout fits, extended if need be; or why it does not fit the newest.
    fn fit(
        &mut self,
        cx: &Context<'_>,
        relation: &Relation,
        table: Option<&Table>,
        privacy: &Privacy,
        types: &WireTypes,
        out: &mut Vec<TableEdit>,
    ) -> std::result::Result<Place, String> {
        let mut why = None;
        for index in (0..self.versions.len()).rev() {
            match self.versions[index].fit_relation(relation, table, privacy, types) {
                Fit::Same(layout) => return Ok(Place { schema: Arc::clone(&self.versions[index]), layout: Arc::new(layout) }),
                Fit::Extends { schema, layout, what } => {
                    let schema = self.adopt(cx, *schema, Some(&what), out);
                    return Ok(Place { schema, layout: Arc::new(layout) });
                }
                // What it says of the newest is what a person understands.
                Fit::Breaks(reason) => why = why.or(Some(reason)),
            }
        }
        Err(why.unwrap_or_else(|| "it has no version yet".to_owned()))
    }

    /// A version for rows that fit none: of the catalog's shape, or where that has gone on since, of the shape that they were sent in, which the
    /// copy of the present shape supersedes.
    fn begin_for(
        &mut self,
        cx: &Context<'_>,
        relation: &Relation,
        arrival: &Arrival<'_>,
        hidden: &Privacy,
        why: &str,
        out: &mut Vec<TableEdit>,
    ) -> Result<Place> {
        let fitted = |schema: TableSchema, table: Option<&Table>| match schema.fit_relation(relation, table, hidden, arrival.types) {
            Fit::Same(layout) => Some((schema, layout)),
            Fit::Extends { schema, layout, .. } => Some((*schema, layout)),
            Fit::Breaks(_) => None,
        };
        let number = self.next_number();
        let present = arrival.table.and_then(|table| fitted(TableSchema::begin(table, number, hidden), Some(table)));
        if let Some((schema, layout)) = present {
            let schema = self.adopt(cx, schema, None, out);
            return Ok(Place { schema, layout: Arc::new(layout) });
        }
        let then = wire_table(cx.name, relation, arrival.table, arrival.types);
        let then = then.ok_or_else(|| Error::bug(format!("{}: a column's type was not asked for", cx.name)))?;
        let fitted = fitted(TableSchema::begin(&then, number, hidden), None);
        let (schema, layout) =
            fitted.ok_or_else(|| Error::bug(format!("{}: a version does not fit the shape that it was begun for", cx.name)))?;
        let schema = self.adopt(cx, schema, None, out);
        self.owe(arrival.position, why, out);
        Ok(Place { schema, layout: Arc::new(layout) })
    }

    /// What must stay out of the lake: private columns, and where there are any, columns on the wire that nobody knows any more. They may be
    /// private ones under a name of before. Says whether there are such.
    fn hidden(&self, cx: &Context<'_>, relation: &Relation, table: Option<&Table>) -> (Privacy, bool) {
        let mut hidden = cx.privacy.clone();
        let mut kept_out = Vec::new();
        let had = |v: &Arc<TableSchema>| !v.excluded.is_empty() || v.columns.iter().any(|c| c.hashed);
        if hidden.is_asked() || self.versions.iter().any(had) {
            kept_out = nameless(relation, table, &self.versions);
            // Rows from before the catalog's present shape: what bore a private column's name then is that column, whoever bears it now.
            if !table.is_some_and(|table| is_present(relation, table)) {
                let private = self.versions.iter().flat_map(|version| version.excluded_names.values());
                let unasked = |name: &&String| !cx.privacy.keeps_out(name, false) && relation.columns.iter().any(|c| c.name == **name);
                kept_out.extend(private.filter(unasked).cloned());
            }
            hidden.exclude.extend(kept_out.iter().cloned());
        }
        (hidden, !kept_out.is_empty())
    }

    /// A look at the catalog, taken into account once the stream has brought all that was committed before it. `false`: it is older than
    /// what is known already, and another one is needed.
    ///
    /// # Errors
    /// `Kind::Config` if a private column would come in under another name.
    pub fn look(&mut self, cx: &Context<'_>, seen: &Seen<'_>) -> Result<(bool, Vec<TableEdit>)> {
        let mut out = Vec::new();
        let table = seen.table;
        if seen.from < self.seen || self.brought_by.is_some_and(|xid| !seen.snapshot.has_seen(xid)) {
            return Ok((false, out));
        }
        self.brought_by = None;
        if let Some(reason) = seen.unfit {
            if self.mark.aside.as_deref() != Some(reason) {
                self.record(TableEdit::Aside(Some(reason.to_owned())), &mut out);
            }
            return Ok((true, out));
        }
        let newest = Arc::clone(self.newest()?);
        let was_aside = self.mark.aside.is_some();
        if was_aside {
            self.record(TableEdit::Aside(None), &mut out);
        }
        let reason = if !newest.honours(cx.privacy, table)? {
            self.begin(cx, table, &mut out);
            Some("the configuration's exclude, hash or include changed, or the hash key".to_owned())
        } else {
            self.adapt(cx, table, &mut out).or_else(|| {
                let under_way = self.copying.as_ref().and_then(|look| changed(look, cx, table));
                match () {
                    () if was_aside => Some("it can be replicated again".to_owned()),
                    () if seen.edited => Some("its publication was edited".to_owned()),
                    () => changed(&self.mark.reconciled, cx, table).or(under_way),
                }
            })
        };
        if let Some(reason) = &reason {
            self.copying = None; // what is under way was begun too early
            self.owe(seen.position, reason, &mut out);
        } else if out.is_empty() && self.mark.reconciled.shape != table.look.shape {
            let what = "its definition changed; the version's columns have it already";
            self.record(changed_note(newest.version, what), &mut out);
        }
        self.reconcile(&table.look, seen.position, &mut out);
        Ok((true, out))
    }

    /// The newest version is brought to the catalog's shape; or a new one begins, and why.
    fn adapt(&mut self, cx: &Context<'_>, table: &Table, out: &mut Vec<TableEdit>) -> Option<String> {
        match self.versions.last().map(|newest| newest.fit_catalogue(table, cx.privacy)) {
            Some(Fit::Same(_)) => None,
            Some(Fit::Extends { schema, what, .. }) => {
                self.adopt(cx, *schema, Some(&what), out);
                None
            }
            Some(Fit::Breaks(reason)) => {
                self.begin(cx, table, out);
                Some(reason)
            }
            None => None,
        }
    }

    /// A copy is about to be made at `snapshot`, and this is the table under its lock: what it is to be copied into. `None` if the copy would
    /// come too early, or none is owed.
    pub fn lock(&mut self, cx: &Context<'_>, table: &Table, snapshot: Lsn) -> Result<(Option<Arc<TableSchema>>, Vec<TableEdit>)> {
        let mut out = Vec::new();
        let owed = self.mark.pending.last();
        if self.mark.aside.is_some() || owed.is_none_or(|owed| owed.since.is_some_and(|since| snapshot < since)) {
            return Ok((None, out));
        }
        let newest = Arc::clone(self.newest()?);
        let reason = if newest.honours(cx.privacy, table)? {
            self.adapt(cx, table, &mut out)
        } else {
            self.begin(cx, table, &mut out);
            Some("the configuration's exclude, hash or include changed, or the hash key".to_owned())
        };
        if let Some(reason) = reason {
            self.owe(snapshot, &reason, &mut out);
        }
        self.seen = self.seen.max(snapshot);
        self.copying = Some(table.look.clone());
        Ok((Some(Arc::clone(self.newest()?)), out))
    }

    /// A copy made by another process is handed over: looks are compared with what it was made of until it is committed.
    pub fn copied_elsewhere(&mut self, look: Look) {
        self.copying = Some(look);
    }

    /// Rows of the transaction that commits at `commit` are not whole in the lake: a copy taken after it is owed.
    pub fn owe_after(&mut self, commit: Lsn, reason: &str) -> Vec<TableEdit> {
        let mut out = Vec::new();
        self.owe(Lsn(commit.0 + 1), reason, &mut out);
        out
    }

    /// A partition announced itself that the last look did not show, with rows of the transaction that commits at `commit`. If the catalog does
    /// not have it any more, its rows went without a message.
    pub fn leaf_announced(&mut self, leaf: u32, commit: Lsn, table: Option<&Table>) -> Vec<TableEdit> {
        let mut out = Vec::new();
        if table.is_none_or(|table| table.look.leaves.has(leaf) != Some(true)) {
            self.owe(Lsn(commit.0 + 1), "a partition came and went", &mut out);
        }
        out
    }

    /// What a committed watermark says of it: a copy may have become current.
    pub fn committed(&mut self, committed: &TableMark) {
        if (committed.version, committed.snapshot) == (self.mark.version, self.mark.snapshot) {
            return;
        }
        if let (Some(version), Some(snapshot)) = (committed.version, committed.snapshot) {
            let look = Box::new(committed.reconciled.clone());
            TableEdit::Current { oid: committed.oid, version, snapshot, look }.apply(&mut self.mark);
        }
        self.copying = None;
        let mark = &self.mark;
        self.versions.retain(|v| mark.version == Some(v.version) || mark.pending.iter().any(|p| p.version == v.version));
    }

    fn record(&mut self, edit: TableEdit, out: &mut Vec<TableEdit>) {
        edit.apply(&mut self.mark);
        out.push(edit);
    }

    fn next_number(&self) -> u32 {
        self.mark.schemas.keys().copied().chain(self.versions.iter().map(|v| v.version)).max().unwrap_or(0) + 1
    }

    fn begin(&mut self, cx: &Context<'_>, table: &Table, out: &mut Vec<TableEdit>) {
        let number = self.next_number();
        self.adopt(cx, TableSchema::begin(table, number, cx.privacy), None, out);
    }

    /// A version's schema from now on.
    fn adopt(&mut self, cx: &Context<'_>, schema: TableSchema, what: Option<&str>, out: &mut Vec<TableEdit>) -> Arc<TableSchema> {
        let schema = Arc::new(schema);
        if let Some(what) = what {
            self.record(changed_note(schema.version, what), out);
        }
        self.record(TableEdit::Schema { document: document_name(cx.epoch, &schema), schema: Arc::clone(&schema) }, out);
        match self.versions.iter_mut().find(|known| known.version == schema.version) {
            Some(known) => *known = Arc::clone(&schema),
            None => self.versions.push(Arc::clone(&schema)),
        }
        schema
    }

    /// The newest version owes a copy that is taken at or after `since`.
    fn owe(&mut self, since: Lsn, reason: &str, out: &mut Vec<TableEdit>) {
        let Some(version) = self.versions.last().map(|newest| newest.version) else { return };
        let owed = self.mark.pending.iter().find(|p| p.version == version);
        if owed.is_some_and(|owed| owed.since >= Some(since)) {
            return; // one copy makes up for all
        }
        if owed.is_none() {
            self.record(changed_note(version, reason), out);
        }
        self.record(TableEdit::Owe(Pending { version, since: Some(since), reason: Some(reason.to_owned()) }), out);
    }

    fn reconcile(&mut self, look: &Look, position: Lsn, out: &mut Vec<TableEdit>) {
        self.seen = self.seen.max(position);
        if self.mark.reconciled != *look {
            self.record(TableEdit::Reconciled(Box::new(look.clone())), out);
        }
    }
}

/// Whether a RELATION has the columns that the catalog has now.
fn is_present(relation: &Relation, table: &Table) -> bool {
    let wire = relation.columns.iter().map(|c| (c.name.as_str(), c.type_oid));
    wire.eq(table.columns.iter().filter(|c| !c.generated).map(|c| (c.name.as_str(), c.type_oid)))
}

/// A note for people.
fn changed_note(version: u32, what: &str) -> TableEdit {
    let at = rfc3339(chrono::Utc::now().timestamp_micros());
    TableEdit::Changed(TableChange { at, version, what: what.to_owned() })
}

/// Name of a schema's document: the epoch and a digest, so that one epoch writes one content under it.
fn document_name(epoch: Epoch, schema: &TableSchema) -> String {
    let digest = Sha256::digest(schema.to_json());
    schema_name(epoch, &digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Why rows that were written before may read differently now without a message, if so; of the columns that reach the lake.
fn changed(before: &Look, cx: &Context<'_>, table: &Table) -> Option<String> {
    let mut lakeward = table.columns.iter().filter(|c| !c.generated && !cx.privacy.keeps_out_of(table, c));
    let mut new = None;
    for column in lakeward.by_ref() {
        if before.generated.contains(&column.attnum) {
            return Some(format!("column {} was generated, and is a plain one now", column.name));
        }
        if !before.has(column.attnum) {
            if column.has_missing {
                return Some(format!("column {} was added with values for the rows there were", column.name));
            }
            new = new.or(Some(&column.name));
        }
    }
    match new.filter(|_| table.look.lost_columns_since(before)) {
        Some(name) => Some(format!("columns came and went, and {name} may bear the name of one of them")),
        None => before.rows_changed(&table.look, cx.listed).map(str::to_owned),
    }
}
