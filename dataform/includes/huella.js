// What the project knows of its tables: the generated huella_tables.json, joined with the rules of cleaning.js; and the cut to merge.
// Whatever does not fit together is refused here, at compilation, with the file to mend.
const generated = require("./huella_tables.json");
const rules = require("./cleaning.js");
const sql = require("./sql.js");

// Names that silver's scripts use beside a table's own: metadata, the hive key, variables and scratch columns.
const OWN_NAMES = /^(_op|_commit_lsn|_seq|_commit_ts|_xid|_unchanged|_old_key|_exceptions|dt|huella_.*|_h_.*)$/i;

// The table beside silver's tables that says what was merged.
const STATE = "huella_merges";

// Ten thousand partitions are BigQuery's limit; a thousand of this width hold keys up to a hundred million, and keys beyond
// them share one more partition, which clustering still narrows.
const KEY_RANGE = { start: 0, end: 100000000, interval: 100000 };

function refuse(message) {
  throw new Error(`huella: ${message}`);
}

// Two days, unless [dataform] max_age says otherwise.
const MAX_AGE_SECONDS = 172800;

// `documents` is a parameter so that the tests can pass other tables and rules through the same code.
function describe(documents) {
  const { format, project, location, raw_dataset, silver_dataset, lake, max_age_seconds, tables } = documents.generated;
  if (format !== 1) refuse(`includes/huella_tables.json has format ${format}, this project reads format 1: use the huella and the Dataform project of one release`);
  const specs = tables.map(table => join(table, documents.rules[table.source] || {}));
  const names = new Set(specs.map(spec => spec.name.toLowerCase()));
  if (names.has(STATE)) refuse(`a table is called ${STATE} in BigQuery, which is the name of silver's own state`);
  if (names.size !== specs.length) refuse("two tables of includes/huella_tables.json have the same name in BigQuery");
  for (const spec of specs) {
    for (const column of spec.columns) {
      if (!column.references) continue;
      const other = specs.find(candidate => candidate.source === column.references.table);
      if (!other) refuse(`cleaning.js: ${spec.source}.${column.name} refers to ${column.references.table}, which includes/huella_tables.json does not have`);
      if (other.key.length !== 1) refuse(`cleaning.js: ${spec.source}.${column.name} refers to ${other.source}, whose key is not one column`);
    }
  }
  return { project, location, raw: raw_dataset, silver: silver_dataset, lake, maxAge: max_age_seconds, tables: specs };
}

function join(table, rule) {
  const known = new Set(table.columns.map(column => column.name));
  const mustExist = (name, what) => {
    if (!known.has(name)) refuse(`cleaning.js: ${table.source} has ${what} for column ${name}, which includes/huella_tables.json does not have`);
  };
  const columns = table.columns.map(column => {
    const own = (rule.columns || {})[column.name] || {};
    if (own.clean && table.key.includes(column.name)) refuse(`cleaning.js: ${table.source}.${column.name} belongs to the key, which must stay as the source has it`);
    return { ...column, ...own, description: own.description || `${column.source} (${column.postgres})` };
  });
  // A description may stand for a column that was excluded at the source; a rule or a check without its column would be a silent gap.
  for (const [name, own] of Object.entries(rule.columns || {})) {
    if (own.clean || own.references || own.min !== undefined || own.plausible_date || own.required) mustExist(name, "a rule");
  }
  table.key.forEach(name => mustExist(name, "a key"));
  const clash = table.columns.find(column => OWN_NAMES.test(column.name) || (rule.soft_delete && column.name.toLowerCase() === "_deleted"));
  if (clash) refuse(`${table.source} has a column ${clash.name} in includes/huella_tables.json: the name is huella's own`);
  const keyColumns = table.key.map(name => columns.find(column => column.name === name));
  const flags = Object.entries(rule.flags || {}).map(([name, flag]) => ({ name, ...flag }));
  if (rule.partition && rule.partition.column) mustExist(rule.partition.column, "a partition");
  const spec = {
    ...table, columns, keyColumns, flags,
    soft: !!rule.soft_delete,
    description: rule.description || `${table.source} of the source, as of the last merged cut.`,
    keyed: table.key.length > 0,
  };
  spec.partition = partition(spec, rule.partition);
  spec.cluster = keyColumns.filter(column => sql.CLUSTERABLE.includes(column.silver)).slice(0, 4).map(column => column.name);
  return spec;
}

// By ranges of the key, because a merge knows its keys and not their rows' dates: the smallest and largest key of a window
// prune partitions, and no UPDATE moves a row between partitions. cleaning.js may say otherwise.
function partition(spec, wish) {
  if (!spec.keyed || wish === null) return null;
  const first = spec.keyColumns[0];
  if (!wish) return first.silver === "INT64" ? { column: first.name, ...KEY_RANGE } : null;
  const column = spec.columns.find(other => other.name === wish.column);
  if (column.silver === "INT64") return { ...KEY_RANGE, ...wish };
  if (!["DATE", "DATETIME", "TIMESTAMP"].includes(column.silver)) refuse(`cleaning.js: ${spec.source} cannot be partitioned by ${column.name} of type ${column.silver}`);
  if (wish.by && !["DAY", "MONTH", "YEAR"].includes(wish.by)) refuse(`cleaning.js: ${spec.source} cannot be partitioned by ${wish.by}`);
  // By month: a merge may touch at most 4,000 partitions, which dates of eleven years by day would exceed.
  return { column: column.name, type: column.silver, by: wish.by || "MONTH" };
}

