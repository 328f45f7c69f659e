//! Which of the tables that wait are copied together.
//!
//! Owns: that choice. Does not own: copying. Invariants: a copy's locks last as long as its slowest table, so a small table is never copied
//! together with a large one; each session of a copy holds a lock on every table and partition of it, and the server has a table of locks.

use crate::postgres::catalogue::Table;
use crate::table_name::TableName;

/// Tables of one copy hold no more than this together, or one is alone: seconds to a minute of locks.
const GROUP_BYTES: i64 = 1 << 30;
/// Locks of one copy, or one table is alone: half of what a server has as it is delivered (64 for each of 100 connections).
const GROUP_LOCKS: usize = 3200;

/// Locks that a copy by so many workers holds for each table and partition: the session that holds them all has one, and each worker one
/// of it and one of an index.
pub fn locks_each(workers: usize) -> usize {
    1 + 2 * workers
}

/// The names of the tables that `workers` copy next, the smallest first; none of none. What is not known counts as small.
pub fn next_group<'a>(waiting: impl IntoIterator<Item = (TableName, Option<&'a Table>)>, workers: usize) -> Vec<TableName> {
    let size = |table: &Table| (table.bytes.max(0), 1 + table.leaves.len());
    let mut sized: Vec<_> = waiting.into_iter().map(|(name, table)| (table.map_or((0, 1), size), name)).collect();
    sized.sort();
    let (mut bytes, mut relations) = (0, 0);
    let fits = |((its_bytes, its_relations), _): &((i64, usize), TableName)| {
        let first = relations == 0;
        bytes += its_bytes;
        relations += its_relations;
        first || (bytes <= GROUP_BYTES && relations * locks_each(workers) <= GROUP_LOCKS)
    };
    sized.into_iter().take_while(fits).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::catalogue::{Leaf, ReplicaIdentity, TableKind};

    fn table(name: &str, bytes: i64, leaves: usize) -> Table {
        let leaf = |n: usize| Leaf {
            oid: 1,
            name: TableName::new("public", format!("{name}_{n}")),
            kind: TableKind::Leaf,
            identity: ReplicaIdentity::Default,
            identity_columns: Vec::new(),
            permanent: true,
            schema_usable: true,
            unselectable: Vec::new(),
        };
        Table {
            oid: 1,
            name: TableName::new("public", name),
            kind: TableKind::Ordinary,
            identity: ReplicaIdentity::Default,
            generated_identity: None,
            identity_columns: Vec::new(),
            columns: Vec::new(),
            key: Vec::new(),
            leaves: (0..leaves).map(leaf).collect(),
            ancestors: Vec::new(),
            row_security: false,
            look: Default::default(),
            rows_estimate: 0,
            bytes,
            inherits_children: false,
            owned: true,
            permanent: true,
            schema_usable: true,
            selectable: true,
        }
    }

    fn groups(tables: &[Table]) -> Vec<Vec<String>> {
        let mut left: Vec<&Table> = tables.iter().collect();
        let mut groups = Vec::new();
        while !left.is_empty() {
            let group = next_group(left.iter().map(|table| (table.name.clone(), Some(*table))), 2);
            left.retain(|table| !group.contains(&table.name));
            groups.push(group.into_iter().map(|name| name.name).collect());
        }
        groups
    }

    #[test]
    fn small_tables_come_together_and_first_and_large_ones_alone() {
        let mib = |n: i64| n << 20;
        let tables =
            [table("huge", mib(90_000), 0), table("b", mib(2), 0), table("large", mib(900), 0), table("a", -1, 0), table("c", mib(500), 0)];
        assert_eq!(groups(&tables), [vec!["a", "b", "c"], vec!["large"], vec!["huge"]]);
        assert_eq!(groups(&[]), Vec::<Vec<String>>::new());
    }

    #[test]
    fn a_group_holds_so_many_locks_and_no_more() {
        let many: Vec<Table> = (0..1200).map(|n| table(&format!("t{n:04}"), 8192, 0)).collect();
        assert_eq!(groups(&many).iter().map(Vec::len).collect::<Vec<_>>(), [640, 560]);
        let partitioned = [table("p", 10, 5000), table("q", 5, 639), table("r", 7, 0)];
        assert_eq!(groups(&partitioned), [vec!["q"], vec!["r"], vec!["p"]]);
    }

    #[test]
    fn a_table_that_nobody_knows_is_asked_for_all_the_same() {
        let name = TableName::new("public", "new");
        assert_eq!(next_group([(name.clone(), None)], 64), [name]);
    }
}
