//! The column list of a published table: what `exclude_at_source` asks for, and what a list leaves out.
//!
//! Owns: those rules; pure. Does not own: the statements (`publication`), when they are run (`replicate`), what is said (`check`).
//! Invariants: a list of the publication's owner is never widened, and one of ours only by columns that were excluded when it was
//! made and are no longer; so a column that is new at the source does not leave it before somebody says so.

use super::catalogue::Table;
use super::publication::{Member, PublishedTable};

/// What the configuration says of a table's columns.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exclusion<'a> {
    /// Excluded columns are to stay at the source.
    pub at_source: bool,
    /// The excluded columns.
    pub exclude: &'a [String],
    /// The list that stands now is one of ours: what was excluded when it was made.
    pub ours: Option<&'a [String]>,
}

/// The table as a new member: with a list if columns are to stay at the source.
pub fn member(table: &Table, exclusion: &Exclusion<'_>) -> Member {
    let kept = || table.columns.iter().filter(|c| !c.generated && !exclusion.exclude.contains(&c.name)).map(|c| c.name.clone()).collect();
    Member { table: table.name.clone(), columns: exclusion.at_source.then(kept) }
}

/// The member that must take the place of the present one, if any must.
pub fn relisted(table: &Table, published: &PublishedTable, exclusion: &Exclusion<'_>) -> Option<Member> {
    match (&published.columns, exclusion.at_source) {
        (None, false) => None,
        (Some(_), false) => exclusion.ours.map(|_| Member::from(table.name.clone())),
        (None, true) => Some(member(table, exclusion)),
        (Some(listed), true) => {
            let again = |name: &String| exclusion.ours.is_some_and(|excluded| excluded.contains(name));
            let columns = table.columns.iter().map(|column| &column.name);
            let kept = columns.filter(|name| !exclusion.exclude.contains(name) && (listed.contains(name) || again(name)));
            let kept: Vec<String> = kept.cloned().collect();
            (kept != *listed).then(|| Member { table: table.name.clone(), columns: Some(kept) })
        }
    }
}

/// Columns of the table that are neither in the list nor excluded: they never arrive.
pub fn unlisted(table: &Table, published: &PublishedTable, exclude: &[String]) -> Vec<String> {
    let Some(listed) = &published.columns else { return Vec::new() };
    let left_out = table.columns.iter().filter(|c| !c.generated && !listed.contains(&c.name) && !exclude.contains(&c.name));
    left_out.map(|column| column.name.clone()).collect()
}

/// The member with these columns more, in the table's order.
pub fn widened(table: &Table, published: &PublishedTable, more: &[String]) -> Member {
    let listed = published.columns.as_deref().unwrap_or_default();
    let columns = table.columns.iter().map(|column| &column.name).filter(|name| listed.contains(name) || more.contains(name));
    Member { table: table.name.clone(), columns: Some(columns.cloned().collect()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::catalogue::{BaseType, Column, ReplicaIdentity, TableKind};
    use crate::table_name::TableName;

    fn table(columns: &[&str]) -> Table {
        let base = BaseType { oid: 25, typmod: -1, name: "text".into(), element: None, element_typmod: -1, delimiter: b',' };
        let column = |(at, name): (usize, &&str)| Column {
            attnum: at as i16 + 1,
            name: (*name).to_owned(),
            type_oid: 25,
            typmod: -1,
            base: base.clone(),
            not_null: false,
            has_missing: false,
            generated: name.starts_with("generated"),
            identity: false,
            selectable: true,
        };
        Table {
            oid: 1,
            name: TableName::new("public", "t"),
            kind: TableKind::Ordinary,
            identity: ReplicaIdentity::Default,
            identity_columns: vec!["id".into()],
            generated_identity: None,
            columns: columns.iter().enumerate().map(column).collect(),
            key: vec!["id".into()],
            leaves: Vec::new(),
            ancestors: Vec::new(),
            row_security: false,
            look: Default::default(),
            rows_estimate: -1,
            bytes: 0,
            inherits_children: false,
            owned: true,
            permanent: true,
            schema_usable: true,
            selectable: true,
        }
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn list(columns: Option<&[&str]>) -> PublishedTable {
        PublishedTable { relid: 1, oid: 2, xmin: 3, columns: columns.map(strings), row_filter: false, filter_columns: Vec::new() }
    }

    /// Listed columns, at_source, excluded, excluded when ours was made → the new list: `None` no change, `Some(None)` no list.
    #[allow(clippy::type_complexity)]
    fn cases() -> Vec<(
        Option<&'static [&'static str]>,
        bool,
        &'static [&'static str],
        Option<&'static [&'static str]>,
        Option<Option<&'static [&'static str]>>,
    )> {
        vec![
            (None, false, &["b"], None, None),
            (None, true, &["b"], None, Some(Some(&["id", "a"]))),
            (Some(&["id", "a"]), true, &["b"], None, None),
            // A column that appeared at the source stays there, whosever the list is.
            (Some(&["id"]), true, &["b"], None, None),
            (Some(&["id"]), true, &["b"], Some(&["b"]), None),
            // More is excluded now; less is excluded now.
            (Some(&["id", "a", "b"]), true, &["b"], None, Some(Some(&["id", "a"]))),
            (Some(&["id"]), true, &["b"], Some(&["a", "b"]), Some(Some(&["id", "a"]))),
            // The option was taken back: our list goes, the owner's stays.
            (Some(&["id", "a"]), false, &["b"], Some(&["b"]), Some(None)),
            (Some(&["id", "a"]), false, &["b"], None, None),
        ]
    }

    #[test]
    fn lists_follow_the_configuration_and_never_widen_by_themselves() {
        let table = table(&["id", "a", "b", "generated"]);
        for (listed, at_source, exclude, ours, expected) in cases() {
            let (exclude, before) = (strings(exclude), ours.map(strings));
            let exclusion = Exclusion { at_source, exclude: &exclude, ours: before.as_deref() };
            let member = relisted(&table, &list(listed), &exclusion);
            let expected = expected.map(|columns| Member { table: table.name.clone(), columns: columns.map(strings) });
            assert_eq!(member, expected, "{listed:?} {at_source} {exclude:?} {ours:?}");
        }
    }

    #[test]
    fn what_a_list_leaves_out_is_named_and_added_in_order() {
        let table = table(&["id", "a", "b", "c", "generated"]);
        let published = list(Some(&["id", "c"]));
        assert_eq!(unlisted(&table, &published, &strings(&["a"])), ["b"]);
        assert_eq!(unlisted(&table, &list(None), &[]), [""; 0]);
        assert_eq!(widened(&table, &published, &strings(&["b"])).columns, Some(strings(&["id", "b", "c"])));
    }
}
