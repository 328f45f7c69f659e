//! A reader of lakes that shares nothing with the program: what a stranger would build from the contract alone.
//!
//! Owns: the chain of commits, the rule of the current state, the comparison with `SELECT *`. Does not own: running anything.
//! Invariant: no code of the crate is used, so that a fault in its own reading does not hide one in its writing.

#![allow(dead_code)] // each test crate uses a part

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use tokio_postgres::{Client, SimpleQueryMessage};

/// A row's cells in canonical text, by the source's column names.
pub(crate) type Cells = BTreeMap<String, Option<String>>;

/// A lake at one watermark.
pub(crate) struct Lake {
    root: PathBuf,
    pub(crate) watermark: Value,
    /// The chain, oldest first; down to the checkpoint's commit, if there is one.
    pub(crate) commits: Vec<Value>,
    /// What the checkpoint lists, compacted files among them.
    pub(crate) listed: Vec<Value>,
}

/// A row of a data file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) op: String,
    pub(crate) lsn: u64,
    pub(crate) seq: i64,
    pub(crate) cells: Cells,
    pub(crate) unchanged: Vec<String>,
    pub(crate) old_key: Option<Value>,
    /// Columns whose value the lake's type could not hold.
    pub(crate) exceptions: Vec<String>,
}

/// `X/X` as a number.
pub(crate) fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

impl Lake {
    /// Reads the watermark and its chain; `None` before the first commit. Compaction's checkpoint stands for the commits below it.
    pub(crate) fn read(root: &Path) -> Option<Self> {
        let record: Option<Value> =
            std::fs::read(root.join("state/compaction.json")).ok().map(|body| serde_json::from_slice(&body).unwrap());
        let marks = record.map_or(Vec::new(), |record| record["checkpoints"].as_array().unwrap().clone());
        let watermark: Value = serde_json::from_slice(&std::fs::read(root.join("watermark.json")).ok()?).unwrap();
        let (mut commits, mut listed) = (Vec::new(), Vec::new());
        let mut next = watermark["commit"].as_str().map(str::to_owned);
        while let Some(path) = next {
            if let Some(mark) = marks.iter().find(|mark| mark["commit"] == path.as_str()) {
                let checkpoint = json(&root.join(mark["path"].as_str().unwrap()));
                assert_eq!((&checkpoint["commit"], &checkpoint["seq"]), (&mark["commit"], &mark["seq"]));
                listed = checkpoint["files"].as_array().unwrap().iter().map(|live| live["file"].clone()).collect();
                break;
            }
            let manifest = json(&root.join(&path));
            assert_eq!(path, format!("commits/{:020}-e{:06}.json", manifest["seq"].as_u64().unwrap(), manifest["epoch"].as_u64().unwrap()));
            next = manifest["previous"].as_str().map(str::to_owned);
            commits.push(manifest);
        }
        commits.reverse();
        (!commits.is_empty() || !marks.is_empty()).then(|| Self { root: root.to_owned(), watermark, commits, listed })
    }

    fn files(&self) -> impl Iterator<Item = &Value> {
        self.listed.iter().chain(self.commits.iter().flat_map(|m| m["files"].as_array().unwrap()))
    }

    /// Streamed tables that have a current version.
    pub(crate) fn streamed(&self) -> Vec<String> {
        self.tables().into_iter().filter(|table| !self.is_catalogue(table)).collect()
    }

    fn is_catalogue(&self, table: &str) -> bool {
        self.watermark["tables"][table]["mode"] == "snapshot"
    }

    /// Tables that have a current version.
    pub(crate) fn tables(&self) -> Vec<String> {
        let tables = self.watermark["tables"].as_object().unwrap();
        tables.iter().filter(|(_, mark)| !mark["version"].is_null()).map(|(name, _)| name.clone()).collect()
    }

