"""Silver against the source, cell for cell, through a real lake of huella's.

    lake_e2e.py --huella BINARY                                                     makes all of it: a private PostgreSQL with the demo's tables, and day after
                                                                                    day `huella run`, changes, and `huella daily`
    lake_e2e.py --huella BINARY --lake DIR --tables huella_tables.json --dsn DSN    a lake that is there, published; its source must stand still

Rules are left out (the foundation's have their own proof), so that silver must be the source itself. What is merged is what `huella dataform run`
hands over: service.py stands for Dataform's service.
"""

import argparse
import decimal
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import psycopg

from claims import claim
from postgres import PINS, Postgres
from project import Project
from service import REPOSITORY_NAME, Service
from stack import REPOSITORY, Stack, die_with_parent
from values import canonical, selected

COMMAND_SECONDS = 300  # of one command of huella's: a daily job with its merges takes twenty on an idle machine


def quoted_name(table):
    return ".".join('"' + part.replace('"', '""') + '"' for part in table["source"].split(".", 1))


def of_source(column):
    name = '"' + column["source"].replace('"', '""') + '"'
    return f"pg_catalog.to_jsonb({name})::text" if column["postgres"].endswith("[]") else f"{name}::text"


def rows_of_silver(query, tables, table, columns):
    path = f"`{tables['project']}.{tables['silver_dataset']}.{table['name']}`"
    cells = ", ".join(selected(column["name"], column["silver"]) for column in columns)
    for row in query(f"SELECT {cells}, `_exceptions` FROM {path}"):
        exceptions = json.loads(row[-1]) if row[-1] else {}
        yield tuple(
            exceptions.get(column["name"], canonical("JSON" if column["postgres"].endswith("[]") and cell else column["silver"], cell))
            for column, cell in zip(columns, row)
        )


def rows_of_source(connection, table, columns):
    for row in connection.execute(f"SELECT {', '.join(map(of_source, columns))} FROM {quoted_name(table)}"):
        cells = []
        for column, cell in zip(columns, row):
            try:
                cells.append(canonical("JSON" if column["postgres"].endswith("[]") else column["silver"], cell))
            except (ValueError, decimal.InvalidOperation):
                cells.append(cell)
        yield tuple(cells)


def differences(query, tables, dsn):
    """(rows compared, what differs). Tables without a key hold a history in silver and are left to `huella verify`."""
    wrong, count = [], 0
    with psycopg.connect(dsn, options=PINS, autocommit=True) as connection:
        for table in tables["tables"]:
            if not table["key"]:
                continue
            # A column that was dropped at the source stays in silver: it is in older files.
            there = "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = pg_catalog.to_regclass(%s) AND NOT attisdropped"
            names = {row[0] for row in connection.execute(there, (quoted_name(table),))}
            columns = [column for column in table["columns"] if column["source"] in names]
            got, want = sorted(rows_of_silver(query, tables, table, columns), key=repr), sorted(rows_of_source(connection, table, columns), key=repr)
            count += len(want)
            if got != want:
                extra, missing = [row for row in got if row not in want], [row for row in want if row not in got]
                wrong.append(
                    f"{table['source']}: {len(extra)} rows only in silver, {len(missing)} only at the source; first: {extra[:1]} {missing[:1]}"
                )
    return count, wrong


