// Silver of a table with a key: merges the change rows above the huella_last merge and up to the cut. One script, one job, one transaction.
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
  const range = `T.${quoted(first.name)} BETWEEN huella_k_min AND huella_k_max`;
  const plain = plainKey(spec);
  const equal = plain
    ? spec.keyColumns.map(column => `T.${quoted(column.name)} = S.${quoted(column.name)}`).join(" AND ")
    : `${keyExpression(spec, "T.")} = S.\`_h_key\``;
  // huella_k_min and huella_k_max are constants to the planner: blocks and partitions of the target without touched keys are not read.
  if (!ORDERED.includes(first.silver)) return equal;
  return plain ? `${equal} AND ${range}` : `${equal} AND (${range} OR T.${quoted(first.name)} IS NULL)`;
}

// The one scan of the external table. Positions of the window: ((huella_lo, huella_lo_seq), (huella_hi, 0)]. A commit record can begin exactly
// where the huella_last one ended, so rows at huella_hi with _seq >= 1 belong to the next cut; snapshot rows at huella_hi have _seq 0 and belong to this.
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
// The floor is the huella_last TRUNCATE, or the one at (S, -1) that heads every snapshot. Nothing below it counts any more.
function survey(spec) {
  const first = spec.keyColumns[0];
  const ranged = ORDERED.includes(first.silver);
  const cast = name => `CAST(JSON_VALUE(huella_facts, '$.${name}') AS ${first.silver})`;
  return `  SET huella_facts = (SELECT TO_JSON_STRING(STRUCT(
      MAX(IF(\`_op\` IN ('TRUNCATE', 'SNAPSHOT'), FORMAT('%020d:%020d', \`_commit_lsn\`, IF(\`_op\` = 'SNAPSHOT', 0, \`_seq\` + 1)), NULL)) AS floor,
      COUNT(*) AS events, COUNTIF(\`_unchanged\` IS NOT NULL) AS left_out${ranged ? `, MIN(${quoted(first.name)}) AS huella_k_min, MAX(${quoted(first.name)}) AS huella_k_max` : ""}))
    FROM ${scratch(spec, "ev")});
  SET huella_f_lsn = CAST(SPLIT(JSON_VALUE(huella_facts, '$.floor'), ':')[SAFE_OFFSET(0)] AS INT64);
  SET huella_f_seq = CAST(SPLIT(JSON_VALUE(huella_facts, '$.floor'), ':')[SAFE_OFFSET(1)] AS INT64) - 1;
  IF huella_rebuild AND huella_snap >= 0 AND (huella_f_lsn IS NULL OR huella_f_lsn < huella_snap) THEN
    SET huella_f_lsn = huella_snap;
    SET huella_f_seq = -1;
  END IF;${ranged ? `
  SET huella_k_min = ${cast("huella_k_min")};
  SET huella_k_max = ${cast("huella_k_max")};` : ""}`;
}

// The target's rows of the touched keys, as events at their own positions. Needed only for columns that an UPDATE left out, and
// never above a floor or when all is filled anew: a complete huella_last row is the state whatever stood there before.
function base(spec, at) {
  const ev = scratch(spec, "ev");
  const cell = column => column.silver === "JSON"
    ? `IF(T.${quoted(column.name)} IS NULL, ${exception(column.name, "T.")}, TO_JSON_STRING(T.${quoted(column.name)}))`
    : `T.${quoted(column.name)}`;
  const keys = plainKey(spec) ? spec.keyColumns.map(column => `, ${quoted(column.name)}`).join("") : "";
  return `  IF NOT huella_rebuild AND huella_f_lsn IS NULL AND CAST(JSON_VALUE(huella_facts, '$.left_out') AS INT64) > 0 THEN
    INSERT INTO ${ev}
    SELECT ${keyExpression(spec, "T.")}, ${spec.columns.map(cell).join(", ")},
      ${spec.soft ? "IF(T.`_deleted`, 'BASE_DELETED', 'BASE')" : "'BASE'"}, T.\`_commit_lsn\`, T.\`_seq\`, T.\`_commit_ts\`, CAST(NULL AS STRING), FALSE, T.\`_exceptions\`
    FROM ${at.target} T
    JOIN (SELECT DISTINCT \`_h_key\`${keys} FROM ${ev} WHERE \`_op\` != 'TRUNCATE') S ON ${joinCondition(spec)};
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
  WHERE ${isBase} OR \`_h_base_lsn\` IS NULL OR ${above("`_commit_lsn`", "`_seq`", "`_b_lsn`", "`_b_seq`")};`;
}

