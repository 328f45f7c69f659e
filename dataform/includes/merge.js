// Silver of a table with a key: merges the change rows above the last merge and up to the cut. One script, one job, one transaction.
// Read it from the bottom: script() lists the steps.
const { TOASTABLE, EXCEPTIONAL, ORDERED, quoted, exception, leftOut, keyExpression, plainKey, above, atOrAbove, below } = require("./sql.js");
const { rawCell, silverCell, unparsable, assembled, flagCell } = require("./cells.js");
const target = require("./target.js");

const EVENT = ["_op", "_commit_lsn", "_seq", "_commit_ts", "_unchanged"].map(quoted);
const carried = column => quoted(`_h_x_${column.name}`);

// Temporary tables carry the table's name, so that a log line says whose they are.
const scratch = (spec, what) => `${what}_${spec.name}`;

function joinCondition(spec) {
  const first = spec.keyColumns[0];
  const range = `_t.${quoted(first.name)} BETWEEN huella_k_min AND huella_k_max`;
  const plain = plainKey(spec);
  const equal = plain
    ? spec.keyColumns.map(column => `_t.${quoted(column.name)} = _s.${quoted(column.name)}`).join(" AND ")
    : `${keyExpression(spec, "_t.")} = _s.\`_h_key\``;
  // k_min and k_max are constants to the planner: blocks and partitions of the target without touched keys are not read.
  if (!ORDERED.includes(first.silver)) return equal;
  return plain ? `${equal} AND ${range}` : `${equal} AND (${range} OR _t.${quoted(first.name)} IS NULL)`;
}

// The one scan of the external table. Positions of the window: ((lo, lo_seq), (hi, 0)]. A commit record can begin exactly
// where the last one ended, so rows at hi with _seq >= 1 belong to the next cut; snapshot rows at hi have _seq 0 and belong to this.
function window(spec, at) {
  return `  CREATE OR REPLACE TEMP TABLE ${scratch(spec, "ev")} AS
  SELECT ${keyExpression(spec)} AS \`_h_key\`, ${spec.columns.map(column => `${rawCell(column)} AS ${quoted(column.name)}`).join(", ")},
    ${EVENT.join(", ")}, \`_old_key\` IS NOT NULL AS \`_h_moved\`, \`_exceptions\`
  FROM ${at.raw}
  WHERE dt >= huella_from_dt
    AND ${above("`_commit_lsn`", "`_seq`", "huella_lo", "huella_lo_seq")}
    AND (\`_commit_lsn\` < huella_hi OR (\`_commit_lsn\` = huella_hi AND \`_seq\` <= 0));`;
}

// What the window holds, in one read: the floor, whether an UPDATE left a column out, the range of keys.
// The floor is the last TRUNCATE, or the one at (S, -1) that heads every snapshot. Nothing below it counts any more.
function survey(spec) {
  const first = spec.keyColumns[0];
  const ranged = ORDERED.includes(first.silver);
  const cast = name => `CAST(JSON_VALUE(huella_facts, '$.${name}') AS ${first.silver})`;
  return `  SET huella_facts = (SELECT TO_JSON_STRING(STRUCT(
      MAX(IF(\`_op\` IN ('TRUNCATE', 'SNAPSHOT'), FORMAT('%020d:%020d', \`_commit_lsn\`, IF(\`_op\` = 'SNAPSHOT', 0, \`_seq\` + 1)), NULL)) AS floor,
      COUNT(*) AS events, COUNTIF(\`_unchanged\` IS NOT NULL) AS left_out${ranged ? `, MIN(${quoted(first.name)}) AS k_min, MAX(${quoted(first.name)}) AS k_max` : ""}))
    FROM ${scratch(spec, "ev")});
  SET huella_f_lsn = CAST(SPLIT(JSON_VALUE(huella_facts, '$.floor'), ':')[SAFE_OFFSET(0)] AS INT64);
  SET huella_f_seq = CAST(SPLIT(JSON_VALUE(huella_facts, '$.floor'), ':')[SAFE_OFFSET(1)] AS INT64) - 1;
  IF huella_rebuild AND huella_snap >= 0 AND (huella_f_lsn IS NULL OR huella_f_lsn < huella_snap) THEN
    SET huella_f_lsn = huella_snap;
    SET huella_f_seq = -1;
  END IF;${ranged ? `
  SET huella_k_min = ${cast("k_min")};
  SET huella_k_max = ${cast("k_max")};` : ""}`;
}

