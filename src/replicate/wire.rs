//! A table as the stream describes it, where the catalogue has gone on already.
//!
//! Owns: putting a RELATION message and the catalogue together. Invariant: cells are read by the types that they were sent with; what only
//! the catalogue knows (positions of columns, a key under FULL) comes from there as far as it still holds.

use crate::error::Result;
use crate::pgoutput::{Relation, RelationColumn, ReplicaIdentity};
use crate::postgres::catalogue::{self, Column, Table};
use crate::schema::version::TableSchema;
use std::sync::Arc;
use tokio_postgres::Client;

/// `now` with the columns and the key of `relation`; without a fingerprint, for the catalogue never shows it again.
pub(crate) async fn table(client: &Client, relation: &Relation, now: &Table) -> Result<Table> {
    let unknown: Vec<&RelationColumn> = relation.columns.iter().filter(|c| known(now, relation.id, c).is_none()).collect();
    let declared: Vec<(u32, i32)> = unknown.iter().map(|c| (c.type_oid, c.typmod)).collect();
    let mut types = catalogue::base_types(client, &declared).await?.into_iter();
    let mut table = now.clone();
    table.oid = relation.id; // another one, if the table was dropped and created again
    table.fingerprint = String::new();
    table.columns = relation
        .columns
        .iter()
        .map(|wire| match known(now, relation.id, wire) {
            Some(column) => Some(column.clone()),
            None => Some(Column::of_type(&wire.name, (wire.type_oid, wire.typmod), types.next()?)),
        })
        .collect::<Option<_>>()
        .ok_or_else(|| crate::error::Error::bug("fewer types than columns"))?;
    table.key = match relation.identity {
        ReplicaIdentity::Default | ReplicaIdentity::Index => relation.columns.iter().filter(|c| c.key).map(|c| c.name.clone()).collect(),
        // Not told on the wire: the present one, if the columns were there.
        ReplicaIdentity::Full | ReplicaIdentity::Nothing => {
            let there = now.key.iter().all(|key| relation.columns.iter().any(|c| c.name == *key));
            if there { now.key.clone() } else { Vec::new() }
        }
    };
    Ok(table)
}

/// Names of columns on the wire that neither the catalogue nor any version has, or that a version has as hashed only.
pub(crate) fn unknown(relation: &Relation, now: &Table, versions: &[Arc<TableSchema>]) -> Vec<String> {
    let versioned = |name: &str| {
        let mut columns = versions.iter().flat_map(|v| &v.columns).filter(|c| c.source == name).peekable();
        columns.peek().is_some() && !columns.any(|c| c.hashed)
    };
    let names = relation.columns.iter().filter(|c| !now.columns.iter().any(|there| there.name == c.name) && !versioned(&c.name));
    names.map(|c| c.name.clone()).collect()
}

fn known<'a>(now: &'a Table, relation: u32, wire: &RelationColumn) -> Option<&'a Column> {
    let same_table = now.oid == relation || now.leaves.iter().any(|leaf| leaf.oid == relation);
    now.columns
        .iter()
        .filter(|_| same_table)
        .find(|c| !c.generated && c.name == wire.name && (c.type_oid, c.typmod) == (wire.type_oid, wire.typmod))
}