    /// The chain is whole, files are what the manifests say, no change stands twice, each lies within its commit.
    pub(crate) fn assert_exactly_once(&self) {
        let mut before: Option<(u64, u64, u64)> = None;
        let mut names = HashSet::new();
        let mut seen = HashSet::new();
        for file in &self.listed {
            let (path, table, version) = (file["path"].as_str().unwrap(), file["table"].as_str().unwrap(), &file["version"]);
            assert!(names.insert(path), "{path} is listed twice");
            assert_eq!(std::fs::metadata(self.root.join(path)).unwrap().len(), file["bytes"].as_u64().unwrap(), "{path}");
            let changes = self.changes_of(file);
            assert_eq!(changes.len() as u64, file["rows"].as_u64().unwrap(), "{path}");
            assert!(changes.is_sorted_by_key(|change| (change.lsn, change.seq)), "{path} is not in the order of positions");
            for change in changes.iter().filter(|change| change.seq >= 1) {
                assert!(
                    seen.insert((table, version.clone(), change.lsn, change.seq)),
                    "({:X}, {}) of {table} stands twice",
                    change.lsn,
                    change.seq
                );
            }
        }
        for manifest in &self.commits {
            let (seq, epoch) = (manifest["seq"].as_u64().unwrap(), manifest["epoch"].as_u64().unwrap());
            let (after, through) = (lsn(manifest["after"].as_str().unwrap()), lsn(manifest["through"].as_str().unwrap()));
            let reset = manifest["reset"] == true;
            if let Some((seq_before, epoch_before, through_before)) = before {
                assert_eq!(seq, seq_before + 1, "seq counts up by one");
                assert!(epoch >= epoch_before, "an older epoch follows a newer one at seq {seq}");
                assert!(reset || after == through_before, "a gap or an overlap before seq {seq}: {after:X} after {through_before:X}");
            }
            assert!(reset || after <= through, "seq {seq} goes backward");
            before = Some((seq, epoch, through));
            if reset {
                seen.clear(); // positions are never compared over a reset
            }
            for file in manifest["files"].as_array().unwrap() {
                let (path, table) = (file["path"].as_str().unwrap(), file["table"].as_str().unwrap());
                assert!(names.insert(path), "{path} is named twice");
                assert_eq!(std::fs::metadata(self.root.join(path)).unwrap().len(), file["bytes"].as_u64().unwrap(), "{path}");
                let changes = self.changes_of(file);
                assert_eq!(changes.len() as u64, file["rows"].as_u64().unwrap(), "{path}");
                for change in changes {
                    if file["kind"] == "snapshot" {
                        let marks = [("TRUNCATE", -1), ("SNAPSHOT", 0)];
                        assert!(marks.contains(&(change.op.as_str(), change.seq)), "{} {} in {path}", change.op, change.seq);
                        // A catalogue stands at its own time, and its commit leaves the position as it is.
                        let of_a_stream = manifest["proposals"].as_array().unwrap().is_empty();
                        assert!(change.lsn <= through || !of_a_stream, "a snapshot above its commit");
                    } else {
                        assert!(change.seq >= 1, "{path}");
                        assert!((after..through).contains(&change.lsn), "{:X} of {path} outside {after:X}..{through:X}", change.lsn);
                        let at = (table, file["version"].clone(), change.lsn, change.seq);
                        assert!(seen.insert(at), "({:X}, {}) of {table} stands twice", change.lsn, change.seq);
                    }
                }
            }
        }
        let Some((seq, _, through)) = before else { return }; // all of it is in the checkpoint
        assert_eq!(through, lsn(self.watermark["through"].as_str().unwrap()));
        assert_eq!(seq, self.watermark["seq"].as_u64().unwrap());
    }

    fn changes_of(&self, file: &Value) -> Vec<Change> {
        changes_in(&self.root.join(file["path"].as_str().unwrap()))
    }

