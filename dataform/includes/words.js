// Descriptions that BigQuery shows beside tables and columns.
const OWN = {
  _op: "INSERT, UPDATE, DELETE, TRUNCATE or SNAPSHOT.",
  _commit_lsn: "Position of the change: LSN of its transaction's commit record.",
  _seq: "Position of the change within its transaction; 0 for rows of a copy.",
  _commit_ts: "When the change was committed at the source (UTC); for rows of a copy, when the copy was made.",
  _xid: "Transaction id at the source.",
  _unchanged: "JSON array of columns that the change left out because their large value did not change.",
  _old_key: "JSON object of the old key, on the second row of a key change.",
  _exceptions: "JSON object, column to the source's text, of values that the column's type cannot hold; the column is NULL then.",
  _deleted: "The source has no such row any more.",
};

function silverColumns(spec) {
  const own = spec.keyed
    ? ["_commit_lsn", "_seq", "_commit_ts", "_exceptions"].concat(spec.soft ? ["_deleted"] : [])
    : ["_op", "_commit_lsn", "_seq", "_commit_ts", "_xid", "_unchanged", "_old_key", "_exceptions"];
  return spec.columns.map(column => ({ path: [column.name], description: column.description }))
    .concat(spec.keyed ? spec.flags.map(flag => ({ path: [flag.name], description: flag.description })) : [])
    .concat(own.map(name => ({ path: [name], description: OWN[name] })));
}

const STATE = {
  table_name: "Table of the source.",
  version: "Version of it that was merged.",
  merged_lsn: "Position up to which it was merged: the cut's end.",
  snapshot_lsn: "Consistent point of the copy that the rows rest on; -1 without one.",
  cut_dt: "UTC date of the cut.",
  cut_time: "Time of the last commit in the cut.",
  cut_commit: "The commit of the lake whose files the cut names.",
  layout: "Fingerprint of how the target is made.",
  storage: "How the target is partitioned and clustered.",
  rules: "Fingerprint of columns, rules and flags.",
  target_created: "Creation time of the target that was merged into.",
  merged_at: "When the merge ended.",
};

const stateColumns = () => Object.entries(STATE).map(([name, description]) => ({ path: [name], description }));

module.exports = { silverColumns, stateColumns };
