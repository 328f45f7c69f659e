//! One position that source and lake are compared at.
//!
//! Owns: the exported snapshot at that position, waiting until the lake has come to it. Does not own: comparing.
//! Invariants: the tables stay locked against DDL from before the snapshot until the end; the connection that exported the
//! snapshot stays silent until it is imported; nothing is consumed from the replicator's slot.

use crate::commit;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::lake::{Tenure, Watermark};
use crate::lsn::Lsn;
use crate::pgoutput::{self, Message};
use crate::postgres::catalogue::{self, Table};
use crate::postgres::error::from_sql;
use crate::postgres::publication::{self, Publication};
use crate::postgres::{ConnectOptions, Replication, connect_sql, connect_streaming, server, slot, sqlstate};
use crate::store::Store;
use crate::table_name::{TableName, quote_ident};
use futures_util::TryStreamExt;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

/// How often the watermark is looked at.
pub(super) const POLL: Duration = Duration::from_millis(300);
/// The slot is looked at once in so many polls: every 3 s.
const POLLS_PER_SLOT: u32 = 10;
/// A slot's creation waits for open transactions; longer than this, and the person is told for whose.
const SLOT_TIMEOUT: Duration = Duration::from_secs(60);
/// A lock that is not granted in this time means a DDL under way.
const LOCK_TIMEOUT: &str = "10s";
/// What the session that holds the locks calls itself, so that nobody takes it for a copy.
const READS: &str = "huella reads";
/// Besides three heartbeats, the time that a batch under way may take to be committed.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The source as of one position.
pub(crate) struct Cut {
    /// The snapshot holds exactly the transactions that committed below it.
    pub(crate) point: Lsn,
    /// A read-only transaction on the snapshot, which holds the tables' locks.
    pub(crate) client: Client,
    /// The tables that exist, reduced to the columns that are published.
    pub(crate) tables: Vec<Table>,
    /// The publication, if it is there.
    pub(super) publication: Option<Publication>,
    /// Its row filters as SQL conditions, by the table's oid.
    pub(super) filters: BTreeMap<u32, String>,
    /// For questions outside of the snapshot.
    control: Client,
}

/// How long the lake may need to come to a position, or a writer to commit a copy.
pub(super) fn patience(config: &Config) -> Duration {
    config.batch.heartbeat * 3 + COMMIT_TIMEOUT
}

/// The watermark once none of `names` waits for a copy; as it is at `until`, or where nobody would make one.
pub(super) async fn await_copies(config: &Config, store: &dyn Store, names: &[TableName], until: Instant) -> Result<Watermark> {
    let options = ConnectOptions::parse(config.source.url.expose(), config.source.tls_ca.as_deref())?;
    let mut control: Option<Client> = None;
    loop {
        let watermark = commit::load(store).await?.ok_or_else(|| Error::lake("the watermark is gone"))?.0;
        let waits = |name: &&TableName| watermark.tables.get(*name).is_some_and(super::waits);
        let Some(waiting) = names.iter().find(waits) else { return Ok(watermark) };
        let client = match control.take() {
            Some(client) => client,
            None => {
                tracing::info!(table = %waiting, "it waits for its copy, and the comparison for that");
                connect_sql(&options).await?
            }
        };
        if Instant::now() >= until || !writer_runs(&client, &watermark).await? {
            return Ok(watermark);
        }
        control = Some(client);
        sleep(POLL).await;
    }
}

/// Whether somebody streams from the lake's slot, or does again within a moment: DDL may end a writer's session, which it begins again.
async fn writer_runs(client: &Client, watermark: &Watermark) -> Result<bool> {
    for _ in 0..POLLS_PER_SLOT {
        match slot::read(client, &watermark.source.slot).await? {
            Some(slot) if slot.active => return Ok(true),
            Some(_) if watermark.tenure != Tenure::Left => sleep(POLL).await,
            _ => return Ok(false),
        }
    }
    Ok(false)
}

/// Cuts the source.
pub(crate) async fn cut(config: &Config, watermark: &Watermark, names: &[TableName]) -> Result<Cut> {
    let options = ConnectOptions::parse(config.source.url.expose(), config.source.tls_ca.as_deref())?;
    let control = connect_streaming(&options).await?; // it peeks at changes, any number of them
    let client = connect_sql(&options).await?;
    let mut tables = catalogue::tables(&control, names).await?;
    let list: Vec<String> = tables.iter().map(|table| table.name.sql()).collect();
    // The session that reads holds the locks: one that asked for them later would wait behind a DDL that waits for the locks.
    let mut sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; \
         SET LOCAL application_name = '{READS}';"
    );
    if !list.is_empty() {
        sql.push_str(&format!(" LOCK TABLE {} IN ACCESS SHARE MODE", list.join(", ")));
    }
    client.batch_execute(&sql).await.map_err(|e| from_sql(e, "locking the tables against changes of their definitions"))?;
    let mut exporter = Replication::connect(&options).await?;
    let system = exporter.identify_system().await?;
    if system.identifier != watermark.source.system_identifier {
        let text = format!("the lake belongs to cluster {}, and this is {}", watermark.source.system_identifier, system.identifier);
        return Err(Error::source_refused(text));
    }
    let point = match timeout(SLOT_TIMEOUT, import(&mut exporter, &client)).await {
        Ok(imported) => imported,
        Err(_) => Err(waits_for(&control).await),
    };
    exporter.terminate().await;
    let point = point?;
    let name = &config.source.publication;
    let publication = publication::read(&control, name).await?;
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    // By the session that holds the locks: printing a filter takes the table's lock again.
    let filters = publication::filters(&client, name, &oids).await?;
    for table in &mut tables {
        if let Some(listed) = publication.as_ref().and_then(|p| p.tables.get(&table.name)?.columns.as_ref()) {
            table.columns.retain(|column| listed.contains(&column.name));
        }
    }
    Ok(Cut { point, client, tables, publication, filters, control })
}