// LSNs are written into SQL as they are: a number that JavaScript has already rounded would skip rows.
function lsn(value, what) {
  if (value === null || value === undefined) return null;
  if (typeof value === "string" && /^[0-9]{1,19}$/.test(value)) return value;
  if (Number.isSafeInteger(value) && value >= 0) return String(value);
  return refuse(`huella_cut: ${what} is ${JSON.stringify(value)}, not an LSN`);
}

function date(value, what) {
  if (value === null || value === undefined || value === "") return null;
  if (typeof value === "string" && /^\d{4}-\d{2}-\d{2}$/.test(value)) return value;
  return refuse(`huella_cut: ${what} is ${JSON.stringify(value)}, not a date`);
}

// When the cut's last commit was: without it, the beginning of its day, so that a cut never looks younger than it is.
function cutTime(cut) {
  if (cut.time === undefined) return `${date(cut.dt, "dt") || refuse("huella_cut has no dt")} 00:00:00+00`;
  const parts = /^(\d{4}-\d{2}-\d{2})T(\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?)Z$/.exec(cut.time);
  return parts ? `${parts[1]} ${parts[2]}+00` : refuse(`huella_cut: time is ${JSON.stringify(cut.time)}, not a time in UTC`);
}

// The cut of one table, or null when there is none to merge (no `huella_cut`, or a table that the cut does not have yet).
function cutOf(cut, spec) {
  const own = cut && cut.tables && cut.tables[spec.source];
  if (!own) return null;
  const through = lsn(cut.through, "through");
  // -1 or nothing: the table was never copied, its stream is all there is.
  const snapshot = own.snapshot === -1 ? null : lsn(own.snapshot, `${spec.source}'s snapshot`);
  const at = {
    version: own.version,
    commit: cut.commit || "",
    dt: date(cut.dt, "dt") || refuse("huella_cut has no dt"),
    time: cutTime(cut),
    snapshot: snapshot === null ? "-1" : snapshot,
    snapshotDt: date(own.snapshot_dt, `${spec.source}'s snapshot_dt`),
    fromDt: Object.entries(own.from_dt || {}).filter(([, day]) => day !== null)
      .map(([position, day]) => [lsn(position, "a key of from_dt"), date(day, "a value of from_dt")]),
  };
  if (!Number.isSafeInteger(own.version)) refuse(`huella_cut: ${spec.source} has no version`);
  // A catalogue stands at its own time, which may lie beyond `through`.
  at.hi = spec.mode === "snapshot" && snapshot !== null ? snapshot : through || refuse("huella_cut has no through");
  return at;
}

// JSON, or its base64: the command line of Dataform splits variables at commas.
function parseCut(text) {
  if (!text) return null;
  try {
    return JSON.parse(text.trim().startsWith("{") ? text : fromBase64(text.trim()));
  } catch (error) {
    return refuse(`huella_cut is not JSON: ${error.message}`);
  }
}

// By hand: what Dataform's compiler gives to run in has no decoder that can be relied on.
function fromBase64(text) {
  const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  let [bits, held, bytes] = [0, 0, ""];
  for (const character of text.replace(/=+$/, "").replace(/-/g, "+").replace(/_/g, "/")) {
    const digit = digits.indexOf(character);
    if (digit < 0) throw new Error("neither a JSON object nor base64");
    bits = ((bits << 6) | digit) & 0xfff;
    held += 6;
    if (held >= 8) {
      held -= 8;
      bytes += "%" + ((bits >> held) & 0xff).toString(16).padStart(2, "0");
    }
  }
  return decodeURIComponent(bytes);
}

const model = describe({ generated, rules });

// What the compilation was given. Read when it is asked for, because the tests load this file without Dataform.
const variables = () => (dataform.projectConfig.vars || {});
const currentCut = () => parseCut(variables().huella_cut);

// Dataform's own schedule compiles without the variable: the file says the same, as of when it was generated.
function maxAgeSeconds() {
  const seconds = Number(variables().huella_max_age_seconds || model.maxAge || MAX_AGE_SECONDS);
  return Number.isSafeInteger(seconds) && seconds > 0 ? seconds : refuse("huella_max_age_seconds is not a whole number of seconds");
}

// Whether somebody works on the code: Dataform's workspaces have a suffix or a prefix, so that they leave production's tables alone.
const workspace = () => !!(dataform.projectConfig.schemaSuffix || dataform.projectConfig.tablePrefix || dataform.projectConfig.databaseSuffix);

// A job in another location than its datasets finds none of them, and says so in a way that nobody understands.
function checkLocation(found) {
  if (found && model.location && found.toLowerCase() !== model.location.toLowerCase()) {
    refuse(`the project is compiled for location ${found}, and includes/huella_tables.json says ${model.location}: set defaultLocation in workflow_settings.yaml (or in the release configuration) to ${model.location}`);
  }
}

function find(name) {
  return model.tables.find(spec => spec.name === name) || refuse(`gold reads ${name}, which includes/huella_tables.json does not have`);
}

// For gold: the rows of a silver table that the source still has.
function live(ref, name) {
  const rows = ref(model.silver, name);
  return find(name).soft ? `(SELECT * FROM ${rows} WHERE NOT \`_deleted\`)` : rows;
}

module.exports = { ...model, STATE, describe, cutOf, cutTime, parseCut, currentCut, maxAgeSeconds, workspace, checkLocation, live, find };
