"""The foundation's six tables: a source in DuckDB, its lake, and the whole chain through `dataform run`.

The source is plain tables that change by SQL; each change is also written into the lake as huella would. What silver and gold must hold is
computed from the source alone, by other means than the project's: rules written anew, and plain SQL.
"""
import datetime
import decimal
import random

import duckdb

from lake import Lake, LakeTable

LOCAL, ZONED = "DATETIME", "TIMESTAMP"
TABLES = {
    "hogar_de_paso": ("snapshot", {"id_hogar_de_paso": "INT64", "nombre_hogar": "STRING", "tipo_hogar": "STRING", "nombre_contacto": "STRING", "correo": "STRING", "telefono": "STRING", "ciudad": "STRING",
                                   "pais": "STRING", "cupo_maximo": "INT64", "tarifa_diaria": "NUMERIC", "desempeno": "STRING", "ultimo_contacto": "DATE"}),
    "proveedores": ("snapshot", {"id_proveedor": "INT64", "nombre_proveedor": "STRING", "tipo_proveedor": "STRING", "nit": "STRING", "nombre_contacto": "STRING", "correo": "STRING", "telefono": "STRING", "ciudad": "STRING"}),
    "donantes": ("stream", {"id_donante": "INT64", "donante": "STRING", "tipo_id": "STRING", "identificacion": "STRING", "correo": "STRING", "ciudad": "STRING", "tipo_donante": "STRING", "pais": "STRING",
                            "canal_origen": "STRING", "consentimiento": "BOOL", "created_at": ZONED, "last_modified_at": ZONED}),
    "casos": ("stream", {"id_caso": "INT64", "nombre_caso": "STRING", "estado": "STRING", "fecha_ingreso": "DATE", "fecha_salida": "DATE", "veterinaria": "STRING", "diagnostico": "STRING", "archivo": "STRING",
                         "id_hogar_de_paso": "INT64", "presupuesto_estimado": "NUMERIC", "ciudad": "STRING", "created_at": LOCAL, "last_modified_at": LOCAL}),
    "donaciones": ("stream", {"id_donacion": "INT64", "id_donante": "INT64", "id_caso": "INT64", "fecha_donacion": "DATE", "monto": "NUMERIC", "medio_pago": "STRING", "estado": "STRING", "comprobante": "STRING",
                              "created_at": LOCAL, "last_modified_at": LOCAL}),
    "gastos": ("stream", {"id_gasto": "INT64", "nombre_gasto": "STRING", "fecha_pago": "DATE", "id_caso": "INT64", "medio_pago": "STRING", "monto": "NUMERIC", "estado": "STRING", "comprobante": "STRING",
                          "id_proveedor": "INT64", "created_at": LOCAL, "last_modified_at": LOCAL}),
}
KEPT = {"identificacion", "archivo", "comprobante", "nit", "telefono"}  # text that silver leaves as it is
LARGE = {"diagnostico"}  # left out of updates that do not change it


def cleaned(table, row):
    """A source row as silver must hold it: the foundation's rules, in Python."""
    out = {}
    for column, kind in TABLES[table][1].items():
        value = row[column]
        if kind == "STRING" and column not in KEPT and column != "medio_pago" and value is not None:
            value = value.strip(" ").lower()
        if column == "medio_pago":
            text = "nequi" if value is None else value.lower()
            value = "transferencia" if "transfer" in text else "tarjeta" if "tarjeta" in text else text.strip(" ")
        if value is None and (table, column) in {("donaciones", "id_donante"), ("donaciones", "id_caso"), ("gastos", "id_caso")}:
            value = 541
        out[column] = value
    if table in ("donaciones", "gastos"):
        out["monto_negativo"] = row["monto"] is not None and row["monto"] < 0
    return out


