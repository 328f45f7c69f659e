//! `huella dataform generate`: `huella_tables.json`, from the lake's schemas.
//!
//! Owns: the file's form (format 1), what is said of a change. Does not own: names (`names`).
//! Invariants: the same lake gives the same bytes; the file is replaced whole or not at all, and only if it differs.

use super::names;
use crate::commit;
use crate::config::{Config, Mode};
use crate::error::{Error, Result};
use crate::lake::{manifest_path, reference_path, table_prefix};
use crate::publish::{bigquery_types, columns_fingerprint};
use crate::schema::version::{SchemaColumn, TableSchema};
use crate::store::Store;
use crate::table_name::TableName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Name of the file.
const FILE: &str = "huella_tables.json";
/// Where the lake keeps the same.
const LAKE_PATH: &str = "state/huella_tables.json";
/// Number of the file's form.
const FORM: u32 = 1;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    format: u32,
    project: String,
    location: String,
    raw_dataset: String,
    silver_dataset: String,
    lake: String,
    /// Where Dataform's own schedule learns `[dataform] max_age`; the project has the same default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_age_seconds: Option<u64>,
    tables: Vec<Table>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Table {
    source: TableName,
    name: String,
    version: u32,
    mode: String,
    manifest: String,
    reference_schema: String,
    hive_prefix: String,
    key: Vec<String>,
    #[serde(default)]
    columns_fingerprint: String,
    columns: Vec<Column>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Column {
    name: String,
    source: String,
    postgres: String,
    raw: String,
    silver: String,
}

/// Writes the file into `out`, which is made if need be, and says what changed.
///
/// # Errors
/// `Kind::Config` without `[bigquery]` or if the file cannot be written; `Kind::Lake` if there is no lake.
pub async fn run(config: &Config, out: &Path) -> Result<()> {
    let store = crate::store::open(&config.lake.url).await?;
    let path = out.join(FILE);
    let failed = |doing: &str, e: std::io::Error| Error::config(format!("{doing} {}", path.display())).with_source(e);
    let there = match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(failed("cannot read", e)),
    };
    let before: Option<Document> = match &there {
        None => None,
        Some(bytes) => Some(serde_json::from_slice(bytes).map_err(|e| {
            Error::config(format!(
                "{} is not a file of huella; it holds the tables' names in BigQuery: restore it, or delete it",
                path.display()
            ))
            .with_source(e)
        })?),
    };
    let document = document(config, store.as_ref(), before.as_ref()).await?;
    let mut body = serde_json::to_vec_pretty(&document).map_err(|e| Error::bug("writing JSON").with_source(e))?;
    body.push(b'\n');
    if there.as_ref() == Some(&body) {
        return crate::stdout::line(&format!("{}: unchanged, {} tables", path.display(), document.tables.len()));
    }
    std::fs::create_dir_all(out).map_err(|e| failed("cannot make the folder of", e))?;
    replace(&path, &body).map_err(|e| failed("cannot write", e))?;
    let mut lines = vec![format!("{}: {} tables", path.display(), document.tables.len())];
    lines.extend(changes(before.as_ref(), &document));
    crate::stdout::lines(&lines)
}

/// The same document in the lake, where the next day's job finds what this one had; returns what changed, one line a table.
///
/// # Errors
/// `Kind::Lake` if there is no lake.
pub async fn publish(config: &Config, store: &dyn Store) -> Result<Vec<String>> {
    let there = commit::persist("read the lake's table list", || store.get(LAKE_PATH)).await?;
    // One that cannot be read is written anew: it only serves to tell what changed.
    let before: Option<Document> = there.as_ref().and_then(|object| serde_json::from_slice(&object.body).ok());
    let now = document(config, store, before.as_ref()).await?;
    if before.as_ref() == Some(&now) {
        return Ok(Vec::new());
    }
    let body = serde_json::to_vec_pretty(&now).map_err(|e| Error::bug("writing JSON").with_source(e))?;
    commit::put_or_replace(store, LAKE_PATH, body.into()).await?;
    Ok(changes(before.as_ref(), &now))
}

/// Writes beside the file, then renames.
fn replace(path: &Path, body: &[u8]) -> std::io::Result<()> {
    let temp = path.with_file_name(format!(".{FILE}.{}", std::process::id()));
    let written = std::fs::File::create(&temp).and_then(|mut file| file.write_all(body).and_then(|()| file.sync_all()));
    let renamed = written.and_then(|()| std::fs::rename(&temp, path));
    if renamed.is_err() {
        let _ = std::fs::remove_file(&temp); // the first error is the one to tell
    }
    renamed
}

