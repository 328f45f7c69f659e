"""Hand-made windows: what a merge must get right, each with the cells that silver must hold afterwards."""

import dataclasses
import datetime
import decimal
import json

from bigquery import QueryFailed
from lake import Lake, LakeTable

COLUMNS = {"id": "INT64", "a": "STRING", "n": "NUMERIC", "c": "INT64"}
NAMES = list(COLUMNS)
BOTH = '["a","n"]'


def row(op, lsn, seq, id=None, a=None, n=None, c=None, unchanged=None, moved=False, exceptions=None, day="2026-01-02", **cells):
    return {
        "id": id,
        "a": a,
        "n": None if n is None else decimal.Decimal(n),
        "c": c,
        **cells,
        "_op": op,
        "_commit_lsn": lsn,
        "_seq": seq,
        "_commit_ts": datetime.datetime.fromisoformat(f"{day}T00:00:00+00:00"),
        "_xid": None if seq == -1 else 1,
        "_unchanged": unchanged,
        "_old_key": '{"id": 0}' if moved else None,
        "_exceptions": exceptions,
    }


def snapshot(lsn, *rows, day="2026-01-02"):
    """As every copy is written: a TRUNCATE at (S, -1), then its rows at (S, 0)."""
    return [row("TRUNCATE", lsn, -1, day=day)] + [row("SNAPSHOT", lsn, 0, *cells, day=day) for cells in rows]


def update(lsn, seq, id, a=None, n=None, c=None, **more):
    return row("UPDATE", lsn, seq, id, a, n, c, **more)


def key_change(lsn, seq, old, new, c, unchanged=BOTH):
    return [row("DELETE", lsn, seq, old), row("UPDATE", lsn, seq + 1, new, c=c, unchanged=unchanged, moved=True)]


@dataclasses.dataclass
class Window:
    """Rows that appear, the cut, and what silver holds after it: (id, a, n, c, exceptions) of each live row."""

    rows: list
    through: int | str
    snapshot: int | str | None
    holds: list | None
    dt: str = "2026-01-02"
    snapshot_dt: str = "2026-01-02"
    from_dt: dict = dataclasses.field(default_factory=dict)
    before: str | None = None  # SQL to run first: what a person or an accident does to silver
    ruleset: str | None = None
    version: int = 1
    columns: dict | None = None  # of another version, or with a column more
    added: dict | None = None
    fails: str | None = None


def W(rows, through, snapshot, holds, **more):
    return Window(rows, through, snapshot, holds, **more)


X1 = (1, "x", 1, 1)
Y2 = (2, "y", 2, 2)