def as_text(value):
    """A cell as BigQuery's answers write it."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, decimal.Decimal):
        return str(value.normalize() + 0)
    if isinstance(value, datetime.datetime):
        return str(value.astimezone(datetime.timezone.utc).replace(tzinfo=None)) if value.tzinfo else str(value)
    return str(value)


class Foundation:
    """`duck`: the source. Every change goes through `change`, which also writes it to the lake."""

    def __init__(self, root, url=None, seed=1):
        self.chance = random.Random(seed)
        self.lake = Lake(root, url)
        self.rows = {name: {} for name in TABLES}
        self.tables = {name: LakeTable(self.lake, name, columns, [next(iter(columns))], mode=mode) for name, (mode, columns) in TABLES.items()}
        self.pending = {name: [] for name in TABLES}
        self.snapshots, self.through, self.seq = {}, 1000, 0
        self.clock = datetime.datetime(2026, 11, 20, 3, tzinfo=datetime.timezone.utc)
        self.former = []

    # What a row looks like: text as people type it.
    def typed(self, *words):
        word = self.chance.choice(words)
        return self.chance.choice([word, word.upper(), f"  {word}", f"{word.title()} "])

    def local(self):
        return datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=self.chance.randint(0, 10**7), microseconds=self.chance.randint(0, 999_999))

    def row(self, table, key):
        c, typed = self.chance, self.typed
        maybe = lambda value: None if c.random() < 0.2 else value
        day = lambda: datetime.date(2025, 1, 1) + datetime.timedelta(days=c.randint(0, 680))
        amount = lambda: decimal.Decimal(c.randint(1, 10**8)) / 100
        person = lambda: typed("maría peña", "josé núñez", "íñigo zúñiga")
        city = lambda: typed("bogotá", "ñuñoa", "medellín")
        payment = lambda: maybe(typed("Transferencia Bancaria", "transfer", "tarjeta débito", "TARJETA", "efectivo", "daviplata"))
        common = {"created_at": self.local(), "last_modified_at": maybe(self.local())}
        if table == "hogar_de_paso":
            return {"id_hogar_de_paso": key, "nombre_hogar": typed("hogar feliz"), "tipo_hogar": typed("casa", "finca"), "nombre_contacto": person(), "correo": typed("a@b.org"), "telefono": "+57 300", "ciudad": city(),
                    "pais": typed("colombia"), "cupo_maximo": c.randint(1, 9), "tarifa_diaria": amount(), "desempeno": typed("bueno"), "ultimo_contacto": maybe(day())}
        if table == "proveedores":
            return {"id_proveedor": key, "nombre_proveedor": typed("droguería andina"), "tipo_proveedor": typed("alimento"), "nit": "900-X", "nombre_contacto": maybe(person()), "correo": None, "telefono": None, "ciudad": city()}
        if table == "donantes":
            zoned = {name: value and value.replace(tzinfo=datetime.timezone.utc) for name, value in common.items()}
            return {"id_donante": key, "donante": person(), "tipo_id": typed("cc", "nit"), "identificacion": f"ID {key}", "correo": maybe(typed("x@y.co")), "ciudad": city(), "tipo_donante": typed("empresa", "persona natural"),
                    "pais": typed("chile", "colombia"), "canal_origen": typed("instagram", "voz a voz"), "consentimiento": maybe(c.random() < 0.5), **zoned}
        if table == "casos":
            return {"id_caso": key, "nombre_caso": typed("canela", "firulais"), "estado": typed("abierto", "adoptado"), "fecha_ingreso": day(), "fecha_salida": maybe(day()), "veterinaria": typed("clínica andina"),
                    "diagnostico": typed("fractura; control semanal"), "archivo": maybe("https://Archivo.example/A"), "id_hogar_de_paso": maybe(c.choice(list(self.rows["hogar_de_paso"]))), "presupuesto_estimado": maybe(amount()), "ciudad": city(), **common}
        if table == "donaciones":
            return {"id_donacion": key, "id_donante": maybe(c.choice(list(self.rows["donantes"]))), "id_caso": maybe(c.choice(list(self.rows["casos"]))), "fecha_donacion": day(), "monto": c.choice([amount(), amount(), amount(), -amount(), None]),
                    "medio_pago": payment(), "estado": typed("aprobada", "completada", "pendiente", "rechazada"), "comprobante": "https://Recibo.example/R", **common}
        return {"id_gasto": key, "nombre_gasto": typed("cirugía", "alimento"), "fecha_pago": day(), "id_caso": maybe(c.choice(list(self.rows["casos"]))), "medio_pago": payment(), "monto": amount(),
                "estado": typed("pagado", "pendiente"), "comprobante": maybe("https://Recibo.example/G"), "id_proveedor": maybe(c.choice(list(self.rows["proveedores"]))), **common}

    def fill(self):
        """The source before huella's first start: 541 exists, as the foundation's rules suppose."""
        for table, keys in (("hogar_de_paso", range(1, 9)), ("proveedores", range(1, 13)), ("donantes", [541, *range(1, 40)]), ("casos", [541, *range(1, 30)]), ("donaciones", range(1, 400)), ("gastos", range(1, 120))):
            for key in keys:
                self.rows[table][key] = self.row(table, key)
        for table in TABLES:
            self.copy(table)

    def emit(self, table, op, seq, row=None, **own):
        self.pending[table].append({**dict.fromkeys(TABLES[table][1]), **(row or {}), "_op": op, "_commit_lsn": self.through, "_seq": seq, "_commit_ts": self.clock, "_xid": 7 if seq > 0 else None,
                                    "_unchanged": None, "_old_key": None, "_exceptions": None, **own})

    def copy(self, table):
        self.emit(table, "TRUNCATE", -1)
        for row in self.rows[table].values():
            self.emit(table, "SNAPSHOT", 0, row)
        self.snapshots[table] = (self.through, str(self.clock.date()))

    def work(self, hours=26):
        """A day of the foundation's work, in one transaction; catalogues change too, and are copied beyond `through`."""
        self.clock += datetime.timedelta(hours=hours)
        self.seq = 0
        c = self.chance
        for table in ("donantes", "casos", "donaciones", "gastos"):
            for _ in range(12):
                self.seq += 1
                key = max(self.rows[table]) + 1
                self.rows[table][key] = self.row(table, key)
                self.emit(table, "INSERT", self.seq, self.rows[table][key])
            for key in c.sample(sorted(self.rows[table]), 12):
                self.seq += 1
                old, new = self.rows[table][key], self.row(table, key)
                kept = {column for column in LARGE if column in old and c.random() < 0.7}
                new.update({column: old[column] for column in kept})
                self.rows[table][key] = new
                self.emit(table, "UPDATE", self.seq, {**new, **dict.fromkeys(kept)}, _unchanged='["diagnostico"]' if kept else None)
        for table in ("donaciones", "gastos"):
            for key in c.sample(sorted(self.rows[table]), 9):
                self.seq += 1
                del self.rows[table][key]
                self.emit(table, "DELETE", self.seq, {next(iter(TABLES[table][1])): key})
        self.through += 100
        for table, key in (("proveedores", 13), ("hogar_de_paso", 9)):
            self.rows[table][key] = self.row(table, key + len(self.former))
            self.rows[table][key][next(iter(TABLES[table][1]))] = key

    def copy_catalogues(self):
        through, self.through = self.through, self.through + 7
        for table, (mode, _) in TABLES.items():
            if mode == "snapshot":
                self.copy(table)
        self.through = through

    def publish(self):
        """The published cut, as huella hands it to Dataform."""
        for name, table in self.tables.items():
            if self.pending[name]:
                table.write(self.pending[name])
                self.pending[name] = []
            table.publish()
        cut = {"through": self.through, "commit": f"commits/{self.through}", "dt": str(self.clock.date()), "tables": {}}
        for name, table in self.tables.items():
            position, day = self.snapshots[name]
            cut["tables"][table.source] = {"version": 1, "snapshot": position, "snapshot_dt": day, "from_dt": {str(through): after for through, after in self.former}}
        # What `publish` names for a former cut: the first dt with rows above it. Here a day begins after each cut, or on its day.
        self.former = [(self.through, str(self.clock.date()))]
        return cut

    def generated(self):
        return self.lake.generated(self.tables.values())

    def duck(self):
        """The source as plain tables."""
        connection = duckdb.connect()
        kinds = {"INT64": "BIGINT", "STRING": "VARCHAR", "NUMERIC": "DECIMAL(38,9)", "BOOL": "BOOLEAN", "DATE": "DATE", LOCAL: "TIMESTAMP", ZONED: "TIMESTAMP"}
        for name, (_, columns) in TABLES.items():
            connection.execute(f"CREATE TABLE {name} ({', '.join(f'{column} {kinds[kind]}' for column, kind in columns.items())})")
            values = [[cell.replace(tzinfo=None) if isinstance(cell, datetime.datetime) else cell for cell in row.values()] for row in self.rows[name].values()]
            connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", values)
        return connection


