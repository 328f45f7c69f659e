"""Faults put into the project's generator: each must be noticed by a hand-made window, or the windows prove less than they say.

Not here, because it is harmless: an old cut that runs. Its window is empty, and windows that overlap change nothing.
"""

import pathlib
import shutil

from stack import REPOSITORY

# (what is wrong, file, text, its replacement, a window that notices)
MUTANTS = [
    (
        "a copy behind the last merge is ignored",
        "target.js",
        "huella_afresh OR huella_snap != huella_merged_snap OR",
        "huella_afresh OR huella_snap > huella_merged OR",
        "a snapshot that appears behind the last merge",
    ),
    (
        "the window begins above the last commit LSN",
        "sql.js",
        "const above = (lsn, seq, thanLsn, thanSeq) => `(${lsn} > ${thanLsn} OR (${lsn} = ${thanLsn} AND ${seq} > ${thanSeq}))`",
        "const above = (lsn, seq, thanLsn) => `(${lsn} > ${thanLsn})`",
        "a commit record that begins where the last cut ended",
    ),
    (
        "rows above the cut are merged",
        "merge.js",
        "AND (\\`_commit_lsn\\` < huella_hi OR (\\`_commit_lsn\\` = huella_hi AND \\`_seq\\` <= 0))",
        "",
        "a snapshot exactly at the cut; newer files are visible already",
    ),
    (
        "the cut's own commit LSN is merged",
        "merge.js",
        "huella_hi AND \\`_seq\\` <= 0));",
        "huella_hi));",
        "a snapshot exactly at the cut; newer files are visible already",
    ),
    (
        "key changes are not followed",
        "merge.js",
        "WHERE _n.\\`_h_moved\\` AND",
        "WHERE FALSE AND",
        "a chain of three key changes over the target's row",
    ),
    (
        "key changes are followed once",
        "merge.js",
        "_edge.\\`_h_life\\` = _line.\\`_h_life\\`)",
        "_edge.\\`_h_life\\` = _line.\\`_h_life\\` AND _line.\\`_h_at\\` = _line.\\`_h_root\\`)",
        "a chain of three key changes over the target's row",
    ),
    (
        "lives are not told apart",
        "merge.js",
        "IF(\\`_op\\` IN ('INSERT', 'SNAPSHOT', 'BASE', 'BASE_DELETED') OR \\`_h_moved\\`, 1, 0)",
        "0",
        "a row that arrives under a key of an earlier life brings its own values",
    ),
    (
        "the target is never read",
        "merge.js",
        "IF NOT huella_rebuild AND huella_f_lsn IS NULL AND",
        "IF FALSE AND",
        "an exception travels with its left-out column",
    ),
    (
        "exceptions stay with their row, not their cell",
        "merge.js",
        "_r.${carried(column)}, ${exception",
        "NULL, ${exception",
        "an exception travels with its left-out column",
    ),
    (
        "nothing is swept below a floor",
        "merge.js",
        "IF NOT huella_afresh AND huella_f_lsn IS NOT NULL THEN\n${sweep",
        "IF FALSE THEN\n${sweep",
        "a TRUNCATE that leaves nothing",
    ),
    (
        "an empty copy is forgotten",
        "merge.js",
        "IF huella_rebuild AND huella_snap >= 0 AND",
        "IF FALSE AND",
        "an empty snapshot of which not even the TRUNCATE is left",
    ),
    (
        "no day's margin before the last cut",
        "target.js",
        'DATE_SUB(${recorded("cut_dt", "DATE")}, INTERVAL 1 DAY)',
        '${recorded("cut_dt", "DATE")}',
        "commit times that run backwards by less than the margin",
    ),
    ("from_dt is not heeded", "target.js", "cut.fromDt.length\n", "false\n", "commit times that run backwards by more, which publish saw"),
    (
        "an older version runs",
        "target.js",
        "huella_last IS NULL OR ${cut.version} > huella_merged_version",
        "huella_last IS NULL OR ${cut.version} != huella_merged_version",
        "a cut of an older version changes nothing",
    ),
    (
        "a new version keeps the target",
        "target.js",
        "huella_merged_version != ${cut.version} OR",
        "",
        "a new version with other types, and LSNs that begin anew",
    ),
    (
        "a dropped target is made again and left empty",
        "target.js",
        'OR ${recorded("target_created", "INT64")} IS DISTINCT FROM huella_target_created;',
        "OR huella_target_created IS NULL AND FALSE;",
        "a target that somebody dropped is filled anew",
    ),
    (
        "new columns do not fill the target anew",
        "target.js",
        'OR ${recorded("rules", "STRING")} != ${literal(rules)}',
        "",
        "a column that was added and merged before the project knew it",
    ),
    ("a rival's merge is overwritten", "target.js", "ERROR(${literal(", "CONCAT(${literal(", "another run that merged meanwhile stops this one"),
    (
        "rules fill in exceptions",
        "cells.js",
        "EXCEPTIONAL.includes(column.silver) ? `IF(",
        "false ? `IF(",
        "rules act on raw cells, once; they fill in neither left-out nor exceptional cells",
    ),
]

# (what is wrong, file, text, its replacement, a claim of shapes.py or refusals.py that notices)
CLAIM_MUTANTS = [
    ("an old cut passes", "freshness.js", "SECOND) > ${limitSeconds})`", "SECOND) > 1000000000000)`", "stale_is_red"),
    ("a run without a cut passes", "freshness.js", "return workspace ? []", "return true ? []", "stale_is_red"),
    ("an unknown table passes", "freshness.js", "if (!spec) add(", "if (!spec) 0 && add(", "stale_is_red"),
    ("other columns pass", "freshness.js", "own.columns !== spec.columns_fingerprint", "false", "stale_is_red"),
    ("a table that stands still passes", "freshness.js", "filter(spec => !published[spec.source])", "filter(spec => false)", "stale_is_red"),
    (
        "a new version is dropped before it is replaced",
        "target.js",
        "      CREATE OR REPLACE TABLE ${at.target} ${as};",
        "      DROP TABLE ${at.target}; CREATE OR REPLACE TABLE ${at.target} ${as};",
        "built_beside",
    ),
    ("a rival's table is replaced", "target.js", "IF huella_afresh THEN\n${unmoved(spec, at)}", "IF huella_afresh THEN", "built_beside"),
    ("another layout replaces the table", "target.js", 'AND ${recorded("storage", "STRING")} = ${literal(storage(spec))}', "", "built_beside"),
    ("uuid keys read the whole target", "sql.js", ' || column.postgres === "uuid"', "", "uuid_keys"),
    (
        "half a replacement is left as it is",
        "target.js",
        "CAST(JSON_VALUE(huella_there, '$.next') AS INT64) = 1 THEN",
        "FALSE THEN",
        "built_beside",
    ),
]


def mutated(scratch, number, file, old, new):
    """A copy of the project's includes with one fault in it."""
    folder = pathlib.Path(scratch) / f"mutant{number}"
    shutil.copytree(REPOSITORY / "dataform/includes", folder)
    text = (folder / file).read_text()
    if old not in text:
        raise AssertionError(f"{file} has no such text any more: {old}")
    (folder / file).write_text(text.replace(old, new))
    return folder
