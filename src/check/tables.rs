//! Judges the tables: there, of a kind that can be copied or streamed, readable by the role, with an identity.
//!
//! Owns: those rules. Does not own: the rule of streamability (`catalogue`), types and names of columns (`columns`).

use super::{Facts, Finding, Wanted, WantedTable, names};
use crate::postgres::catalogue::{Leaf, ReplicaIdentity, Table, TableKind};
use crate::postgres::unstreamable;
use crate::snapshot::locks_each;
use crate::table_name::{TableName, quote_ident};

/// Column lists, which `exclude_at_source` needs, came with this version.
const COLUMN_LISTS: i32 = 150_000;

pub(super) fn judge(wanted: &Wanted, facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<_> = facts.wanted.iter().filter_map(|table| absent(table, facts)).collect();
    for table in &facts.left_out {
        if let Err(why) = table.streamable() {
            let found = Finding::warning("table-left-out", &table.name, format!("left out: {why}"));
            findings.push(found.mend(format!("to stream it: {}", unstreamable::fix(table, &why))));
        }
    }
    for (wanted, table) in facts.pairs() {
        findings.extend(one(wanted, table, facts));
    }
    findings.extend(facts.tables.iter().filter_map(|table| locks(wanted, table, facts)));
    if wanted.tables.is_none() {
        findings.push(new_tables(wanted));
    }
    for table in &facts.ignored {
        let text = "left out: it appeared after the first start (source.new_tables = \"ignore\")";
        findings.push(Finding::ok("table-new-ignored", table, text).mend("to replicate it: \"add\", or name the tables under [[table]]"));
    }
    if facts.wanted.is_empty() {
        findings.push(match wanted.tables {
            None => Finding::warning(
                "no-tables",
                "tables",
                "no table of schema public can be streamed yet: `huella run` waits for the first one",
            )
            .mend("create a table with a primary key in schema public, or name tables of other schemas: [[table]]"),
            Some(_) => Finding::problem("no-tables", "tables", "the list of tables is empty")
                .mend("name the tables in the configuration: [[table]]"),
        });
    }
    findings
}

/// What becomes of tables of schema public that appear later.
fn new_tables(wanted: &Wanted) -> Finding {
    let text = if wanted.ignore_new {
        "tables of schema public that appear after the first start stay out (source.new_tables = \"ignore\")"
    } else {
        "tables of schema public that appear later are published and copied, with all their columns (source.new_tables = \"add\")"
    };
    Finding::ok("new-tables", "tables", text)
}

fn absent(wanted: &WantedTable, facts: &Facts) -> Option<Finding> {
    let name = &wanted.name;
    if is_system(name) {
        let text = "it is in a schema of the system: such tables cannot be published";
        return Some(Finding::problem("table-of-the-system", name, text).mend("take it out of the configuration"));
    }
    let there = facts.tables.iter().any(|table| table.name == *name);
    let text = "there is no such table (schema and capital letters count)";
    (!there).then(|| Finding::problem("table-absent", name, text).mend("correct the name in the configuration, or take it out"))
}

fn is_system(name: &TableName) -> bool {
    name.schema.starts_with("pg_") || name.schema == "information_schema"
}

fn one(wanted: &WantedTable, table: &Table, facts: &Facts) -> Vec<Finding> {
    if is_system(&table.name) {
        return Vec::new();
    }
    if table.kind == TableKind::Other {
        let text = "it is a view, a foreign table or the like: only tables can be copied";
        return vec![Finding::problem("table-kind", &table.name, text).mend("take it out of the configuration")];
    }
    let mut findings = Vec::new();
    if wanted.streamed {
        findings.extend(identity(table));
        findings.extend(partition(table, facts));
    }
    findings.extend(columns_named(wanted, table, facts));
    findings.extend(rights(wanted, table, facts));
    if table.inherits_children {
        let text = "other tables inherit from it: it stands for its own rows alone, theirs are in their own tables";
        findings.push(Finding::ok("table-heirs", &table.name, text));
    }
    findings
}

fn identity(table: &Table) -> Option<Finding> {
    if let Err(why) = table.streamable() {
        return Some(Finding::problem("table-unstreamable", &table.name, why.to_string()).mend(unstreamable::fix(table, &why)));
    }
    if table.key.is_empty() {
        let text = "it has no key: its state is a bag of rows, and silver keeps every row ever seen";
        return Some(Finding::warning("table-no-key", &table.name, text).mend("add a primary key"));
    }
    None
}

