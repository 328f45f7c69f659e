// What every silver script shares: its tables, what was merged last, whether this cut is due, and the row that says it was merged.
const { quoted, literal, sibling, fingerprint } = require("./sql.js");
const words = require("./words.js");

// Raise it when the generator writes a target differently (other types, other own columns): every target is then made anew.
const FORMAT = 1;

const OWN = { keyed: ["_commit_lsn INT64", "_seq INT64", "_commit_ts TIMESTAMP", "_exceptions STRING"],
  history: ["_op STRING", "_commit_lsn INT64", "_seq INT64", "_commit_ts TIMESTAMP", "_xid INT64", "_unchanged STRING", "_old_key STRING", "_exceptions STRING"] };

// BigQuery's limits, in characters.
const COLUMN_WORDS = 1024;
const TABLE_WORDS = 16384;

// Dataform describes what it makes itself, and not what an operation makes: the DDL has to.
const description = (text, limit) => `OPTIONS (description = ${literal([...text].slice(0, limit).join(""))})`;

const dataColumns = spec => spec.columns.map(column => [column.name, column.silver])
  .concat(spec.keyed ? spec.flags.map(flag => [flag.name, "BOOL"]) : []);

function described(spec, columns) {
  const texts = new Map(words.silverColumns(spec).map(column => [column.path[0], column.description]));
  return columns.map(([name, type]) => `${quoted(name)} ${type} ${description(texts.get(name) || "", COLUMN_WORDS)}`);
}

function columnList(spec) {
  const own = (spec.keyed ? OWN.keyed.concat(spec.soft ? ["_deleted BOOL"] : []) : OWN.history).map(column => column.split(" "));
  return described(spec, dataColumns(spec).concat(own)).join(", ");
}

const tableOptions = spec => description(spec.description, TABLE_WORDS);

function storage(spec) {
  if (!spec.keyed) return "PARTITION BY DATE(`_commit_ts`) CLUSTER BY `_commit_lsn`";
  const clauses = [];
  const p = spec.partition;
  // A DATE by day is the column itself: DATE_TRUNC takes months and years only.
  if (p && p.type === "DATE" && p.by === "DAY") clauses.push(`PARTITION BY ${quoted(p.column)}`);
  else if (p && p.by) clauses.push(`PARTITION BY ${p.type}_TRUNC(${quoted(p.column)}, ${p.by})`);
  else if (p) clauses.push(`PARTITION BY RANGE_BUCKET(${quoted(p.column)}, GENERATE_ARRAY(${p.start}, ${p.end}, ${p.interval}))`);
  if (spec.cluster.length) clauses.push(`CLUSTER BY ${spec.cluster.map(quoted).join(", ")}`);
  return clauses.join(" ");
}

const createTarget = (spec, at) => `CREATE TABLE IF NOT EXISTS ${at.target} (${columnList(spec)}) ${storage(spec)} ${tableOptions(spec)};`;

// Made beside the target, where a replacement in one step is not possible.
const NEXT = "__huella_next";

const extendTarget = (spec, at) => `ALTER TABLE ${at.target} ${described(spec, dataColumns(spec)).map(column => `ADD COLUMN IF NOT EXISTS ${column}`).join(", ")};`;

// Append-only: a transaction that updated a row here would conflict with the merges of all other tables.
const createState = at => `CREATE TABLE IF NOT EXISTS ${at.state} (table_name STRING, version INT64, merged_lsn INT64, snapshot_lsn INT64, cut_dt DATE, cut_time TIMESTAMP, cut_commit STRING, layout STRING, storage STRING, rules STRING, target_created TIMESTAMP, merged_at TIMESTAMP) CLUSTER BY table_name;`;

// Two fingerprints. Another layout cannot be reached by ALTER TABLE: the target is made anew. Other rules or columns apply to
// rows merged long ago as well: the target is filled anew, in place.
function fingerprints(spec, lake) {
  return {
    layout: fingerprint([FORMAT, lake, spec.source, spec.key, spec.partition, spec.cluster, spec.soft]),
    rules: fingerprint([
      spec.columns.map(column => [column.name, column.silver, column.clean ? column.clean(quoted(column.name)) : null]),
      spec.flags.map(flag => [flag.name, flag.when]),
    ]),
  };
}

const created = at => `(SELECT UNIX_MICROS(creation_time) FROM ${at.information} WHERE table_name = ${literal(at.name)})`;

const next = at => sibling(at.target, at.name + NEXT);

const recorded = (field, type) => `CAST(JSON_VALUE(huella_last, '$.${field}') AS ${type})`;

