//! What the source says of the tables that are to be streamed, and whether it can be followed at all.
//!
//! Owns: which tables are meant, the publication that carries them, the refusals of the contract's section 5.
//! Invariant: a publication edited, dropped or re-created behind our back is never passed over.

use super::membership;
use crate::config::{Config, Mode as TableMode, NewTables, Source};
use crate::error::{Error, Kind, Result};
use crate::lake::PublicationMark;
use crate::lsn::Lsn;
use crate::postgres::catalogue::{self, Leaf, ReplicaIdentity, Table, TableKind};
use crate::postgres::look::Look;
use crate::postgres::publication::{self, Publication};
use crate::postgres::server::Snapshot;
use crate::postgres::{column_list, look, server, unstreamable};
use crate::schema::HashKey;
use crate::schema::version::Privacy;
use crate::table_name::TableName;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use tokio_postgres::Client;

/// Tables that are meant, and those of them that cannot be replicated any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) tables: Vec<Table>,
    /// Why a table that was streamed before cannot be streamed now: it is set aside, and the others go on.
    pub(crate) unfit: BTreeMap<TableName, String>,
}

impl From<Vec<Table>> for Wanted {
    fn from(tables: Vec<Table>) -> Self {
        Self { tables, unfit: BTreeMap::new() }
    }
}

impl Wanted {
    /// Takes a table in. One that was streamed before and cannot be now is set aside; a new one that this role could not copy does not end what is
    /// replicated already (`huella check` names it).
    fn judge(&mut self, config: &Config, table: Table, known: &BTreeSet<TableName>) -> Result<()> {
        match refuse_unfit(config, &table) {
            Err(why) if why.kind() == Kind::Source && known.contains(&table.name) => {
                self.unfit.insert(table.name.clone(), why.to_string());
            }
            Err(why) if why.kind() == Kind::Source && config.tables.is_none() && !known.is_empty() => return Ok(()),
            other => other?,
        }
        self.tables.push(table);
        Ok(())
    }

    /// Where none of the tables can be replicated any more, there is nothing to go on with.
    fn some_fit(self) -> Result<Self> {
        match self.unfit.values().next().filter(|_| self.unfit.len() == self.tables.len()) {
            Some(reason) => Err(Error::source_refused(reason)),
            None => Ok(self),
        }
    }

    /// Those that can be replicated.
    pub(crate) fn fit(&self) -> Vec<Table> {
        self.tables.iter().filter(|table| !self.unfit.contains_key(&table.name)).cloned().collect()
    }
}

/// The streamed tables and their publication, read together.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    pub(crate) publication: Publication,
    /// Which transactions had ended before it was read: those that had committed are seen.
    pub(crate) snapshot: Snapshot,
    /// End of the server's WAL before it was read.
    pub(crate) from: Lsn,
    /// End of the server's WAL after it was read: everything that it shows lies below.
    pub(crate) position: Lsn,
    /// Streamed tables, reduced to what the publication sends of them.
    pub(crate) tables: BTreeMap<TableName, Table>,
    /// See [`Wanted`].
    pub(crate) unfit: BTreeMap<TableName, String>,
    /// New tables that could not be added to the publication, and why.
    pub(crate) left_out: BTreeMap<TableName, String>,
    /// What column lists leave out without the configuration saying so.
    pub(crate) unlisted: BTreeMap<TableName, Unlisted>,
}

/// Columns that never arrive, and the SQL that lets them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unlisted {
    pub(crate) columns: Vec<String>,
    pub(crate) mend: String,
}

/// What the configuration keeps from the lake.
pub(crate) fn privacy(config: &Config, table: &TableName) -> Privacy {
    let hash_key = config.hash_key.as_ref().map(|key| HashKey::new(key.expose().as_bytes()).mark());
    let asked = config.table(table).map(|t| (t.exclude.clone(), t.hash.clone(), t.include.clone()));
    let (exclude, hash, include) = asked.unwrap_or_default();
    Privacy { exclude, hash, include, hash_key, rehash: config.rehash }
}

/// Column lists, which `exclude_at_source` needs, came with this version.
const COLUMN_LISTS: i32 = 150_000;
/// Failover slots came with this version.
const FAILOVER_SLOTS: i32 = 170_000;