WINDOWS = {
    "a chain of three key changes over the target's row": [
        W([row("TRUNCATE", 10, -1), row("SNAPSHOT", 10, 0, 1, "x", None, 1, exceptions='{"n":"NaN"}')], 10, 10, None),
        W(
            key_change(20, 1, 1, 2, 2) + key_change(21, 1, 2, 3, 3) + key_change(22, 1, 3, 4, 4) + [update(23, 1, 4, n=7, c=5, unchanged='["a"]')],
            30,
            10,
            [(4, "x", 7, 5, None)],
        ),
        W(key_change(40, 1, 4, 5, 6) + [row("INSERT", 41, 1, 4, "new", 1, 1)], 50, 10, [(4, "new", 1, 1, None), (5, "x", 7, 6, None)]),
    ],
    "an exception travels with its left-out column": [
        W([row("TRUNCATE", 10, -1), row("SNAPSHOT", 10, 0, 1, "x", None, 1, exceptions='{"n":"NaN"}')], 10, 10, [(1, "x", None, 1, {"n": "NaN"})]),
        W([update(20, 1, 1, a="y", c=2, unchanged='["n"]')], 30, 10, [(1, "y", None, 2, {"n": "NaN"})]),
        W([update(40, 1, 1, a="y", n=3, c=2)], 50, 10, [(1, "y", 3, 2, None)]),
    ],
    "two keys swap places through a third": [
        W(snapshot(10, (1, "A", 1, 1), (2, "B", 2, 2)), 10, 10, None),
        W(key_change(20, 1, 1, 9, 1) + key_change(20, 3, 2, 1, 2) + key_change(20, 5, 9, 2, 1), 30, 10, [(1, "B", 2, 2, None), (2, "A", 1, 1, None)]),
    ],
    "a value of an earlier life of the key does not return": [
        W(snapshot(10, (1, "old", 1, 1)), 10, 10, None),
        W(
            [row("DELETE", 20, 1, 1), row("INSERT", 20, 2, 1, None, None, 3), update(21, 1, 1, c=4, n=5, unchanged='["a"]')],
            30,
            10,
            [(1, None, 5, 4, None)],
        ),
    ],
    "a row that arrives under a key of an earlier life brings its own values": [
        W(snapshot(10, X1, Y2), 10, 10, None),
        W([update(15, 1, 2, "y2", 3, 3)], 20, 10, None),
        W([row("DELETE", 25, 1, 2)] + key_change(25, 2, 1, 2, 4), 30, 10, [(2, "x", 1, 4, None)]),
    ],
    "a TRUNCATE in mid-transaction": [
        W(snapshot(10, X1, Y2), 10, 10, None),
        W(
            [update(20, 1, 1, "z", 3, 3), row("INSERT", 20, 2, 3, "w", 1, 1), row("TRUNCATE", 20, 3), row("INSERT", 20, 4, 1, "v", 9, 9)],
            30,
            10,
            [(1, "v", 9, 9, None)],
        ),
    ],
    "a TRUNCATE that leaves nothing": [W(snapshot(10, X1, Y2), 10, 10, None), W([row("TRUNCATE", 20, 1)], 30, 10, [])],
    "a snapshot that appears behind the last merge": [
        W(snapshot(10, X1, Y2), 10, 10, None),
        W(
            [update(40, 1, 2, c=5, unchanged=BOTH), row("INSERT", 41, 1, 3, "w", 1, 1), row("DELETE", 42, 1, 3)],
            50,
            10,
            [(1, "x", 1, 1, None), (2, "y", 2, 5, None)],
        ),
        W(snapshot(30, (1, "mended", 1, 1), Y2), 50, 30, [(1, "mended", 1, 1, None), (2, "y", 2, 5, None)]),
        W([], 50, 10, [(1, "mended", 1, 1, None), (2, "y", 2, 5, None)]),
    ],
    "a commit record that begins where the last cut ended": [
        W(snapshot(10, X1), 20, 10, None),
        W([update(20, 1, 1, "y", 2, 2)], 30, 10, [(1, "y", 2, 2, None)]),
    ],
    "a snapshot exactly at the cut; newer files are visible already": [
        W(snapshot(20, X1) + [update(20, 1, 1, "later", 2, 2), row("INSERT", 25, 1, 2, "l", 1, 1)], 20, 20, [(1, "x", 1, 1, None)]),
        W([], 30, 20, [(1, "later", 2, 2, None), (2, "l", 1, 1, None)]),
    ],
    # 2^53 + 1 is the first whole number that JavaScript takes for another; huella writes positions as text.
    "positions beyond what JavaScript's numbers hold": [
        W(snapshot(2**53 - 1, X1), str(2**53), str(2**53 - 1), [(1, "x", 1, 1, None)]),
        W([update(2**53, 1, 1, "y", 2, 2), update(2**53 + 1, 1, 1, "z", 3, 3)], str(2**53 + 1), str(2**53 - 1), [(1, "y", 2, 2, None)]),
        W([], str(2**53 + 2), str(2**53 - 1), [(1, "z", 3, 3, None)], from_dt={str(2**53 + 1): "2026-01-02"}),
    ],
    "an empty snapshot": [W(snapshot(10, X1), 20, 10, None), W(snapshot(25), 30, 25, [])],
    "an empty snapshot of which not even the TRUNCATE is left": [W(snapshot(10, X1), 20, 10, None), W([], 30, 25, [])],
    "the same cut twice, an old cut, a state restored to an earlier point": [
        W(snapshot(10, X1), 20, 10, None),
        W(key_change(25, 1, 1, 2, 2), 30, 10, [(2, "x", 1, 2, None)]),
        W([], 30, 10, [(2, "x", 1, 2, None)]),
        W([], 20, 10, [(2, "x", 1, 2, None)]),
        W(
            [update(35, 1, 2, c=3, unchanged=BOTH)],
            40,
            10,
            [(2, "x", 1, 3, None)],
            before="DELETE FROM {state} WHERE table_name = '{source}' AND merged_lsn = 30",
        ),
    ],
    "commit times that run backwards by less than the margin": [
        W(snapshot(10, X1), 20, 10, None),
        W([update(25, 1, 1, "y", 1, 1, day="2026-01-01")], 30, 10, [(1, "y", 1, 1, None)]),
    ],
    "commit times that run backwards by more, which publish saw": [
        W(snapshot(10, X1), 20, 10, None),
        W([update(25, 1, 1, "y", 1, 1, day="2025-11-30")], 30, 10, [(1, "y", 1, 1, None)], from_dt={"20": "2025-11-30"}),
    ],
    "a new version with other types, and LSNs that begin anew": [
        W(snapshot(100, X1, Y2), 110, 100, [(1, "x", 1, 1, None), (2, "y", 2, 2, None)]),
        W(
            [row("TRUNCATE", 40, -1), row("SNAPSHOT", 40, 0, 1, "x", None, "one")],
            50,
            40,
            [(1, "x", None, "one", None)],
            version=2,
            columns={"id": "INT64", "a": "STRING", "n": "NUMERIC", "c": "STRING"},
        ),
        W(
            [update(60, 1, 1, n=4, c="two", unchanged='["a"]')],
            70,
            40,
            [(1, "x", 4, "two", None)],
            version=2,
            columns={"id": "INT64", "a": "STRING", "n": "NUMERIC", "c": "STRING"},
        ),
    ],
    "a cut of an older version changes nothing": [
        W(snapshot(10, X1), 20, 10, None),
        W(snapshot(30, Y2), 40, 30, [(2, "y", 2, 2, None)], version=2),
        W([], 50, 10, [(2, "y", 2, 2, None)], version=1),
    ],
    "a column that was added: older files lack it": [
        W(snapshot(10, X1, Y2), 20, 10, None),
        W(
            [row("UPDATE", 25, 1, 1, "x", 1, 1, extra="e")],
            30,
            10,
            [(1, "x", 1, 1, None, "e"), (2, "y", 2, 2, None, None)],
            added={"extra": "STRING"},
        ),
    ],
    "a column that was added and merged before the project knew it": [
        W(snapshot(10, X1), 20, 10, None, added={}),
        W([row("UPDATE", 25, 1, 1, "x", 1, 1, extra="e")], 30, 10, [(1, "x", 1, 1, None)], added={"hidden": "extra"}),
        W([], 40, 10, [(1, "x", 1, 1, None, "e")], added={"extra": "STRING"}),
    ],
    "a target that somebody dropped is filled anew": [
        W(snapshot(10, X1, Y2), 20, 10, None),
        W([update(25, 1, 1, "z", 1, 1)], 30, 10, [(1, "z", 1, 1, None), (2, "y", 2, 2, None)], before="DROP TABLE {target}"),
    ],
    "another run that merged meanwhile stops this one": [
        W(snapshot(10, X1), 20, 10, None),
        W([update(25, 1, 1, "z", 1, 1)], 30, 10, None, before="RIVAL", fails="merged by another run"),
        W([], 30, 10, [(1, "z", 1, 1, None)]),
    ],
    "rules act on raw cells, once; they fill in neither left-out nor exceptional cells": [
        W(
            [
                row("TRUNCATE", 10, -1),
                row("SNAPSHOT", 10, 0, 1, "  Ñandú ", -5, 1),
                row("SNAPSHOT", 10, 0, 2, None, None, 1, exceptions='{"n":"NaN","a":"\\\\xff"}'),
            ],
            20,
            10,
            [(1, "ñandú", -5, 2, None, True), (2, None, None, 2, {"n": "NaN", "a": "\\xff"}, False)],
            ruleset="cleaned",
        ),
        W(
            [update(25, 1, 1, c=None, unchanged=BOTH), update(25, 2, 2, c=7, unchanged=BOTH), row("INSERT", 25, 3, 3, None, None, None)],
            30,
            10,
            [(1, "ñandú", -5, None, None, True), (2, None, None, 8, {"n": "NaN", "a": "\\xff"}, False), (3, "none", 0, None, None, False)],
            ruleset="cleaned",
        ),
        W(
            [update(35, 1, 1, a="B", c=1, unchanged='["n"]')],
            40,
            10,
            [(1, "b", -5, 2, None, True), (2, None, None, 8, {"n": "NaN", "a": "\\xff"}, False), (3, "none", 0, None, None, False)],
            ruleset="cleaned",
        ),
        W(
            [],
            40,
            10,
            [(1, "B", -5, 1, None), (2, None, None, 7, {"n": "NaN", "a": "\\xff"}), (3, None, None, None, None)],
            ruleset="cleaned_otherwise",
        ),
    ],
    "a stream whose first copy says -1, as huella writes it": [
        W([row("INSERT", 20, 1, 1, "x", 1, 1)], 30, -1, [(1, "x", 1, 1, None)], snapshot_dt="2026-01-02"),
        W(snapshot(40, Y2), 50, 40, [(2, "y", 2, 2, None)]),
    ],
    "a stream without a copy": [
        W(
            [row("INSERT", 20, 1, 1, "x", 1, 1), row("INSERT", 20, 2, 2, "y", 2, 2)],
            30,
            None,
            [(1, "x", 1, 1, None), (2, "y", 2, 2, None)],
            snapshot_dt=None,
        ),
        W([update(40, 1, 1, c=9, unchanged=BOTH), row("DELETE", 40, 2, 2)], 50, None, [(1, "x", 1, 9, None)], snapshot_dt=None),
    ],
}


