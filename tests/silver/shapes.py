"""Tables of other shapes than the windows' own: without a key, with types that silver converts, with keys that end in exceptions."""

import datetime
import json

from bigquery import QueryFailed
from lake import Lake, LakeTable
from windows import row

DAY = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)


def cells(op, lsn, seq, unchanged=None, moved=False, exceptions=None, day=DAY, **data):
    own = row(op, lsn, seq, unchanged=unchanged, moved=moved, exceptions=exceptions)
    return {**data, **{name: value for name, value in own.items() if name.startswith("_")}, "_commit_ts": day}


class Shape:
    """One table in a lake of its own, merged step by step."""

    def __init__(self, stack, generator, name, columns, key, rules="plain"):
        for dataset in ("raw", "silver"):
            stack.query(f"CREATE SCHEMA IF NOT EXISTS `{stack.project}.{dataset}`")
        self.query, self.generate, self.rules = stack.query, generator, rules
        self.lake = Lake(stack.scratch / name)
        self.table = LakeTable(self.lake, name, columns, key)
        self.state = f"`{stack.project}.silver.huella_merges`"

    def become(self, version, columns, key):
        """Another version of the table: what is merged from now on is of it."""
        self.table = LakeTable(self.lake, self.table.name, columns, key, version=version)

    def merge(self, rows, through, snapshot, dt="2026-01-02", damage=None):
        """`damage`: what happens to the script, or to what it reads, between the raw table's making and the merge."""
        if rows:
            self.table.write(rows)
        self.table.publish()
        cut = {
            "through": through,
            "commit": "c",
            "dt": dt,
            "tables": {self.table.source: {"version": self.table.version, "snapshot": snapshot, "snapshot_dt": "2026-01-02"}},
        }
        wanted = self.generate(self.lake.generated([self.table]), self.table.source, cut, rules=self.rules)
        self.query(wanted["raw"])
        self.query(damage(wanted["script"]) if damage else wanted["script"])
        return wanted["target"]

    def rewind(self, merged):
        self.query(f"DELETE FROM {self.state} WHERE table_name = '{self.table.source}' AND merged_lsn > {merged}")


