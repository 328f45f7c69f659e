//! Judges row filters and column lists: what of a table is not published, and whether that is meant.
//!
//! Owns: those rules, and the SQL that mends them. Does not own: which list `exclude_at_source` asks for (`postgres::column_list`).
//! Invariant: a filter's text is not shown, only the columns that it looks at.

use super::{Facts, Finding, Known, Wanted, WantedTable, names};
use crate::postgres::catalogue::{ReplicaIdentity, Table};
use crate::postgres::column_list::{Exclusion, relisted, unlisted, widened};
use crate::postgres::publication::{Member, Publication, PublishedTable, relist_sql};

pub(super) fn judge(wanted: &Wanted, facts: &Facts, known: Option<&Known>) -> Vec<Finding> {
    let Some(publication) = &facts.publication else { return Vec::new() };
    let one = |(table_wanted, table): (&WantedTable, &Table)| {
        let Some(published) = publication.tables.get(&table.name) else {
            return Some(Vec::from_iter(under_another_name(table, publication)));
        };
        let ours = known.and_then(|known| known.lists.get(&table.name)).filter(|list| list.row == (published.oid, published.xmin));
        let exclusion = Exclusion {
            at_source: table_wanted.exclude_at_source,
            exclude: &table_wanted.exclude,
            ours: ours.map(|list| list.exclude.as_slice()),
        };
        let mut findings = filter(table, published);
        findings.extend(partitions(table, publication));
        findings.extend(under_another_name(table, publication));
        findings.extend(identity(table, published));
        findings.extend(list(wanted, facts, publication, table, published, &exclusion));
        Some(findings)
    };
    facts.streamed().filter_map(one).flatten().collect()
}

fn filter(table: &Table, published: &PublishedTable) -> Vec<Finding> {
    if !published.row_filter {
        return Vec::new();
    }
    let over = names(&published.filter_columns);
    let full = table.identity == ReplicaIdentity::Full;
    let beside: Vec<_> = published.filter_columns.iter().filter(|column| !full && !table.identity_columns.contains(column)).collect();
    if !beside.is_empty() {
        let text = format!(
            "the publication's row filter looks at {}, outside of the replica identity: every UPDATE and DELETE fails at the source (42P10)",
            names(beside)
        );
        let mend = format!("ALTER TABLE {} REPLICA IDENTITY FULL, or a filter over the key's columns alone", table.name.sql());
        return vec![Finding::problem("row-filter-identity", &table.name, text).mend(mend)];
    }
    let text = format!(
        "the publication has a row filter (over {over}): other rows are neither copied nor streamed; a row that leaves the filter arrives as DELETE, one that enters it as INSERT"
    );
    let mut findings = vec![Finding::warning("row-filter", &table.name, text)];
    if !full {
        let text = "a row whose key changes into the row filter arrives without its unchanged large values; the table is then copied anew (REPLICA IDENTITY FULL avoids that)";
        findings.push(Finding::ok("row-filter-large-values", &table.name, text));
    }
    findings
}

/// Without the root option a partition's own membership filters its rows.
fn partitions(table: &Table, publication: &Publication) -> Option<Finding> {
    let own = |p: &PublishedTable| p.row_filter || p.columns.is_some();
    let leaves = table.leaves.iter().map(|leaf| &leaf.name).filter(|name| publication.tables.get(name).is_some_and(own));
    let leaves: Vec<_> = leaves.filter(|_| !publication.via_root).collect();
    let text =
        format!("partitions have row filters or column lists of their own, which a copy of the root cannot honour: {}", names(&leaves));
    let mend = "set publish_via_partition_root, or take the partitions out of the publication";
    (!leaves.is_empty()).then(|| Finding::problem("partition-narrowed", &table.name, text).mend(mend))
}

/// With the root option the rows of a partition come under the topmost member's name.
fn under_another_name(table: &Table, publication: &Publication) -> Option<Finding> {
    let root = publication.sent_under(table)?;
    let text = format!("the publication sends its rows under the name of {root}, a table above it: `huella run` refuses that");
    let mend = format!("name {root} in the configuration instead, or take it out of the publication");
    Some(Finding::problem("partition-of-a-member", &table.name, text).mend(mend))
}

