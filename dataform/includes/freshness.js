// Whether silver may be taken for the present: how old the last merged cut is, and whether this project knows everything that the cut holds.
// A run that merges nothing, or a part, must not look like one that merged all: `strict_frescura` fails it, `gold.frescura` shows it.
const { literal } = require("./sql.js");

// Stands for all tables in `tabla`.
const ALL = "*";
const REGENERATE = "run `huella dataform generate --out includes` and commit the file";

// What is known at compilation: [{ table, state, text }]. `workspace`: somebody works on the code, whose runs have no cut.
function problems(model, cut, workspace) {
  if (!cut) {
    const text = "this run was compiled without the variable huella_cut, so nothing was merged: `huella daily` and `huella dataform run` pass it";
    return workspace ? [] : [{ table: ALL, state: "sin corte", text }];
  }
  const published = cut.tables || {};
  const known = new Map(model.tables.map(spec => [spec.source, spec]));
  const found = [];
  for (const [source, own] of Object.entries(published)) {
    const spec = known.get(source);
    const add = (state, text) => found.push({ table: spec ? spec.name : source, state, text: `${text}: ${REGENERATE}` });
    if (!spec) add("desconocida", `${source} is in the published cut, and includes/huella_tables.json does not have it`);
    else if (own.version !== spec.version) add("otra versión", `${source} has version ${own.version} in the published cut, and ${spec.version} in includes/huella_tables.json`);
    // A cut of a huella that did not say has nothing to compare.
    else if (own.columns !== undefined && own.columns !== spec.columns_fingerprint) add("otras columnas", `${source} has other columns in the published cut than in includes/huella_tables.json`);
  }
  for (const spec of model.tables.filter(spec => !published[spec.source])) {
    found.push({ table: spec.name, state: "no publicada", text: `${spec.source} is not in the published cut, so it stands still: publish it, or ${REGENERATE}` });
  }
  return found;
}

const rows = found => found.map(({ table, state, text }) => `SELECT ${literal(table)} AS tabla, ${literal(state)} AS estado, ${literal(text)} AS detalle`);

// Fails, saying everything that is wrong. `at`: SQL of the time of the cut that counts.
function strict(found, at, limitSeconds) {
  const late = `SELECT CONCAT('silver stands at ', COALESCE(CONCAT('the cut of ', CAST(corte AS STRING)), 'no cut'), ', and the limit is ${hours(limitSeconds)} h: see \`huella status\`; is \`huella run\` running, and \`huella daily\` scheduled?') AS detalle
  FROM (SELECT ${at} AS corte)
  WHERE ${isLate("corte", limitSeconds)}`;
  return `SELECT IF(COUNT(*) = 0, 'fresh', ERROR(CONCAT('huella: ', STRING_AGG(detalle, '; ')))) AS frescura
FROM (
  ${[late].concat(rows(found).map(row => `SELECT detalle FROM (${row})`)).join("\n  UNION ALL\n  ")})`;
}

// One row for each table, and one for each problem that has no table of silver's to stand at.
function view(model, found, state, limitSeconds) {
  const own = model.tables.map(spec => {
    const { state: word = null, text = null } = found.find(problem => problem.table === spec.name) || {};
    return `SELECT ${literal(spec.name)} AS tabla, ${literal(spec.source)} AS fuente, ${spec.mode === "snapshot"} AS catalogo, ${word ? literal(word) : "CAST(NULL AS STRING)"} AS estado, ${text ? literal(text) : "CAST(NULL AS STRING)"} AS detalle`;
  });
  const names = new Set(model.tables.map(spec => spec.name));
  const others = rows(found.filter(problem => !names.has(problem.table)))
    .map(row => `SELECT tabla, estado, CAST(NULL AS TIMESTAMP) AS corte, CAST(NULL AS INT64) AS horas, CAST(NULL AS TIMESTAMP) AS fusionada, detalle FROM (${row})`);
  // A snapshot table that did not change is not merged again, so it is as young as the last cut of all.
  const known = `SELECT tabla,
  CASE WHEN estado IS NOT NULL THEN estado WHEN corte IS NULL THEN 'nunca fusionada' WHEN ${isLate("corte", limitSeconds)} THEN 'atrasada' ELSE 'al día' END AS estado,
  corte, TIMESTAMP_DIFF(CURRENT_TIMESTAMP(), corte, HOUR) AS horas, fusionada, detalle
FROM (
  SELECT tabla, estado, detalle, fusionada, IF(catalogo AND propio IS NOT NULL, MAX(propio) OVER (), propio) AS corte
  FROM (${own.join(" UNION ALL\n    ")}) AS _t
  LEFT JOIN (SELECT table_name, MAX(cut_time) AS propio, MAX(merged_at) AS fusionada FROM ${state} GROUP BY table_name) AS _m ON _m.table_name = _t.fuente)`;
  return (own.length ? [known] : []).concat(others).join("\nUNION ALL\n") || `${rows([{ table: ALL, state: "", text: "" }])[0]} LIMIT 0`;
}

const isLate = (time, limitSeconds) => `(${time} IS NULL OR TIMESTAMP_DIFF(CURRENT_TIMESTAMP(), ${time}, SECOND) > ${limitSeconds})`;

const hours = seconds => String(Math.round(seconds / 36) / 100);

// For gold.hallazgos: how many things are wrong with each table's freshness.
const findings = frescura => `SELECT tabla, 'frescura' AS revision, 'The table stands at a young cut, and the project knows all of it.' AS descripcion, COUNTIF(estado != 'al día') AS hallazgos FROM ${frescura} GROUP BY tabla`;

module.exports = { problems, strict, view, findings };
