// Raw: one external table over the manifest that `huella publish` writes for each table.

// In DDL the partition columns are declared beside the prefix, not inside it.
const plainPrefix = prefix => prefix.replace(/\/\{[^}]*\}$/, "");

// The columns come from the reference file (the version's union schema, every column nullable), so a file that lacks a newer
// column reads as NULL. NUMERIC before BIGNUMERIC: a decimal becomes the narrower type that holds it.
function externalTable(spec, self) {
  const text = require("./sql.js").literal;
  return `CREATE OR REPLACE EXTERNAL TABLE ${self}
WITH PARTITION COLUMNS (dt DATE)
OPTIONS (
  format = 'PARQUET',
  uris = [${text(spec.manifest)}],
  file_set_spec_type = 'NEW_LINE_DELIMITED_MANIFEST',
  hive_partition_uri_prefix = ${text(plainPrefix(spec.hive_prefix))},
  reference_file_schema_uri = ${text(spec.reference_schema)},
  decimal_target_types = ['NUMERIC', 'BIGNUMERIC'],
  description = ${text(`Change rows of ${spec.source}, version ${spec.version}, up to the published cut. dt is the UTC date of the commit.`)}
)`;
}

module.exports = { externalTable };