fn identity(table: &Table, published: &PublishedTable) -> Option<Finding> {
    let columns = published.columns.as_ref()?;
    let uncovered = table.identity == ReplicaIdentity::Full || table.identity_columns.iter().any(|column| !columns.contains(column));
    let text = "the publication's column list does not cover the replica identity: every UPDATE and DELETE fails at the source (42P10)";
    let mend = "publish the table without a column list, or with the identity's columns in it";
    uncovered.then(|| Finding::problem("column-list-identity", &table.name, text).mend(mend))
}

fn list(
    wanted: &Wanted,
    facts: &Facts,
    publication: &Publication,
    table: &Table,
    published: &PublishedTable,
    exclusion: &Exclusion<'_>,
) -> Vec<Finding> {
    let sql = |member: &Member| {
        format!("BEGIN; {}; COMMIT;", relist_sql(&wanted.publication, member, published.row_filter.then_some("…as before…")))
    };
    let role = &facts.server.role;
    let may = role.superuser || (publication.owner_is_me && table.owned);
    if exclusion.at_source && (publication.all_tables || !publication.schemas.is_empty()) {
        let text = "exclude_at_source needs a column list, and a publication of all tables, or of a schema, can have none";
        let mend = "name a publication of listed tables (source.publication), or use exclude alone: the columns are dropped here";
        return vec![Finding::problem("at-source-publication", &table.name, text).mend(mend)];
    }
    if let Some(member) = relisted(table, published, exclusion) {
        let what = match &member.columns {
            Some(columns) => format!("a column list of {} columns (exclude_at_source)", columns.len()),
            None => "no column list any more (exclude_at_source was taken back)".to_owned(),
        };
        if may {
            return vec![Finding::ok(
                "at-source-change",
                &table.name,
                format!("the next start gives it {what} in the publication, and copies it anew"),
            )];
        }
        let text = format!("it needs {what} in the publication, and role {} does not own both; `huella run` refuses until then", role.name);
        return vec![
            Finding::problem("at-source-change", &table.name, text).mend(format!("the owner, or a superuser, runs: {}", sql(&member))),
        ];
    }
    let left_out = unlisted(table, published, exclusion.exclude);
    if left_out.is_empty() {
        return Vec::new();
    }
    let text = format!("the publication's column list leaves out {}: they never arrive", names(&left_out));
    let mend = format!("name them under exclude, or let them through: {}", sql(&widened(table, published, &left_out)));
    vec![Finding::warning("column-list", &table.name, text).mend(mend)]
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::facts::{facts, partitioned, problems, publication, table, wanted, warnings};
    use super::*;
    use crate::lake::ListMark;
    use crate::table_name::TableName;

    fn listed(facts: &mut Facts, columns: Option<&[&str]>) {
        let mut narrow = publication(&facts.tables);
        let first = facts.tables[0].name.clone();
        narrow.tables.get_mut(&first).unwrap().columns = columns.map(|c| c.iter().map(|name| (*name).to_owned()).collect());
        facts.publication = Some(narrow);
    }

    fn at_source() -> WantedTable {
        WantedTable { exclude: vec!["note".into()], exclude_at_source: true, ..TableName::new("public", "a").into() }
    }

    #[test]
    fn column_lists_and_row_filters_are_noticed() {
        let mut facts = facts(&[table("a")]);
        listed(&mut facts, Some(&["id"]));
        facts.publication.as_mut().unwrap().tables.values_mut().for_each(|p| {
            p.row_filter = true;
            p.filter_columns = vec!["id".into()];
        });
        let found = judge(&wanted(&[]), &facts, None);
        assert!(problems(found.clone()).is_empty() && warnings(found.clone()).len() == 2, "{found:?}");
        assert!(warnings(found.clone())[0].text.contains("over id"));
        let list = &warnings(found)[1];
        assert!(
            list.text.contains("leaves out note") && list.mend.as_ref().is_some_and(|m| m.contains("(\"id\", \"note\") WHERE (")),
            "{list:?}"
        );

        facts.tables[0].identity = ReplicaIdentity::Full;
        assert!(problems(judge(&wanted(&[]), &facts, None))[0].text.contains("42P10"));
        facts.tables[0].identity = ReplicaIdentity::Default;
        listed(&mut facts, Some(&["note"]));
        assert!(problems(judge(&wanted(&[]), &facts, None))[0].text.contains("42P10"));
    }

    #[test]
    fn a_filter_beside_the_identity_is_a_problem_unless_everything_is_logged() {
        let mut facts = facts(&[table("a")]);
        listed(&mut facts, None);
        facts.publication.as_mut().unwrap().tables.values_mut().for_each(|p| {
            p.row_filter = true;
            p.filter_columns = vec!["note".into()];
        });
        let found = problems(judge(&wanted(&[]), &facts, None));
        assert!(found.len() == 1 && found[0].code == "row-filter-identity" && found[0].text.contains("looks at note"), "{found:?}");
        facts.tables[0].identity = ReplicaIdentity::Full;
        assert_eq!(problems(judge(&wanted(&[]), &facts, None)), []);
    }

    #[test]
    fn partitions_with_filters_of_their_own_need_the_root_option() {
        let root = partitioned("p");
        let mut leaf = table("p_1");
        leaf.name = root.leaves[1].name.clone();
        let mut facts = facts(std::slice::from_ref(&root));
        let mut both = publication(&[root, leaf.clone()]);
        both.tables.get_mut(&leaf.name).unwrap().row_filter = true;
        facts.publication = Some(both.clone());
        assert_eq!(judge(&wanted(&[]), &facts, None), []);
        both.via_root = false;
        facts.publication = Some(both);
        assert!(problems(judge(&wanted(&[]), &facts, None))[0].text.contains("public.p_1"));
    }

    #[test]
    fn a_partition_whose_rows_come_under_a_members_name_is_a_problem() {
        let root = partitioned("p");
        let mut leaf = table("p_1");
        leaf.ancestors = vec![root.oid];
        let mut facts = facts(&[leaf]);
        facts.publication = Some(publication(std::slice::from_ref(&root)));
        assert_eq!(problems(judge(&wanted(&[]), &facts, None))[0].code, "partition-of-a-member");
        facts.publication.as_mut().unwrap().via_root = false;
        assert_eq!(judge(&wanted(&[]), &facts, None), []);
    }

    #[test]
    fn exclusion_at_the_source_is_made_by_the_next_start_or_its_sql_is_shown() {
        let mut facts = facts(&[table("a")]);
        facts.wanted = vec![at_source()];
        listed(&mut facts, None);
        let found = judge(&wanted(&[]), &facts, None);
        assert!(found.len() == 1 && found[0].severity == Severity::Ok && found[0].text.contains("next start"), "{found:?}");
        facts.tables[0].owned = false;
        let found = problems(judge(&wanted(&[]), &facts, None));
        assert!(
            found[0].mend.as_ref().is_some_and(|m| m.contains("DROP TABLE ONLY") && m.contains("\"a\" (\"id\"); COMMIT;")),
            "{found:?}"
        );
        facts.publication.as_mut().unwrap().all_tables = true;
        assert_eq!(problems(judge(&wanted(&[]), &facts, None))[0].code, "at-source-publication");
    }

    #[test]
    fn a_column_that_is_new_at_the_source_is_told_with_the_sql_that_lets_it_through() {
        let mut one = table("a");
        one.columns.push(super::super::facts::column(3, "nuevo", 25));
        let mut facts = facts(&[one]);
        facts.wanted = vec![at_source()];
        listed(&mut facts, Some(&["id"]));
        let found = warnings(judge(&wanted(&[]), &facts, None));
        assert!(found.len() == 1 && found[0].text.contains("leaves out nuevo"), "{found:?}");
        assert!(found[0].mend.as_ref().is_some_and(|m| m.contains("(\"id\", \"nuevo\")")), "{found:?}");
    }

    #[test]
    fn a_list_of_ours_goes_when_the_option_is_taken_back_and_the_owners_stays() {
        let mut facts = facts(&[table("a")]);
        listed(&mut facts, Some(&["id"]));
        let name = facts.tables[0].name.clone();
        let row = facts.publication.as_ref().map(|p| (p.tables[&name].oid, p.tables[&name].xmin)).unwrap();
        let mut known = Known { lists: [(name.clone(), ListMark { row, exclude: vec!["note".into()] })].into(), ..Known::default() };
        let found = judge(&wanted(&[]), &facts, Some(&known));
        assert!(found.len() == 1 && found[0].code == "at-source-change", "{found:?}");
        known.lists.get_mut(&name).unwrap().row = (1, 1);
        assert_eq!(judge(&wanted(&[]), &facts, Some(&known))[0].code, "column-list");
    }
}
