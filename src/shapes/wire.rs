//! A table as the stream describes it, where the catalog has gone on already.
//!
//! Owns: putting a RELATION message and the catalog together. Invariant: cells are read by the types that they were sent with; what only
//! the catalog knows (positions of columns, a key under FULL) comes from there as far as it still holds.

use crate::pgoutput::{Relation, RelationColumn, ReplicaIdentity};
use crate::postgres::catalogue::{self, Column, Table, TableKind};
use crate::postgres::look::Look;
use crate::schema::version::{TableSchema, WireTypes};
use crate::table_name::TableName;
use std::sync::Arc;

/// The table that a RELATION describes: `now` with the columns and the key of `relation`; without `now`, what the wire alone says.
/// `None` if the type of a column is not among `types`.
pub fn wire_table(name: &TableName, relation: &Relation, now: Option<&Table>, types: &WireTypes) -> Option<Table> {
    let mut table = now.cloned().unwrap_or_else(|| bare(name));
    let column = |wire: &RelationColumn| match now.and_then(|now| known(now, relation.id, wire)) {
        Some(column) => Some(column.clone()),
        None => {
            let declared = (wire.type_oid, wire.typmod);
            Some(Column::of_type(&wire.name, declared, types.get(&declared)?.clone()))
        }
    };
    table.columns = relation.columns.iter().map(column).collect::<Option<_>>()?;
    table.oid = relation.id; // another one, if the table was dropped and created again
    table.key = match relation.identity {
        ReplicaIdentity::Default | ReplicaIdentity::Index => relation.columns.iter().filter(|c| c.key).map(|c| c.name.clone()).collect(),
        // Not told on the wire: the present one, if the columns were there.
        ReplicaIdentity::Full | ReplicaIdentity::Nothing => {
            let there = table.key.iter().all(|key| relation.columns.iter().any(|c| c.name == *key));
            if there { table.key } else { Vec::new() }
        }
    };
    Some(table)
}

/// Columns of a RELATION that the catalog does not have under that name and type: their types have to be asked for, to read their cells.
pub fn unknown_columns<'a>(relation: &'a Relation, now: Option<&'a Table>) -> impl Iterator<Item = &'a RelationColumn> {
    relation.columns.iter().filter(move |wire| now.is_none_or(|now| known(now, relation.id, wire).is_none()))
}

/// Names of columns on the wire that neither the catalog nor any version has, or that a version has as hashed only.
pub(super) fn nameless(relation: &Relation, now: Option<&Table>, versions: &[Arc<TableSchema>]) -> Vec<String> {
    let in_catalog = |name: &str| now.is_some_and(|now| now.columns.iter().any(|there| there.name == name));
    let versioned = |name: &str| {
        let mut columns = versions.iter().flat_map(|v| &v.columns).filter(|c| c.source == name).peekable();
        columns.peek().is_some() && !columns.any(|c| c.hashed)
    };
    relation.columns.iter().map(|c| &c.name).filter(|name| !in_catalog(name) && !versioned(name)).cloned().collect()
}

fn known<'a>(now: &'a Table, relation: u32, wire: &RelationColumn) -> Option<&'a Column> {
    let same_table = now.oid == relation || now.leaves.iter().any(|leaf| leaf.oid == relation);
    now.columns
        .iter()
        .filter(|_| same_table)
        .find(|c| !c.generated && c.name == wire.name && (c.type_oid, c.typmod) == (wire.type_oid, wire.typmod))
}

fn bare(name: &TableName) -> Table {
    Table {
        oid: 0,
        name: name.clone(),
        kind: TableKind::Ordinary,
        identity: catalogue::ReplicaIdentity::Default,
        identity_columns: Vec::new(),
        generated_identity: None,
        columns: Vec::new(),
        key: Vec::new(),
        leaves: Vec::new(),
        ancestors: Vec::new(),
        row_security: false,
        look: Look::default(),
        rows_estimate: -1,
        bytes: 0,
        inherits_children: false,
        owned: false,
        permanent: true,
        schema_usable: true,
        selectable: true,
    }
}
