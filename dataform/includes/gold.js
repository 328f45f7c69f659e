// What gold's definitions have in common.
const huella = require("./huella.js");
const checks = require("./checks.js");

// The action's place, and the strict checks it waits for.
const strict = (...names) => checks.strict(huella, names);

// The day that recency is counted from: that of the last merged cut, so that gold depends on the data alone.
const asOf = () => `(SELECT MAX(cut_dt) FROM \`${huella.project}.${huella.silver}.huella_merges\`)`;

module.exports = { project: huella.project, strict, asOf };