    /// Paths of a table's live files: those of its current version.
    pub(crate) fn live(&self, table: &str) -> Vec<PathBuf> {
        let version = &self.watermark["tables"][table]["version"];
        let live = self.files().filter(|f| f["table"] == table && f["version"] == *version);
        live.map(|f| self.root.join(f["path"].as_str().unwrap())).collect()
    }

    /// All rows of a table's live files, by position.
    pub(crate) fn changes(&self, table: &str) -> Vec<Change> {
        let mut all: Vec<Change> = self.live(table).iter().flat_map(|path| changes_in(path)).collect();
        all.sort_by_key(|change| (change.lsn, change.seq));
        all
    }

    /// The current rows by the contract's rule, sorted. Without a key: as often as they are there.
    pub(crate) fn state(&self, table: &str) -> Vec<Cells> {
        let Some(first) = self.live(table).first().cloned() else { return Vec::new() };
        // The version as it is by now: a file's own footer says what was so when it was written.
        let schema = schema_of(&first);
        let key = source_names(&schema, schema["key"].as_array().unwrap().iter().map(|k| k.as_str().unwrap()));
        let changes = self.changes(table);
        let dropped = schema["columns"].as_array().unwrap().iter().filter(|c| c["dropped"] == true);
        let dropped: Vec<&str> = dropped.map(|c| c["source"].as_str().unwrap()).collect();
        let mut rows = if key.is_empty() {
            // A row that was written before a column came or went, and is deleted after it: the same row.
            let same = |mut change: Change| {
                change.cells.retain(|name, cell| cell.is_some() && !dropped.contains(&name.as_str()));
                change
            };
            bag(changes.into_iter().map(same).collect())
        } else {
            keyed(changes, &key, &schema)
        };
        rows.iter_mut().for_each(|row| row.retain(|name, _| !dropped.contains(&name.as_str())));
        rows.sort();
        rows
    }

    /// The state equals the source's rows, value for value. Columns in `except` are left aside.
    pub(crate) async fn assert_equals_source(&self, source: &Client, table: &str, except: &[&str]) {
        self.assert_equals_rows(source, table, "true", except).await;
    }

    /// The same for those of the source's rows that a publication's row filter lets through.
    pub(crate) async fn assert_equals_rows(&self, source: &Client, table: &str, filter: &str, except: &[&str]) {
        let mut lake = self.state(table);
        let mut there = source_rows(source, table, filter).await;
        for row in lake.iter_mut().chain(&mut there) {
            row.retain(|name, _| !except.contains(&name.as_str()));
        }
        // A column that no file has yet, or that only one side has, is NULL on the other.
        let columns: HashSet<String> = there.iter().flat_map(|row| row.keys().cloned()).collect();
        for row in &mut lake {
            for column in &columns {
                row.entry(column.clone()).or_default();
            }
        }
        lake.sort();
        there.sort();
        let missing: Vec<_> = there.iter().filter(|row| lake.binary_search(row).is_err()).take(3).collect();
        let extra: Vec<_> = lake.iter().filter(|row| there.binary_search(row).is_err()).take(3).collect();
        let short = |rows: &[&Cells]| format!("{rows:?}").chars().take(2000).collect::<String>();
        assert!(
            missing.is_empty() && extra.is_empty() && lake.len() == there.len(),
            "{table}: {} rows in the lake, {} at the source\nonly at the source: {}\nonly in the lake: {}",
            lake.len(),
            there.len(),
            short(&missing),
            short(&extra)
        );
    }
}

/// The schema document of a data file's version: the one that the watermark names.
pub(crate) fn schema_of(file: &Path) -> Value {
    let folder = file.parent().unwrap().parent().unwrap();
    let root = folder.ancestors().nth(3).unwrap();
    let version = folder.file_name().unwrap().to_str().unwrap().trim_start_matches('v').to_owned();
    let watermark = json(&root.join("watermark.json"));
    let tables = ["tables", "retired"].iter().filter_map(|list| watermark[list].as_object()).flat_map(|list| list.values());
    let mut named = tables.filter_map(|mark| mark["schemas"][&version].as_str()).map(|name| folder.join(name));
    json(&named.find(|path| path.exists()).unwrap_or_else(|| panic!("no schema document of {}", file.display())))
}

