// Which script a table needs, and why one of them only says what is wrong.
const { literal, sibling } = require("./sql.js");
const merge = require("./merge.js");
const history = require("./history.js");
const target = require("./target.js");
const { STATE } = require("./huella.js");

// `at`: where things are. All from the paths that Dataform gives, so that a workspace's suffixes and prefixes hold for the state as well.
function places(model, self, raw) {
  const [name, ...dataset] = self.replace(/`/g, "").split(".").reverse();
  return {
    name, raw,
    lake: model.lake,
    target: self,
    state: sibling(self, STATE),
    information: `\`${dataset.reverse().join(".")}\`.INFORMATION_SCHEMA.TABLES`,
  };
}

// `cut` is null where there is nothing to merge: the tables are made, so that gold compiles and runs, and nothing moves.
function script(model, spec, cut, self, raw) {
  const at = places(model, self, raw);
  if (!cut) return target.prepare(spec, at);
  if (cut.version !== spec.version) {
    // Types and columns of another version: a merge would fill the target with cells it cannot hold, or leave columns out.
    return `SELECT ERROR(${literal(`huella: the published cut has version ${cut.version} of ${spec.source}, includes/huella_tables.json has ${spec.version}: run huella dataform generate, commit the file, and start again`)});`;
  }
  return spec.keyed ? merge.script(spec, at, cut) : history.script(spec, at, cut);
}

// The day of the last merged cut, read beside the silver table at `path`.
const mergedDay = path => `(SELECT MAX(cut_dt) FROM ${sibling(path, STATE)})`;

module.exports = { script, mergedDay };
