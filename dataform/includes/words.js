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

module.exports = { silverColumns };
