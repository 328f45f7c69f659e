//! Judges the publication: complete, with everything that is wanted, nothing filtered unawares.
//!
//! Owns: those rules, and the SQL for the owner. Does not own: its marks (`replicate`), replica identities (`tables`).

use super::{Facts, Finding, Known, Wanted, WantedTable, names};
use crate::postgres::catalogue::{ReplicaIdentity, Table, TableKind};
use crate::postgres::publication::{Member, Publication, PublishedTable, add_sql, create_sql};
use crate::table_name::quote_ident;
use std::collections::BTreeSet;

pub(super) fn judge(wanted: &Wanted, facts: &Facts, known: Option<&Known>) -> Vec<Finding> {
    let subject = format!("publication {}", wanted.publication);
    match &facts.publication {
        None => vec![missing(&subject, wanted, facts, known)],
        Some(publication) => present(&subject, wanted, facts, publication),
    }
}

/// The table as it is published: with a list of columns if some are to stay at the source.
fn member(wanted: &WantedTable, table: &Table) -> Member {
    let keep = || table.columns.iter().filter(|c| !c.generated && !wanted.exclude.contains(&c.name)).map(|c| c.name.clone()).collect();
    Member { table: table.name.clone(), columns: (wanted.exclude_at_source && !wanted.exclude.is_empty()).then(keep) }
}

fn missing(subject: &str, wanted: &Wanted, facts: &Facts, known: Option<&Known>) -> Finding {
    if Known::ready(known) {
        let text = "it is missing, but the lake has begun: changes since it was dropped are gone";
        return Finding::problem(subject, text).mend("huella run --resnapshot (makes it anew, and a new copy of every table)");
    }
    let members: Vec<_> = facts.streamed().map(|(wanted, table)| member(wanted, table)).collect();
    let role = &facts.server.role;
    let not_owned: Vec<_> = facts.streamed().filter(|(_, table)| !table.owned).map(|(_, table)| &table.name).collect();
    let why = match () {
        () if role.superuser || (role.create_in_database && not_owned.is_empty()) => {
            return Finding::ok(subject, format!("not there yet: the first start makes it, with {} tables", members.len()));
        }
        () if !not_owned.is_empty() => format!("role {} does not own {}", role.name, names(not_owned)),
        () => format!("role {} may not make it in database {}", role.name, facts.server.database),
    };
    let sql = create_sql(&wanted.publication, &members);
    Finding::problem(subject, format!("it is missing, and {why}")).mend(format!("the owner, or a superuser, runs: {sql};"))
}

fn present(subject: &str, wanted: &Wanted, facts: &Facts, publication: &Publication) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = quote_ident(&wanted.publication);
    let operations = [
        (publication.insert, "INSERT"),
        (publication.update, "UPDATE"),
        (publication.delete, "DELETE"),
        (publication.truncate, "TRUNCATE"),
    ];
    let lacking: Vec<_> = operations.iter().filter(|(there, _)| !there).map(|(_, operation)| *operation).collect();
    if !lacking.is_empty() {
        let mend = format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')");
        findings.push(Finding::problem(subject, format!("it does not publish {}", lacking.join(", "))).mend(mend));
    }
    let roots: Vec<_> = facts.streamed().filter(|(_, t)| t.kind == TableKind::Partitioned).map(|(_, table)| &table.name).collect();
    if !publication.via_root && !roots.is_empty() {
        let text = format!(
            "publish_via_partition_root is off: rows of partitioned tables would come under their partitions' names: {}",
            names(roots)
        );
        let mend = format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true)");
        findings.push(Finding::problem(subject, text).mend(mend));
    }
    findings.extend(not_in_it(subject, wanted, facts, publication));
    findings.extend(not_wanted(subject, facts, publication));
    for (wanted, table) in facts.streamed() {
        if let Some(published) = publication.tables.get(&table.name) {
            findings.extend(narrowed(&name, wanted, table, published));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(subject, format!("publishes the {} streamed tables with all changes", facts.streamed().count())));
    }
    findings
}

