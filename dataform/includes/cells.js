// From a raw cell to a silver cell: cleaning, types, and the exceptions that travel with a cell.
const { quoted, exception, literal, EXCEPTIONAL } = require("./sql.js");

// A raw cell as events carry it. Rules act here, on what the source wrote: cells that come back from silver are clean already and
// not every rule may be applied twice. A NULL that stands for an exception stays NULL: a rule for missing values must not fill it in.
// JSON is carried as text until the end, because only text can be compared, aggregated and kept when it does not parse.
function rawCell(column) {
  const cell = quoted(column.name);
  const typed = column.silver === "DATETIME" && column.raw === "TIMESTAMP" ? `DATETIME(${cell})` : cell;
  if (!column.clean) return typed;
  const clean = column.clean(typed);
  return EXCEPTIONAL.includes(column.silver) ? `IF(${exception(column.name)} IS NULL, ${clean}, ${typed})` : clean;
}

// 'exact': a document with a number that JSON cannot hold exactly is not rounded, it becomes an exception.
const parsed = text => `SAFE.PARSE_JSON(${text}, wide_number_mode => 'exact')`;

const unparsable = text => `(${text} IS NOT NULL AND ${parsed(text)} IS NULL)`;

const silverCell = (column, text) => (column.silver === "JSON" ? parsed(text) : text);

// `_exceptions` put together anew from one text for each column, in column order; NULL when none is left.
function assembled(pieces) {
  const members = pieces.map(({ name, text }) => `IF(${text} IS NULL, '', CONCAT(${literal(`,"${name}":`)}, TO_JSON_STRING(${text})))`);
  return `NULLIF(CONCAT('{', SUBSTR(CONCAT(${members.join(", ")}), 2), '}'), '{}')`;
}

// The row's own `_exceptions`, plus the documents that do not parse.
function ownExceptions(spec) {
  const documents = spec.columns.filter(column => column.silver === "JSON");
  if (!documents.length) return "`_exceptions`";
  const pieces = spec.columns.filter(column => EXCEPTIONAL.includes(column.silver)).map(column => {
    const cell = quoted(column.name);
    const own = exception(column.name);
    return { name: column.name, text: column.silver === "JSON" ? `IF(${unparsable(cell)}, ${cell}, ${own})` : own };
  });
  return `IF(${documents.map(column => unparsable(quoted(column.name))).join(" OR ")}, ${assembled(pieces)}, \`_exceptions\`)`;
}

const flagCell = flag => `COALESCE(${flag.when}, FALSE) AS ${quoted(flag.name)}`;

module.exports = { rawCell, parsed, unparsable, silverCell, assembled, ownExceptions, flagCell };
