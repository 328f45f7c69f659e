"""What silver and gold must hold, from the source alone and by other means than the project's: rules written anew, and plain SQL."""

import datetime
import decimal

import duckdb

from foundation import LOCAL, TABLES, ZONED
from values import canonical, selected

KEPT = {"identificacion", "archivo", "comprobante", "nit", "telefono"}  # text that silver leaves as it is


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


def silver_differences(query, foundation):
    """One text for each table of silver that is not its source, cleaned, cell for cell."""
    wrong = []
    for table, rows in foundation.rows.items():
        kinds = {**TABLES[table][1], **({"monto_negativo": "BOOL"} if table in ("donaciones", "gastos") else {})}
        want = {key: tuple(canonical(kinds[name], as_text(value)) for name, value in cleaned(table, row).items()) for key, row in rows.items()}
        got = {}
        for cells in query(f"SELECT {', '.join(selected(name, kind) for name, kind in kinds.items())} FROM `p.silver.{table}`"):
            key = int(cells[0])
            if key in got:
                wrong.append(f"{table}: key {key} twice")
            got[key] = tuple(map(canonical, kinds.values(), cells))
        differing = sorted(key for key in want.keys() | got.keys() if want.get(key) != got.get(key))
        if differing:
            first = differing[0]
            wrong.append(f"{table}: {len(differing)} rows differ, first {first}: silver {got.get(first)}, source {want.get(first)}")
    return wrong


# The figures of gold, from the source's own rows: nothing of the project's SQL.
ARRIVED = "lower(trim(estado)) IN ('aprobada', 'completada') AND monto >= 0"
PAID = "lower(trim(estado)) = 'pagado' AND monto >= 0"
FIGURES = {
    "facts_donaciones": ("SELECT COUNT(*), SUM(monto) FROM {gold}.facts_donaciones", f"SELECT COUNT(*), SUM(monto) FROM donaciones WHERE {ARRIVED}"),
    "facts_donaciones by donor": (
        "SELECT id_donante, COUNT(*), SUM(monto) FROM {gold}.facts_donaciones GROUP BY id_donante",
        f"SELECT COALESCE(id_donante, 541), COUNT(*), SUM(monto) FROM donaciones WHERE {ARRIVED} GROUP BY 1",
    ),
    "facts_donaciones by payment method": (
        "SELECT medio_pago, COUNT(*) FROM {gold}.facts_donaciones GROUP BY medio_pago",
        f"SELECT CASE WHEN medio_pago IS NULL THEN 'nequi' WHEN medio_pago ILIKE '%transfer%' THEN 'transferencia' WHEN medio_pago ILIKE '%tarjeta%' THEN 'tarjeta' ELSE lower(trim(medio_pago)) END, COUNT(*) FROM donaciones WHERE {ARRIVED} GROUP BY 1",
    ),
    "facts_gastos": ("SELECT COUNT(*), SUM(monto) FROM {gold}.facts_gastos", f"SELECT COUNT(*), SUM(monto) FROM gastos WHERE {PAID}"),
    "facts_gastos by supplier": (
        "SELECT id_proveedor, SUM(monto) FROM {gold}.facts_gastos GROUP BY id_proveedor",
        f"SELECT id_proveedor, SUM(monto) FROM gastos WHERE {PAID} GROUP BY 1",
    ),
    "features_donantes": (
        "SELECT id_donante, recencia_dias, frecuencia, monetario FROM {gold}.features_donantes",
        f"SELECT COALESCE(id_donante, 541), date_diff('day', MAX(fecha_donacion), DATE '{{dt}}'), COUNT(*), SUM(monto) FROM donaciones WHERE {ARRIVED} GROUP BY 1",
    ),
    "features_donantes' scores": (
        "SELECT puntaje_monetario, COUNT(*), MIN(monetario) FROM {gold}.features_donantes GROUP BY puntaje_monetario",
        f"SELECT n, COUNT(*), MIN(m) FROM (SELECT ntile(5) OVER (ORDER BY SUM(monto), COALESCE(id_donante, 541)) AS n, SUM(monto) AS m FROM donaciones WHERE {ARRIVED} GROUP BY COALESCE(id_donante, 541)) GROUP BY n",
    ),
    "dim_casos": (
        "SELECT id_caso, dias_en_cuidado, presupuesto_estimado FROM {gold}.dim_casos",
        "SELECT id_caso, date_diff('day', fecha_ingreso, COALESCE(fecha_salida, DATE '{dt}')), presupuesto_estimado FROM casos",
    ),
    "dim_donantes": ("SELECT pais, COUNT(*) FROM {gold}.dim_donantes GROUP BY pais", "SELECT lower(trim(pais)), COUNT(*) FROM donantes GROUP BY 1"),
    "dim_proveedores": (
        "SELECT id_proveedor, nombre_proveedor FROM {gold}.dim_proveedores",
        "SELECT id_proveedor, lower(trim(nombre_proveedor)) FROM proveedores",
    ),
    "dim_hogar_de_paso": (
        "SELECT id_hogar_de_paso, cupo_maximo, tarifa_diaria FROM {gold}.dim_hogar_de_paso",
        "SELECT id_hogar_de_paso, cupo_maximo, tarifa_diaria FROM hogar_de_paso",
    ),
    "tablero_finanzas": (
        "SELECT mes, monto_donado, monto_gastado, balance FROM {gold}.tablero_finanzas",
        f"SELECT mes, SUM(d), SUM(g), SUM(d - g) FROM (SELECT date_trunc('month', fecha_donacion)::DATE AS mes, monto AS d, 0 AS g FROM donaciones WHERE {ARRIVED} UNION ALL SELECT date_trunc('month', fecha_pago)::DATE, 0, monto FROM gastos WHERE {PAID}) GROUP BY mes",
    ),
    "tablero_casos": (
        "SELECT id_caso, monto_donado, monto_gastado FROM {gold}.tablero_casos",
        f"SELECT id_caso, COALESCE((SELECT SUM(monto) FROM donaciones d WHERE COALESCE(d.id_caso, 541) = c.id_caso AND {ARRIVED.replace('estado', 'd.estado')}), 0), COALESCE((SELECT SUM(monto) FROM gastos g WHERE COALESCE(g.id_caso, 541) = c.id_caso AND {PAID.replace('estado', 'g.estado')}), 0) FROM casos c",
    ),
    "tablero_donaciones": (
        "SELECT pais, SUM(monto) FROM {gold}.tablero_donaciones GROUP BY pais",
        f"SELECT lower(trim(p.pais)), SUM(monto) FROM donaciones d LEFT JOIN donantes p ON p.id_donante = COALESCE(d.id_donante, 541) WHERE {ARRIVED} GROUP BY 1",
    ),
    "hallazgos": (
        "SELECT hallazgos FROM {gold}.hallazgos WHERE tabla = 'donaciones' AND revision = 'monto_min'",
        "SELECT COUNT(*) FROM donaciones WHERE monto < 0",
    ),
}


