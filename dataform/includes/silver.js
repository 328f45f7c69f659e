// Which script a table needs, and why one of them only says what is wrong.
const { literal } = require("./sql.js");
const merge = require("./merge.js");
const history = require("./history.js");
const target = require("./target.js");

// `at`: where things are in BigQuery, as quoted paths.
function places(model, spec) {
  return {
    name: spec.name,
    lake: model.lake,
    raw: `\`${model.project}.${model.raw}.${spec.name}\``,
    target: `\`${model.project}.${model.silver}.${spec.name}\``,
    state: `\`${model.project}.${model.silver}.huella_merges\``,
    information: `\`${model.project}.${model.silver}\`.INFORMATION_SCHEMA.TABLES`,
  };
}

// `cut` is null where there is nothing to merge: the tables are made, so that gold compiles and runs, and nothing moves.
function script(model, spec, cut) {
  const at = places(model, spec);
  if (!cut) return target.prepare(spec, at);
  if (cut.version !== spec.version) {
    // Types and columns of another version: a merge would fill the target with cells it cannot hold, or leave columns out.
    return `SELECT ERROR(${literal(`huella: the published cut has version ${cut.version} of ${spec.source}, includes/huella_tables.json has ${spec.version}: run huella dataform generate, commit the file, and start again`)});`;
  }
  return spec.keyed ? merge.script(spec, at, cut) : history.script(spec, at, cut);
}

module.exports = { script, places };