/// Refuses what the configuration asks of a server that is too old for it.
pub(crate) fn refuse_by_version(config: &Config, version: i32) -> Result<()> {
    let major = version / 10_000;
    if config.source.failover && version < FAILOVER_SLOTS {
        return Err(Error::config(format!(
            "source.failover = true needs PostgreSQL 17, and this server is {major}: it cannot keep a slot in step on a standby. Set it to false"
        )));
    }
    let at_source = config.tables.iter().flatten().find(|table| table.exclude_at_source);
    match at_source.filter(|_| version < COLUMN_LISTS) {
        Some(table) => Err(Error::config(format!(
            "table {}: exclude_at_source = true needs PostgreSQL 15, and this server is {major}: it has no column lists. \
             Use exclude alone, which drops the columns here",
            table.name
        ))),
        None => Ok(()),
    }
}

/// What the server is. A standby passes: behind the address of a source that fails over it is promoted in a moment.
pub(crate) async fn primary(client: &Client) -> Result<server::ServerInfo> {
    let info = server::info(client).await?;
    if let Some(why) = info.waits_for_us() {
        return Err(Error::source_refused(format!("{why}. To go on, {}", server::NOT_A_STANDBY)));
    }
    if info.in_recovery {
        return Err(Error::retry(
            "the server is a standby (in recovery), which cannot be followed until it is promoted; if it will not be, use the primary's address in source.url",
        ));
    }
    Ok(info)
}

/// The server's settings that nothing can be done without.
pub(crate) async fn check_server(client: &Client, config: &Config) -> Result<server::ServerInfo> {
    let info = primary(client).await?;
    refuse_by_version(config, info.version_num)?;
    if info.wal_level != "logical" {
        return Err(Error::source_refused(format!(
            "wal_level is {}: set wal_level = logical (ALTER SYSTEM SET wal_level = 'logical') and restart the server",
            info.wal_level
        )));
    }
    if !(info.role.replication || info.role.superuser) {
        return Err(Error::source_refused(format!("role {0} has no REPLICATION attribute: ALTER ROLE {0} REPLICATION", info.role.name)));
    }
    Ok(info)
}

/// Tables that were named as left out: each once, not with every look.
static LEFT_OUT: Mutex<BTreeSet<TableName>> = Mutex::new(BTreeSet::new());

/// Names a table that appeared after the first start and stays out (`new_tables = "ignore"`); always true.
fn told_as_left_out(table: &TableName) -> bool {
    if LEFT_OUT.lock().unwrap_or_else(PoisonError::into_inner).insert(table.clone()) {
        tracing::info!(table = %table, "a new table is left out (source.new_tables = \"ignore\"); to replicate it, set \"add\" or name the tables under [[table]]");
    }
    true
}

/// As [`wanted`], where nothing was streamed before: what is there now is no new table.
pub(crate) async fn wanted_first(client: &Client, config: &Config) -> Result<Wanted> {
    let there = Config { source: Source { new_tables: NewTables::Add, ..config.source.clone() }, ..config.clone() };
    wanted(client, &there, &BTreeSet::new(), &BTreeSet::new()).await
}

/// Looks at publication and catalog: which tables are meant, what they are; adds new ones to the publication. `reconciled`: what was known of
/// partitions before.
pub(crate) async fn take_look(
    client: &Client,
    config: &Config,
    (known, ended): (&BTreeSet<TableName>, &BTreeSet<TableName>),
    before: Option<&PublicationMark>,
    reconciled: &BTreeMap<TableName, Look>,
) -> Result<Observed> {
    // Before anything is read: what these two say is seen by everything after them.
    let (snapshot, from) = (server::snapshot(client).await?, server::insert_lsn(client).await?);
    let wanted = wanted(client, config, known, ended).await?;
    let left_out = membership::ensure(client, config, &wanted.fit(), false, before, known).await?;
    let mut observed = observe(client, config, wanted).await?;
    (observed.snapshot, observed.from, observed.left_out) = (snapshot, from, left_out);
    for (name, before) in reconciled {
        let Some(table) = observed.tables.get_mut(name) else { continue };
        let unproven: Vec<u32> = table.look.leaves.unproven(&before.leaves).collect();
        for leaf in look::empty(client, &unproven).await? {
            table.look.leaves.prove_empty(leaf);
        }
    }
    Ok(observed)
}