async fn document(config: &Config, store: &dyn Store, before: Option<&Document>) -> Result<Document> {
    let bigquery = config.bigquery.as_ref().ok_or_else(|| {
        Error::config("[bigquery] is missing: project and location are needed (or HUELLA_BIGQUERY_PROJECT and HUELLA_BIGQUERY_LOCATION)")
    })?;
    let watermark = crate::files::begun(store).await?;
    let current: Vec<(&TableName, u32, Mode)> =
        watermark.tables.iter().filter_map(|(name, mark)| Some((name, mark.version?, mark.mode))).collect();
    let given = before.iter().flat_map(|document| &document.tables).map(|table| (table.source.clone(), table.name.clone())).collect();
    let names = names::assign(current.iter().map(|(name, ..)| *name), &given);
    let mut tables = Vec::new();
    for (table, version, mode) in current {
        let schema = commit::schema(store, &watermark, table, version).await?;
        tables.push(Table {
            name: names[table].clone(),
            version,
            mode: mode.as_str().to_owned(),
            manifest: store.uri(&manifest_path(table, version)),
            reference_schema: store.uri(&reference_path(table, version)),
            hive_prefix: format!("{}/{{dt:DATE}}", store.uri(&table_prefix(table, version))),
            key: schema.key.clone(),
            columns_fingerprint: columns_fingerprint(&schema),
            columns: columns(&schema),
            source: table.clone(),
        });
    }
    Ok(Document {
        format: FORM,
        project: bigquery.project.clone(),
        location: bigquery.location.clone(),
        raw_dataset: bigquery.raw_dataset.clone(),
        silver_dataset: bigquery.silver_dataset.clone(),
        lake: store.uri("").trim_end_matches('/').to_owned(),
        max_age_seconds: config.dataform.as_ref().map(|dataform| dataform.max_age.as_secs()),
        tables,
    })
}

/// All columns of the version: one that was dropped at the source is in its older files, and stays in silver.
fn columns(schema: &TableSchema) -> Vec<Column> {
    let column = |column: &SchemaColumn| {
        let (raw, silver) = bigquery_types(column);
        Column {
            name: column.name.clone(),
            source: column.source.clone(),
            postgres: sql_type(&column.source_type),
            raw: raw.to_owned(),
            silver: silver.to_owned(),
        }
    };
    schema.columns.iter().map(column).collect()
}

/// A type as SQL names it, from its name in `pg_type`.
fn sql_type(name: &str) -> String {
    if let Some(element) = name.strip_prefix('_') {
        return format!("{}[]", sql_type(element));
    }
    let sql = match name {
        "int2" => "smallint",
        "int4" => "integer",
        "int8" => "bigint",
        "float4" => "real",
        "float8" => "double precision",
        "bool" => "boolean",
        "varchar" => "character varying",
        "bpchar" => "character",
        "varbit" => "bit varying",
        "time" => "time without time zone",
        "timetz" => "time with time zone",
        "timestamp" => "timestamp without time zone",
        "timestamptz" => "timestamp with time zone",
        other => other,
    };
    sql.to_owned()
}

/// What changed, one line a table.
fn changes(before: Option<&Document>, now: &Document) -> Vec<String> {
    let known: BTreeMap<&TableName, &Table> =
        before.iter().flat_map(|document| &document.tables).map(|table| (&table.source, table)).collect();
    let mut lines = Vec::new();
    for table in &now.tables {
        match known.get(&table.source) {
            None => lines.push(format!("{}: new, as {}", table.source, table.name)),
            Some(old) if *old == table => {}
            Some(old) => lines.push(format!("{}: {}", table.source, change(old, table))),
        }
    }
    let gone = known.keys().filter(|name| !now.tables.iter().any(|table| table.source == ***name));
    lines.extend(gone.map(|name| format!("{name}: gone")));
    if lines.is_empty() {
        lines.push("settings changed".to_owned());
    }
    lines
}

fn change(old: &Table, new: &Table) -> String {
    let mut what = Vec::new();
    if old.version != new.version {
        what.push(format!("version {} became {}", old.version, new.version));
    }
    for column in &new.columns {
        match old.columns.iter().find(|one| one.name == column.name) {
            None => what.push(format!("column {} added ({})", column.name, column.silver)),
            Some(one) if one != column => what.push(format!("column {} changed", column.name)),
            Some(_) => {}
        }
    }
    let dropped = old.columns.iter().filter(|one| !new.columns.iter().any(|column| column.name == one.name));
    what.extend(dropped.map(|column| format!("column {} dropped", column.name)));
    if old.key != new.key {
        what.push("key changed".to_owned());
    }
    if what.is_empty() { "places or mode changed".to_owned() } else { what.join(", ") }
}