/// A data file's rows, in its order.
pub(crate) fn changes_in(file: &Path) -> Vec<Change> {
    let schema = schema_of(file);
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap().build().unwrap();
    reader.flat_map(|batch| changes(&batch.unwrap(), &schema)).collect()
}

/// The source's names of a lake's columns.
fn source_names<'a>(schema: &Value, lake: impl Iterator<Item = &'a str>) -> Vec<String> {
    let columns = schema["columns"].as_array().unwrap();
    lake.map(|name| columns.iter().find(|c| c["name"] == name).unwrap()["source"].as_str().unwrap().to_owned()).collect()
}

fn changes(batch: &RecordBatch, schema: &Value) -> Vec<Change> {
    let own = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
    let text = |name: &str, at: usize| own(name).as_string_opt::<i32>().filter(|a| a.is_valid(at)).map(|a| a.value(at).to_owned());
    let document = |name: &str, at: usize| text(name, at).map(|t| serde_json::from_str::<Value>(&t).unwrap());
    let columns: Vec<(&Value, &ArrayRef)> = schema["columns"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|c| Some((c, batch.column_by_name(c["name"].as_str().unwrap())?)))
        .collect();
    let mut changes = Vec::new();
    for at in 0..batch.num_rows() {
        let exceptions = document("_exceptions", at);
        let unchanged = document("_unchanged", at)
            .map_or(Vec::new(), |list| source_names(schema, list.as_array().unwrap().iter().map(|name| name.as_str().unwrap())));
        let mut cells = Cells::new();
        let mut excepted = Vec::new();
        for (column, array) in &columns {
            let exception = exceptions.as_ref().and_then(|e| e.get(column["name"].as_str().unwrap())).map(|e| e.as_str().unwrap());
            let value = array.is_valid(at).then(|| render(array, at));
            assert!(value.is_none() || exception.is_none(), "a value and an exception in {column}");
            let name = column["source"].as_str().unwrap().to_owned();
            if exception.is_some() {
                excepted.push(name.clone());
            }
            cells.insert(
                name,
                value.or_else(|| exception.map(str::to_owned)).map(|t| canonical(column["source_type"].as_str().unwrap(), &t)),
            );
        }
        for name in &unchanged {
            assert_eq!(cells[name], None, "an unchanged column has no cell");
        }
        changes.push(Change {
            op: text("_op", at).unwrap(),
            lsn: own("_commit_lsn").as_primitive::<Int64Type>().value(at) as u64,
            seq: own("_seq").as_primitive::<Int64Type>().value(at),
            cells,
            unchanged,
            old_key: document("_old_key", at),
            exceptions: excepted,
        });
    }
    changes
}

