//! A DELETE with nothing left but its key.
//!
//! Owns: which columns stay, what remains of `_exceptions`. Does not own: which rows are reduced (`fold`, `forget`). Pure.
//! Invariant: whoever follows the rule of the state finds the same in a reduced DELETE as in the whole one, which under REPLICA
//! IDENTITY FULL holds every cell of the row that it removed.

use crate::error::{Error, Result};
use crate::schema::version::TableSchema;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray, new_null_array};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Columns of ours that say where a row stands and what it does; `_exceptions` keeps the key's.
const PLACE: [&str; 5] = ["_op", "_commit_lsn", "_seq", "_commit_ts", "_xid"];

/// `rows` with only their key and their place.
pub(super) fn reduced(rows: &RecordBatch, version: &TableSchema) -> Result<RecordBatch> {
    let schema = rows.schema();
    let columns = schema.fields().iter().zip(rows.columns()).map(|(field, column)| match field.name().as_str() {
        name if stays(name, version) => Ok(Arc::clone(column)),
        "_exceptions" => of_key(column, version),
        _ => Ok(new_null_array(field.data_type(), rows.num_rows())),
    });
    let columns: Vec<ArrayRef> = columns.collect::<Result<_>>()?;
    RecordBatch::try_new(schema, columns).map_err(|e| Error::bug(format!("{}: columns of unequal length", version.table)).with_source(e))
}

/// Whether [`reduced`] would leave the row as it is.
pub(super) fn is_reduced(rows: &RecordBatch, at: usize, version: &TableSchema) -> bool {
    let schema = rows.schema();
    schema.fields().iter().zip(rows.columns()).all(|(field, column)| match field.name().as_str() {
        name if stays(name, version) => true,
        "_exceptions" => of_key(&column.slice(at, 1), version).is_ok_and(|key| key.as_ref() == column.slice(at, 1).as_ref()),
        _ => column.is_null(at),
    })
}

fn stays(name: &str, version: &TableSchema) -> bool {
    PLACE.contains(&name) || version.key.iter().any(|key| key == name)
}

/// The exceptions of the key's columns.
fn of_key(exceptions: &ArrayRef, version: &TableSchema) -> Result<ArrayRef> {
    let text = exceptions.as_string_opt::<i32>().ok_or_else(|| Error::lake(format!("{}: column _exceptions is no text", version.table)))?;
    let key_only = |text: &str| {
        // The cause would show a piece of the cell.
        let all: Map<String, Value> = serde_json::from_str(text)
            .map_err(|_| Error::lake(format!("{}: a row's _exceptions is not the JSON it should be", version.table)))?;
        let key: Map<String, Value> = all.into_iter().filter(|(name, _)| version.key.contains(name)).collect();
        Ok((!key.is_empty()).then(|| Value::Object(key).to_string()))
    };
    let kept: Vec<Option<String>> = text.iter().map(|cell| cell.map_or(Ok(None), key_only)).collect::<Result<_>>()?;
    Ok(Arc::new(StringArray::from(kept)))
}
