//! Tables whose changes cannot be streamed: which there are, and what would help.
//!
//! Owns: the fix for each reason, the list of a schema's tables that are left out. Does not own: the rule itself (`catalogue`).

use super::catalogue::{ReplicaIdentity, Table, Unstreamable, tables_of};
use crate::error::Result;
use crate::table_name::TableName;
use tokio_postgres::GenericClient;

/// A table that nobody asked for by name, and that cannot be streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The table.
    pub table: TableName,
    /// Why.
    pub why: Unstreamable,
    /// What would help.
    pub fix: String,
}

/// The tables of a schema that are left out where every table that can be streamed is.
pub async fn left_out(client: &(impl GenericClient + Sync), schema: &str) -> Result<Vec<LeftOut>> {
    let mut left_out = Vec::new();
    for table in tables_of(client, schema).await? {
        if let Err(why) = table.streamable() {
            left_out.push(LeftOut { fix: fix(&table, &why), table: table.name, why });
        }
    }
    Ok(left_out)
}

/// What makes the table streamable.
pub fn fix(table: &Table, why: &Unstreamable) -> String {
    let alter = |name: &TableName, what: &str| format!("ALTER TABLE {} {what}", name.sql());
    match why {
        Unstreamable::NotATable => "take it out of the configuration".into(),
        Unstreamable::Unreadable(_) => "rename it, in a session whose client_encoding is the name's".into(),
        Unstreamable::NotLogged(name) => alter(name, "SET LOGGED"),
        Unstreamable::ForeignPartition(_) => "name its other partitions one by one, or copy it as a snapshot table".into(),
        // The identity index and the primary key are in the way of nothing: FULL only costs WAL.
        Unstreamable::IdentityNothing if !table.key.is_empty() => {
            format!("{} (or REPLICA IDENTITY FULL)", alter(&table.name, "REPLICA IDENTITY DEFAULT"))
        }
        Unstreamable::IdentityNothing | Unstreamable::NoKey => {
            format!("add a primary key, or: {}", alter(&table.name, "REPLICA IDENTITY FULL"))
        }
        Unstreamable::GeneratedIdentity(_) if table.identity == ReplicaIdentity::Full => {
            // Under FULL every column identifies the row, so that with a key of its own the table needs no more than to use it.
            let default = alter(&table.name, "REPLICA IDENTITY DEFAULT");
            let generated = |key: &String| table.columns.iter().any(|column| column.name == *key && column.generated);
            match table.key.is_empty() || table.key.iter().any(generated) {
                true => format!("give it a primary key of columns that are not generated, then {default}; or copy it as a snapshot table"),
                false => default,
            }
        }
        Unstreamable::GeneratedIdentity(_) => "give it a primary key, or an identity index, of columns that are not generated".into(),
        Unstreamable::PartitionIdentity(leaf) => match table.identity {
            ReplicaIdentity::Full => alter(leaf, "REPLICA IDENTITY FULL"),
            ReplicaIdentity::Index => alter(leaf, "REPLICA IDENTITY USING INDEX … (the partition's own part of that index)"),
            ReplicaIdentity::Default | ReplicaIdentity::Nothing => alter(leaf, "REPLICA IDENTITY DEFAULT"),
        },
    }
}
