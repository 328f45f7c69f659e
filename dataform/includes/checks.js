// The checks that cleaning.js asks for: each a query whose every row is a fault. Strict ones stop gold, the others warn.
const { quoted, literal, keyExpression } = require("./sql.js");

const name = (strict, spec, what) => `${strict ? "strict" : "warn"}_${spec.name}_${what}`;

// `table(spec)` gives the SQL path of a silver table; deleted rows are nobody's fault.
function list(model) {
  const checks = [];
  for (const spec of model.tables) {
    const rows = table => (spec.soft ? `(SELECT * FROM ${table(spec)} WHERE NOT \`_deleted\`)` : table(spec));
    const add = (strict, what, description, query, reads = [spec]) =>
      checks.push({ spec, strict, name: name(strict, spec, what), what, description, reads, query });
    if (spec.keyed) {
      const key = keyExpression(spec);
      add(true, "unique_key", `${spec.name} has one row for each key.`,
        table => `SELECT ${key} AS row_key, COUNT(*) AS row_count FROM ${rows(table)} GROUP BY row_key HAVING COUNT(*) > 1 OR row_key IS NULL`);
      add(true, "key_not_null", `No part of ${spec.name}'s key is missing.`,
        table => `SELECT ${key} AS row_key FROM ${rows(table)} WHERE ${spec.keyColumns.map(column => `(${quoted(column.name)} IS NULL AND JSON_VALUE(\`_exceptions\`, '$.${column.name}') IS NULL)`).join(" OR ")}`);
    }
    for (const column of spec.columns) {
      const cell = quoted(column.name);
      const row = spec.keyed ? `${keyExpression(spec)} AS row_key` : "`_commit_lsn`, `_seq`";
      if (column.required) {
        add(true, `${column.name}_not_null`, `${spec.name}.${column.name} is never NULL.`, table => `SELECT ${row} FROM ${rows(table)} WHERE ${cell} IS NULL`);
      }
      if (column.references) {
        const other = model.tables.find(candidate => candidate.source === column.references.table);
        const key = quoted(other.key[0]);
        const parents = table => (other.soft ? `(SELECT * FROM ${table(other)} WHERE NOT \`_deleted\`)` : table(other));
        add(!!column.references.strict, `${column.name}_exists`, `${spec.name}.${column.name} exists in ${other.name}.`,
          table => `SELECT ${row}, ${cell} FROM ${rows(table)} WHERE ${cell} IS NOT NULL AND ${cell} NOT IN (SELECT ${key} FROM ${parents(table)} WHERE ${key} IS NOT NULL)`, [spec, other]);
      }
      if (column.min !== undefined) {
        add(false, `${column.name}_min`, `${spec.name}.${column.name} is not below ${column.min}.`, table => `SELECT ${row}, ${cell} FROM ${rows(table)} WHERE ${cell} < ${column.min}`);
      }
      if (column.plausible_date) {
        add(false, `${column.name}_plausible`, `${spec.name}.${column.name} lies between 2010 and tomorrow.`,
          table => `SELECT ${row}, ${cell} FROM ${rows(table)} WHERE CAST(${cell} AS DATE) < DATE '2010-01-01' OR CAST(${cell} AS DATE) > DATE_ADD(CURRENT_DATE(), INTERVAL 1 DAY)`);
      }
    }
  }
  return checks;
}

// For gold: the names of the strict checks of these tables, to depend on.
const strict = (model, names) => list(model).filter(check => check.strict && names.includes(check.spec.name)).map(check => check.name);

// One row for each warning, with the number of faults: what a dashboard can show.
const findings = (model, table) => list(model).filter(check => !check.strict)
  .map(check => `SELECT ${literal(check.spec.name)} AS tabla, ${literal(check.what)} AS revision, ${literal(check.description)} AS descripcion, COUNT(*) AS hallazgos FROM (${check.query(table)})`)
  .join("\nUNION ALL\n");

module.exports = { list, strict, findings };
