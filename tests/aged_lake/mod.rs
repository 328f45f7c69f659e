//! Lakes whose days are over: commits that a real writer made today, moved into other days' folders; and lakes made from nothing.
//!
//! Owns: both ways of making one. Does not own: what is asked of them.

#![allow(dead_code)] // each test crate uses a part

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use huella::batch::{SealedTable, encode};
use huella::lake::{
    DataFile, DataPath, FORMAT, FileKind, Manifest, SlotState, Source, TableMark, WATERMARK, WATERMARK_FORMAT, Watermark, commit_path,
    table_prefix,
};
use huella::lsn::{CommitSeq, Epoch, Lsn};
use huella::schema::version::{SchemaColumn, TableSchema};
use huella::schema::{Conversion, LakeType};
use huella::table_name::TableName;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Moves the files of every commit that no checkpoint covers into the day that `day` names for its number.
pub(crate) fn age(lake: &Path, day: impl Fn(u64) -> String) {
    let record: Option<Value> = std::fs::read(lake.join("state/compaction.json")).ok().map(|body| serde_json::from_slice(&body).unwrap());
    let covered = record.map_or(0, |record| record["checkpoints"][0]["seq"].as_u64().unwrap());
    for entry in std::fs::read_dir(lake.join("commits")).unwrap().flatten() {
        let mut manifest: Value = serde_json::from_slice(&std::fs::read(entry.path()).unwrap()).unwrap();
        let seq = manifest["seq"].as_u64().unwrap();
        if seq <= covered {
            continue;
        }
        for file in manifest["files"].as_array_mut().unwrap() {
            let path = file["path"].as_str().unwrap().to_owned();
            let (folder, rest) = path.split_once("/dt=").unwrap();
            let moved = format!("{folder}/dt={}{}", day(seq), &rest[10..]);
            if moved != path && lake.join(&path).exists() {
                std::fs::create_dir_all(lake.join(&moved).parent().unwrap()).unwrap();
                std::fs::rename(lake.join(&path), lake.join(&moved)).unwrap();
            }
            file["path"] = moved.into();
        }
        // In one step: a reader may be at work.
        let temp = lake.join(format!(".tmp-aged-{seq}"));
        std::fs::write(&temp, serde_json::to_vec(&manifest).unwrap()).unwrap();
        std::fs::rename(temp, entry.path()).unwrap();
    }
}

/// Name of the schema document of the one version of a [`Synthetic`] lake.
pub(crate) const SCHEMA: &str = "_schema-e000001-a.json";

/// A lake of `public.t (id, v)` without a server.
pub(crate) struct Synthetic<'a> {
    root: &'a Path,
    schema: Arc<TableSchema>,
    watermark: Watermark,
    part: u64,
}