def silver_differences(query, foundation):
    """One text for each table of silver that is not its source, cleaned, cell for cell."""
    wrong = []
    for table, rows in foundation.rows.items():
        want = {key: tuple(as_text(value) for value in cleaned(table, row).values()) for key, row in rows.items()}
        names = list(TABLES[table][1]) + (["monto_negativo"] if table in ("donaciones", "gastos") else [])
        selected = [f"CAST({name} AS STRING)" if TABLES[table][1].get(name) == "NUMERIC" else f"FORMAT_TIMESTAMP('%Y-%m-%d %H:%M:%E6S', {name})" if TABLES[table][1].get(name) == ZONED
                    else f"FORMAT_DATETIME('%Y-%m-%d %H:%M:%E6S', {name})" if TABLES[table][1].get(name) == LOCAL else name for name in names]
        got = {}
        for cells in query(f"SELECT {', '.join(selected)} FROM `p.silver.{table}`"):
            cells = tuple(None if cell is None else as_text(decimal.Decimal(cell)) if TABLES[table][1].get(name) == "NUMERIC" else cell.rstrip("0").rstrip(".") if "." in cell and TABLES[table][1].get(name) in (LOCAL, ZONED) else cell
                          for name, cell in zip(names, cells))
            if int(cells[0]) in got:
                wrong.append(f"{table}: key {cells[0]} twice")
            got[int(cells[0])] = cells
        want = {key: tuple(cell.rstrip("0").rstrip(".") if cell and "." in cell and TABLES[table][1].get(name) in (LOCAL, ZONED) else cell for name, cell in zip(names, cells)) for key, cells in want.items()}
        differing = sorted(key for key in want.keys() | got.keys() if want.get(key) != got.get(key))
        if differing:
            wrong.append(f"{table}: {len(differing)} rows differ, first {differing[0]}: silver {got.get(differing[0])}, source {want.get(differing[0])}")
    return wrong


