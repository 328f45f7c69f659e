//! The facts of the source, read by SQL before anything is judged.
//!
//! Owns: which facts there are. Does not own: the queries (`postgres`), the judgement.
//! Invariant: only reads; no query waits for a lock on a table.

use super::{Known, Wanted, WantedTable};
use crate::error::Result;
use crate::postgres::catalogue::{self, Table};
use crate::postgres::publication::{self, Publication};
use crate::postgres::server::{self, ServerInfo};
use crate::postgres::slot::{self, Slot};
use crate::table_name::TableName;
use std::collections::HashMap;
use tokio_postgres::GenericClient;

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Server and role.
    pub server: ServerInfo,
    /// The slot, if it is there.
    pub slot: Option<Slot>,
    /// The publication, if it is there.
    pub publication: Option<Publication>,
    /// What is wanted, with the tables that "every table with a key" stands for.
    pub wanted: Vec<WantedTable>,
    /// Those of them that exist.
    pub tables: Vec<Table>,
    /// Without a list in the configuration: tables of schema public that are left out.
    pub left_out: Vec<Table>,
    /// Without such a list: tables that appeared after the first start, and are to stay out.
    pub ignored: Vec<TableName>,
}

impl Facts {
    /// Takes out what appeared after the first start, if that is to be so (`source.new_tables`).
    pub(super) fn leave_out_new(&mut self, wanted: &Wanted, known: Option<&Known>) {
        let Some(known) = known.filter(|known| wanted.tables.is_none() && wanted.ignore_new && Known::ready(Some(known))) else { return };
        let (there, new) = std::mem::take(&mut self.tables).into_iter().partition(|table| known.tables.contains(&table.name));
        self.tables = there;
        let new: Vec<Table> = new;
        self.ignored = new.into_iter().map(|table| table.name).collect();
        self.wanted.retain(|table| !self.ignored.contains(&table.name));
    }

    /// The wanted tables that exist and are streamed.
    pub(super) fn streamed(&self) -> impl Iterator<Item = (&WantedTable, &Table)> {
        self.pairs().filter(|(wanted, _)| wanted.streamed)
    }

    /// The wanted tables that exist.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&WantedTable, &Table)> {
        let by_name: HashMap<&TableName, &Table> = self.tables.iter().map(|table| (&table.name, table)).collect();
        self.wanted.iter().filter_map(move |wanted| Some((wanted, *by_name.get(&wanted.name)?)))
    }
}

/// Reads the facts. Errors are those of the connection and of catalogues that the role may not read.
pub async fn gather(client: &(impl GenericClient + Sync), wanted: &Wanted) -> Result<Facts> {
    // The slot before everything else: its position must be older than the watermark that it will be compared with.
    let slot = slot::read(client, &wanted.slot).await?;
    let server = server::info(client).await?;
    let publication = publication::read(client, &wanted.publication).await?;
    let (list, tables, left_out) = match &wanted.tables {
        Some(list) => {
            let names: Vec<_> = list.iter().map(|table| table.name.clone()).collect();
            (list.clone(), catalogue::tables(client, &names).await?, Vec::new())
        }
        None => {
            let all = catalogue::tables_of(client, "public").await?;
            let (with_key, without): (Vec<_>, Vec<_>) = all.into_iter().partition(|table| table.streamable().is_ok());
            (with_key.iter().map(|table| table.name.clone().into()).collect(), with_key, without)
        }
    };
    Ok(Facts { server, slot, publication, wanted: list, tables, left_out, ignored: Vec::new() })
}