/// A copy holds a lock on every partition at once; tables by themselves are copied in groups.
fn locks(wanted: &Wanted, table: &Table, facts: &Facts) -> Option<Finding> {
    let (server, needed) = (&facts.server, (1 + table.leaves.len()) * locks_each(wanted.workers));
    let needed = i64::try_from(needed).unwrap_or(i64::MAX);
    let there = server.locks_each.saturating_mul(server.lock_holders);
    if needed < there {
        return None;
    }
    let text =
        format!("a copy of its {} partitions holds {needed} locks at once, and the server has {there} for everybody", table.leaves.len());
    let each = needed.saturating_mul(2) / server.lock_holders.max(1) + 1;
    let mend = format!("ALTER SYSTEM SET max_locks_per_transaction = {each}, then restart the server; or fewer snapshot.workers");
    Some(Finding::problem("table-locks", &table.name, text).mend(mend))
}

/// A partition whose root is streamed as well: its rows come under the root's name.
fn partition(table: &Table, facts: &Facts) -> Option<Finding> {
    if table.kind != TableKind::Leaf {
        return None; // thousands of tables, each compared with all others, take minutes
    }
    let (_, root) = facts.streamed().find(|(_, root)| root.leaves.iter().any(|leaf| leaf.oid == table.oid))?;
    let text = format!("it is a partition of {}, which is streamed too: its rows come under that name alone", root.name);
    Some(Finding::problem("table-partition", &table.name, text).mend("take it out of the configuration"))
}

/// Columns that the configuration names.
fn columns_named(wanted: &WantedTable, table: &Table, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let misfits = wanted.privacy().misfits(table);
    if !misfits.is_empty() {
        let text = format!("{}: `run` and `snapshot` refuse it, for what it was meant for may have another name", misfits.join("; "));
        findings.push(Finding::problem("column-absent", &table.name, text).mend("correct exclude, hash and include in the configuration"));
    }
    let generated = |name: &&String| table.columns.iter().any(|column| column.generated && column.name == **name);
    let generated: Vec<_> = wanted.include.iter().flatten().filter(generated).collect();
    if !generated.is_empty() {
        let text = format!("include names {}, which is generated and so is left out all the same", names(generated));
        findings.push(Finding::warning("column-generated", &table.name, text).mend("take it out of include"));
    }
    let key: Vec<_> = wanted.exclude.iter().filter(|name| table.key.contains(name)).collect();
    if !key.is_empty() {
        let text = format!("a column of its key is excluded: {}", names(key));
        findings.push(Finding::problem("column-key-excluded", &table.name, text).mend("hash it instead, or keep it"));
    }
    if wanted.streamed && wanted.exclude_at_source && !wanted.exclude.is_empty() {
        findings.push(at_source(table, facts));
    }
    findings
}

fn at_source(table: &Table, facts: &Facts) -> Finding {
    let without = "use exclude alone: the columns are dropped here";
    if facts.server.version_num < COLUMN_LISTS {
        return Finding::problem(
            "at-source-version",
            &table.name,
            "exclude_at_source needs PostgreSQL 15: older servers have no column lists",
        )
        .mend(without);
    }
    if table.identity == ReplicaIdentity::Full {
        let text = "exclude_at_source under REPLICA IDENTITY FULL makes every UPDATE and DELETE fail at the source (42P10)";
        return Finding::problem("at-source-identity", &table.name, text).mend(without);
    }
    let generated = |name: &&String| table.columns.iter().any(|column| column.name == **name && column.generated);
    if let Some(column) = table.identity_columns.iter().find(generated) {
        let text =
            format!("exclude_at_source needs a column list, in which {column} of its replica identity cannot stand: it is generated");
        return Finding::problem("at-source-identity", &table.name, text).mend(without);
    }
    let text = "exclude_at_source: the columns of the list cannot be dropped at the source (2BP01), and new columns never arrive";
    Finding::warning("at-source", &table.name, text).mend(without)
}