// Everything before the window is read. One read of the state, into one JSON text: a SET for each field would be billed for each.
function opening(spec, at, cut, declarations) {
  const { layout, rules } = fingerprints(spec, at.lake);
  return `DECLARE huella_hi INT64 DEFAULT ${cut.hi};
DECLARE huella_snap INT64 DEFAULT ${cut.snapshot};
DECLARE huella_last, huella_there STRING;
DECLARE huella_merged, huella_merged_snap, huella_merged_version, huella_target_created, huella_lo, huella_lo_seq INT64;
DECLARE huella_due, huella_afresh, huella_rebuild BOOL;
DECLARE huella_from_dt DATE;
${declarations}
${createState(at)}

SET huella_last = (SELECT TO_JSON_STRING(STRUCT(version, merged_lsn, snapshot_lsn, cut_dt, layout, storage, rules, UNIX_MICROS(target_created) AS target_created, UNIX_MICROS(merged_at) AS merged_at))
  FROM ${at.state} WHERE table_name = ${literal(spec.source)} ORDER BY merged_at DESC LIMIT 1);
SET huella_merged = ${recorded("merged_lsn", "INT64")};
SET huella_merged_snap = ${recorded("snapshot_lsn", "INT64")};
SET huella_merged_version = ${recorded("version", "INT64")};
SET huella_there = (SELECT TO_JSON_STRING(STRUCT(MAX(IF(table_name = ${literal(at.name)}, UNIX_MICROS(creation_time), NULL)) AS target, MAX(IF(table_name = ${literal(at.name + NEXT)}, 1, 0)) AS next))
  FROM ${at.information} WHERE table_name IN (${literal(at.name)}, ${literal(at.name + NEXT)}));
SET huella_target_created = CAST(JSON_VALUE(huella_there, '$.target') AS INT64);
-- A run that ended between dropping the target and renaming the one beside it: readers get theirs back before anything else is tried.
IF huella_target_created IS NULL AND CAST(JSON_VALUE(huella_there, '$.next') AS INT64) = 1 THEN
  ALTER TABLE ${next(at)} RENAME TO ${quoted(at.name)};
  SET huella_target_created = ${created(at)};
END IF;

-- A target that is not the one that was merged into (none yet, dropped, restored, copied) knows nothing.
SET huella_afresh = huella_last IS NULL OR huella_merged_version != ${cut.version} OR ${recorded("layout", "STRING")} != ${literal(layout)}
  OR ${recorded("target_created", "INT64")} IS DISTINCT FROM huella_target_created;
SET huella_rebuild = huella_afresh OR huella_snap != huella_merged_snap OR ${recorded("rules", "STRING")} != ${literal(rules)};
-- Twice or late: nothing happens. LSNs are compared within one version only; a reset of the cluster begins new versions.
SET huella_due = huella_last IS NULL OR ${cut.version} > huella_merged_version
  OR (${cut.version} = huella_merged_version AND (huella_hi > huella_merged OR (huella_hi = huella_merged AND huella_snap >= huella_merged_snap AND huella_rebuild) OR ${recorded("target_created", "INT64")} IS DISTINCT FROM huella_target_created));
`;
}

// Columns that the target lacks; one that is made anew needs none.
const extend = (spec, at) => `  IF huella_rebuild AND NOT huella_afresh THEN
    ${extendTarget(spec, at)}
  END IF;`;

// A target that is made anew, from `rows`, complete: readers have the old one until the last moment, whatever fails before. One statement replaces
// it; but BigQuery replaces no table by one that is partitioned or clustered differently, nor do we know how one that is not ours is: then the
// new one is made beside it, and takes its name after the old one is dropped, at once.
function replace(spec, at, rows) {
  const as = `(${columnList(spec)}) ${storage(spec)} ${tableOptions(spec)} AS\n    ${rows}`;
  return `  IF huella_afresh THEN
${unmoved(spec, at)}
    IF huella_target_created IS NULL OR (${recorded("target_created", "INT64")} = huella_target_created AND ${recorded("storage", "STRING")} = ${literal(storage(spec))}) THEN
      CREATE OR REPLACE TABLE ${at.target} ${as};
    ELSE
      DROP TABLE IF EXISTS ${next(at)};
      CREATE TABLE ${next(at)} ${as};
      DROP TABLE ${at.target};
      ALTER TABLE ${next(at)} RENAME TO ${quoted(at.name)};
    END IF;
    SET huella_target_created = ${created(at)};
  END IF;`;
}

// The first dt that can hold rows of the window. dt is a commit's date, and commit times are not ordered like LSNs: a day's
// margin, and less still if `publish` saw an earlier file.
function firstDt(cut) {
  const margin = `DATE_SUB(${recorded("cut_dt", "DATE")}, INTERVAL 1 DAY)`;
  const named = cut.fromDt.length
    ? `LEAST(${margin}, COALESCE(CASE huella_merged ${cut.fromDt.map(([lsn, day]) => `WHEN ${lsn} THEN DATE '${day}'`).join(" ")} END, ${margin}))`
    : margin;
  const fromSnapshot = cut.snapshotDt ? `DATE_SUB(DATE '${cut.snapshotDt}', INTERVAL 1 DAY)` : "DATE '0001-01-01'";
  return { named, fromSnapshot };
}

// Inside the transaction: what was read at the start must still be the last word, or another run merged meanwhile.
const unmoved = (spec, at) => `  SELECT IF(COALESCE(MAX(UNIX_MICROS(merged_at)), -1) = COALESCE(${recorded("merged_at", "INT64")}, -1), 'unmoved',
      ERROR(${literal(`huella: ${spec.source} was merged by another run meanwhile; start again`)}))
  FROM ${at.state} WHERE table_name = ${literal(spec.source)};`;

function merged(spec, at, cut) {
  const { layout, rules } = fingerprints(spec, at.lake);
  return `  INSERT INTO ${at.state} (table_name, version, merged_lsn, snapshot_lsn, cut_dt, cut_time, cut_commit, layout, storage, rules, target_created, merged_at)
  VALUES (${literal(spec.source)}, ${cut.version}, huella_hi, huella_snap, DATE '${cut.dt}', TIMESTAMP ${literal(cut.time)}, ${literal(cut.commit)}, ${literal(layout)}, ${literal(storage(spec))}, ${literal(rules)}, TIMESTAMP_MICROS(huella_target_created), CURRENT_TIMESTAMP());`;
}

// Without a cut: whoever compiles by hand gets the tables that gold refers to, and nothing moves.
const prepare = (spec, at) => `${createState(at)}
${createTarget(spec, at)}
${extendTarget(spec, at)}`;

module.exports = { createState, opening, extend, replace, firstDt, unmoved, merged, prepare };