fn not_in_it(subject: &str, wanted: &Wanted, facts: &Facts, publication: &Publication) -> Option<Finding> {
    let lacking: Vec<_> = facts.streamed().filter(|(_, table)| !publication.tables.contains_key(&table.name)).collect();
    if lacking.is_empty() {
        return None;
    }
    let list = names(lacking.iter().map(|(_, table)| &table.name));
    let owned = facts.server.role.superuser || (publication.owner_is_me && lacking.iter().all(|(_, table)| table.owned));
    if owned {
        return Some(Finding::ok(subject, format!("the next start adds {list}")));
    }
    let members: Vec<_> = lacking.iter().map(|(wanted, table)| member(wanted, table)).collect();
    let text = format!("it lacks {list}, and role {} does not own all of them and it", facts.server.role.name);
    Some(Finding::problem(subject, text).mend(format!("the owner, or a superuser, runs: {};", add_sql(&wanted.publication, &members))))
}

fn not_wanted(subject: &str, facts: &Facts, publication: &Publication) -> Option<Finding> {
    let wanted: BTreeSet<_> = facts.streamed().map(|(_, table)| &table.name).collect();
    let more: Vec<_> = publication.tables.keys().filter(|name| !wanted.contains(name)).collect();
    let text = format!("it also publishes tables that are not streamed here; their changes are sent and thrown away: {}", names(&more));
    (!more.is_empty()).then(|| Finding::ok(subject, text))
}

