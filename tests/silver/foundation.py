"""The foundation's six tables: a source that changes, and the lake that huella would make of it.

Every change goes through `Foundation`, which also writes it into the lake as huella would. What silver and gold must hold then: expected.py.
"""

import datetime
import decimal
import random

from lake import Lake, LakeTable

LOCAL, ZONED = "DATETIME", "TIMESTAMP"
TABLES = {
    "hogar_de_paso": (
        "snapshot",
        {
            "id_hogar_de_paso": "INT64",
            "nombre_hogar": "STRING",
            "tipo_hogar": "STRING",
            "nombre_contacto": "STRING",
            "correo": "STRING",
            "telefono": "STRING",
            "ciudad": "STRING",
            "pais": "STRING",
            "cupo_maximo": "INT64",
            "tarifa_diaria": "NUMERIC",
            "desempeno": "STRING",
            "ultimo_contacto": "DATE",
        },
    ),
    "proveedores": (
        "snapshot",
        {
            "id_proveedor": "INT64",
            "nombre_proveedor": "STRING",
            "tipo_proveedor": "STRING",
            "nit": "STRING",
            "nombre_contacto": "STRING",
            "correo": "STRING",
            "telefono": "STRING",
            "ciudad": "STRING",
        },
    ),
    "donantes": (
        "stream",
        {
            "id_donante": "INT64",
            "donante": "STRING",
            "tipo_id": "STRING",
            "identificacion": "STRING",
            "correo": "STRING",
            "ciudad": "STRING",
            "tipo_donante": "STRING",
            "pais": "STRING",
            "canal_origen": "STRING",
            "consentimiento": "BOOL",
            "created_at": ZONED,
            "last_modified_at": ZONED,
        },
    ),
    "casos": (
        "stream",
        {
            "id_caso": "INT64",
            "nombre_caso": "STRING",
            "estado": "STRING",
            "fecha_ingreso": "DATE",
            "fecha_salida": "DATE",
            "veterinaria": "STRING",
            "diagnostico": "STRING",
            "archivo": "STRING",
            "id_hogar_de_paso": "INT64",
            "presupuesto_estimado": "NUMERIC",
            "ciudad": "STRING",
            "created_at": LOCAL,
            "last_modified_at": LOCAL,
        },
    ),
    "donaciones": (
        "stream",
        {
            "id_donacion": "INT64",
            "id_donante": "INT64",
            "id_caso": "INT64",
            "fecha_donacion": "DATE",
            "monto": "NUMERIC",
            "medio_pago": "STRING",
            "estado": "STRING",
            "comprobante": "STRING",
            "created_at": LOCAL,
            "last_modified_at": LOCAL,
        },
    ),
    "gastos": (
        "stream",
        {
            "id_gasto": "INT64",
            "nombre_gasto": "STRING",
            "fecha_pago": "DATE",
            "id_caso": "INT64",
            "medio_pago": "STRING",
            "monto": "NUMERIC",
            "estado": "STRING",
            "comprobante": "STRING",
            "id_proveedor": "INT64",
            "created_at": LOCAL,
            "last_modified_at": LOCAL,
        },
    ),
}
LARGE = {"diagnostico"}  # left out of updates that do not change it


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
            return {
                "id_hogar_de_paso": key,
                "nombre_hogar": typed("hogar feliz"),
                "tipo_hogar": typed("casa", "finca"),
                "nombre_contacto": person(),
                "correo": typed("a@b.org"),
                "telefono": "+57 300",
                "ciudad": city(),
                "pais": typed("colombia"),
                "cupo_maximo": c.randint(1, 9),
                "tarifa_diaria": amount(),
                "desempeno": typed("bueno"),
                "ultimo_contacto": maybe(day()),
            }
        if table == "proveedores":
            return {
                "id_proveedor": key,
                "nombre_proveedor": typed("droguería andina"),
                "tipo_proveedor": typed("alimento"),
                "nit": "900-X",
                "nombre_contacto": maybe(person()),
                "correo": None,
                "telefono": None,
                "ciudad": city(),
            }
        if table == "donantes":
            zoned = {name: value and value.replace(tzinfo=datetime.timezone.utc) for name, value in common.items()}
            return {
                "id_donante": key,
                "donante": person(),
                "tipo_id": typed("cc", "nit"),
                "identificacion": f"ID {key}",
                "correo": maybe(typed("x@y.co")),
                "ciudad": city(),
                "tipo_donante": typed("empresa", "persona natural"),
                "pais": typed("chile", "colombia"),
                "canal_origen": typed("instagram", "voz a voz"),
                "consentimiento": maybe(c.random() < 0.5),
                **zoned,
            }
        if table == "casos":
            return {
                "id_caso": key,
                "nombre_caso": typed("canela", "firulais"),
                "estado": typed("abierto", "adoptado"),
                "fecha_ingreso": day(),
                "fecha_salida": maybe(day()),
                "veterinaria": typed("clínica andina"),
                "diagnostico": typed("fractura; control semanal"),
                "archivo": maybe("https://Archivo.example/A"),
                "id_hogar_de_paso": maybe(c.choice(list(self.rows["hogar_de_paso"]))),
                "presupuesto_estimado": maybe(amount()),
                "ciudad": city(),
                **common,
            }
        if table == "donaciones":
            return {
                "id_donacion": key,
                "id_donante": maybe(c.choice(list(self.rows["donantes"]))),
                "id_caso": maybe(c.choice(list(self.rows["casos"]))),
                "fecha_donacion": day(),
                "monto": c.choice([amount(), amount(), amount(), -amount(), None]),
                "medio_pago": payment(),
                "estado": typed("aprobada", "completada", "pendiente", "rechazada"),
                "comprobante": "https://Recibo.example/R",
                **common,
            }
        return {
            "id_gasto": key,
            "nombre_gasto": typed("cirugía", "alimento"),
            "fecha_pago": day(),
            "id_caso": maybe(c.choice(list(self.rows["casos"]))),
            "medio_pago": payment(),
            "monto": amount(),
            "estado": typed("pagado", "pendiente"),
            "comprobante": maybe("https://Recibo.example/G"),
            "id_proveedor": maybe(c.choice(list(self.rows["proveedores"]))),
            **common,
        }

    def fill(self):
        """The source before huella's first start: 541 exists, as the foundation's rules suppose."""
        for table, keys in (
            ("hogar_de_paso", range(1, 9)),
            ("proveedores", range(1, 13)),
            ("donantes", [541, *range(1, 40)]),
            ("casos", [541, *range(1, 30)]),
            ("donaciones", range(1, 400)),
            ("gastos", range(1, 120)),
        ):
            for key in keys:
                self.rows[table][key] = self.row(table, key)
        for table in TABLES:
            self.copy(table)

    def emit(self, table, op, seq, row=None, **own):
        self.pending[table].append(
            {
                **dict.fromkeys(TABLES[table][1]),
                **(row or {}),
                "_op": op,
                "_commit_lsn": self.through,
                "_seq": seq,
                "_commit_ts": self.clock,
                "_xid": 7 if seq > 0 else None,
                "_unchanged": None,
                "_old_key": None,
                "_exceptions": None,
                **own,
            }
        )

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
        # Long ago, whatever day this machine thinks it is: only the limit decides whether it is old.
        time = (self.clock.astimezone(datetime.timezone.utc) - datetime.timedelta(days=20 * 365)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        cut = {"through": self.through, "commit": f"commits/{self.through}", "dt": str(self.clock.date()), "time": time, "tables": {}}
        for name, table in self.tables.items():
            position, day = self.snapshots[name]
            cut["tables"][table.source] = {
                "version": 1,
                "snapshot": position,
                "snapshot_dt": day,
                "columns": table.fingerprint(),
                "from_dt": {str(through): after for through, after in self.former},
            }
        # What `publish` names for a former cut: the first dt with rows above it. Here a day begins after each cut, or on its day.
        self.former = [(self.through, str(self.clock.date()))]
        return cut

    def generated(self):
        return self.lake.generated(self.tables.values())