async fn import(exporter: &mut Replication, client: &Client) -> Result<Lsn> {
    let random = std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), std::process::id());
    let exported = exporter.create_temporary_slot(&format!("huella_verify_{random:016x}")).await?;
    let sql = format!("SET TRANSACTION SNAPSHOT '{}'", exported.snapshot.replace('\'', "''"));
    client.batch_execute(&sql).await.map_err(|e| from_sql(e, "taking the snapshot over"))?;
    Ok(exported.consistent_point)
}

async fn waits_for(control: &Client) -> Error {
    let blockers: Vec<String> =
        server::blockers_of_slot_creation(control).await.unwrap_or_default().iter().map(ToString::to_string).collect();
    let who = if blockers.is_empty() { "unknown".to_owned() } else { blockers.join("; ") };
    Error::retry(format!("no position within {} s: transactions that write are open ({who})", SLOT_TIMEOUT.as_secs()))
}

impl Cut {
    /// As [`writer_runs`].
    pub(super) async fn writer_runs(&self, watermark: &Watermark) -> Result<bool> {
        writer_runs(&self.control, watermark).await
    }

    /// Waits until the lake holds everything below the position; returns the watermark that says so. Without a writer that
    /// is the present one, if nothing of the tables is pending in the slot.
    pub(crate) async fn reached(&self, config: &Config, store: &dyn Store) -> Result<Watermark> {
        let until = Instant::now() + patience(config);
        let (mut told, mut idle) = (false, false);
        for poll in 0u32.. {
            let watermark = commit::load(store).await?.ok_or_else(|| Error::lake("the watermark is gone"))?.0;
            let through = watermark.position();
            if through >= self.point {
                return Ok(watermark);
            }
            if poll % POLLS_PER_SLOT == 0 {
                match slot::read(&self.control, &watermark.source.slot).await? {
                    None => {
                        let text = format!("slot {} is not there: `huella run --resnapshot` makes a new one", watermark.source.slot);
                        return Err(Error::source_refused(text));
                    }
                    Some(slot) if !slot.active => match self.pending(config, &watermark).await? {
                        Some(0) => return Ok(watermark),
                        // A writer that has lost its connection is back by the second look.
                        Some(pending) if idle => return Err(behind(pending)),
                        Some(_) => idle = true,
                        None => idle = false,
                    },
                    Some(_) if !told => {
                        tracing::info!(%through, point = %self.point, "waiting until the lake has come to the position of the comparison");
                        told = true;
                    }
                    Some(_) => idle = false,
                }
            }
            if Instant::now() >= until {
                let text = format!("the lake stands at {through} and does not come to {}: see `huella status`", self.point);
                return Err(Error::retry(text));
            }
            sleep(POLL).await;
        }
        Err(Error::retry("the lake does not come to the position of the comparison"))
    }

    /// Row changes of the lake's tables below the position that are in the slot and not in the lake. `None`: a writer has
    /// taken the slot meanwhile.
    async fn pending(&self, config: &Config, watermark: &Watermark) -> Result<Option<u64>> {
        let doing = "looking for changes that the lake does not have yet";
        let sql = format!(
            "SELECT data FROM pg_catalog.pg_logical_slot_peek_binary_changes($1, '{}'::pg_catalog.pg_lsn, NULL, \
             'proto_version', '1', 'publication_names', $2)",
            self.point
        );
        let publication = quote_ident(&config.source.publication);
        let params = [(watermark.source.slot.as_str(), Type::NAME), (publication.as_str(), Type::TEXT)];
        let counted = async {
            let rows = self.control.query_typed_raw(&sql, params).await.map_err(|e| from_sql(e, doing))?;
            let mut rows = std::pin::pin!(rows);
            let oids: HashSet<u32> = watermark.tables.values().map(|table| table.oid).collect();
            let mut pending = Pending { below: self.point, after: watermark.position(), oids, open: 0, commit: Lsn::ZERO, total: 0 };
            while let Some(row) = rows.try_next().await.map_err(|e| from_sql(e, doing))? {
                let data: &[u8] = row.try_get(0).map_err(|e| from_sql(e, doing))?;
                pending.count(pgoutput::decode(data).map_err(|e| Error::retry(doing).with_source(e))?);
            }
            Ok(pending.total)
        };
        match counted.await {
            Ok(total) => Ok(Some(total)),
            Err(error) if sqlstate(&error) == Some("55006") => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn behind(pending: u64) -> Error {
    let text = format!("{pending} changes are not in the lake yet and nobody brings them: `huella run --until-caught-up` first");
    Error::new(Kind::Retry, text)
}

/// Counts the changes of transactions that lie between the lake and the position.
struct Pending {
    /// Transactions whose commit record lies here or later do not count.
    below: Lsn,
    /// Transactions that end here or before are in the lake.
    after: Lsn,
    oids: HashSet<u32>,
    /// Changes of the transaction that is arriving.
    open: u64,
    commit: Lsn,
    total: u64,
}

impl Pending {
    fn count(&mut self, message: Message<'_>) {
        match message {
            Message::Begin(begin) => (self.commit, self.open) = (begin.final_lsn, 0),
            Message::Commit(commit) if commit.end_lsn > self.after && self.commit < self.below => self.total += self.open,
            Message::Insert { relation, .. } | Message::Update { relation, .. } | Message::Delete { relation, .. } => {
                self.open += u64::from(self.oids.contains(&relation));
            }
            Message::Truncate(truncate) => self.open += truncate.relations.iter().filter(|id| self.oids.contains(id)).count() as u64,
            _ => {}
        }
    }
}
