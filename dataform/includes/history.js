// Silver of a table without a key: its change rows, each once, in order of (_commit_lsn, _seq). The state is a multiset that only
// such a history describes: INSERT and UPDATE add a row, DELETE takes one equal row away, TRUNCATE takes all.
const { quoted, above } = require("./sql.js");
const { rawCell, silverCell, ownExceptions } = require("./cells.js");
const target = require("./target.js");

const OWN = ["_op", "_commit_lsn", "_seq", "_commit_ts", "_xid", "_unchanged", "_old_key"].map(quoted);

// The window is everything above the last merge; after a new snapshot also the rows of that snapshot, which may lie behind it.
// What lies in the window is replaced as a whole, so a window that overlaps what is there (state restored to an earlier point) changes nothing.
// The rows are read into a temporary table first: inside a transaction an external table may not be read.
function script(spec, at, cut) {
  const { named, fromSnapshot } = target.firstDt(cut);
  const ev = `ev_${spec.name}`;
  const inside = `(${above("`_commit_lsn`", "`_seq`", "huella_lo", "huella_lo_seq")} OR (huella_rebuild AND \`_commit_lsn\` = huella_snap AND \`_seq\` <= 0))
    AND (\`_commit_lsn\` < huella_hi OR (\`_commit_lsn\` = huella_hi AND \`_seq\` <= 0))`;
  const names = spec.columns.map(column => quoted(column.name)).concat(OWN, ["`_exceptions`"]);
  const rows = `SELECT ${names.join(", ")} FROM ${ev}`;
  return `${target.opening(spec, at, cut, "")}
IF huella_due THEN
${target.extend(spec, at)}

  -- Other rules, or a target that knows nothing: everything since the snapshot. A new snapshot alone: what is new, and the snapshot.
  SET huella_lo = IF(huella_afresh OR (huella_rebuild AND huella_snap = huella_merged_snap), huella_snap, huella_merged);
  SET huella_lo_seq = IF(huella_lo = huella_snap AND huella_rebuild, -2, 0);
  SET huella_from_dt = IF(huella_rebuild, ${fromSnapshot}, ${named});
  SET huella_from_dt = IF(huella_afresh, huella_from_dt, LEAST(huella_from_dt, ${named}));

  CREATE OR REPLACE TEMP TABLE ${ev} AS
  SELECT ${spec.columns.map(column => `${silverCell(column, quoted(column.name))} AS ${quoted(column.name)}`).join(", ")}, ${OWN.join(", ")}, ${ownExceptions(spec)} AS \`_exceptions\`
  FROM (
    SELECT ${spec.columns.map(column => `${rawCell(column)} AS ${quoted(column.name)}`).join(", ")}, ${OWN.join(", ")}, \`_exceptions\`
    FROM ${at.raw}
    WHERE dt >= huella_from_dt AND ${inside});

${target.replace(spec, at, rows)}

  BEGIN TRANSACTION;
${target.unmoved(spec, at)}
  IF NOT huella_afresh THEN
    DELETE FROM ${at.target} WHERE ${inside};
    INSERT INTO ${at.target} (${names.join(", ")}) ${rows};
  END IF;
${target.merged(spec, at, cut)}
  COMMIT TRANSACTION;
END IF;
`;
}

module.exports = { script };
