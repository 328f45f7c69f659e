"""Silver against the source, cell for cell, through a real lake of huella's.

    lake_e2e.py --lake DIR --tables huella_tables.json --dsn DSN    a lake that is there, published; its source must stand still
    lake_e2e.py --huella BINARY                                     makes all of it: a private PostgreSQL with the demo's tables, `huella run`,
                                                                    `publish` and `dataform generate`, the demo's live changes, and again

Rules are left out (the foundation's have their own proof), so that silver must be the source itself.
"""

import argparse
import decimal
import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time

import psycopg

from project import Project
from stack import REPOSITORY, Stack, die_with_parent
from values import canonical, selected

# What huella's own sessions pin, so that text means the same on both sides.
PINS = "-c DateStyle=ISO -c IntervalStyle=postgres -c TimeZone=UTC -c extra_float_digits=3 -c bytea_output=hex -c lc_monetary=C"
COMMAND_SECONDS = 180


def variable(cut):
    """published/cut.json as the compilation variable huella_cut: LSNs as numbers, the commit's date."""
    number = lambda lsn: None if lsn is None else (int(lsn.split("/")[0], 16) << 32) + int(lsn.split("/")[1], 16)
    return {
        "through": number(cut["through"]),
        "commit": cut["commit"],
        "dt": cut["commit_time"][:10],
        "tables": {
            name: {
                "version": table["version"],
                "snapshot": number(table.get("snapshot")),
                "snapshot_dt": table.get("snapshot_dt"),
                "from_dt": {str(number(lsn)): day for lsn, day in table.get("from_dt", {}).items()},
            }
            for name, table in cut["tables"].items()
        },
    }


def of_source(column):
    name = '"' + column["source"].replace('"', '""') + '"'
    return f"pg_catalog.to_jsonb({name})::text" if column["postgres"].endswith("[]") else f"{name}::text"


def rows_of_silver(query, tables, table):
    columns = table["columns"]
    path = f"`{tables['project']}.{tables['silver_dataset']}.{table['name']}`"
    cells = ", ".join(selected(column["name"], column["silver"]) for column in columns)
    for row in query(f"SELECT {cells}, `_exceptions` FROM {path}"):
        exceptions = json.loads(row[-1]) if row[-1] else {}
        yield tuple(
            exceptions.get(column["name"], canonical("JSON" if column["postgres"].endswith("[]") and cell else column["silver"], cell))
            for column, cell in zip(columns, row)
        )


def rows_of_source(connection, table):
    columns = table["columns"]
    schema, name = table["source"].split(".", 1)
    quoted = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name))
    for row in connection.execute(f"SELECT {', '.join(map(of_source, columns))} FROM {quoted}"):
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
            got, want = sorted(rows_of_silver(query, tables, table), key=repr), sorted(rows_of_source(connection, table), key=repr)
            count += len(want)
            if got != want:
                extra, missing = [row for row in got if row not in want], [row for row in want if row not in got]
                wrong.append(
                    f"{table['source']}: {len(extra)} rows only in silver, {len(missing)} only at the source; first: {extra[:1]} {missing[:1]}"
                )
    return count, wrong


class Silver:
    """A Dataform project over one lake, run again for each published cut."""

    def __init__(self, stack, lake, tables):
        self.stack, self.lake = stack, pathlib.Path(lake)
        self.tables = json.loads(pathlib.Path(tables).read_text())
        stack.project = stack.query.project = self.tables["project"]
        self.project = Project(stack.scratch / "project", self.tables)
        (self.project.folder / "includes/cleaning.js").write_text("module.exports = {};\n")
        shutil.rmtree(self.project.folder / "definitions/gold")
        for dataset in (self.tables["raw_dataset"], self.tables["silver_dataset"], "silver_assertions"):
            stack.query(f"CREATE SCHEMA IF NOT EXISTS `{self.tables['project']}.{dataset}`")

    def merge(self):
        cut = json.loads((self.lake / "published/cut.json").read_text())
        self.project.set_cut(variable(cut))
        actions, text, code = self.project.run(self.stack, "--tags", "silver")
        if code:
            raise AssertionError(f"dataform run ended with {code}:\n{text[-3000:]}")
        return cut["through"]

    def equal(self, dsn):
        count, wrong = differences(self.stack.query, self.tables, dsn)
        if wrong:
            raise AssertionError("\n".join(wrong))
        return count