/// Tables that are to be streamed: those configured, or all of schema public that have a key. `known` are those streamed before:
/// one of them that cannot be streamed any more is named, not passed over. `ended` are configured ones that went while this process ran: the
/// others go on.
pub(crate) async fn wanted(client: &Client, config: &Config, known: &BTreeSet<TableName>, ended: &BTreeSet<TableName>) -> Result<Wanted> {
    let mut found = Wanted::default();
    let Some(configured) = &config.tables else {
        for table in catalogue::tables_of(client, "public").await? {
            // A table may have been attached as a partition since the list was read.
            let alone = table.ancestors.is_empty() && table.kind != TableKind::Leaf;
            let is_known = known.contains(&table.name);
            let ignored = || config.source.new_tables == NewTables::Ignore && told_as_left_out(&table.name);
            if alone && (is_known || (table.streamable().is_ok() && !ignored())) {
                found.judge(config, table, known)?;
            }
        }
        return found.some_fit();
    };
    let names: Vec<TableName> = configured.iter().filter(|t| t.mode == TableMode::Stream).map(|t| t.name.clone()).collect();
    let mut tables = catalogue::tables(client, &names).await?;
    for name in &names {
        match tables.iter().position(|t| t.name == *name) {
            None if ended.contains(name) => {}
            None if known.contains(name) => tracing::warn!(table = %name, "the table is no longer at the source; its files stay"),
            None => return Err(Error::source_refused(format!("table {name} does not exist: correct [[table]] name, or create it"))),
            Some(at) => found.judge(config, tables.swap_remove(at), known)?,
        }
    }
    found.some_fit()
}

/// Tables under the locks of a copy: those that cannot be replicated any more are named.
pub(crate) fn judged(config: &Config, tables: Vec<Table>, known: &BTreeSet<TableName>) -> Result<Wanted> {
    let mut found = Wanted::default();
    tables.into_iter().try_for_each(|table| found.judge(config, table, known))?;
    Ok(found)
}

/// Refuses a catalogue that cannot be copied whole.
pub(crate) fn refuse_unfit_catalogue(config: &Config, table: &Table) -> Result<()> {
    let name = &table.name;
    if table.kind == TableKind::Other {
        return Err(Error::source_refused(format!("{name} is no table (a view or a foreign table, perhaps) and cannot be a catalogue")));
    }
    refuse_hidden(config, table)
}

fn refuse_unfit(config: &Config, table: &Table) -> Result<()> {
    let name = &table.name;
    if let Err(reason) = table.streamable() {
        return Err(Error::source_refused(format!(
            "table {name} cannot be streamed: {reason}. To stream it: {}; or leave it out",
            unstreamable::fix(table, &reason)
        )));
    }
    refuse_hidden(config, table)
}

/// Refuses what the configuration or a policy would hide of it.
fn refuse_hidden(config: &Config, table: &Table) -> Result<()> {
    let name = &table.name;
    refuse_misfit(config, table)?;
    refuse_at_source(config, table)?;
    if table.row_security {
        return Err(Error::source_refused(format!(
            "row level security filters what this role reads of {name}: a copy would lack rows. Give the role BYPASSRLS"
        )));
    }
    Ok(())
}

/// Refuses names under `exclude`, `hash` or `include` that do not fit the table, whole as the catalog has it: what one of them meant to keep
/// out has another name now, and would be published under it.
fn refuse_misfit(config: &Config, table: &Table) -> Result<()> {
    let (name, asked) = (&table.name, privacy(config, &table.name));
    if let Some(hidden) = asked.exclude.iter().find(|e| table.key.contains(e)) {
        return Err(Error::config(format!("table {name}: column {hidden} belongs to the key and cannot be excluded; hash it instead")));
    }
    match asked.misfits(table) {
        misfits if misfits.is_empty() => Ok(()),
        misfits => Err(Error::config(format!(
            "table {name}: {}. What it was meant for may have another name now, so nothing more of the table is written: correct [[table]]",
            misfits.join("; ")
        ))),
    }
}

