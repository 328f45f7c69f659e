// What gold's definitions have in common.
const huella = require("./huella.js");
const checks = require("./checks.js");
const silver = require("./silver.js");
const { sibling } = require("./sql.js");

// The strict checks that an action waits for.
const strict = (...names) => checks.strict(huella, names);

// The day that recency is counted from: that of the last merged cut, so that gold depends on the data alone.
const asOf = (ref, name) => silver.mergedDay(ref(huella.silver, name));

module.exports = { project: huella.project, strict, asOf, sibling };