def figure(cell):
    """One text for one value, whoever writes it: BigQuery's answer or DuckDB."""
    text = None if cell is None else str(cell).removesuffix("T00:00:00")
    try:
        return str(decimal.Decimal(text).normalize() + 0)
    except (decimal.InvalidOperation, TypeError):
        return text


def plain_tables(foundation):
    """The source as plain tables."""
    connection = duckdb.connect()
    kinds = {
        "INT64": "BIGINT",
        "STRING": "VARCHAR",
        "NUMERIC": "DECIMAL(38,9)",
        "BOOL": "BOOLEAN",
        "DATE": "DATE",
        LOCAL: "TIMESTAMP",
        ZONED: "TIMESTAMP",
    }
    for name, (_, columns) in TABLES.items():
        connection.execute(f"CREATE TABLE {name} ({', '.join(f'{column} {kinds[kind]}' for column, kind in columns.items())})")
        values = [
            [cell.replace(tzinfo=None) if isinstance(cell, datetime.datetime) else cell for cell in row.values()]
            for row in foundation.rows[name].values()
        ]
        connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", values)
    return connection


def gold_differences(query, foundation, dt):
    connection = plain_tables(foundation)
    wrong = []
    for what, (gold, plain) in FIGURES.items():
        got = sorted((tuple(map(figure, row)) for row in query(gold.format(gold="`p.gold`"))), key=repr)
        want = sorted((tuple(map(figure, row)) for row in connection.execute(plain.replace("{dt}", dt)).fetchall()), key=repr)
        if got != want:
            wrong.append(f"{what}: gold {[r for r in got if r not in want][:3]}, plain SQL {[r for r in want if r not in got][:3]}")
    return wrong