class Postgres:
    """A server of our own on the loopback. It refuses to run as root, so root lends it to another user."""

    def __init__(self, folder):
        self.folder, self.lend = pathlib.Path(folder), []
        candidates = [
            shutil.which("initdb") or "",
            *map(str, pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")),
            *map(str, (REPOSITORY / ".stack").glob("pg*/native/bin/initdb")),
        ]
        found = [path for path in candidates if path and os.path.exists(path)]
        if not found:
            raise SystemExit("no PostgreSQL found: tests/setup.sh installs it")
        self.bin = pathlib.Path(found[-1]).resolve().parent
        self.folder.mkdir(mode=0o755)
        if os.getuid() == 0:
            user = next((name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()}))
            entry = pwd.getpwnam(user)
            # With the new user the kernel forgets what die_with_parent asked for.
            self.lend = ["setpriv", "--pdeathsig=KILL", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
            for parent in (self.folder, *self.folder.parents):
                if parent == pathlib.Path("/tmp"):
                    break
                parent.chmod(parent.stat().st_mode | 0o055)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        data = self.folder / "data"
        subprocess.run(
            [*self.lend, self.bin / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        with open(data / "postgresql.conf", "a", encoding="utf-8") as settings:
            settings.write(f"listen_addresses='127.0.0.1'\nport={self.port}\nunix_socket_directories=''\nwal_level=logical\nfsync=off\n")
        self.process = subprocess.Popen(
            [*self.lend, self.bin / "postgres", "-D", data],
            stdout=subprocess.DEVNULL,
            stderr=open(self.folder / "log", "wb"),
            preexec_fn=die_with_parent,
            cwd="/",
        )
        self.dsn = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
        end = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.dsn).close()
                break
            except psycopg.OperationalError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise
                time.sleep(0.1)

    def run(self, *files):
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for file in files:
                connection.execute((REPOSITORY / "deploy/demo" / file).read_text())

    def stop(self):
        self.process.send_signal(signal.SIGQUIT)  # at once: nothing here is kept
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# Kinds that the demo's tables do not have, values that end in exceptions, values that are left out of updates.
KINDS = """
    CREATE TABLE tipos (id bigint, dia date, texto text, n numeric, n2 numeric(12,3), f8 float8, b bool, j json, jb jsonb, ts timestamp, tz timestamptz,
                        by bytea, a int[], t text[], u uuid, iv interval, PRIMARY KEY (id, dia));
    ALTER TABLE tipos ALTER texto SET STORAGE EXTERNAL, ALTER j SET STORAGE EXTERNAL, ALTER by SET STORAGE EXTERNAL;
    INSERT INTO tipos SELECT g, date '2026-01-01' + g, repeat(md5(g::text), 100), g / 7.0, g / 8.0, g / 3.0::float8, g % 2 = 0, json_build_object('g', g, 'text', repeat('ñ"', 3000)),
        jsonb_build_array(g, NULL, 'é'), timestamp '2026-01-01' + g * interval '1.000001 s', timestamptz '2026-01-01 00:00+05' + g * interval '1 h', decode(repeat(md5(g::text), 200), 'hex'),
        ARRAY[g, NULL], ARRAY['a"b', NULL], md5(g::text)::uuid, g * interval '1 h 2 s' FROM generate_series(1, 40) g;
    INSERT INTO tipos (id, dia, n, ts, tz, f8, j, jb, n2) VALUES (1, 'infinity', 'NaN', 'infinity', '-infinity', 'NaN', 'null', 'null', NULL), (2, '-infinity', 12345678901234567890.123456789, '0044-03-15 BC', NULL, 1e300, '[]', '{}', -0.001);
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
"""


def made_lake(binary):
    with Stack() as stack:
        server = Postgres(stack.scratch / "postgres")
        try:
            server.run("schema.sql", "data.sql")
            with psycopg.connect(server.dsn, autocommit=True) as connection:
                connection.execute(KINDS)
            lake = stack.scratch / "lake"
            home = stack.scratch / "home"
            home.mkdir()
            (home / "huella.toml").write_text(
                f'[source]\nurl = "postgresql://postgres@127.0.0.1:{server.port}/postgres?sslmode=disable"\n[lake]\nurl = "{lake}"\n[http]\nlisten = ""\n'
                '[bigquery]\nproject = "p"\nlocation = "us-central1"\n'
            )

            def huella(*arguments):
                clean = {
                    name: value
                    for name, value in os.environ.items()
                    if not name.startswith(("HUELLA_", "PG")) and name not in ("PORT", "STORAGE_EMULATOR_HOST")
                }
                done = subprocess.run(
                    [binary, *arguments], cwd=home, env=clean, capture_output=True, text=True, timeout=COMMAND_SECONDS, preexec_fn=die_with_parent
                )
                if done.returncode:
                    raise AssertionError(f"huella {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")

            def step(what, silver, again=False):
                if not again:
                    huella("run", "--until-caught-up")
                    huella("publish")
                if silver is None:
                    huella("dataform", "generate", "--out", str(home))
                    silver = Silver(stack, lake, home / "huella_tables.json")
                through = silver.merge()
                print(f"holds  {what}: {silver.equal(server.dsn)} rows at {through}", flush=True)
                return silver

            silver = step("After the first copy silver is the source, cell for cell", None)
            for _ in range(2):
                with psycopg.connect(server.dsn, autocommit=True) as connection:
                    connection.execute(CHANGES)
                step("After changes, deletes, key changes and large values left out", silver)
            step("The same cut again", silver, again=True)
        finally:
            server.stop()


def given_lake(lake, tables, dsn):
    with Stack() as stack:
        silver = Silver(stack, lake, tables)
        through = silver.merge()
        print(f"holds  Silver is the source, cell for cell: {silver.equal(dsn)} rows at {through}")


def said(check):
    """The exit code; a false claim is said in one line."""
    try:
        check()
    except AssertionError as error:
        print(f"FALSE  Silver is the source: {error}", flush=True)
        return 1
    return 0


def prove(binary):
    return said(lambda: made_lake(str(pathlib.Path(binary).resolve())))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--huella", help="a huella binary: make everything")
    parser.add_argument("--lake", help="a lake's directory, with published/ in it")
    parser.add_argument("--tables", help="huella_tables.json, as `huella dataform generate` wrote it")
    parser.add_argument("--dsn", help="the source, standing still")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.huella:
        return prove(arguments.huella)
    if not (arguments.lake and arguments.tables and arguments.dsn):
        parser.error("--huella, or all of --lake, --tables and --dsn")
    return said(lambda: given_lake(arguments.lake, arguments.tables, arguments.dsn))


if __name__ == "__main__":
    sys.exit(main())