// The target's rows of the touched keys, as events at their own positions. Needed only for columns that an UPDATE left out, and
// never above a floor or when all is filled anew: a complete last row is the state whatever stood there before.
function base(spec, at) {
  const ev = scratch(spec, "ev");
  const cell = column => column.silver === "JSON"
    ? `IF(_t.${quoted(column.name)} IS NULL, ${exception(column.name, "_t.")}, TO_JSON_STRING(_t.${quoted(column.name)}))`
    : `_t.${quoted(column.name)}`;
  const keys = plainKey(spec) ? spec.keyColumns.map(column => `, ${quoted(column.name)}`).join("") : "";
  return `  IF NOT huella_rebuild AND huella_f_lsn IS NULL AND CAST(JSON_VALUE(huella_facts, '$.left_out') AS INT64) > 0 THEN
    INSERT INTO ${ev}
    SELECT ${keyExpression(spec, "_t.")}, ${spec.columns.map(cell).join(", ")},
      ${spec.soft ? "IF(_t.`_deleted`, 'BASE_DELETED', 'BASE')" : "'BASE'"}, _t.\`_commit_lsn\`, _t.\`_seq\`, _t.\`_commit_ts\`, CAST(NULL AS STRING), FALSE, _t.\`_exceptions\`
    FROM ${at.target} _t
    JOIN (SELECT DISTINCT \`_h_key\`${keys} FROM ${ev} WHERE \`_op\` != 'TRUNCATE') _s ON ${joinCondition(spec)};
  END IF;`;
}

// A row's lives. A life begins with its insertion, with its arrival under a new key, or with the target's row; a left-out column
// must never be taken from an earlier life of the key. Events at or below the target's row are older than what it holds: dropped.
function lives(spec) {
  const isBase = "`_op` IN ('BASE', 'BASE_DELETED')";
  return `  CREATE OR REPLACE TEMP TABLE ${scratch(spec, "g")} AS
  SELECT *, SUM(IF(\`_op\` IN ('INSERT', 'SNAPSHOT', 'BASE', 'BASE_DELETED') OR \`_h_moved\`, 1, 0)) OVER (PARTITION BY \`_h_key\` ORDER BY \`_commit_lsn\`, \`_seq\`) AS \`_h_life\`
  FROM (
    SELECT *, MAX(IF(${isBase}, \`_commit_lsn\`, NULL)) OVER (PARTITION BY \`_h_key\`) AS \`_h_base_lsn\`,
      MAX(IF(${isBase}, \`_seq\`, NULL)) OVER (PARTITION BY \`_h_key\`) AS \`_h_base_seq\`
    FROM ${scratch(spec, "ev")}
    WHERE \`_op\` != 'TRUNCATE' AND (huella_f_lsn IS NULL OR ${above("`_commit_lsn`", "`_seq`", "huella_f_lsn", "huella_f_seq")}))
  WHERE ${isBase} OR \`_h_base_lsn\` IS NULL OR ${above("`_commit_lsn`", "`_seq`", "`_h_base_lsn`", "`_h_base_seq`")};`;
}

