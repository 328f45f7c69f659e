"""The whole chain on the foundation's tables: lake, `dataform run`, silver, checks, gold. And what surrounds it: manifests, what a merge reads."""

import base64
import datetime
import decimal
import json
import os
import re

import expected
import foundation
import grammar
from bigquery import QueryFailed
from foundation import Foundation
from project import Project

DATASETS = ("raw", "silver", "gold", "silver_assertions")


def require(truth, what):
    if not truth:
        raise AssertionError(what)


def run(project, stack, *tags):
    actions, text, code = project.run(stack, "--tags", *tags)
    failed = sorted(name for name, verdict in actions.items() if verdict != "passed")
    require(code == 0 and actions and not failed, f"dataform run ended with {code}; not passed: {failed}\n{text[-1500:]}")
    return actions


def everything(stack):
    """All of silver, to see that nothing changed. The state's own rows are left out: each run adds to them."""
    return {table: sorted(stack.query(f"SELECT * FROM `p.silver.{table}`"), key=repr) for table in foundation.TABLES}


class Chain:
    """A source, its lake and a Dataform project, in one emulator. The claims build upon each other, in their order."""

    def __init__(self, stack):
        self.stack = stack
        for dataset in DATASETS:
            stack.query(f"CREATE SCHEMA IF NOT EXISTS `p.{dataset}`")
        # The bucket is a folder below the proxy's root, so that URIs are those of Cloud Storage.
        self.source = Foundation(stack.scratch / "bucket/prefix", url="gs://bucket/prefix")
        self.source.fill()
        self.cut = self.source.publish()
        self.project = Project(stack.scratch / "project", self.source.generated(), self.cut)

    def same(self):
        silver = expected.silver_differences(self.stack.query, self.source)
        require(not silver, "\n".join(silver))
        return sum(map(len, self.source.rows.values()))

    def same_gold(self):
        wrong = expected.gold_differences(self.stack.query, self.source, self.cut["dt"])
        require(not wrong, "\n".join(wrong))

    def day(self):
        self.source.work()
        self.source.copy_catalogues()
        self.cut = self.source.publish()
        self.project.set_cut(self.cut)

    def compiles(self):
        """The project compiles without errors or warnings, with a cut and without; every statement is BigQuery's grammar; every table and column is described"""
        statements = 0
        example = Project(self.stack.scratch / "example")
        for project in (example, self.project):
            graph, faults = project.compile()
            require(not faults, "\n".join(faults))
            for kind in ("tables", "operations", "assertions"):
                for action in graph[kind]:
                    for query in action.get("queries") or [action["query"]]:
                        count, wrong = grammar.faults(query)
                        require(not wrong, f"{action['target']['name']}: {wrong}")
                        statements += count
                    schema = action["target"]["schema"]
                    described = action.get("actionDescriptor", {})
                    # Dataform describes only what it makes itself: silver's own statements must say it.
                    if (kind, schema) == ("operations", "silver") and action["target"]["name"] != "huella_merges":
                        unsaid = [column["path"][0] for column in described["columns"] if not self.says(action["queries"][0], column)]
                        require(not unsaid, f"{action['target']['name']}: the DDL does not describe {unsaid}")
                    require(schema == "raw" or described.get("description"), f"{schema}.{action['target']['name']} has no description")
                    require(
                        schema not in ("silver", "gold") or all(column.get("description") for column in described["columns"]),
                        f"{schema}.{action['target']['name']} has a column without description",
                    )
        return f"{statements} statements"

    @staticmethod
    def says(script, column):
        [name], text = column["path"], column["description"].replace("\\", "\\\\").replace("'", "\\'")
        return re.search(rf"`{name}` \w+ OPTIONS \(description = '{re.escape(text)}'\)", script)

    def first_run(self):
        """First run: silver is the source, cleaned, cell for cell"""
        run(self.project, self.stack, "silver", "gold")
        # What gold's tables really have is what their descriptions name.
        graph, _ = self.project.compile()
        for action in graph["tables"]:
            name = action["target"]["name"]
            columns = set(
                row[0] for row in self.stack.query(f"SELECT column_name FROM `p.gold`.INFORMATION_SCHEMA.COLUMNS WHERE table_name = '{name}'")
            )
            described = {column["path"][0] for column in action["actionDescriptor"]["columns"]}
            require(columns == described, f"gold.{name} has {columns ^ described} without description, or described without being there")
        return f"{self.same()} rows"

    def gold(self):
        """Gold's figures are those of plain SQL on the source"""
        self.same_gold()
        return f"{len(expected.FIGURES)} queries"

    def later_runs(self):
        """A day's changes, catalogues copied beyond the cut: silver and gold follow, and nothing is rebuilt"""
        born = dict(self.stack.query("SELECT table_name, MAX(UNIX_MICROS(target_created)) FROM `p.silver.huella_merges` GROUP BY table_name"))
        self.day()
        self.day()
        run(self.project, self.stack, "silver", "gold")
        rows = self.same()
        self.same_gold()
        require(
            born == dict(self.stack.query("SELECT table_name, MAX(UNIX_MICROS(target_created)) FROM `p.silver.huella_merges` GROUP BY table_name")),
            "a target was made anew",
        )
        return f"{rows} rows"

    def again(self):
        """The same cut again, and a run without a cut, change nothing; the one without fails, saying so"""
        before = everything(self.stack)
        run(self.project, self.stack, "silver")
        require(everything(self.stack) == before, "the same cut again changed silver")
        self.project.set_cut(None)
        self.stale("silver", words=["compiled without the variable huella_cut"])
        self.project.set_cut(self.cut)
        require(everything(self.stack) == before, "a run without a cut changed silver")

    def stale(self, *tags, words):
        """A run that fails by its freshness alone, for the reasons given."""
        actions, text, code = self.project.run(self.stack, "--tags", *tags)
        failed = sorted(name for name, verdict in actions.items() if verdict != "passed")
        require(code != 0 and failed == ["silver_assertions.strict_frescura"], f"the run ended with {code}; not passed: {failed}\n{text[-1500:]}")
        missing = [word for word in words if word not in text]
        require(not missing, f"the failure does not say {missing}: {text[-1500:]}")
        return actions

    def frescura(self):
        """{table: state} of gold.frescura, and how many findings of that kind gold.hallazgos has for each"""
        states = dict(self.stack.query("SELECT tabla, estado FROM `p.gold.frescura`"))
        findings = {table: int(count) for table, count in self.stack.query("SELECT tabla, hallazgos FROM `p.gold.hallazgos` WHERE revision = 'frescura'")}
        require(findings == {table: int(state != "al día") for table, state in states.items()}, f"{findings} does not say what {states} says")
        return states

    def freshness(self):
        """An old cut, and a table or a column that the project does not know, fail the run with the reason, show in gold, and leave gold running"""
        require(set(self.frescura().values()) == {"al día"} and len(self.frescura()) == len(foundation.TABLES), f"{self.frescura()}")
        old = {**self.source.generated(), "max_age_seconds": 60}
        cut = {**self.cut, "time": "2001-01-01T00:00:00.000000Z", "tables": {**self.cut["tables"]}}
        cut["tables"]["public.nueva"] = cut["tables"]["public.casos"]
        cut["tables"]["public.gastos"] = {**cut["tables"]["public.gastos"], "columns": "other"}
        del cut["tables"]["public.proveedores"]
        self.project.set_tables(old)
        self.project.set_cut(cut)
        actions = self.stale(
            "silver",
            "gold",
            words=[
                "silver stands at the cut of 2001-01-01 00:00:00",
                "huella status",
                "public.nueva is in the published cut, and includes/huella_tables.json does not have it",
                "public.gastos has other columns",
                "public.proveedores is not in the published cut",
                "huella dataform generate --out includes",
            ],
        )
        require(actions["gold.facts_gastos"] == "passed", "gold stopped")
        states = self.frescura()
        wanted = {"public.nueva": "desconocida", "gastos": "otras columnas", "proveedores": "no publicada", "casos": "atrasada", "hogar_de_paso": "atrasada"}
        require({table: states.get(table) for table in wanted} == wanted, f"{states}")
        # Dataform's own schedule, compiled without the cut, on the limit that huella_tables.json has.
        self.project.set_cut(None)
        self.stale("silver", words=["compiled without the variable huella_cut", "silver stands at the cut of 2006-1"])
        self.project.set_tables(self.source.generated())
        self.project.set_cut(self.cut)

    def places(self):
        """A workspace's run without a cut is not checked for freshness; a location other than the tables' is refused at compilation; the command line takes a cut in base64"""
        workspace = Project(self.stack.scratch / "workspace", self.source.generated())
        workspace.change_settings("datasetSuffix: dev\n")
        graph, faults = workspace.compile()
        checks = [action["target"]["name"] for action in graph["operations"] if action["target"]["name"] == "strict_frescura"]
        require(not faults and not checks, f"a workspace's run would fail, or does not compile: {faults}")
        elsewhere = Project(self.stack.scratch / "elsewhere", {**self.source.generated(), "location": "EU"})
        _, faults = elsewhere.compile()
        require(any("set defaultLocation in workflow_settings.yaml" in fault for fault in faults), f"{faults}")
        cut = base64.b64encode(json.dumps(self.cut).encode()).decode()
        graph, faults = workspace.compile(f"--vars=huella_cut={cut}")
        merges = [query for action in graph["operations"] for query in action["queries"] if f"huella_hi INT64 DEFAULT {self.cut['through']};" in query]
        require(not faults and merges, f"a cut in base64 is not merged: {faults}")

    def reads(self):
        """(files, bytes) that the merge of the cut would read of donaciones, by what its dt filter leaves; and of all its files."""
        graph, _ = self.project.compile()
        [script] = next(
            action["queries"] for action in graph["operations"] if (action["target"]["schema"], action["target"]["name"]) == ("silver", "donaciones")
        )
        # The same script up to the scan, asked where it would begin to read.
        opening = script[: script.index("CREATE OR REPLACE TEMP TABLE")] + "SELECT CAST(huella_from_dt AS STRING);\nEND IF;"
        [(from_dt,)] = self.stack.query(opening)
        sizes = lambda days: [os.path.getsize(self.source.lake.root / path) for path, day in self.source.tables["donaciones"].files if day >= days]
        read, everything = sizes(from_dt), sizes("")
        return (len(read), sum(read)), (len(everything), sum(everything)), from_dt

    def scan(self):
        """What a merge reads grows with the days since the last one, and not with the history; files before its first dt are not read"""
        # Merged once first: after a run without a cut the emulator takes the target for another one (BigQuery does not), and it is filled anew.
        self.day()
        run(self.project, self.stack, "silver")
        self.day()
        one_day, short, _ = self.reads()
        for _ in range(6):
            self.day()
        week, _, _ = self.reads()
        run(self.project, self.stack, "silver")
        self.day()
        # The same transaction in a file of an earlier day, with an amount that the source never had.
        table, lsn = self.source.tables["donaciones"], self.source.through - 1
        poison = table.row(self.source.clock - datetime.timedelta(days=5), _op="UPDATE", _commit_lsn=lsn, _seq=1, id_donacion=1, monto=decimal.Decimal(666))
        table.write([poison])
        table.publish()
        again, long, from_dt = self.reads()
        require(table.files[-1][1] < from_dt, f"the planted file is of {table.files[-1][1]}, and reading begins at {from_dt}")
        require(one_day[0] == again[0] <= 3 and again[1] < 2 * one_day[1], f"a day's merge read {one_day} of {short}, and later {again} of {long}, from {from_dt} on")
        require(long[0] >= short[0] + 7 and week[0] >= one_day[0] + 6 and week[1] > 2 * one_day[1], f"{short} {long} {week}")
        run(self.project, self.stack, "silver")
        self.same()
        table.files.pop()
        table.publish()
        say = lambda what: f"{what[0]} files, {what[1]} bytes"
        return f"a day: {say(one_day)} of {say(short)}; a week: {say(week)}; a day: {say(again)} of {say(long)}"

    def manifests(self):
        """A raw table is what its manifest lists at that moment: orphans in its folders are invisible, and dt comes from the path"""
        count = lambda: int(self.stack.query("SELECT COUNT(*) FROM `p.raw.donaciones`")[0][0])
        table, before = self.source.tables["donaciones"], count()
        manifest = self.source.lake.root / table.folder / "_published.manifest"
        listed = manifest.read_text()
        orphan = table.row(self.source.clock, _op="DELETE", _commit_lsn=9, _seq=1, id_donacion=1)
        table.write([orphan])
        require(count() == before, "an orphan is visible")
        table.publish()
        require(count() == before + 1, "a new manifest is not seen")
        table.files.pop()
        manifest.write_text(listed)
        require(count() == before, "the old manifest is not seen")
        days = [row[0] for row in self.stack.query("SELECT DISTINCT CAST(dt AS STRING) FROM `p.raw.donaciones` ORDER BY 1")]
        require(days == sorted({day for _, day in table.files}), f"dt is {days}")
        manifest.write_text("")
        try:
            count()
            raise AssertionError("an empty manifest is accepted")
        except QueryFailed:
            manifest.write_text(listed)

    def faults(self):
        """Planted faults are found, each by its check; strict ones stop gold, the others do not"""
        query = self.stack.query
        clean = "id_donacion, id_donante, id_caso, fecha_donacion, monto, medio_pago, estado, monto_negativo, _commit_lsn, _seq"
        key = max(self.source.rows["donaciones"])
        plants = [
            f"INSERT INTO `p.silver.donaciones` ({clean}) SELECT {clean} FROM `p.silver.donaciones` WHERE id_donacion = {key}",
            f"INSERT INTO `p.silver.donaciones` ({clean}) SELECT {clean.replace('id_donacion', 'NULL', 1)} FROM `p.silver.donaciones` WHERE id_donacion = {min(self.source.rows['donaciones'])}",
            f"UPDATE `p.silver.donaciones` SET id_donante = 999999 WHERE id_donacion = {key}",
            f"UPDATE `p.silver.gastos` SET id_proveedor = 999999, fecha_pago = DATE '1999-12-31' WHERE id_gasto = {max(self.source.rows['gastos'])}",
            "UPDATE `p.silver.casos` SET presupuesto_estimado = -1, fecha_ingreso = DATE '2999-01-01' WHERE id_caso = 541",
        ]
        for plant in plants:
            query(plant)
        actions, _, code = self.project.run(self.stack, "--tags", "silver", "warn", "gold")
        found = {name.split(".")[1] for name, verdict in actions.items() if verdict == "failed"}
        wanted = {
            "strict_donaciones_unique_key",
            "strict_donaciones_key_not_null",
            "strict_donaciones_id_donante_exists",
            "warn_donaciones_monto_min",
            "warn_gastos_id_proveedor_exists",
            "warn_gastos_fecha_pago_plausible",
            "warn_casos_presupuesto_estimado_min",
            "warn_casos_fecha_ingreso_plausible",
        }
        require(found == wanted and code != 0, f"found {sorted(found ^ wanted)} too much or too little")
        # Dataform reports the first action that it skips; what depends on that one does not appear at all.
        went_on = {name for name in ("facts_donaciones", "features_donantes", "tablero_finanzas") if actions.get(f"gold.{name}") == "passed"}
        require(not went_on, f"gold went on: {went_on}")
        require(actions["gold.dim_casos"] == "passed" and actions["gold.facts_gastos"] == "passed", "a warning stopped gold")
        # Mended by the mend for everything: drop the table, merge again.
        for table in ("donaciones", "gastos", "casos"):
            query(f"DROP TABLE `p.silver.{table}`")
        run(self.project, self.stack, "silver", "gold")
        self.same()
        self.same_gold()
        return f"{len(wanted)} checks"


CLAIMS = ["compiles", "places", "first_run", "gold", "later_runs", "again", "freshness", "scan", "manifests", "faults"]
