"""Random histories of a table: after every merge silver must hold what the table held at the cut, cell for cell.

A Python table is the truth. Transactions insert, update, delete, truncate and change keys (to free keys, to just-freed ones, to the same key
written otherwise); leave large values out; write values that become exceptions; begin exactly where the last one ended; carry commit times that
run backwards. Copies appear at the present or behind it, slots are lost and mended by a copy. Merges are repeated, come late, and overlap.
"""

import collections
import datetime
import decimal
import json
import random

from lake import Lake, LakeTable

KINDS = {
    "one key": (["id"], {"id": "INT64", "a": "STRING", "n": "NUMERIC", "c": "INT64", "d": "DATE", "t": "STRING"}),
    "two keys": (["id", "k"], {"id": "INT64", "k": "STRING", "a": "STRING", "n": "NUMERIC", "c": "INT64", "d": "DATE"}),
    "date key": (["d"], {"d": "DATE", "a": "STRING", "n": "NUMERIC", "c": "INT64"}),
}
LARGE = {"a", "n", "t"}  # columns that an UPDATE may leave out
ENDLESS = ("NaN", "infinity", "-infinity")


class Wrong(Exception):
    pass


class Table:
    """The truth, and the rows that its changes leave in a lake."""

    def __init__(self, chance, kind):
        self.chance, (self.key, self.columns) = chance, KINDS[kind]
        self.now, self.rows, self.through = {}, [], 1000
        self.clock = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.timezone.utc)
        self.copied, self.copied_dt, self.xid = None, None, 1
        self.pasts = [(self.through, {}, self.clock)]
        self.count = collections.Counter()

    def value(self, column):
        chance, kind, in_key = self.chance, self.columns[column], column in self.key
        if not in_key and chance.random() < 0.15:
            return None
        if kind == "INT64":
            return chance.randint(1, 6) if in_key else chance.randint(-5, 10**12)
        if kind == "STRING":
            return (
                chance.choice("xyz\"'") if in_key else chance.choice(["", 'ñ "q" \\ \'', "{}", "[1]", "z" * 40, "\n"]) + str(chance.randint(0, 999))
            )
        if kind == "NUMERIC":
            return "NaN" if chance.random() < 0.2 else decimal.Decimal(chance.randint(-(10**15), 10**15)) / 10 ** chance.randint(0, 9)
        if chance.random() < 0.2:
            return chance.choice(["infinity", "-infinity"])
        return datetime.date(2020, 1, 1) + datetime.timedelta(days=chance.randint(0, 3 if in_key else 999))

    def key_of(self, row):
        return tuple(row[column] for column in self.key)

    def emit(self, op, lsn, seq, row=None, left_out=(), moved=False, only_key=False):
        out, exceptions = dict.fromkeys(self.columns), {}
        for column, value in (row or {}).items():
            if column in left_out or (only_key and column not in self.key):
                continue
            if value in ENDLESS:
                exceptions[column] = value
            else:
                out[column] = value
        self.count[op] += 1
        return {
            **out,
            "_op": op,
            "_commit_lsn": lsn,
            "_seq": seq,
            "_commit_ts": self.clock,
            "_xid": self.xid if seq > 0 else None,
            "_unchanged": json.dumps(sorted(left_out)) if left_out else None,
            "_old_key": "{}" if moved else None,
            "_exceptions": json.dumps(exceptions) if exceptions else None,
        }

    def transaction(self, lost=False):
        chance = self.chance
        self.clock += datetime.timedelta(minutes=chance.choice([0, 1, 7, 60, 300, 300, 1500, 4000]))
        if chance.random() < 0.1:
            self.clock -= datetime.timedelta(minutes=chance.randint(1, 40))
        lsn = self.through if chance.random() < 0.35 else self.through + chance.randint(1, 50)
        self.xid += 1
        seq, rows, full = 0, [], chance.random() < 0.1  # full: REPLICA IDENTITY FULL
        for _ in range(chance.choice([1, 1, 2, 3, 6])):
            if chance.random() < 0.2:
                seq += 1  # a change of another table
            draw, keys = chance.random(), list(self.now)
            if draw < 0.04:
                seq += 1
                self.now = {}
                rows.append(self.emit("TRUNCATE", lsn, seq))
            elif draw < 0.33 or not keys:
                row = {column: self.value(column) for column in self.columns}
                if self.key_of(row) in self.now:
                    continue
                seq += 1
                self.now[self.key_of(row)] = row
                rows.append(self.emit("INSERT", lsn, seq, row))
            elif draw < 0.45:
                seq += 1
                rows.append(self.emit("DELETE", lsn, seq, self.now.pop(chance.choice(keys)), only_key=not full))
            else:
                seq = self.update(chance.choice(keys), draw > 0.72, full, lsn, seq, rows)
        if not lost:
            self.rows += rows
        self.through = lsn + chance.randint(1, 30)
        self.pasts.append((self.through, {key: dict(row) for key, row in self.now.items()}, self.clock))

    def update(self, key, change_key, full, lsn, seq, rows):
        chance, old = self.chance, self.now[key]
        new = dict(old)
        for column in self.columns:
            if column in self.key:
                if change_key and chance.random() < 0.8:
                    new[column] = self.value(column)
            elif chance.random() < 0.35:
                new[column] = self.value(column)
        if self.key_of(new) != key and self.key_of(new) in self.now:
            return seq
        same = {
            column for column in self.columns if column in LARGE and column not in self.key and new[column] is old[column] and old[column] is not None
        }
        left_out = set() if full else {column for column in sorted(same) if chance.random() < 0.75}
        # Also a "change" to a key that is the same in the lake, as 1.0 to 1.00 is.
        if self.key_of(new) != key or (change_key and chance.random() < 0.15):
            rows.append(self.emit("DELETE", lsn, seq + 1, old, only_key=not full))
            rows.append(self.emit("UPDATE", lsn, seq + 2, new, left_out, moved=True))
            self.count["key changes"] += 1
            del self.now[key]
            self.now[self.key_of(new)] = new
            return seq + 2
        rows.append(self.emit("UPDATE", lsn, seq + 1, new, left_out))
        self.now[key] = new
        return seq + 1

    def copy(self, past):
        """A full copy at a past position appears in the lake now."""
        position, state, clock = past
        if self.copied is not None and position <= self.copied:
            return
        present, self.clock = self.clock, clock
        self.rows.append(self.emit("TRUNCATE", position, -1))
        self.rows += [self.emit("SNAPSHOT", position, 0, row) for row in state.values()]
        self.clock = present
        self.copied, self.copied_dt = position, str(clock.date())
        self.count["copies behind"] += position < self.through

    def copy_late(self):
        self.copy(self.chance.choice(self.pasts[-8:]))

    def lose_slot(self):
        for _ in range(self.chance.randint(1, 4)):
            self.transaction(lost=True)
        mended = self.pasts[-1]
        for _ in range(self.chance.randint(0, 3)):
            self.transaction()
        self.copy(mended)

    def truth(self):
        return canonical(
            [
                [None if row[c] in ENDLESS else row[c] for c in self.columns] + [{c: row[c] for c in self.columns if row[c] in ENDLESS}]
                for row in self.now.values()
            ],
            self.columns,
        )