// One row for each key: its last event, with left-out columns (and their exceptions) followed backwards through the lives that
// key changes link. The DELETE of the old key lies one _seq below the row of the new, so \`_old_key\` is never parsed.
function states(spec) {
  const g = scratch(spec, "g");
  const resolved = spec.columns.filter(column => TOASTABLE.includes(column.silver) && !spec.key.includes(column.name));
  const exceptional = spec.columns.filter(column => EXCEPTIONAL.includes(column.silver));
  const known = (column, value, name) =>
    `ARRAY_AGG(${value} ORDER BY IF(${leftOut(column.name, "_g.")}, 1, 0), _g.\`_commit_lsn\` DESC, _g.\`_seq\` DESC LIMIT 1)[OFFSET(0)] AS ${name}`;
  const found = resolved.flatMap(column => [known(column, `_g.${quoted(column.name)}`, quoted(column.name))]
    .concat(exceptional.includes(column) ? [known(column, exception(column.name, "_g."), carried(column))] : []));
  const value = column => resolved.includes(column)
    ? `IF(_f.\`_op\` = 'UPDATE' AND ${leftOut(column.name, "_f.")}, _r.${quoted(column.name)}, _f.${quoted(column.name)}) AS ${quoted(column.name)}`
    : `_f.${quoted(column.name)}`;
  const reason = column => resolved.includes(column)
    ? `IF(${leftOut(column.name, "_f.")}, _r.${carried(column)}, ${exception(column.name, "_f.")}) AS ${carried(column)}`
    : `${exception(column.name, "_f.")} AS ${carried(column)}`;
  const lineage = !resolved.length ? "" : `,
  _edge AS (
    SELECT DISTINCT _n.\`_h_key\`, _n.\`_h_life\`, _o.\`_h_key\` AS \`_h_from\`, _o.\`_h_life\` AS \`_h_from_life\`
    FROM ${g} AS _n JOIN ${g} AS _o ON _o.\`_commit_lsn\` = _n.\`_commit_lsn\` AND _o.\`_seq\` = _n.\`_seq\` - 1
    WHERE _n.\`_h_moved\` AND _o.\`_op\` IN ('DELETE', 'BASE_DELETED')),
  _line AS (
    SELECT _f.\`_h_key\` AS \`_h_root\`, _f.\`_h_key\` AS \`_h_at\`, _f.\`_h_life\` AS \`_h_life\` FROM _f WHERE _f.\`_op\` = 'UPDATE' AND _f.\`_unchanged\` IS NOT NULL
    UNION ALL
    SELECT _line.\`_h_root\`, _edge.\`_h_from\`, _edge.\`_h_from_life\` FROM _line JOIN _edge ON _edge.\`_h_key\` = _line.\`_h_at\` AND _edge.\`_h_life\` = _line.\`_h_life\`),
  _r AS (
    SELECT _line.\`_h_root\`, ${found.join(",\n      ")}
    FROM _line JOIN ${g} AS _g ON _g.\`_h_key\` = _line.\`_h_at\` AND _g.\`_h_life\` = _line.\`_h_life\`
    WHERE _g.\`_op\` != 'DELETE'
    GROUP BY _line.\`_h_root\`)`;
  return `  CREATE OR REPLACE TEMP TABLE ${scratch(spec, "s")} AS
  WITH RECURSIVE
  _f AS (
    SELECT * FROM ${g} WHERE TRUE
    QUALIFY ROW_NUMBER() OVER (PARTITION BY \`_h_key\` ORDER BY \`_commit_lsn\` DESC, \`_seq\` DESC) = 1)${lineage},
  _w AS (
    SELECT _f.\`_h_key\`, ${spec.columns.map(value).join(", ")}${exceptional.map(column => `, ${reason(column)}`).join("")},
      _f.\`_op\`, _f.\`_commit_lsn\`, _f.\`_seq\`, _f.\`_commit_ts\`, _f.\`_unchanged\`, _f.\`_exceptions\`
    FROM _f${resolved.length ? " LEFT JOIN _r ON _r.`_h_root` = _f.`_h_key`" : ""}
    WHERE _f.\`_op\` NOT IN ('BASE', 'BASE_DELETED'))
  SELECT \`_h_key\`, ${spec.columns.map(column => `${silverCell(column, quoted(column.name))} AS ${quoted(column.name)}`).join(", ")}${spec.flags.map(flag => `, ${flagCell(flag)}`).join("")},
    \`_op\`, \`_commit_lsn\`, \`_seq\`, \`_commit_ts\`, ${exceptions(spec, exceptional)} AS \`_exceptions\`
  FROM _w;`;
}

// A row that left nothing out keeps its own text as it is; otherwise one text for each column, some of them carried.
function exceptions(spec, exceptional) {
  if (!exceptional.length) return "`_exceptions`";
  const documents = spec.columns.filter(column => column.silver === "JSON");
  const asItIs = ["`_unchanged` IS NULL"].concat(documents.map(column => `NOT ${unparsable(quoted(column.name))}`)).join(" AND ");
  const pieces = exceptional.map(column => ({
    name: column.name,
    text: column.silver === "JSON" ? `IF(${unparsable(quoted(column.name))}, ${quoted(column.name)}, ${carried(column)})` : carried(column),
  }));
  return `IF(${asItIs}, \`_exceptions\`, ${assembled(pieces)})`;
}