impl<'a> Synthetic<'a> {
    pub(crate) fn new(root: &'a Path) -> Self {
        let table = TableName::new("public", "t");
        let column = |name: &str, attnum, lake_type, conversion| SchemaColumn {
            name: name.to_owned(),
            source: name.to_owned(),
            attnum,
            type_oid: 0,
            typmod: -1,
            source_type: if lake_type == LakeType::Int64 { "bigint" } else { "text" }.to_owned(),
            lake_type,
            conversion,
            hashed: false,
            dropped: false,
        };
        let columns = vec![column("id", 1, LakeType::Int64, Conversion::Int64), column("v", 2, LakeType::String, Conversion::Text)];
        let schema = TableSchema {
            table: table.clone(),
            version: 1,
            oid: 7,
            columns,
            key: vec!["id".to_owned()],
            excluded: Vec::new(),
            excluded_names: Default::default(),
            hash_key: None,
        };
        let path = root.join(format!("{}/{SCHEMA}", table_prefix(&table, 1)));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, schema.to_json()).unwrap();
        std::fs::create_dir_all(root.join("commits")).unwrap();
        let schemas = BTreeMap::from([(1, SCHEMA.to_owned())]);
        let mark = TableMark { version: Some(1), schemas, ..TableMark::new(7, Default::default(), Default::default()) };
        let source =
            Source { system_identifier: "1".to_owned(), timeline: 1, database: "d".to_owned(), slot: "s".to_owned(), publication: None };
        let watermark = Watermark {
            format: WATERMARK_FORMAT,
            epoch: Epoch(1),
            writer: "w".to_owned(),
            tenure: Default::default(),
            seq: CommitSeq(0),
            through: Some(Lsn(16)),
            last_transaction: None,
            slot_state: SlotState::Ready,
            commit: None,
            commit_time: "2026-01-31T00:00:00.000000Z".to_owned(),
            source,
            tables: BTreeMap::from([(table, mark)]),
            alive_at: None,
            pending_since: BTreeMap::new(),
            retired: BTreeMap::new(),
        };
        Self { root, schema: Arc::new(schema), watermark, part: 0 }
    }

    /// A data file with these rows `(lsn, seq, op, id, v)`.
    pub(crate) fn file(&mut self, day: &str, kind: FileKind, rows: &[(u64, i64, &str, i64, Option<&str>)]) -> DataFile {
        let n = rows.len();
        let none = || Arc::new(StringArray::new_null(n)) as ArrayRef;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.3))),
            Arc::new(rows.iter().map(|r| r.4).collect::<StringArray>()),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.2))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0 as i64))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1))),
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|_| 0)).with_timezone("UTC")),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|_| 9))),
            none(),
            none(),
            none(),
        ];
        let batch = RecordBatch::try_new(Arc::new(self.schema.arrow()), columns).unwrap();
        let sealed = SealedTable { schema: Arc::clone(&self.schema), date: day.to_owned(), first_lsn: Lsn(rows[0].0), kind, rows: batch };
        let encoded = encode(&sealed).unwrap();
        self.part += 1;
        let name = DataPath { lsn: encoded.first_lsn, seq: self.watermark.seq.next(), epoch: self.watermark.epoch, part: self.part };
        let path = name.path(&self.schema.table, 1, day);
        std::fs::create_dir_all(self.root.join(&path).parent().unwrap()).unwrap();
        std::fs::write(self.root.join(&path), &encoded.body).unwrap();
        use base64::Engine;
        let crc32c = base64::engine::general_purpose::STANDARD.encode(crc32c::crc32c(&encoded.body).to_be_bytes());
        DataFile { path, table: self.schema.table.clone(), version: 1, rows: n as u64, bytes: encoded.body.len() as u64, crc32c, kind }
    }

    /// A commit through `through`.
    pub(crate) fn commit(&mut self, through: u64, files: Vec<DataFile>) {
        let w = &mut self.watermark;
        w.seq = w.seq.next();
        let path = commit_path(w.seq, w.epoch);
        let manifest = Manifest {
            format: FORMAT,
            seq: w.seq,
            epoch: w.epoch,
            previous: w.commit.replace(path.clone()),
            after: w.through.replace(Lsn(through)).unwrap(),
            through: Lsn(through),
            commit_time: w.commit_time.clone(),
            files,
            snapshots: Vec::new(),
            proposals: Vec::new(),
            reset: false,
        };
        std::fs::write(self.root.join(path), manifest.to_body()).unwrap();
    }

    /// Another writer takes over.
    pub(crate) fn next_epoch(&mut self) {
        self.watermark.epoch = Epoch(self.watermark.epoch.0 + 1);
        self.part = 0;
    }

    /// Makes what was committed visible.
    pub(crate) fn write(&self) {
        std::fs::write(self.root.join(WATERMARK), self.watermark.to_body()).unwrap();
    }
}

/// A program's end: exit code, standard error, most memory it ever had, in KiB. (`ru_maxrss` would count the test's own, before exec.)
pub(crate) fn measured(mut command: std::process::Command) -> (i32, String, u64) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let stderr = log.reopen().unwrap();
    let mut child = command.stdout(std::process::Stdio::null()).stderr(stderr).spawn().unwrap();
    let mut kib = 0;
    let status = loop {
        let about = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = about.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        kib = kib.max(peak.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    (status.code().unwrap_or(-1), std::fs::read_to_string(log.path()).unwrap(), kib)
}

/// `huella` on a lake without a server.
pub(crate) fn huella(lake: &Path, args: &[&str], env: &[(&str, &str)]) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_huella"));
    for (key, _) in std::env::vars().filter(|(k, _)| k.starts_with("HUELLA_") || k.starts_with("PG")) {
        command.env_remove(key);
    }
    command.args(["--log-format", "json"]).args(args).current_dir(lake.parent().unwrap());
    command.env("HUELLA_SOURCE_URL", "postgresql://nobody@127.0.0.1:1/none").env("HUELLA_LAKE_URL", lake).envs(env.iter().copied());
    command
}
