//! The columns that a warehouse sees: their types, and a fingerprint that tells one set of them from another.
//!
//! Owns: the warehouse's names for the lake's types. Pure. Invariant: what `dataform generate` writes of a version and what the cut says of it
//! have equal fingerprints exactly if their columns have equal names, types and order.

use crate::schema::LakeType;
use crate::schema::version::{SchemaColumn, TableSchema};
use sha2::{Digest, Sha256};

/// The type that BigQuery sees in the file, and the one that silver should have.
pub fn bigquery_types(column: &SchemaColumn) -> (&'static str, &'static str) {
    match column.lake_type {
        LakeType::Boolean => ("BOOL", "BOOL"),
        LakeType::Int64 => ("INT64", "INT64"),
        LakeType::Float | LakeType::Double => ("FLOAT64", "FLOAT64"),
        LakeType::Decimal38_9 => ("NUMERIC", "NUMERIC"),
        LakeType::Decimal76_38 => ("BIGNUMERIC", "BIGNUMERIC"),
        LakeType::String if !column.hashed && matches!(column.source_type.as_str(), "json" | "jsonb") => ("STRING", "JSON"),
        LakeType::String => ("STRING", "STRING"),
        LakeType::Binary => ("BYTES", "BYTES"),
        LakeType::Date => ("DATE", "DATE"),
        LakeType::Timestamp => ("TIMESTAMP", "TIMESTAMP"),
        // BigQuery does not tell a file's zoneless timestamps from others.
        LakeType::DateTime => ("TIMESTAMP", "DATETIME"),
    }
}

/// Sixteen hexadecimal digits. Names of lake columns hold neither spaces nor newlines, so the text that is hashed is unambiguous.
pub fn columns_fingerprint(schema: &TableSchema) -> String {
    let mut hash = Sha256::new();
    for column in &schema.columns {
        let (raw, silver) = bigquery_types(column);
        hash.update(format!("{} {raw} {silver}\n", column.name));
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