# The figures of gold, from the source's own rows: nothing of the project's SQL.
ARRIVED = "lower(trim(estado)) IN ('aprobada', 'completada') AND monto >= 0"
PAID = "lower(trim(estado)) = 'pagado' AND monto >= 0"
FIGURES = {
    "facts_donaciones": ("SELECT COUNT(*), SUM(monto) FROM {gold}.facts_donaciones", f"SELECT COUNT(*), SUM(monto) FROM donaciones WHERE {ARRIVED}"),
    "facts_donaciones by donor": ("SELECT id_donante, COUNT(*), SUM(monto) FROM {gold}.facts_donaciones GROUP BY id_donante", f"SELECT COALESCE(id_donante, 541), COUNT(*), SUM(monto) FROM donaciones WHERE {ARRIVED} GROUP BY 1"),
    "facts_donaciones by payment method": (
        "SELECT medio_pago, COUNT(*) FROM {gold}.facts_donaciones GROUP BY medio_pago",
        f"SELECT CASE WHEN medio_pago IS NULL THEN 'nequi' WHEN medio_pago ILIKE '%transfer%' THEN 'transferencia' WHEN medio_pago ILIKE '%tarjeta%' THEN 'tarjeta' ELSE lower(trim(medio_pago)) END, COUNT(*) FROM donaciones WHERE {ARRIVED} GROUP BY 1"),
    "facts_gastos": ("SELECT COUNT(*), SUM(monto) FROM {gold}.facts_gastos", f"SELECT COUNT(*), SUM(monto) FROM gastos WHERE {PAID}"),
    "facts_gastos by supplier": ("SELECT id_proveedor, SUM(monto) FROM {gold}.facts_gastos GROUP BY id_proveedor", f"SELECT id_proveedor, SUM(monto) FROM gastos WHERE {PAID} GROUP BY 1"),
    "features_donantes": (
        "SELECT id_donante, recencia_dias, frecuencia, monetario FROM {gold}.features_donantes",
        f"SELECT COALESCE(id_donante, 541), date_diff('day', MAX(fecha_donacion), DATE '{{dt}}'), COUNT(*), SUM(monto) FROM donaciones WHERE {ARRIVED} GROUP BY 1"),
    "features_donantes' scores": (
        "SELECT puntaje_monetario, COUNT(*), MIN(monetario) FROM {gold}.features_donantes GROUP BY puntaje_monetario",
        f"SELECT n, COUNT(*), MIN(m) FROM (SELECT ntile(5) OVER (ORDER BY SUM(monto), COALESCE(id_donante, 541)) AS n, SUM(monto) AS m FROM donaciones WHERE {ARRIVED} GROUP BY COALESCE(id_donante, 541)) GROUP BY n"),
    "dim_casos": (
        "SELECT id_caso, dias_en_cuidado, presupuesto_estimado FROM {gold}.dim_casos",
        "SELECT id_caso, date_diff('day', fecha_ingreso, COALESCE(fecha_salida, DATE '{dt}')), presupuesto_estimado FROM casos"),
    "dim_donantes": ("SELECT pais, COUNT(*) FROM {gold}.dim_donantes GROUP BY pais", "SELECT lower(trim(pais)), COUNT(*) FROM donantes GROUP BY 1"),
    "dim_proveedores": ("SELECT id_proveedor, nombre_proveedor FROM {gold}.dim_proveedores", "SELECT id_proveedor, lower(trim(nombre_proveedor)) FROM proveedores"),
    "dim_hogar_de_paso": ("SELECT id_hogar_de_paso, cupo_maximo, tarifa_diaria FROM {gold}.dim_hogar_de_paso", "SELECT id_hogar_de_paso, cupo_maximo, tarifa_diaria FROM hogar_de_paso"),
    "tablero_finanzas": (
        "SELECT mes, monto_donado, monto_gastado, balance FROM {gold}.tablero_finanzas",
        f"SELECT mes, SUM(d), SUM(g), SUM(d - g) FROM (SELECT date_trunc('month', fecha_donacion)::DATE AS mes, monto AS d, 0 AS g FROM donaciones WHERE {ARRIVED} UNION ALL SELECT date_trunc('month', fecha_pago)::DATE, 0, monto FROM gastos WHERE {PAID}) GROUP BY mes"),
    "tablero_casos": (
        "SELECT id_caso, monto_donado, monto_gastado FROM {gold}.tablero_casos",
        f"SELECT id_caso, COALESCE((SELECT SUM(monto) FROM donaciones d WHERE COALESCE(d.id_caso, 541) = c.id_caso AND {ARRIVED.replace('estado', 'd.estado')}), 0), COALESCE((SELECT SUM(monto) FROM gastos g WHERE COALESCE(g.id_caso, 541) = c.id_caso AND {PAID.replace('estado', 'g.estado')}), 0) FROM casos c"),
    "tablero_donaciones": ("SELECT pais, SUM(monto) FROM {gold}.tablero_donaciones GROUP BY pais", f"SELECT lower(trim(p.pais)), SUM(monto) FROM donaciones d LEFT JOIN donantes p ON p.id_donante = COALESCE(d.id_donante, 541) WHERE {ARRIVED} GROUP BY 1"),
    "hallazgos": ("SELECT hallazgos FROM {gold}.hallazgos WHERE tabla = 'donaciones' AND revision = 'monto_min'", "SELECT COUNT(*) FROM donaciones WHERE monto < 0"),
}


def figure(cell):
    """One text for one value, whoever writes it: BigQuery's answer or DuckDB."""
    text = None if cell is None else str(cell).removesuffix("T00:00:00")
    try:
        return str(decimal.Decimal(text).normalize() + 0)
    except (decimal.InvalidOperation, TypeError):
        return text


def gold_differences(query, foundation, dt):
    connection = foundation.duck()
    wrong = []
    for what, (gold, plain) in FIGURES.items():
        got = sorted((tuple(map(figure, row)) for row in query(gold.format(gold="`p.gold`"))), key=repr)
        want = sorted((tuple(map(figure, row)) for row in connection.execute(plain.replace("{dt}", dt)).fetchall()), key=repr)
        if got != want:
            wrong.append(f"{what}: gold {[r for r in got if r not in want][:3]}, plain SQL {[r for r in want if r not in got][:3]}")
    return wrong