// One row for each key: its huella_last event, with left-out columns (and their exceptions) followed backwards through the lives that
// key changes link. The DELETE of the old key lies one _seq below the row of the new, so \`_old_key\` is never parsed.
function states(spec) {
  const g = scratch(spec, "g");
  const resolved = spec.columns.filter(column => TOASTABLE.includes(column.silver) && !spec.key.includes(column.name));
  const exceptional = spec.columns.filter(column => EXCEPTIONAL.includes(column.silver));
  const known = (column, value, name) =>
    `ARRAY_AGG(${value} ORDER BY IF(${leftOut(column.name, "g.")}, 1, 0), g.\`_commit_lsn\` DESC, g.\`_seq\` DESC LIMIT 1)[OFFSET(0)] AS ${name}`;
  const found = resolved.flatMap(column => [known(column, `g.${quoted(column.name)}`, quoted(column.name))]
    .concat(exceptional.includes(column) ? [known(column, exception(column.name, "g."), carried(column))] : []));
  const value = column => resolved.includes(column)
    ? `IF(f.\`_op\` = 'UPDATE' AND ${leftOut(column.name, "f.")}, r.${quoted(column.name)}, f.${quoted(column.name)}) AS ${quoted(column.name)}`
    : `f.${quoted(column.name)}`;
  const reason = column => resolved.includes(column)
    ? `IF(${leftOut(column.name, "f.")}, r.${carried(column)}, ${exception(column.name, "f.")}) AS ${carried(column)}`
    : `${exception(column.name, "f.")} AS ${carried(column)}`;
  const lineage = !resolved.length ? "" : `,
  edge AS (
    SELECT DISTINCT n.\`_h_key\`, n.\`_h_life\`, o.\`_h_key\` AS \`_h_from\`, o.\`_h_life\` AS \`_h_from_life\`
    FROM ${g} AS n JOIN ${g} AS o ON o.\`_commit_lsn\` = n.\`_commit_lsn\` AND o.\`_seq\` = n.\`_seq\` - 1
    WHERE n.\`_h_moved\` AND o.\`_op\` IN ('DELETE', 'BASE_DELETED')),
  line AS (
    SELECT f.\`_h_key\` AS \`_h_root\`, f.\`_h_key\` AS \`_h_at\`, f.\`_h_life\` AS \`_h_life\` FROM f WHERE f.\`_op\` = 'UPDATE' AND f.\`_unchanged\` IS NOT NULL
    UNION ALL
    SELECT line.\`_h_root\`, edge.\`_h_from\`, edge.\`_h_from_life\` FROM line JOIN edge ON edge.\`_h_key\` = line.\`_h_at\` AND edge.\`_h_life\` = line.\`_h_life\`),
  r AS (
    SELECT line.\`_h_root\`, ${found.join(",\n      ")}
    FROM line JOIN ${g} AS g ON g.\`_h_key\` = line.\`_h_at\` AND g.\`_h_life\` = line.\`_h_life\`
    WHERE g.\`_op\` != 'DELETE'
    GROUP BY line.\`_h_root\`)`;
  return `  CREATE OR REPLACE TEMP TABLE ${scratch(spec, "s")} AS
  WITH RECURSIVE
  f AS (
    SELECT * FROM ${g} WHERE TRUE
    QUALIFY ROW_NUMBER() OVER (PARTITION BY \`_h_key\` ORDER BY \`_commit_lsn\` DESC, \`_seq\` DESC) = 1)${lineage},
  w AS (
    SELECT f.\`_h_key\`, ${spec.columns.map(value).join(", ")}${exceptional.map(column => `, ${reason(column)}`).join("")},
      f.\`_op\`, f.\`_commit_lsn\`, f.\`_seq\`, f.\`_commit_ts\`, f.\`_unchanged\`, f.\`_exceptions\`
    FROM f${resolved.length ? " LEFT JOIN r ON r.`_root` = f.`_k`" : ""}
    WHERE f.\`_op\` NOT IN ('BASE', 'BASE_DELETED'))
  SELECT \`_h_key\`, ${spec.columns.map(column => `${silverCell(column, quoted(column.name))} AS ${quoted(column.name)}`).join(", ")}${spec.flags.map(flag => `, ${flagCell(flag)}`).join("")},
    \`_op\`, \`_commit_lsn\`, \`_seq\`, \`_commit_ts\`, ${exceptions(spec, exceptional)} AS \`_exceptions\`
  FROM w;`;
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
  const newer = atOrAbove("S.`_commit_lsn`", "S.`_seq`", "T.`_commit_lsn`", "T.`_seq`");
  const gone = spec.soft ? "UPDATE SET `_deleted` = TRUE, `_commit_lsn` = S.`_commit_lsn`, `_seq` = S.`_seq`, `_commit_ts` = S.`_commit_ts`" : "DELETE";
  return `    MERGE ${at.target} T
    USING ${scratch(spec, "s")} S
    ON ${joinCondition(spec)}
    WHEN MATCHED AND S.\`_op\` = 'DELETE' AND ${newer} THEN ${gone}
    WHEN MATCHED AND S.\`_op\` != 'DELETE' AND ${newer} THEN
      UPDATE SET ${columns.map(column => `${column} = S.${column}`).join(", ")}${spec.soft ? ", `_deleted` = FALSE" : ""}
    WHEN NOT MATCHED AND S.\`_op\` != 'DELETE' THEN
      INSERT (${columns.join(", ")}${spec.soft ? ", `_deleted`" : ""}) VALUES (${columns.map(column => `S.${column}`).join(", ")}${spec.soft ? ", FALSE" : ""});`;
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
${target.reshape(spec, at)}

  -- A snapshot that was not merged yet begins the window, whether it lies above the huella_last merge or behind it.
  SET huella_lo = IF(huella_rebuild, huella_snap, merged);
  SET huella_lo_seq = IF(huella_rebuild, -2, 0);
  SET huella_from_dt = IF(huella_rebuild, ${fromSnapshot}, ${named});

${window(spec, at)}

${survey(spec)}

  IF CAST(JSON_VALUE(huella_facts, '$.events') AS INT64) > 0 THEN
${base(spec, at)}

${lives(spec)}

${states(spec)}
  END IF;

  BEGIN TRANSACTION;
${target.unmoved(spec, at)}
  IF CAST(JSON_VALUE(huella_facts, '$.events') AS INT64) > 0 THEN
${merge(spec, at)}
  END IF;
  IF huella_f_lsn IS NOT NULL THEN
${sweep(spec, at)}
  END IF;
${target.merged(spec, at, cut)}
  COMMIT TRANSACTION;
END IF;
`;
}

module.exports = { script };