def number(text):
    return None if text is None else float(text)


class Player:
    """Plays windows against the emulator; each under names of its own."""

    def __init__(self, stack, generator, tag):
        self.stack, self.query, self.generate, self.tag = stack, stack.query, generator, tag
        self.count = 0
        for dataset in ("raw", "silver"):
            self.query(f"CREATE SCHEMA IF NOT EXISTS `{stack.project}.{dataset}`")

    def play(self, windows, soft):
        """None, or what was wrong."""
        self.count += 1
        name = f"t{self.tag}{self.count}"
        lake = Lake(self.stack.scratch / name)
        versions, state = {}, f"`{self.stack.project}.silver.huella_merges`"
        target = f"`{self.stack.project}.silver.{name}`"
        for number_of, window in enumerate(windows, 1):
            table = versions.get(window.version)
            if not table:
                table = versions[window.version] = LakeTable(lake, name, window.columns or COLUMNS, ["id"], version=window.version)
            known = dict(table.columns)
            for column, kind in (window.added or {}).items():
                table.columns[kind if column == "hidden" else column] = "STRING"
                if column != "hidden":
                    known[column] = kind
            if window.rows:
                table.write(window.rows, columns=[column for column in table.columns if any(column in some for some in window.rows)])
            table.publish()
            wanted = self.script(lake, table, known, window, soft)
            self.query(wanted["raw"])
            if window.before == "RIVAL":
                wanted["script"] = wanted["script"].replace(
                    "BEGIN TRANSACTION;",
                    f"INSERT INTO {state} (table_name, version, merged_lsn, snapshot_lsn, cut_dt, merged_at) VALUES ('public.{name}', 0, 0, 0, NULL, TIMESTAMP '2000-01-01'), ('public.{name}', 1, 20, 10, DATE '2026-01-02', CURRENT_TIMESTAMP());\n  BEGIN TRANSACTION;",
                    1,
                )
            elif window.before:
                self.query(window.before.format(target=target, state=state, source=f"public.{name}"))
            try:
                self.query(wanted["script"])
                if window.fails:
                    return f"window {number_of} should have failed: {window.fails}"
            except QueryFailed as failure:
                if not window.fails or window.fails not in str(failure):
                    return f"window {number_of} failed: {failure}"
            if window.before == "RIVAL":
                self.query(f"DELETE FROM {state} WHERE table_name = 'public.{name}' AND layout IS NULL")
            if window.holds is not None:
                wrong = self.compare(target, known, window, soft)
                if wrong:
                    return f"window {number_of}: {wrong}"
        return None

    def script(self, lake, table, known, window, soft):
        generated = lake.generated([table])
        generated["tables"][0]["columns"] = [column for column in generated["tables"][0]["columns"] if column["name"] in known]
        cut = {
            "through": window.through,
            "commit": "c",
            "dt": window.dt,
            "tables": {
                table.source: {"version": window.version, "snapshot": window.snapshot, "snapshot_dt": window.snapshot_dt, "from_dt": window.from_dt}
            },
        }
        return self.generate(generated, table.source, cut, rules=window.ruleset or "plain", soft=soft)

    def compare(self, target, known, window, soft):
        extra = [column for column in known if column not in COLUMNS] + (["low"] if window.ruleset == "cleaned" else [])
        rows = self.query(
            f"SELECT id, a, n, c, `_exceptions`{''.join(f', `{column}`' for column in extra)} FROM {target}{' WHERE NOT `_deleted`' if soft else ''}"
        )
        got = sorted(((int(r[0]), r[1], number(r[2]), r[3], json.loads(r[4]) if r[4] else None) + tuple(r[5:]) for r in rows), key=repr)
        want = sorted(
            (
                (w[0], w[1], number(w[2]), None if w[3] is None else str(w[3]), w[4])
                + tuple(str(v).lower() if isinstance(v, bool) else v for v in w[5:])
                for w in window.holds
            ),
            key=repr,
        )
        return None if got == want else f"silver holds {got}, not {want}"