// The guard by order makes overlapping windows harmless: a row of the target is only replaced by its like or by a newer one.
function merge(spec, at) {
  const columns = spec.columns.map(column => column.name).concat(spec.flags.map(flag => flag.name), ["_commit_lsn", "_seq", "_commit_ts", "_exceptions"]).map(quoted);
  const newer = atOrAbove("_s.`_commit_lsn`", "_s.`_seq`", "_t.`_commit_lsn`", "_t.`_seq`");
  const gone = spec.soft ? "UPDATE SET `_deleted` = TRUE, `_commit_lsn` = _s.`_commit_lsn`, `_seq` = _s.`_seq`, `_commit_ts` = _s.`_commit_ts`" : "DELETE";
  return `    MERGE ${at.target} _t
    USING ${scratch(spec, "s")} _s
    ON ${joinCondition(spec)}
    WHEN MATCHED AND _s.\`_op\` = 'DELETE' AND ${newer} THEN ${gone}
    WHEN MATCHED AND _s.\`_op\` != 'DELETE' AND ${newer} THEN
      UPDATE SET ${columns.map(column => `${column} = _s.${column}`).join(", ")}${spec.soft ? ", `_deleted` = FALSE" : ""}
    WHEN NOT MATCHED AND _s.\`_op\` != 'DELETE' THEN
      INSERT (${columns.join(", ")}${spec.soft ? ", `_deleted`" : ""}) VALUES (${columns.map(column => `_s.${column}`).join(", ")}${spec.soft ? ", FALSE" : ""});`;
}

// All of a target that holds nothing else: what the merge would insert into an empty one.
function complete(spec) {
  const columns = spec.columns.map(column => column.name).concat(spec.flags.map(flag => flag.name), ["_commit_lsn", "_seq", "_commit_ts", "_exceptions"]).map(quoted);
  return `SELECT ${columns.join(", ")}${spec.soft ? ", FALSE AS `_deleted`" : ""} FROM ${scratch(spec, "s")} WHERE \`_op\` != 'DELETE'`;
}

// What a TRUNCATE or a snapshot left behind.
function sweep(spec, at) {
  const beneath = below("`_commit_lsn`", "`_seq`", "huella_f_lsn", "huella_f_seq");
  return spec.soft
    ? `    UPDATE ${at.target} SET \`_deleted\` = TRUE, \`_commit_lsn\` = huella_f_lsn, \`_seq\` = huella_f_seq WHERE ${beneath} AND NOT \`_deleted\`;`
    : `    DELETE FROM ${at.target} WHERE ${beneath};`;
}

function script(spec, at, cut) {
  const ranged = ORDERED.includes(spec.keyColumns[0].silver);
  const { named, fromSnapshot } = target.firstDt(cut);
  return `${target.opening(spec, at, cut, `DECLARE huella_facts STRING;
DECLARE huella_f_lsn, huella_f_seq INT64;${ranged ? `\nDECLARE huella_k_min, huella_k_max ${spec.keyColumns[0].silver};` : ""}`)}
IF huella_due THEN
${target.extend(spec, at)}

  -- A snapshot that was not merged yet begins the window, whether it lies above the last merge or behind it.
  SET huella_lo = IF(huella_rebuild, huella_snap, huella_merged);
  SET huella_lo_seq = IF(huella_rebuild, -2, 0);
  SET huella_from_dt = IF(huella_rebuild, ${fromSnapshot}, ${named});

${window(spec, at)}

${survey(spec)}

  IF huella_afresh OR CAST(JSON_VALUE(huella_facts, '$.events') AS INT64) > 0 THEN
${base(spec, at)}

${lives(spec)}

${states(spec)}
  END IF;

${target.replace(spec, at, complete(spec))}

  BEGIN TRANSACTION;
${target.unmoved(spec, at)}
  IF NOT huella_afresh AND CAST(JSON_VALUE(huella_facts, '$.events') AS INT64) > 0 THEN
${merge(spec, at)}
  END IF;
  IF NOT huella_afresh AND huella_f_lsn IS NOT NULL THEN
${sweep(spec, at)}
  END IF;
${target.merged(spec, at, cut)}
  COMMIT TRANSACTION;
END IF;
`;
}

module.exports = { script };