/// A column list must cover what the server logs of old rows, else every UPDATE and DELETE fails at the source.
fn refuse_at_source(config: &Config, table: &Table) -> Result<()> {
    if !config.table(&table.name).is_some_and(|t| t.exclude_at_source) {
        return Ok(());
    }
    let generated = |name: &&String| table.columns.iter().any(|column| column.name == **name && column.generated);
    let why = match (table.identity, table.identity_columns.iter().find(generated)) {
        (ReplicaIdentity::Full, _) => {
            "under REPLICA IDENTITY FULL a column list makes every UPDATE and DELETE fail at the source (42P10)".to_owned()
        }
        (_, Some(column)) => format!("column {column} of its replica identity is generated, and cannot stand in a column list"),
        _ => return Ok(()),
    };
    Err(Error::config(format!(
        "table {}: exclude_at_source = true is not possible: {why}. Use exclude alone, which drops the columns here",
        table.name
    )))
}

/// Reads the publication and the tables it is to carry; refuses what would leave holes.
pub(crate) async fn observe(client: &Client, config: &Config, wanted: impl Into<Wanted>) -> Result<Observed> {
    let publication = publication::read(client, &config.source.publication).await?;
    reduce(client, config, publication, wanted.into()).await
}

/// As [`observe`], of one table; the publication comes without its other members.
pub(crate) async fn observe_one(client: &Client, config: &Config, table: Table) -> Result<Observed> {
    let relids: Vec<u32> = table.leaves.iter().map(|leaf| leaf.oid).chain(table.ancestors.iter().copied()).chain([table.oid]).collect();
    let publication = publication::read_of(client, &config.source.publication, &relids).await?;
    reduce(client, config, publication, vec![table].into()).await
}

async fn reduce(client: &Client, config: &Config, publication: Option<Publication>, wanted: Wanted) -> Result<Observed> {
    let name = &config.source.publication;
    let publication = publication.ok_or_else(|| membership::gone(name))?;
    if !(publication.insert && publication.update && publication.delete && publication.truncate) {
        return Err(Error::source_refused(format!(
            "publication {name:?} does not publish all operations: ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate'), then `huella run --resnapshot`",
            crate::table_name::quote_ident(name)
        )));
    }
    let position = server::insert_lsn(client).await?;
    let (mut reduced, mut unlisted) = (BTreeMap::new(), BTreeMap::new());
    let Wanted { tables, unfit } = wanted;
    for mut table in tables {
        if unfit.contains_key(&table.name) {
            reduced.insert(table.name.clone(), table);
            continue;
        }
        let Some(published) = publication.tables.get(&table.name) else { continue };
        // Whatever is streamed or copied comes by here: at the start, with each look, and with each new shape in the stream.
        refuse_misfit(config, &table)?;
        refuse_parts_of_their_own(&publication, &table)?;
        if let Some(columns) = &published.columns {
            if let Some(key) = table.key.iter().find(|key| !columns.contains(key)) {
                return Err(Error::source_refused(format!(
                    "the publication's column list of {} leaves out {key}, which belongs to its key: rows could not be told apart. Put it into the list",
                    table.name
                )));
            }
            let asked = privacy(config, &table.name);
            let out = table.columns.iter().filter(|c| asked.keeps_out_of(&table, c)).map(|c| c.name.clone());
            let left_out = column_list::unlisted(&table, published, &out.collect::<Vec<_>>());
            if !left_out.is_empty() {
                let member = column_list::widened(&table, published, &left_out);
                let mend = publication::relist_sql(name, &member, published.row_filter.then_some("…as before…"));
                unlisted.insert(table.name.clone(), Unlisted { columns: left_out, mend: format!("BEGIN; {mend}; COMMIT;") });
            }
            table.columns.retain(|c| columns.contains(&c.name));
        }
        reduced.insert(table.name.clone(), table);
    }
    let snapshot = Snapshot::default();
    Ok(Observed { publication, snapshot, from: position, position, tables: reduced, unfit, left_out: BTreeMap::new(), unlisted })
}

/// Without the root option a partition's changes are filtered by its own membership, if it has one; the copy of the root knows only the root's.
fn refuse_parts_of_their_own(publication: &Publication, table: &Table) -> Result<()> {
    let own = |leaf: &&Leaf| publication.tables.get(&leaf.name).is_some_and(|p| p.row_filter || p.columns.is_some());
    let Some(leaf) = table.leaves.iter().find(own).filter(|_| !publication.via_root) else { return Ok(()) };
    Err(Error::source_refused(format!(
        "the publication filters rows or columns of {}, a partition of {}, by itself: its copy could not honour that. \
         ALTER PUBLICATION … SET (publish_via_partition_root = true), or take the partition out of the publication",
        leaf.name, table.name
    )))
}