fn rights(wanted: &WantedTable, table: &Table, facts: &Facts) -> Vec<Finding> {
    let role = &facts.server.role.name;
    let grantee = quote_ident(role);
    let mut findings = Vec::new();
    if !table.schema_usable {
        let text = format!("role {role} may not use schema {}", table.name.schema);
        findings.push(
            Finding::problem("rights-schema", &table.name, text)
                .mend(format!("GRANT USAGE ON SCHEMA {} TO {grantee}", quote_ident(&table.name.schema))),
        );
    }
    let privacy = wanted.privacy();
    let needed = |name: &&String| table.columns.iter().any(|c| c.name == **name && !c.generated && !privacy.keeps_out_of(table, c));
    let closed: Vec<_> = table.columns.iter().filter(|c| !c.selectable).map(|c| &c.name).filter(needed).collect();
    let grant = |name: &TableName| format!("GRANT SELECT ON {} TO {grantee}", name.sql());
    if !closed.is_empty() {
        let text = match table.columns.iter().all(|c| !c.selectable) {
            true => format!("role {role} has no SELECT on it"),
            false => format!("role {role} has no SELECT on {}", names(closed)),
        };
        findings.push(Finding::problem("rights-columns", &table.name, text).mend(grant(&table.name)));
    } else if !table.selectable {
        let text = format!("role {role} has SELECT on columns only: LOCK TABLE, which guards the copy, asks for it on the whole table");
        findings.push(Finding::problem("rights-table", &table.name, text).mend(grant(&table.name)));
    }
    let shut = |leaf: &&Leaf| !leaf.schema_usable || leaf.unselectable.iter().any(|name| needed(&name));
    let shut: Vec<_> = table.leaves.iter().filter(shut).map(|leaf| &leaf.name).collect();
    if let Some(first) = shut.first() {
        let mend = format!("{} (and so on), and USAGE on its schema", grant(first));
        let text = format!("role {role} may not read its partitions, which are copied one by one: {}", names(shut));
        findings.push(Finding::problem("rights-partitions", &table.name, text).mend(mend));
    }
    if table.row_security {
        let text = format!("row level security hides rows from role {role}: a copy would fail, so that it is never a filtered one");
        findings.push(
            Finding::problem("rights-row-security", &table.name, text).mend(format!("as a superuser: ALTER ROLE {grantee} BYPASSRLS")),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::facts::{column, facts, partitioned, problems, table, wanted, warnings};
    use super::super::{Severity, WantedTable};
    use super::*;

    fn judged(facts: &Facts) -> Vec<Finding> {
        judge(&wanted(&[]), facts)
    }

    #[test]
    fn of_tables_as_they_should_be_nothing_is_said() {
        assert_eq!(judged(&facts(&[table("a"), partitioned("p")])), []);
    }

    #[test]
    fn each_fault_of_a_table_is_a_finding_of_its_own() {
        type Spoil = fn(&mut Table);
        let cases: [(Spoil, &str, &str); 11] = [
            (|t| t.kind = TableKind::Other, "view", "take it out"),
            (|t| t.permanent = false, "not in the WAL", "SET LOGGED"),
            (|t| t.identity = ReplicaIdentity::Nothing, "NOTHING", "REPLICA IDENTITY DEFAULT"),
            (|t| t.identity_columns.clear(), "no primary key", "REPLICA IDENTITY FULL"),
            (|t| t.leaves[1].identity = ReplicaIdentity::Full, "another replica identity", "\"p_1\" REPLICA IDENTITY DEFAULT"),
            (|t| t.leaves[1].kind = TableKind::Other, "foreign table", "one by one"),
            (|t| t.row_security = true, "row level security", "BYPASSRLS"),
            (|t| t.schema_usable = false, "may not use schema", "GRANT USAGE"),
            (|t| t.columns[1].selectable = false, "no SELECT on note", "GRANT SELECT"),
            (|t| t.selectable = false, "LOCK TABLE", "GRANT SELECT"),
            (|t| t.leaves[0].unselectable = vec!["note".into()], "partitions", "GRANT SELECT"),
        ];
        for (spoil, text, mend) in cases {
            let mut one = partitioned("p");
            spoil(&mut one);
            let found = judged(&facts(&[one]));
            assert!(found.len() == 1 && found[0].severity == Severity::Problem, "{text}: {found:?}");
            assert!(found[0].text.contains(text) && found[0].mend.as_ref().is_some_and(|m| m.contains(mend)), "{found:?}");
        }
    }

    #[test]
    fn tables_that_appear_later_are_added_or_left_out_and_said() {
        use super::super::{Known, Wanted};
        use crate::lsn::Lsn;
        let known = |through| Known { through, tables: [TableName::new("public", "a")].into(), ..Known::default() };
        for (ignore_new, through, told) in [(true, Some(Lsn(1)), vec!["public.b"]), (true, None, vec![]), (false, Some(Lsn(1)), vec![])] {
            let every = Wanted { tables: None, ignore_new, ..wanted(&[]) };
            let mut facts = facts(&[table("a"), table("b")]);
            facts.leave_out_new(&every, Some(&known(through)));
            assert_eq!(facts.wanted.len(), 2 - told.len());
            let found = judge(&every, &facts);
            let ignored: Vec<_> = found.iter().filter(|f| f.code == "table-new-ignored").map(|f| f.subject.as_str()).collect();
            assert_eq!(ignored, told);
            let rule = found.iter().find(|f| f.code == "new-tables").unwrap();
            assert!(rule.text.contains(if ignore_new { "\"ignore\"" } else { "\"add\"" }), "{rule:?}");
        }
    }

    #[test]
    fn names_that_do_not_fit_are_told_with_what_was_meant() {
        let mut facts = facts(&[table("a")]);
        for (exclude, hash, include, says) in [
            (vec!["Note"], vec![], None, Some("there is \"note\"")),
            (vec![], vec!["notas"], None, Some("hash names \"notas\", which is no column")),
            (vec![], vec!["note"], Some(vec!["id"]), Some("which include leaves out")),
            (vec![], vec!["id"], Some(vec!["note"]), None),
            (vec![], vec![], Some(vec![]), None),
        ] {
            let strings = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
            let (exclude, hash, include) = (strings(exclude), strings(hash), include.map(strings));
            facts.wanted = vec![WantedTable { exclude, hash, include, ..TableName::new("public", "a").into() }];
            let found = problems(judged(&facts));
            assert_eq!(found.len(), usize::from(says.is_some()), "{found:?}");
            assert!(says.is_none_or(|says| found[0].text.contains(says)), "{found:?}");
        }
    }

    #[test]
    fn absent_tables_and_those_of_the_system_are_named() {
        let mut facts = facts(&[table("a")]);
        facts.wanted.push(TableName::new("public", "Absent").into());
        facts.wanted.push(TableName::new("pg_catalog", "pg_class").into());
        let found = problems(judged(&facts));
        assert!(found.len() == 2 && found[0].subject == "public.Absent" && found[1].text.contains("system"), "{found:?}");
    }

    #[test]
    fn a_catalogue_needs_no_identity_and_excluded_columns_no_rights() {
        let mut one = table("a");
        one.identity_columns.clear();
        one.columns[1].selectable = false;
        let mut facts = facts(&[one]);
        facts.wanted = vec![WantedTable { streamed: false, exclude: vec!["note".into()], ..TableName::new("public", "a").into() }];
        assert_eq!(problems(judged(&facts)), []);
    }

    #[test]
    fn full_without_a_key_is_a_warning() {
        let mut one = table("a");
        (one.identity, one.key) = (ReplicaIdentity::Full, Vec::new());
        one.identity_columns.clear();
        let found = judged(&facts(&[one]));
        assert!(problems(found.clone()).is_empty() && warnings(found)[0].text.contains("no key"));
    }

    #[test]
    fn what_the_configuration_says_of_columns_is_checked() {
        let mut facts = facts(&[table("a")]);
        let mut one = WantedTable::from(TableName::new("public", "a"));
        one.exclude = vec!["id".into(), "nota".into()];
        facts.wanted = vec![one.clone()];
        let found = problems(judged(&facts));
        assert!(
            found.len() == 2
                && found[0].text.contains("exclude names \"nota\", which is no column")
                && found[1].text.contains("key is excluded: id"),
            "{found:?}"
        );

        (one.exclude, one.exclude_at_source) = (vec!["note".into()], true);
        facts.wanted = vec![one];
        assert!(warnings(judged(&facts))[0].text.contains("2BP01"));
        facts.server.version_num = 140_005;
        assert!(problems(judged(&facts))[0].text.contains("PostgreSQL 15"));
        facts.server.version_num = 150_005;
        facts.tables[0].identity = ReplicaIdentity::Full;
        facts.tables[0].identity_columns.clear();
        assert!(problems(judged(&facts))[0].text.contains("42P10"));
    }

    #[test]
    fn a_partition_beside_its_root_is_refused() {
        let root = partitioned("p");
        let mut leaf = table("p_0");
        (leaf.oid, leaf.kind) = (root.leaves[0].oid, TableKind::Leaf);
        let found = problems(judged(&facts(&[root, leaf])));
        assert!(found.len() == 1 && found[0].text.contains("partition of public.p"), "{found:?}");
    }

    #[test]
    fn without_a_list_what_is_left_out_is_said() {
        let mut none = table("log");
        none.identity_columns.clear();
        let mut facts = facts(&[]);
        facts.left_out = vec![none];
        let found = judge(&Wanted { tables: None, ..wanted(&[]) }, &facts);
        assert!(problems(found.clone()).is_empty(), "run waits for a first table: {found:?}");
        assert!(warnings(found.clone())[0].text.contains("left out") && warnings(found)[1].text.contains("waits for the first one"));
        assert!(problems(judge(&wanted(&[]), &super::super::facts::facts(&[])))[0].text.contains("list of tables is empty"));
    }

    #[test]
    fn generated_columns_need_no_rights() {
        let mut one = table("a");
        one.columns.push(crate::postgres::catalogue::Column { generated: true, selectable: false, ..column(3, "g", 23) });
        assert_eq!(problems(judged(&facts(&[one]))), []);
    }
}