/// Column list and row filter of one table.
fn narrowed(publication: &str, wanted: &WantedTable, table: &Table, published: &PublishedTable) -> Vec<Finding> {
    let mut findings = Vec::new();
    if published.row_filter {
        let text =
            "the publication has a row filter: changes of other rows never arrive, and a row that leaves the filter arrives as DELETE";
        findings.push(Finding::warning(&table.name, text));
    }
    let lacking_of = |columns: &[String]| -> Vec<String> {
        let lacks = table.columns.iter().filter(|c| !c.generated && !columns.contains(&c.name));
        lacks.map(|c| c.name.clone()).collect()
    };
    let Some(columns) = &published.columns else {
        if wanted.exclude_at_source && !wanted.exclude.is_empty() {
            let text =
                "exclude_at_source is set, but the publication has no column list: the columns leave the server and are dropped here";
            let set = format!("ALTER PUBLICATION {publication} DROP TABLE ONLY {}, then huella run", table.name.sql());
            findings.push(Finding::warning(&table.name, text).mend(set));
        }
        return findings;
    };
    let lacking = lacking_of(columns);
    let key: Vec<_> = table.identity_columns.iter().filter(|c| !columns.contains(c)).collect();
    if table.identity == ReplicaIdentity::Full || !key.is_empty() {
        let text = "the publication's column list does not cover the replica identity: every UPDATE and DELETE fails at the source (42P10)";
        findings.push(
            Finding::problem(&table.name, text).mend("publish the table without a column list, or with the identity's columns in it"),
        );
    }
    let unawares: Vec<_> = lacking.iter().filter(|c| !wanted.exclude.contains(c)).collect();
    if !unawares.is_empty() {
        let text = format!("the publication's column list leaves out {}: they never arrive", names(unawares));
        findings.push(Finding::warning(&table.name, text).mend("publish the table without a column list, or name them under exclude"));
    }
    let sent: Vec<_> = wanted.exclude.iter().filter(|c| wanted.exclude_at_source && columns.contains(c)).collect();
    if !sent.is_empty() {
        let text = format!("exclude_at_source is set, but the publication's column list has {}", names(sent));
        findings.push(
            Finding::warning(&table.name, text).mend("take them out of the column list: DROP TABLE, then ADD TABLE with the shorter list"),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::facts::{facts, partitioned, problems, publication, table, wanted, warnings};
    use super::super::{Severity, WantedTable};
    use super::*;
    use crate::lsn::Lsn;
    use crate::table_name::TableName;

    #[test]
    fn a_missing_publication_is_made_or_its_sql_is_shown() {
        let all = wanted(&[]);
        let mut facts = facts(&[table("a"), table("b")]);
        assert_eq!(judge(&all, &facts, None)[0].severity, Severity::Ok);
        facts.tables[1].owned = false;
        let found = problems(judge(&all, &facts, None));
        assert!(found[0].text.contains("does not own public.b"));
        assert!(
            found[0].mend.as_ref().is_some_and(|m| m.contains("CREATE PUBLICATION \"huella\" FOR TABLE ONLY \"public\".\"a\", ONLY")),
            "{found:?}"
        );
        facts.server.role.superuser = true;
        assert_eq!(problems(judge(&all, &facts, None)), []);
        let known = Known { through: Some(Lsn(1)), system_identifier: "1".into() };
        assert!(problems(judge(&all, &facts, Some(&known)))[0].text.contains("the lake has begun"));
    }

    #[test]
    fn a_role_that_may_not_create_is_told_the_sql() {
        let mut facts = facts(&[table("a")]);
        facts.server.role.create_in_database = false;
        assert!(problems(judge(&wanted(&[]), &facts, None))[0].text.contains("may not make it"));
    }

    #[test]
    fn a_complete_publication_is_fine() {
        let mut facts = facts(&[table("a"), partitioned("p")]);
        facts.publication = Some(publication(&facts.tables));
        let found = judge(&wanted(&[]), &facts, None);
        assert!(found.len() == 1 && found[0].severity == Severity::Ok, "{found:?}");
    }

    #[test]
    fn lacking_operations_and_roots_are_refused() {
        let mut facts = facts(&[table("a"), partitioned("p")]);
        let mut narrow = publication(&facts.tables);
        (narrow.update, narrow.truncate, narrow.via_root) = (false, false, false);
        facts.publication = Some(narrow);
        let found = problems(judge(&wanted(&[]), &facts, None));
        assert!(found.len() == 2 && found[0].text.contains("UPDATE, TRUNCATE") && found[1].text.contains("public.p"), "{found:?}");
    }

    #[test]
    fn a_table_that_it_lacks_is_added_or_its_sql_is_shown() {
        let mut facts = facts(&[table("a"), table("b")]);
        facts.publication = Some(publication(&facts.tables[..1]));
        assert_eq!(judge(&wanted(&[]), &facts, None)[0].severity, Severity::Ok);
        facts.tables[1].owned = false;
        let found = problems(judge(&wanted(&[]), &facts, None));
        assert!(
            found[0].mend.as_ref().is_some_and(|m| m.contains("ALTER PUBLICATION \"huella\" ADD TABLE ONLY \"public\".\"b\";")),
            "{found:?}"
        );
    }

    #[test]
    fn column_lists_and_row_filters_are_noticed() {
        let mut facts = facts(&[table("a")]);
        let mut narrow = publication(&facts.tables);
        let name = TableName::new("public", "a");
        let published = narrow.tables.get_mut(&name).unwrap();
        (published.row_filter, published.columns) = (true, Some(vec!["id".into()]));
        facts.publication = Some(narrow.clone());
        let found = judge(&wanted(&[]), &facts, None);
        assert!(problems(found.clone()).is_empty() && warnings(found.clone()).len() == 2, "{found:?}");
        assert!(warnings(found)[1].text.contains("leaves out note"));

        facts.tables[0].identity = ReplicaIdentity::Full;
        assert!(problems(judge(&wanted(&[]), &facts, None))[0].text.contains("42P10"));
        facts.tables[0].identity = ReplicaIdentity::Default;
        narrow.tables.get_mut(&name).unwrap().columns = Some(vec!["note".into()]);
        facts.publication = Some(narrow);
        assert!(problems(judge(&wanted(&[]), &facts, None))[0].text.contains("42P10"));
    }

    #[test]
    fn exclusion_at_the_source_needs_the_list() {
        let mut facts = facts(&[table("a")]);
        let exclude = WantedTable { exclude: vec!["note".into()], exclude_at_source: true, ..TableName::new("public", "a").into() };
        facts.wanted = vec![exclude];
        facts.publication = Some(publication(&facts.tables));
        assert!(warnings(judge(&wanted(&[]), &facts, None))[0].text.contains("no column list"));
        facts.publication = None;
        facts.tables[0].owned = false;
        let mend = problems(judge(&wanted(&[]), &facts, None))[0].mend.clone().unwrap();
        assert!(mend.contains("\"a\" (\"id\")"), "{mend}");
    }
}