fn keyed(changes: Vec<Change>, key: &[String], schema: &Value) -> Vec<Cells> {
    let key_of = |cells: &Cells| key.iter().map(|name| cells.get(name).cloned().flatten()).collect::<Vec<_>>();
    let mut rows: HashMap<Vec<Option<String>>, Cells> = HashMap::new();
    let mut removed: Option<(u64, i64, Cells)> = None;
    // What lies below the last copy may have holes, which the copy mends: only from there on must it fit together.
    let copy = changes.iter().rposition(|change| change.seq == -1).unwrap_or(0);
    for mut change in changes.into_iter().skip(copy) {
        match change.op.as_str() {
            "TRUNCATE" => rows.clear(),
            "DELETE" => removed = rows.remove(&key_of(&change.cells)).map(|row| (change.lsn, change.seq, row)),
            "INSERT" | "SNAPSHOT" => {
                let before = rows.insert(key_of(&change.cells), change.cells);
                assert!(before.is_none(), "{} at {:X} of a key that is there: {before:?}", change.op, change.lsn);
            }
            "UPDATE" => {
                let at = key_of(&change.cells);
                let before = match (&change.old_key, &removed) {
                    (None, _) => rows.get(&at).cloned(),
                    (Some(old), Some((lsn, seq, row))) if (*lsn, *seq) == (change.lsn, change.seq - 1) => {
                        let names = source_names(schema, old.as_object().unwrap().keys().map(String::as_str));
                        assert_eq!(names.iter().collect::<HashSet<_>>(), key.iter().collect(), "_old_key names the key");
                        Some(row.clone())
                    }
                    (Some(_), _) => None,
                };
                for name in &change.unchanged {
                    let before =
                        before.as_ref().unwrap_or_else(|| panic!("{name} unchanged at {:X}, but there is no row before", change.lsn));
                    let value = before.get(name).cloned().flatten();
                    change.cells.insert(name.clone(), value);
                }
                rows.insert(at, change.cells);
            }
            other => panic!("_op {other}"),
        }
    }
    rows.into_values().collect()
}

fn bag(changes: Vec<Change>) -> Vec<Cells> {
    let mut counts: HashMap<Cells, i64> = HashMap::new();
    for change in changes {
        assert!(change.unchanged.is_empty(), "a table without a key has whole rows");
        match change.op.as_str() {
            "TRUNCATE" => counts.clear(),
            "DELETE" => *counts.entry(change.cells).or_default() -= 1,
            _ => *counts.entry(change.cells).or_default() += 1,
        }
    }
    counts
        .into_iter()
        .flat_map(|(row, count)| {
            assert!(count >= 0, "a row was deleted more often than inserted: {row:?}");
            std::iter::repeat_n(row, count as usize)
        })
        .collect()
}

