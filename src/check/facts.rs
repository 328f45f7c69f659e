//! Facts as they should be, for tests to spoil.

use super::{Facts, Finding, Severity, Wanted, WantedTable};
use crate::lsn::Lsn;
use crate::postgres::catalogue::{BaseType, Column, Leaf, ReplicaIdentity, Table, TableKind};
use crate::postgres::publication::{Publication, PublishedTable};
use crate::postgres::server::{Role, ServerInfo};
use crate::postgres::slot::Slot;
use crate::table_name::TableName;
use std::collections::BTreeMap;

pub(super) fn wanted(tables: &[WantedTable]) -> Wanted {
    Wanted {
        slot: "huella".into(),
        publication: "huella".into(),
        tables: Some(tables.to_vec()),
        initial: true,
        failover: false,
        workers: 2,
        ignore_new: false,
    }
}

pub(super) fn facts(tables: &[Table]) -> Facts {
    let role = Role { name: "postgres".into(), superuser: false, replication: true, bypass_rls: true, create_in_database: true };
    let server = ServerInfo {
        version_num: 150_018,
        wal_level: "logical".into(),
        max_replication_slots: 10,
        slots_used: 1,
        max_wal_senders: 10,
        senders_used: 1,
        max_slot_wal_keep_size_mb: 4096,
        wal_sender_timeout_ms: 60_000,
        current_wal_lsn: Lsn(2000),
        in_recovery: false,
        synchronized_standby_slots: None,
        synchronous_standby_names: String::new(),
        application_name: "huella".into(),
        lock_holders: 100,
        locks_each: 64,
        system_identifier: Some("1".into()),
        database: "postgres".into(),
        role,
    };
    let wanted = tables.iter().map(|table| table.name.clone().into()).collect();
    Facts { server, slot: None, publication: None, wanted, tables: tables.to_vec(), left_out: Vec::new(), ignored: Vec::new() }
}

pub(super) fn column(attnum: i16, name: &str, oid: u32) -> Column {
    let base = BaseType { oid, typmod: -1, name: format!("t{oid}"), element: None, element_typmod: -1, delimiter: b',' };
    Column { attnum, ..Column::of_type(name, (oid, -1), base) }
}

pub(super) fn table(name: &str) -> Table {
    Table {
        oid: 20_000 + name.bytes().map(u32::from).sum::<u32>(),
        name: TableName::new("public", name),
        kind: TableKind::Ordinary,
        identity: ReplicaIdentity::Default,
        generated_identity: None,
        identity_columns: vec!["id".into()],
        columns: vec![column(1, "id", 23), column(2, "note", 25)],
        key: vec!["id".into()],
        leaves: Vec::new(),
        ancestors: Vec::new(),
        row_security: false,
        look: Default::default(),
        rows_estimate: 10,
        bytes: 8192,
        inherits_children: false,
        owned: true,
        permanent: true,
        schema_usable: true,
        selectable: true,
    }
}

pub(super) fn partitioned(name: &str) -> Table {
    let leaf = |n: u32| Leaf {
        oid: 30_000 + n,
        name: TableName::new("public", format!("{name}_{n}")),
        kind: TableKind::Leaf,
        identity: ReplicaIdentity::Default,
        identity_columns: vec!["id".into()],
        permanent: true,
        schema_usable: true,
        unselectable: Vec::new(),
    };
    Table { kind: TableKind::Partitioned, leaves: vec![leaf(0), leaf(1)], ..table(name) }
}

pub(super) fn slot() -> Slot {
    Slot {
        name: "huella".into(),
        plugin: Some("pgoutput".into()),
        database: Some("postgres".into()),
        active: false,
        active_pid: None,
        confirmed_flush: Some(Lsn(1000)),
        restart_lsn: Some(Lsn(900)),
        wal_status: Some("reserved".into()),
        safe_wal_size: None,
        invalidation_reason: None,
        temporary: false,
        two_phase: false,
        failover: false,
        synced: false,
        inactive_for: None,
    }
}

pub(super) fn publication(tables: &[Table]) -> Publication {
    let published = |table: &Table| {
        (
            table.name.clone(),
            PublishedTable { relid: table.oid, oid: 7, xmin: 8, columns: None, row_filter: false, filter_columns: Vec::new() },
        )
    };
    Publication {
        oid: 5,
        xmin: 6,
        owner_is_me: true,
        all_tables: false,
        insert: true,
        update: true,
        delete: true,
        truncate: true,
        via_root: true,
        tables: tables.iter().map(published).collect(),
        schemas: BTreeMap::new(),
    }
}

pub(super) fn problems(findings: Vec<Finding>) -> Vec<Finding> {
    findings.into_iter().filter(|finding| finding.severity == Severity::Problem).collect()
}

pub(super) fn warnings(findings: Vec<Finding>) -> Vec<Finding> {
    findings.into_iter().filter(|finding| finding.severity == Severity::Warning).collect()
}
