//! Judges the publication: complete, with everything that is wanted.
//!
//! Owns: those rules, and the SQL for the owner. Does not own: its marks (`replicate`), row filters and column lists (`narrowed`),
//! replica identities (`tables`).

use super::{Facts, Finding, Known, Wanted, WantedTable, names};
use crate::postgres::catalogue::{Table, TableKind};
use crate::postgres::column_list::{self, Exclusion};
use crate::postgres::publication::{Member, Publication, add_sql, create_sql};
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
    column_list::member(table, &Exclusion { at_source: wanted.exclude_at_source, exclude: &wanted.exclude, ours: None })
}

fn missing(subject: &str, wanted: &Wanted, facts: &Facts, known: Option<&Known>) -> Finding {
    if Known::ready(known) {
        let text = "it is missing, but the lake has begun: changes since it was dropped are gone";
        return Finding::problem("publication-missing", subject, text)
            .mend("huella run --resnapshot (makes it anew, and a new copy of every table)");
    }
    let members: Vec<_> = facts.streamed().map(|(wanted, table)| member(wanted, table)).collect();
    let role = &facts.server.role;
    let not_owned: Vec<_> = facts.streamed().filter(|(_, table)| !table.owned).map(|(_, table)| &table.name).collect();
    let why = match () {
        () if role.superuser || (role.create_in_database && not_owned.is_empty()) => {
            return Finding::ok("publication", subject, format!("not there yet: the first start makes it, with {} tables", members.len()));
        }
        () if !not_owned.is_empty() => format!("role {} does not own {}", role.name, names(not_owned)),
        () => format!("role {} may not make it in database {}", role.name, facts.server.database),
    };
    let sql = create_sql(&wanted.publication, &members);
    Finding::problem("publication-missing", subject, format!("it is missing, and {why}"))
        .mend(format!("the owner, or a superuser, runs: {sql};"))
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
        findings
            .push(Finding::problem("publication-operations", subject, format!("it does not publish {}", lacking.join(", "))).mend(mend));
    }
    let roots: Vec<_> = facts.streamed().filter(|(_, t)| t.kind == TableKind::Partitioned).map(|(_, table)| &table.name).collect();
    if !publication.via_root && !roots.is_empty() {
        let text = format!(
            "publish_via_partition_root is off: rows of partitioned tables would come under their partitions' names: {}",
            names(roots)
        );
        let mend = format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true)");
        findings.push(Finding::problem("publication-root", subject, text).mend(mend));
    }
    findings.extend(not_in_it(subject, wanted, facts, publication));
    findings.extend(not_wanted(subject, facts, publication));
    if findings.is_empty() {
        findings.push(Finding::ok(
            "publication",
            subject,
            format!("publishes the {} streamed tables with all changes", facts.streamed().count()),
        ));
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
        return Some(Finding::ok("publication-lacks", subject, format!("the next start adds {list}")));
    }
    let members: Vec<_> = lacking.iter().map(|(wanted, table)| member(wanted, table)).collect();
    let text = format!("it lacks {list}, and role {} does not own all of them and it", facts.server.role.name);
    Some(
        Finding::problem("publication-lacks", subject, text)
            .mend(format!("the owner, or a superuser, runs: {};", add_sql(&wanted.publication, &members))),
    )
}

fn not_wanted(subject: &str, facts: &Facts, publication: &Publication) -> Option<Finding> {
    let wanted: BTreeSet<_> = facts.streamed().map(|(_, table)| &table.name).collect();
    let more: Vec<_> = publication.tables.keys().filter(|name| !wanted.contains(name)).collect();
    let text = format!("it also publishes tables that are not streamed here; their changes are sent and thrown away: {}", names(&more));
    (!more.is_empty()).then(|| Finding::ok("publication-more", subject, text))
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::facts::{facts, partitioned, problems, publication, table, wanted};
    use super::*;
    use crate::lsn::Lsn;

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
        let known = Known { through: Some(Lsn(1)), system_identifier: "1".into(), ..Known::default() };
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
}