def expect(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: silver holds {got}, not {want}")


def table_without_key(stack, generator):
    """A table without a key keeps its rows of change, each once, whatever is merged twice, late or again"""
    shape = Shape(stack, generator, "sin_clave", {"a": "STRING", "c": "INT64"}, [])
    read = lambda: [
        (r[0], int(r[1]), int(r[2]), r[3], r[4] and int(r[4]))
        for r in shape.query(f"SELECT _op, _commit_lsn, _seq, a, c FROM {target} ORDER BY _commit_lsn, _seq, a, c")
    ]
    first = [cells("TRUNCATE", 10, -1), cells("SNAPSHOT", 10, 0, a="x", c=1), cells("SNAPSHOT", 10, 0, a="x", c=1)]
    target = shape.merge(first, 10, 10)
    copied = [("TRUNCATE", 10, -1, None, None), ("SNAPSHOT", 10, 0, "x", 1), ("SNAPSHOT", 10, 0, "x", 1)]
    expect(read(), copied, "copy with two equal rows")
    # Under FULL an UPDATE is a DELETE with the old row and an UPDATE with the new one. The last row begins where the cut ends.
    shape.merge([cells("DELETE", 20, 1, a="x", c=1), cells("UPDATE", 20, 2, a="y", c=2), cells("INSERT", 30, 1, a="later", c=3)], 30, 10)
    changed = copied + [("DELETE", 20, 1, "x", 1), ("UPDATE", 20, 2, "y", 2)]
    expect(read(), changed, "changes")
    shape.merge([], 30, 10)
    shape.merge([], 10, 10)
    expect(read(), changed, "the same cut again, and an old one")
    shape.rewind(10)
    shape.merge([], 40, 10)
    later = changed + [("INSERT", 30, 1, "later", 3)]
    expect(read(), later, "a window that overlaps what is there")
    # A copy made at 25 that appears only now: what lies around it stays as it is.
    shape.merge([cells("TRUNCATE", 25, -1), cells("SNAPSHOT", 25, 0, a="y", c=2), cells("SNAPSHOT", 25, 0, a="lost", c=9)], 40, 25)
    mended = sorted(
        later + [("TRUNCATE", 25, -1, None, None), ("SNAPSHOT", 25, 0, "y", 2), ("SNAPSHOT", 25, 0, "lost", 9)],
        key=lambda r: (r[1], r[2], r[3] or "", r[4] or 0),
    )
    expect(read(), mended, "a copy behind the last merge")


def converted_types(stack, generator):
    """timestamp becomes DATETIME, json becomes JSON; a document that JSON cannot hold is NULL with its text in _exceptions, also when left out later"""
    columns = {"id": "INT64", "z": "TIMESTAMP", "l": "DATETIME", "j": "JSON", "b": "BYTES", "f": "FLOAT64", "o": "BOOL"}
    shape = Shape(stack, generator, "tipos", columns, ["id"])
    local = datetime.datetime(2026, 2, 3, 4, 5, 6, 789012)
    zoned = local.replace(tzinfo=datetime.timezone.utc)
    rest = {"z": zoned, "l": local, "b": b"\x00\xff", "f": 0.1, "o": True}
    target = shape.merge(
        [
            cells("TRUNCATE", 10, -1),
            cells("SNAPSHOT", 10, 0, id=1, j='{"a": [1, null, "ñ"]}', **rest),
            cells("SNAPSHOT", 10, 0, id=2, j="{broken", **rest),
            cells("SNAPSHOT", 10, 0, id=3, j=None, **rest),
        ],
        10,
        10,
    )
    read = lambda: [
        (int(r[0]), r[1] and json.loads(r[1]), r[2] and json.loads(r[2]))
        for r in shape.query(f"SELECT id, TO_JSON_STRING(j), _exceptions FROM {target} ORDER BY id")
    ]
    expect(read(), [(1, {"a": [1, None, "ñ"]}, None), (2, None, {"j": "{broken"}), (3, None, None)], "documents")
    shape.merge(
        [cells("UPDATE", 20, 1, unchanged='["j"]', id=1, **rest), cells("UPDATE", 20, 2, unchanged='["j"]', id=2, **{**rest, "f": 0.5})], 30, 10
    )
    expect(read(), [(1, {"a": [1, None, "ñ"]}, None), (2, None, {"j": "{broken"}), (3, None, None)], "documents left out")
    shape.merge([cells("UPDATE", 40, 1, id=2, j='{"whole": true}', **rest)], 50, 10)
    expect(read()[1], (2, {"whole": True}, None), "a document mended")
    kinds = dict(shape.query(f"SELECT column_name, data_type FROM `{stack.project}.silver`.INFORMATION_SCHEMA.COLUMNS WHERE table_name = 'tipos'"))
    # The emulator stores JSON as text and says so.
    expect({name: kinds[name] for name in columns}, {**columns, "j": "STRING"}, "types")
    expect(
        shape.query(f"SELECT CAST(l AS STRING), CAST(UNIX_MICROS(z) AS STRING), TO_HEX(b) FROM {target} WHERE id = 1"),
        [("2026-02-03 04:05:06.789012", str(int(zoned.timestamp()) * 1_000_000 + 789012), "00ff")],
        "cells",
    )


def keys_in_exceptions(stack, generator):
    """Keys that their type cannot hold (a date of infinity) are found again: updated and deleted, never inserted twice"""
    shape = Shape(stack, generator, "clave_fecha", {"d": "DATE", "t": "STRING", "c": "INT64"}, ["d", "t"], rules="partitioned")
    day = datetime.date(2026, 5, 6)
    endless = '{"d":"infinity"}'
    target = shape.merge(
        [cells("TRUNCATE", 10, -1), cells("SNAPSHOT", 10, 0, d=day, t="a", c=1), cells("SNAPSHOT", 10, 0, d=None, t="a", c=2, exceptions=endless)],
        10,
        10,
    )
    shape.merge(
        [
            cells("UPDATE", 20, 1, d=None, t="a", c=3, exceptions=endless),
            cells("INSERT", 20, 2, d=None, t="a", c=4, exceptions='{"d":"-infinity"}'),
            cells("DELETE", 20, 3, d=day, t="a"),
        ],
        30,
        10,
    )
    read = lambda: [(r[0], int(r[1])) for r in shape.query(f"SELECT JSON_VALUE(_exceptions, '$.d'), c FROM {target} ORDER BY c")]
    expect(read(), [("infinity", 3), ("-infinity", 4)], "updates and deletes")
    shape.merge([cells("DELETE", 40, 1, d=None, t="a", exceptions=endless)], 50, 10)
    expect(read(), [("-infinity", 4)], "a delete")


def uuid_keys(stack, generator):
    """A uuid key is compared as it is, so that a merge reads only what its smallest and largest key leave of the target; rows are found again all the same"""
    shape = Shape(stack, generator, "clave_uuid", {"id": "STRING", "a": "STRING"}, ["id"])
    shape.table = LakeTable(shape.lake, "clave_uuid", shape.table.columns, ["id"], postgres={"id": "uuid"})
    one, two, three = (f"{n}0000000-0000-4000-8000-000000000000" for n in "123")
    target = shape.merge([cells("TRUNCATE", 10, -1)] + [cells("SNAPSHOT", 10, 0, id=id, a="x") for id in (one, two, three)], 10, 10)

    def plain(script):
        conditions = [line for line in script.splitlines() if "_t.`id` = _s.`id`" in line]
        if not conditions or any("_exceptions" in line or "IS NULL" in line for line in conditions):
            raise AssertionError(f"the key is not compared as it is: {conditions}")
        return script

    changes = [
        cells("UPDATE", 20, 1, id=one, unchanged='["a"]'),
        cells("DELETE", 20, 2, id=two),
        cells("DELETE", 20, 3, id=three),
        cells("UPDATE", 20, 4, id=two, unchanged='["a"]', moved=True),
    ]
    shape.merge(changes, 30, 10, damage=plain)
    expect(shape.query(f"SELECT id, a FROM {target} ORDER BY id"), [(one, "x"), (two, "x")], "an update, a delete, a key that changed")


def built_beside(stack, generator):
    """A table that begins another version or layout keeps its rows until the new ones are complete, whatever fails; and takes their place in one step, or by a drop and a rename that a later run completes"""
    fails = lambda what, text: text.replace(what, f"SELECT ERROR('on purpose');\n{what}", 1)

    # The last place in the script, not the first.
    later = lambda what, text: text[: text.rindex(what)] + "SELECT ERROR('on purpose');\n" + text[text.rindex(what) :]

    def broken(shape, words, *arguments, **more):
        try:
            shape.merge(*arguments, **more)
        except QueryFailed as failure:
            if words not in str(failure):
                raise AssertionError(f"it failed, but not as it should: {failure}") from failure
            return
        raise AssertionError(f"it should have failed: {words}")

    for key, columns in (["id"], {"id": "INT64", "a": "STRING"}), ([], {"a": "STRING"}):
        shape = Shape(stack, generator, f"beside_{len(key)}", columns, key)
        name = shape.table.name
        one, two = ({column: value[column] for column in columns} for value in ({"id": 1, "a": "old"}, {"id": 2, "a": "new"}))
        target = shape.merge([cells("TRUNCATE", 10, -1), cells("SNAPSHOT", 10, 0, **one)], 10, 10)
        read = lambda: [row[0] for row in shape.query(f"SELECT a FROM {target} WHERE a IS NOT NULL ORDER BY a")]
        beside = f"`{stack.project}.silver.{name}__huella_next`"
        born = lambda: shape.query(f"SELECT CAST(creation_time AS STRING) FROM `{stack.project}.silver`.INFORMATION_SCHEMA.TABLES WHERE table_name = '{name}'")
        before = born()
        shape.become(2, {**columns, "b": "STRING"}, key)
        copy = [cells("TRUNCATE", 20, -1), cells("SNAPSHOT", 20, 0, **two, b="b")]
        # While raw is read, and just before the new rows take the old ones' place.
        broken(shape, "on purpose", copy, 20, 20, damage=lambda text: fails("CREATE OR REPLACE TEMP TABLE ev_", text))
        expect((read(), born()), (["old"], before), "a new version whose rows could not be read")
        broken(shape, "on purpose", [], 20, 20, damage=lambda text: fails(f"CREATE OR REPLACE TABLE {target}", text))
        expect((read(), born()), (["old"], before), "a new version that ended before the old one was replaced")
        rival = f"INSERT INTO {shape.state} (table_name, version, merged_lsn, merged_at) VALUES ('{shape.table.source}', 1, 10, CURRENT_TIMESTAMP());\n"
        broken(shape, "merged by another run", [], 20, 20, damage=lambda text: text.replace("CREATE OR REPLACE TEMP TABLE ev_", rival + "CREATE OR REPLACE TEMP TABLE ev_", 1))
        expect(read(), ["old"], "a new version that a rival stopped")
        shape.query(f"DELETE FROM {shape.state} WHERE table_name = '{shape.table.source}' AND layout IS NULL")
        # Partitioned and clustered as before, it is replaced by one statement: neither dropped nor renamed.
        never = lambda text: fails("DROP TABLE", text)
        shape.merge([], 20, 20, damage=never)
        expect(read(), ["new"], "a new version")
        shape.merge([], 20, 20)
        expect(read(), ["new"], "the same cut again")
        if not key:
            continue
        # Another key clusters it otherwise: made beside, and the old one stays until then.
        shape.become(3, {**columns, "b": "STRING"}, ["a"])
        copy = [cells("TRUNCATE", 30, -1), cells("SNAPSHOT", 30, 0, **{**two, "a": "third"}, b="b")]
        broken(shape, "on purpose", copy, 30, 30, damage=lambda text: fails(f"DROP TABLE {target}", text))
        expect(read(), ["new"], "another layout that ended before the old table was dropped")
        broken(shape, "on purpose", [], 30, 30, damage=lambda text: later(f"ALTER TABLE {beside} RENAME", text))
        # The next run gives readers their table before it reads anything.
        broken(shape, "on purpose", [], 30, 30, damage=lambda text: fails("CREATE OR REPLACE TEMP TABLE ev_", text))
        expect(read(), ["third"], "another layout that ended before its table had its name")
        shape.merge([], 30, 30)
        expect(read(), ["third"], "another layout")
        left = shape.query(f"SELECT table_name FROM `{stack.project}.silver`.INFORMATION_SCHEMA.TABLES WHERE table_name = '{name}__huella_next'")
        expect(left, [], "what was made beside")


CLAIMS = [table_without_key, converted_types, keys_in_exceptions, uuid_keys, built_beside]