class Huella:
    """The program, at home in a folder with its configuration."""

    def __init__(self, binary, home, lake, source, settings="", slot="huella"):
        self.binary, self.home, self.lake = str(pathlib.Path(binary).resolve()), home, pathlib.Path(lake)
        home.mkdir()
        (home / "huella.toml").write_text(
            f'[source]\nurl = {json.dumps(source)}\nslot = "{slot}"\npublication = "{slot}"\n[lake]\nurl = {json.dumps(str(lake))}\n[http]\nlisten = ""\n'
            f'[bigquery]\nproject = "p"\nlocation = "us-central1"\n{settings}'
        )

    def __call__(self, *arguments, service=None):
        """Standard output; raises with the log if it fails."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HUELLA_", "PG")) and name not in ("PORT", "STORAGE_EMULATOR_HOST")
        }
        if service:
            clean |= {
                "HUELLA_DATAFORM_REPOSITORY": REPOSITORY_NAME,
                "HUELLA_DATAFORM_GIT_COMMITISH": "main",
                "HUELLA_DATAFORM_TAGS": "silver",
                "HUELLA_DATAFORM_ENDPOINT": service.url,
            }
        done = subprocess.run(
            [self.binary, *arguments],
            cwd=self.home,
            env=clean,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            preexec_fn=die_with_parent,
        )
        if done.returncode:
            merged = f"\n{service.output[-3000:]}" if service and service.output else ""
            raise AssertionError(f"huella {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr[-3000:]}{merged}")
        return done.stdout


class Silver:
    """A Dataform project over one lake, and the service that runs it."""

    def __init__(self, stack, tables, folder="project"):
        self.stack = stack
        self.project = Project(stack.scratch / folder)
        (self.project.folder / "includes/cleaning.js").write_text("module.exports = {};\n")
        shutil.rmtree(self.project.folder / "definitions/gold")
        self.learn(tables)
        stack.project = stack.query.project = self.tables["project"]
        for dataset in (self.tables["raw_dataset"], self.tables["silver_dataset"], "silver_assertions"):
            stack.query(f"CREATE SCHEMA IF NOT EXISTS `{stack.project}.{dataset}`")
        self.service = Service(self.project, stack)

    def learn(self, tables):
        """A new huella_tables.json is committed."""
        self.tables = json.loads(pathlib.Path(tables).read_text())
        self.project.set_tables(self.tables)

    def equal(self, dsn):
        """How many rows were compared."""
        count, wrong = differences(self.stack.query, self.tables, dsn)
        if wrong:
            raise AssertionError("\n".join(wrong))
        return count


# Kinds that the demo's tables do not have, values that end in exceptions, values that are left out of updates.
KINDS = """
    CREATE TABLE tipos (id bigint, dia date, texto text, n numeric, n2 numeric(12,3), f8 float8, b bool, j json, jb jsonb, ts timestamp, tz timestamptz,
                        by bytea, a int[], t text[], u uuid, iv interval, PRIMARY KEY (id, dia));
    ALTER TABLE tipos ALTER texto SET STORAGE EXTERNAL, ALTER j SET STORAGE EXTERNAL, ALTER by SET STORAGE EXTERNAL;
    INSERT INTO tipos SELECT g, date '2026-01-01' + g, repeat(md5(g::text), 100), g / 7.0, g / 8.0, g / 3.0::float8, g % 2 = 0, json_build_object('g', g, 'text', repeat('ñ"', 3000)),
        jsonb_build_array(g, NULL, 'é'), timestamp '2026-01-01' + g * interval '1.000001 s', timestamptz '2026-01-01 00:00+05' + g * interval '1 h', decode(repeat(md5(g::text), 200), 'hex'),
        ARRAY[g, NULL], ARRAY['a"b', NULL], md5(g::text)::uuid, g * interval '1 h 2 s' FROM generate_series(1, 40) g;
    INSERT INTO tipos (id, dia, n, ts, tz, f8, j, jb, n2) VALUES (1, 'infinity', 'NaN', 'infinity', '-infinity', 'NaN', 'null', 'null', NULL), (2, '-infinity', 12345678901234567890.123456789, '0044-03-15 BC', NULL, 1e300, '[]', '{}', -0.001);
    -- A key that is stored out of line.
    CREATE TABLE enlaces (url text PRIMARY KEY, visitas int, pagina text);
    ALTER TABLE enlaces ALTER url SET STORAGE EXTERNAL, ALTER pagina SET STORAGE EXTERNAL;
    INSERT INTO enlaces SELECT (SELECT string_agg(md5((i * 100 + g)::text), '') FROM generate_series(1, 68) i), g, repeat(md5(g::text), 100) FROM generate_series(1, 20) g;
"""

CHANGES = """
    UPDATE tipos SET f8 = f8 + 1 WHERE id % 3 = 0;
    UPDATE tipos SET id = id + 1000 WHERE id % 5 = 0;
    UPDATE tipos SET dia = 'infinity', n = 'NaN' WHERE id = 7;
    UPDATE tipos SET b = NOT b WHERE id < 10;
    UPDATE tipos SET n = 1 WHERE dia = '-infinity';
    DELETE FROM tipos WHERE id % 11 = 0;
    UPDATE donaciones SET monto = monto + 0.01, estado = 'aprobada' WHERE id_donacion % 5 = 0;
    UPDATE casos SET id_caso = id_caso + 100000 WHERE id_caso > 590 AND NOT EXISTS (SELECT 1 FROM donaciones d WHERE d.id_caso = casos.id_caso) AND NOT EXISTS (SELECT 1 FROM gastos g WHERE g.id_caso = casos.id_caso);
    DELETE FROM gastos WHERE id_gasto % 7 = 0;
    INSERT INTO donantes (donante, tipo_id) VALUES ('Ñ "q" \\ ''', NULL);
    UPDATE donantes SET notas = repeat(md5(id_donante::text), 300) WHERE id_donante < 20;
    UPDATE donantes SET donante = donante || '!' WHERE id_donante < 30;
    UPDATE proveedores SET ciudad = NULL WHERE id_proveedor = 3;
    DELETE FROM donaciones WHERE id_donacion BETWEEN 100 AND 200;
    UPDATE enlaces SET visitas = visitas + 1;
    UPDATE enlaces SET url = left(url, 2170) || visitas WHERE visitas % 4 = 0;
