// Small pieces of BigQuery SQL that more than one generator needs: names, literals, keys, positions.

// What an UPDATE can leave out because its TOASTed value did not change. Fixed-length types never are.
const TOASTABLE = ["STRING", "BYTES", "JSON", "NUMERIC", "BIGNUMERIC"];

// What can be NULL in its column with the source's text in `_exceptions`: NaN and infinity, dates out of range, text that is
// not UTF-8 (hence STRING), arrays with other lower bounds (JSON text), documents that JSON cannot hold exactly.
const EXCEPTIONAL = ["STRING", "JSON", "NUMERIC", "BIGNUMERIC", "DATE", "TIMESTAMP", "DATETIME"];

// Types that CLUSTER BY accepts.
const CLUSTERABLE = ["INT64", "STRING", "BOOL", "DATE", "DATETIME", "TIMESTAMP", "NUMERIC", "BIGNUMERIC"];

// Types whose smallest and largest key of a window can narrow the read of the target.
const ORDERED = ["INT64", "STRING", "DATE", "NUMERIC", "BIGNUMERIC"];

const quoted = name => "`" + name + "`";

const literal = text => "'" + String(text).replace(/\\/g, "\\\\").replace(/'/g, "\\'").replace(/\n/g, "\\n") + "'";

// The path of another table in the same dataset.
const sibling = (path, name) => path.replace(/[^.`]+(`?)$/, `${name}$1`);

// The exception text of a column. Lake names match [A-Za-z_][A-Za-z0-9_]*, so they need no escaping in a JSON path.
const exception = (column, alias = "") => `JSON_VALUE(${alias}\`_exceptions\`, '$.${column}')`;

const leftOut = (column, alias) => `'${column}' IN UNNEST(JSON_VALUE_ARRAY(${alias}\`_unchanged\`))`;

// One key column as text. A value that its type cannot hold (a date key of infinity) is NULL in its column: `=` would never
// match it and each merge would insert it again, so its exception text stands for it. `+ 0` makes -0.0 and 0.0 one key, as in PostgreSQL.
function keyText(column, alias) {
  const cell = alias + quoted(column.name);
  const text =
    column.silver === "STRING" ? cell
    : column.silver === "BYTES" ? `TO_HEX(${cell})`
    : column.silver === "FLOAT64" ? `CAST(${cell} + 0 AS STRING)`
    : `CAST(${cell} AS STRING)`;
  return EXCEPTIONAL.includes(column.silver) ? `COALESCE(${text}, ${exception(column.name, alias)})` : text;
}

// The whole key as one text: what events are grouped by.
function keyExpression(table, alias = "") {
  const parts = table.keyColumns.map(column => keyText(column, alias));
  return parts.length === 1 ? parts[0] : `TO_JSON_STRING([${parts.join(", ")}])`;
}

// Whether plain equality of the key's columns finds every row: only where no key can end in `_exceptions`. A uuid is text that is always UTF-8.
const plainKey = table => table.keyColumns.every(column => column.silver === "INT64" || column.silver === "BOOL" || column.postgres === "uuid");

// Positions are compared as pairs (commit LSN, seq).
const above = (lsn, seq, thanLsn, thanSeq) => `(${lsn} > ${thanLsn} OR (${lsn} = ${thanLsn} AND ${seq} > ${thanSeq}))`;
const atOrAbove = (lsn, seq, thanLsn, thanSeq) => `(${lsn} > ${thanLsn} OR (${lsn} = ${thanLsn} AND ${seq} >= ${thanSeq}))`;
const below = (lsn, seq, thanLsn, thanSeq) => `(${lsn} < ${thanLsn} OR (${lsn} = ${thanLsn} AND ${seq} < ${thanSeq}))`;

// FNV-1a, 64 bits: tells one generated layout from another in the state table; nothing depends on it being hard to forge.
function fingerprint(value) {
  let hash = 0xcbf29ce484222325n;
  for (const character of JSON.stringify(value)) {
    hash = BigInt.asUintN(64, (hash ^ BigInt(character.codePointAt(0))) * 0x100000001b3n);
  }
  return hash.toString(16).padStart(16, "0");
}

module.exports = {
  TOASTABLE, EXCEPTIONAL, CLUSTERABLE, ORDERED,
  quoted, literal, sibling, exception, leftOut, keyExpression, plainKey, above, atOrAbove, below, fingerprint,
};