/// A cell as PostgreSQL would print it, but for needless zeros.
fn render(array: &ArrayRef, at: usize) -> String {
    let moment = |us: i64| chrono::DateTime::from_timestamp_micros(us).unwrap().format("%Y-%m-%d %H:%M:%S%.6f").to_string();
    match array.data_type() {
        DataType::Boolean => if array.as_boolean().value(at) { "t" } else { "f" }.to_owned(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(at).to_string(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(at).to_string(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(at).to_string(),
        DataType::Decimal128(38, 9) => array.as_primitive::<Decimal128Type>().value_as_string(at),
        DataType::Decimal256(76, 38) => array.as_primitive::<Decimal256Type>().value_as_string(at),
        DataType::Utf8 => array.as_string::<i32>().value(at).to_owned(),
        DataType::Binary => format!("\\x{}", array.as_binary::<i32>().value(at).iter().map(|b| format!("{b:02x}")).collect::<String>()),
        DataType::Date32 => {
            chrono::NaiveDate::from_epoch_days(array.as_primitive::<Date32Type>().value(at)).unwrap().format("%Y-%m-%d").to_string()
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let text = moment(array.as_primitive::<TimestampMicrosecondType>().value(at));
            if zone.is_some() { format!("{text}+00") } else { text }
        }
        other => panic!("the contract has no {other}"),
    }
}

/// One text for equal values of a type.
fn canonical(pg_type: &str, text: &str) -> String {
    let without_zeros = |text: &str| match text.split_once('.') {
        Some(_) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        None => text.to_owned(),
    };
    if pg_type.ends_with(']') || pg_type.starts_with('_') {
        return match serde_json::from_str::<Value>(text) {
            Ok(value) => value.to_string(),
            Err(_) => text.to_owned(),
        };
    }
    match pg_type.split(['(', ' ']).next().unwrap() {
        "numeric" => without_zeros(text),
        // A hash stays as it is.
        "real" | "float4" => text.parse::<f32>().map_or_else(|_| text.to_owned(), |number| number.to_string()),
        "double" | "float8" => text.parse::<f64>().map_or_else(|_| text.to_owned(), |number| number.to_string()),
        "timestamp" | "timestamptz" => match text.strip_suffix("+00") {
            Some(local) => format!("{}+00", without_zeros(local)),
            None => without_zeros(text),
        },
        _ => text.to_owned(),
    }
}

/// Schema and table of a name in the lake's documents: cut at the first dot, parts that need it in double quotes.
fn parts(table: &str) -> (String, String) {
    let unquoted = |part: &str| match part.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap().replace("\"\"", "\""),
        None => part.to_owned(),
    };
    let mut inside = false;
    let quoted = table.starts_with('"');
    let cut = table.char_indices().find(|(_, c)| {
        inside ^= quoted && *c == '"';
        *c == '.' && !inside
    });
    let (schema, name) = table.split_at(cut.unwrap().0);
    (unquoted(schema), unquoted(&name[1..]))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table's name in the lake as SQL: `schema.table`, cut at the first dot; a part in double quotes is SQL already.
pub(crate) fn sql_name(table: &str) -> String {
    let mut cut = table.find('.').unwrap();
    if let Some(rest) = table.strip_prefix('"') {
        // A quote that stands twice belongs to the name.
        let plain = rest.replace("\"\"", "  ");
        cut = plain.find('"').unwrap() + 2;
    }
    let (schema, name) = table.split_at(cut);
    let part = |text: &str| if text.starts_with('"') { text.to_owned() } else { quoted(text) };
    format!("{}.{}", part(schema), part(&name[1..]))
}

async fn query(source: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = source.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let rows = messages.into_iter().filter_map(|m| if let SimpleQueryMessage::Row(row) = m { Some(row) } else { None });
    rows.map(|row| (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()).collect()
}

/// The source's rows: generated columns, which no replication carries, left out; arrays as JSON.
async fn source_rows(source: &Client, table: &str, filter: &str) -> Vec<Cells> {
    let from = sql_name(table);
    let pins = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'";
    source.batch_execute(pins).await.unwrap();
    let catalogue = format!(
        "SELECT attname, pg_catalog.format_type(coalesce(nullif(t.typbasetype, 0), t.oid), -1), t.typcategory FROM pg_catalog.pg_attribute a
         JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
         WHERE attrelid = '{}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
        from.replace('\'', "''")
    );
    let columns: Vec<(String, String, bool)> = query(source, &catalogue)
        .await
        .into_iter()
        .map(|c| (c[0].clone().unwrap(), c[1].clone().unwrap(), c[2].as_deref() == Some("A")))
        .collect();
    let cell = |(name, _, array): &(String, String, bool)| {
        let v = quoted(name);
        // Bounds other than 1 are not in JSON: such a value is an exception, of PostgreSQL's text.
        let bounds: Vec<String> = (1..=6).map(|n| format!("coalesce(array_lower({v}, {n}), 1) = 1")).collect();
        if *array { format!("CASE WHEN {} THEN to_json({v})::text ELSE {v}::text END", bounds.join(" AND ")) } else { v }
    };
    let list: Vec<String> = columns.iter().map(cell).collect();
    // A partitioned table's rows are those of its leaves; the heirs of plain inheritance are tables of their own.
    let root = format!("SELECT relkind FROM pg_catalog.pg_class WHERE oid = '{}'::regclass", from.replace('\'', "''"));
    let only = if query(source, &root).await[0][0].as_deref() == Some("p") { "" } else { "ONLY " };
    let rows = query(source, &format!("SELECT {} FROM {only}{from} WHERE {filter}", list.join(", "))).await;
    rows.into_iter()
        .map(|row| columns.iter().zip(row).map(|((name, pg, _), cell)| (name.clone(), cell.map(|text| canonical(pg, &text)))).collect())
        .collect()
}