def canonical(rows, columns):
    def cell(kind, value):
        return None if value is None else str(decimal.Decimal(value).normalize() + 0) if kind == "NUMERIC" else str(value)

    return sorted(
        ((tuple(cell(kind, value) for kind, value in zip(columns.values(), row)), tuple(sorted((row[len(columns)] or {}).items()))) for row in rows),
        key=repr,
    )


class History:
    def __init__(self, stack, generator, seed):
        self.chance = random.Random(seed)
        self.kind, self.soft = list(KINDS)[seed % 3], seed // 3 % 2 == 1
        self.table = Table(self.chance, self.kind)
        self.query, self.generate = stack.query, generator
        for dataset in ("raw", "silver"):
            self.query(f"CREATE SCHEMA IF NOT EXISTS `{stack.project}.{dataset}`")
        self.lake = Lake(stack.scratch / f"history{seed}")
        self.lake_table = LakeTable(self.lake, f"h{seed}", self.table.columns, self.table.key)
        self.target = f"`{stack.project}.silver.h{seed}`"
        self.state = f"`{stack.project}.silver.huella_merges`"
        self.written, self.merges, self.comparisons = 0, 0, 0

    def run(self):
        table, chance = self.table, self.chance
        if chance.random() < 0.85:
            for _ in range(chance.randint(0, 6)):
                table.transaction(lost=True)
        table.copy(table.pasts[-1])
        cuts = []
        for window in range(chance.randint(3, 5)):
            for _ in range(chance.randint(0 if window else 1, 9)):
                draw = chance.random()
                table.lose_slot() if draw < 0.05 else table.copy_late() if draw < 0.12 else table.transaction()
            if window == 2 and chance.random() < 0.3:
                table.copy_late()
            cut, truth = self.cut(), table.truth()
            if window and chance.random() < 0.3:
                for _ in range(3):
                    table.transaction()  # its files are visible before its cut is
            self.flush()
            self.merge(cut)
            self.compare(truth, f"cut {cut['through']}")
            before = self.everything()
            draw = chance.random()
            if draw < 0.25:
                self.merge(cut)
                self.unchanged(before, "the same cut again")
            elif draw < 0.4 and cuts:
                self.merge(chance.choice(cuts))
                self.unchanged(before, "an old cut")
            elif draw < 0.65 and cuts:
                self.query(
                    f"DELETE FROM {self.state} WHERE table_name = '{self.lake_table.source}' AND merged_lsn > {chance.choice(cuts)['through']}"
                )
                if chance.random() < 0.6:
                    self.merge(cut)
                    self.unchanged(before, "a window that overlaps")
            cuts.append(cut)

    def cut(self):
        table = self.table
        return {
            "through": table.through,
            "commit": "c",
            "dt": str(table.clock.date()),
            "tables": {self.lake_table.source: {"version": 1, "snapshot": table.copied, "snapshot_dt": table.copied_dt}},
        }

    def flush(self):
        rows = self.table.rows[self.written :]
        self.written = len(self.table.rows)
        self.chance.shuffle(rows)
        self.lake_table.write(rows)
        if rows and self.chance.random() < 0.1:
            self.lake_table.write(rows)  # the same rows twice: harmless with a key
        self.lake_table.publish()

    def merge(self, cut):
        wanted = self.generate(self.lake.generated([self.lake_table]), self.lake_table.source, cut, soft=self.soft)
        self.query(wanted["raw"])
        self.query(wanted["script"])
        self.merges += 1

    def everything(self):
        return sorted(self.query(f"SELECT * FROM {self.target}"), key=repr)

    def unchanged(self, before, what):
        if self.everything() != before:
            raise Wrong(f"{self.kind}{', soft' if self.soft else ''}: {what} changed silver")

    def compare(self, truth, what):
        names = ", ".join(f"`{name}`" for name in self.table.columns)
        rows = self.query(f"SELECT {names}, `_exceptions` FROM {self.target}{' WHERE NOT `_deleted`' if self.soft else ''}")
        got = canonical([list(row[:-1]) + [json.loads(row[-1]) if row[-1] else None] for row in rows], self.table.columns)
        self.comparisons += 1
        if got != truth:
            raise Wrong(
                f"{self.kind}{', soft' if self.soft else ''}, {what}: only silver has {[r for r in got if r not in truth]}, only the truth has {[r for r in truth if r not in got]}"
            )


def play(stack, generator, seeds):
    """Totals of all histories; raises at the first that fails."""
    total = collections.Counter()
    for seed in seeds:
        history = History(stack, generator, seed)
        try:
            history.run()
        except Exception as error:
            raise Wrong(f"seed {seed}: {error}") from error
        total.update(history.table.count)
        total.update({"histories": 1, "merges": history.merges, "comparisons": history.comparisons})
    return total