"""


# Shapes that stay in a version (a column added, one dropped) and shapes that begin another (a type, a name, a key).
SHAPES = """
    ALTER TABLE donaciones ADD nota text;
    UPDATE donaciones SET nota = 'añadida ' || id_donacion WHERE id_donacion % 3 = 0;
    ALTER TABLE casos DROP COLUMN archivo;
    ALTER TABLE gastos ALTER monto TYPE text;
    ALTER TABLE donantes RENAME COLUMN notas TO apuntes;
    ALTER TABLE tipos ADD z int NOT NULL DEFAULT 0, DROP CONSTRAINT tipos_pkey, ADD PRIMARY KEY (id, dia, z);
    UPDATE gastos SET monto = monto || ' COP' WHERE id_gasto % 2 = 0;
"""

SETTINGS = '[batch]\nheartbeat = "1s"\n' + "".join(
    f'[[table]]\nname = "public.{name}"\n{mode}'
    for name, mode in [(name, "") for name in ("donantes", "casos", "donaciones", "gastos", "tipos", "enlaces")]
    + [(name, 'mode = "snapshot"\n') for name in ("hogar_de_paso", "proveedores")]
)


class Days:
    """A source, its lake and silver, day after day: the claims build upon each other, in their order."""

    def __init__(self, stack, server, binary):
        self.stack, self.server, self.silver = stack, server, None
        self.home = stack.scratch / "home"
        self.source = f"postgresql://postgres@127.0.0.1:{server.port}/postgres?sslmode=disable"
        self.huella = Huella(binary, self.home, stack.scratch / "lake", self.source, SETTINGS)
        server.run(*((REPOSITORY / "deploy/demo" / file).read_text() for file in ("schema.sql", "data.sql")), KINDS)

    def generate(self):
        self.huella("dataform", "generate", "--out", str(self.home))
        return self.home / "huella_tables.json"

    def daily(self):
        """The daily job, with what it merged seen through; figures."""
        before = len(self.silver.service.invocations)
        self.huella("daily", service=self.silver.service)
        if len(self.silver.service.invocations) != before + 1:
            raise AssertionError(f"{len(self.silver.service.invocations) - before} merges")
        return f"{self.silver.equal(self.server.dsn)} rows at {json.loads(self.silver.service.variables[-1])['through']}"

    def first_copy(self):
        """After the first copy silver is the source, cell for cell"""
        self.huella("run", "--until-caught-up")
        self.huella("snapshot")
        self.silver = Silver(self.stack, self.generate())
        return self.daily()

    def one_day(self):
        """After a day of changes, deletes, key changes, large values left out, catalogues that changed: the same"""
        self.server.run(CHANGES)
        self.huella("run", "--until-caught-up")
        return self.daily()

    def another_day(self):
        """And after another"""
        return self.one_day()

    def forgotten(self):
        """A person who is forgotten before her deletion was merged leaves silver with the next merge, and the lake after it"""
        hers = "SELECT COUNT(*) FROM `p.silver.enlaces` WHERE url = 'persona'"
        self.server.run("INSERT INTO enlaces VALUES ('persona', 1, 'persona')")
        self.huella("run", "--until-caught-up")
        self.daily()
        before = self.stack.query(hers)
        self.server.run("DELETE FROM enlaces WHERE url = 'persona'", CHANGES)
        self.huella("run", "--until-caught-up")
        self.huella("forget", "public.enlaces", "persona")
        waiting = lambda: [len(json.loads(path.read_text()).get("waiting", [])) for path in (self.huella.lake / "state/forgotten").iterdir()]
        figures, counts = self.daily(), [waiting()]
        after = self.stack.query(hers)
        self.server.run(CHANGES)
        self.huella("run", "--until-caught-up")
        self.daily()
        counts.append(waiting())
        if [[tuple(row) for row in rows] for rows in (before, after)] != [[("1",)], [("0",)]] or counts != [[1], [0]]:
            raise AssertionError(f"in silver {before}, then {after}; DELETE rows that wait {counts}")
        return figures

    def late(self):
        """A merge that comes late, over three cuts and a TRUNCATE, finds everything"""
        for day in range(2):
            self.server.run(CHANGES, *([(REPOSITORY / "deploy/demo/truncate.sql").read_text()] if day else []))
            self.huella("run", "--until-caught-up")
            self.huella("publish")
        return self.one_day()

    def again(self):
        """The same cut again: huella starts no second run, and one started by hand changes nothing"""
        everything = lambda: {
            table["name"]: sorted(self.stack.query(f"SELECT * FROM `p.silver.{table['name']}`"), key=repr) for table in self.silver.tables["tables"]
        }
        before, runs = everything(), len(self.silver.service.invocations)
        said = self.huella("dataform", "run", service=self.silver.service)
        if "merged already" not in said or len(self.silver.service.invocations) != runs:
            raise AssertionError(f"a second run of one cut: {said}")
        _, text, code = self.silver.project.run(self.stack, "--tags", "silver")
        if code or everything() != before:
            raise AssertionError(f"a run by hand ended with {code}, silver {'is the same' if everything() == before else 'changed'}: {text[-1000:]}")

    def copied_anew(self):
        """A lost slot, changes that nobody streamed, and a new copy: silver is filled anew from it"""
        self.server.run("SELECT pg_drop_replication_slot('huella')", CHANGES)
        self.huella("run", "--until-caught-up", "--resnapshot")
        self.server.run(CHANGES)
        self.huella("run", "--until-caught-up")
        return self.daily()

    def other_shapes(self):
        """Columns added and dropped, types, names and keys changed: refused until the project knows the new versions, then the same"""
        self.server.run(SHAPES)
        self.huella("run", "--until-caught-up")
        try:
            self.huella("daily", service=self.silver.service)
        except AssertionError as refusal:
            if "huella dataform generate" not in str(refusal):
                raise
        else:
            raise AssertionError("versions that the project does not know were merged")
        self.silver.learn(self.generate())
        versions = {table["name"]: table["version"] for table in self.silver.tables["tables"]}
        if {name for name, version in versions.items() if version > 1} != {"gastos", "donantes", "tipos"}:
            raise AssertionError(f"versions are {versions}")
        return self.daily()

    def adopted(self):
        """A lake that began without a copy: a table without a row yet is merged, and then its first rows"""
        home, only = self.stack.scratch / "adopted", '[snapshot]\ninitial = false\n[[table]]\nname = "public.vacia"\n'
        huella = Huella(self.huella.binary, home, self.stack.scratch / "adopted-lake", self.source, only, slot="adopted")
        self.server.run("CREATE TABLE vacia (id int PRIMARY KEY, v text)")
        huella("run", "--until-caught-up")
        counts, silver = [], None
        # The first change concerns another table: the position moves, and the lake has its first commit.
        for change in ("INSERT INTO donantes (donante) VALUES ('x')", "INSERT INTO vacia SELECT i, 'v' || i FROM generate_series(1, 9) i"):
            self.server.run(change)
            huella("run", "--until-caught-up")
            huella("publish")
            if not silver:
                huella("dataform", "generate", "--out", str(home))
                silver = Silver(self.stack, home / "huella_tables.json", "adopted-project")
            huella("dataform", "run", service=silver.service)
            counts.append(silver.equal(self.server.dsn))
        return f"{counts[0]} rows, then {counts[1]}"

    CLAIMS = [first_copy, one_day, another_day, forgotten, late, again, copied_anew, other_shapes, adopted]


def made_lake(binary):
    """Whether every claim holds. Each goes on from where the last one ended: after a false one the rest would mislead."""
    with Stack() as stack:
        server = Postgres(stack.scratch / "postgres")
        try:
            days = Days(stack, server, binary)
            return all(claim(check.__doc__, lambda check=check: check(days)) for check in Days.CLAIMS)
        finally:
            server.stop()


def given_lake(binary, lake, tables, dsn):
    with Stack() as stack:
        # What is published is enough; the lake's own record of Dataform runs stays as it is.
        published = stack.scratch / "lake/published"
        published.mkdir(parents=True)
        shutil.copy(pathlib.Path(lake) / "published/cut.json", published)
        # How old it is is not the question here.
        patient = '[dataform]\nmax_age = "36500days"\n'
        huella = Huella(binary, stack.scratch / "home", stack.scratch / "lake", "postgresql://nobody@127.0.0.1:1/none", patient)

        def merged():
            silver = Silver(stack, tables)
            huella("dataform", "run", service=silver.service)
            return f"{silver.equal(dsn)} rows"

        return claim("Silver is the source, cell for cell", merged)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--huella", required=True, help="a huella binary")
    parser.add_argument("--lake", help="a lake's directory, with published/ in it")
    parser.add_argument("--tables", help="huella_tables.json, as `huella dataform generate` wrote it")
    parser.add_argument("--dsn", help="the source, standing still")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = arguments.lake, arguments.tables, arguments.dsn
    if any(given) and not all(given):
        parser.error("all of --lake, --tables and --dsn, or none of them")
    return 0 if (given_lake(arguments.huella, *given) if all(given) else made_lake(arguments.huella)) else 1


if __name__ == "__main__":
    sys.exit(main())
