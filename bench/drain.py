#!/usr/bin/env python3
"""How fast, and in how much memory, a backlog reaches the lake: `huella run --until-caught-up` beside `pg_recvlogical`.

    cargo build --release
    bench/drain.py                                   # the mix "inserts", a million rows, five interleaved rounds
    bench/drain.py --mix all --rounds 3
    bench/drain.py --mix one-transaction --rows 5000000 --rounds 1

Every round drains the same WAL: the slot is copied from one that stays behind, the lake restored to what it was. Each
round runs, in turn: pg_recvlogical to /dev/null (the null store), a bare reader that lets the server batch (the floor),
huella. See bench/README.md.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from private import Server, measure  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS_A_TRANSACTION = 1000
DONACIONES = """CREATE TABLE donaciones(id_donacion bigint PRIMARY KEY, id_donante int, fecha_donacion date, monto numeric(12,2),
                medio_pago text, last_modified_at timestamptz)"""
# Six columns, 70 bytes of text a row: nothing here compresses away, and little repeats but the method of payment.
ROW = """SELECT i, (i::bigint * 7919) % 100000, date '2020-01-01' + (i % 1800)::int, (i % 1000000) / 100.0,
         (ARRAY['nequi','transferencia','tarjeta','efectivo'])[1 + i % 4], timestamptz '2024-01-01' + i * interval '1.234567 s'"""


def in_transactions(statement, rows, each):
    """`statement` with {a} and {b}, the first and last row, in transactions of `each` rows."""
    body = statement.format(a=f"n * {each} + 1", b=f"least((n + 1) * {each}, {rows})")
    return f"DO $$ BEGIN FOR n IN 0..({rows} - 1) / {each} LOOP {body}; COMMIT; END LOOP; END $$"


def donaciones(rows, each):
    return in_transactions(f"INSERT INTO donaciones {ROW} FROM generate_series({{a}}, {{b}}) i", rows, each)


def tables(count):
    return ";".join(f"CREATE TABLE t{n}(id bigint PRIMARY KEY, a int, b text, c text, d timestamptz, e numeric(12,2))" for n in range(count))


def wide(columns):
    return "CREATE TABLE wide(id bigint PRIMARY KEY, " + ", ".join(f"c{n} {('int', 'text', 'date')[n % 3]}" for n in range(1, columns)) + ")"


def wide_rows(columns):
    kinds = ("(i % 1000)::int", "'text ' || i % 977", "date '2020-01-01' + (i % 1000)::int")
    return "INSERT INTO wide SELECT i, " + ", ".join(kinds[n % 3] for n in range(1, columns)) + " FROM generate_series({a}, {b}) i"


# name: (default rows, tables, what is there before the backlog, the backlog)
MIXES = {
    "inserts": (1_000_000, DONACIONES, lambda rows: "SELECT 1", lambda rows: donaciones(rows, ROWS_A_TRANSACTION)),
    "single-row": (200_000, DONACIONES, lambda rows: "SELECT 1", lambda rows: donaciones(rows, 1)),
    "updates": (1_000_000, DONACIONES, lambda rows: donaciones(rows, ROWS_A_TRANSACTION),
                lambda rows: in_transactions("UPDATE donaciones SET monto = monto + 1 WHERE id_donacion BETWEEN {a} AND {b}", rows,
                                             ROWS_A_TRANSACTION)),
    "one-transaction": (5_000_000, DONACIONES, lambda rows: "SELECT 1",
                        lambda rows: f"INSERT INTO donaciones {ROW} FROM generate_series(1, {rows}) i"),
    # Memory: many tables at once, in one transaction and in many; rows of 300 columns; rows with 10 MB of text.
    "thousand-tables": (100_000, tables(1000), lambda rows: "SELECT 1",
                        lambda rows: f"DO $$ BEGIN FOR n IN 0..{rows}/1000 - 1 LOOP FOR t IN 0..999 LOOP EXECUTE format("
                                     "'INSERT INTO t%s SELECT %s, 1, ''text'', ''more'', now(), 1.5', t, n); END LOOP; "
                                     "IF n % 10 = 0 THEN COMMIT; END IF; END LOOP; END $$"),
    "wide": (20_000, wide(300), lambda rows: "SELECT 1", lambda rows: in_transactions(wide_rows(300), rows, 100)),
    "large-values": (40, "CREATE TABLE docs(id bigint PRIMARY KEY, body text)", lambda rows: "SELECT 1",
                     lambda rows: in_transactions("INSERT INTO docs SELECT i, (SELECT string_agg(md5((i * j)::text), '') "
                                                  "FROM generate_series(1, 327680) j) FROM generate_series({a}, {b}) i", rows, 1)),
    # Larger than a piece of the budget: each goes alone.
    "huge-values": (10, "CREATE TABLE docs(id bigint PRIMARY KEY, body text)", lambda rows: "SELECT 1",
                    lambda rows: in_transactions("INSERT INTO docs SELECT i, (SELECT string_agg(md5((i * j)::text), '') "
                                                 "FROM generate_series(1, 983040) j) FROM generate_series({a}, {b}) i", rows, 1)),
    "nothing": (0, DONACIONES, lambda rows: "SELECT 1", lambda rows: "SELECT 1"),
}


def drained_rows(lake):
    """Rows of the live chain, from the watermark down."""
    with open(os.path.join(lake, "watermark.json")) as file:
        path, rows, commits, bytes_ = json.load(file)["commit"], 0, 0, 0
    while path:
        with open(os.path.join(lake, path)) as file:
            manifest = json.load(file)
        rows += sum(f["rows"] for f in manifest["files"] if f["kind"] == "stream")
        bytes_ += sum(f["bytes"] for f in manifest["files"] if f["kind"] == "stream")
        path, commits = manifest.get("previous"), commits + 1
    return rows, bytes_, commits


def bench(name, rows, rounds, huella, env, keep_log):
    default, create, before, backlog = MIXES[name]
    rows = default if rows is None else rows if default else 0
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with Server(parent=parent) as server:
        lake, base, log = (os.path.join(server.dir, each) for each in ("lake", "lake-before", "huella.log"))
        env = {"HUELLA_SOURCE_URL": server.url("huella"), "HUELLA_LAKE_URL": lake, "HUELLA_HTTP_LISTEN": "", **env}
        run = [huella, "--log-format", "json", "run", "--until-caught-up"]
        server.sql(create)
        server.sql(before(rows))
        measure(run, env, log=log)
        server.sql("SELECT pg_copy_logical_replication_slot('huella', 'keep')")
        shutil.copytree(lake, base)
        server.sql(backlog(rows))
        end = server.sql("SELECT pg_current_wal_flush_lsn()")
        wal = int(server.sql(f"SELECT pg_wal_lsn_diff('{end}', confirmed_flush_lsn) FROM pg_replication_slots WHERE slot_name = 'keep'"))
        # The null store's own end: pg_recvlogical stops only at a message behind it.
        server.sql("SELECT pg_logical_emit_message(false, 'bench', 'end')")
        null = [os.path.join(server.bin, "pg_recvlogical"), "-d", server.url("null"), "--slot", "null", "--start", "--endpos", end, "-f",
                "/dev/null", "--no-loop", "-o", "proto_version=1", "-o", "publication_names=huella"]
        floor = [sys.executable, os.path.join(HERE, "bare_reader.py"), str(server.port), "null", end]
        results = {"null": [], "floor": [], "huella": []}
        for _ in range(rounds):
            for who, command in (("null", null), ("floor", floor), ("huella", run)):
                slot = "huella" if who == "huella" else "null"
                server.sql(f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}'")
                server.sql(f"SELECT pg_copy_logical_replication_slot('keep', '{slot}')")
                if who == "huella":
                    shutil.rmtree(lake)
                    shutil.copytree(base, lake)
                figures = measure(command, env if who == "huella" else None, server, slot, log)
                results[who].append(figures)
                print(f"  {name} {who}: {figures}", file=sys.stderr, flush=True)
            found, bytes_, commits = drained_rows(lake)
            if found != rows:
                raise SystemExit(f"{name}: {found} rows in the lake where {rows} were written; log: {log}")
        if keep_log:
            shutil.copy(log, keep_log)
    return {"mix": name, "rows": rows, "wal_bytes": wal, "parquet_bytes": bytes_, "commits": commits, "rounds": results,
            "medians": {who: medians(each) for who, each in results.items()},
            "wall_to_null": ratio(results, "null"), "wall_to_floor": ratio(results, "floor")}


def medians(rounds):
    return {key: round(statistics.median(r[key] for r in rounds if key in r), 3) for key in rounds[0]}


def ratio(results, other):
    return round(statistics.median(h["wall_secs"] / o["wall_secs"] for h, o in zip(results["huella"], results[other])), 3)


def table(results):
    head = "| mix | rows | who | wall s | CPU s (user + sys) | CPU s / M rows | walsender CPU s | peak MiB | wall / pg_recvlogical | wall / bare reader |"
    lines = [head, "|" + "---|" * 10]
    for result in results:
        for who, m in result["medians"].items():
            per = f"{m['cpu_secs'] / result['rows'] * 1e6:.2f}" if result["rows"] else ""
            ratios = f"{result['wall_to_null']:.2f} | {result['wall_to_floor']:.2f}" if who == "huella" else "|"
            shown = {"null": "pg_recvlogical → /dev/null", "floor": "bare reader"}.get(who, who)
            lines.append(f"| {result['mix']} | {result['rows']:,} | {shown} | {m['wall_secs']:.2f} | {m['cpu_secs']:.2f} ({m['user_secs']:.2f} + "
                         f"{m['sys_secs']:.2f}) | {per} | {m.get('walsender_cpu_secs', '')} | {m['peak_mib']:.0f} | {ratios} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", action="append", choices=[*MIXES, "all"], help="may be given more than once; default: inserts")
    parser.add_argument("--rows", type=int, help="default: the mix's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--huella", default=os.path.join(HERE, "../target/release/huella"))
    parser.add_argument("--set", action="append", default=[], metavar="HUELLA_…=VALUE", help="a setting of huella other than the default")
    parser.add_argument("--out", help="folder of the results; default: bench/runs/<date>")
    parser.add_argument("--log", help="keep huella's log in this file")
    args = parser.parse_args()
    names = args.mix or ["inserts"]
    names = list(MIXES) if "all" in names else names
    env = dict(each.split("=", 1) for each in args.set)
    results = [bench(name, args.rows, args.rounds, os.path.abspath(args.huella), env, args.log) for name in names]
    out = args.out or os.path.join(HERE, "runs", datetime.date.today().isoformat())
    os.makedirs(out, exist_ok=True)
    about = {"cpus": os.cpu_count(), "load_average": os.getloadavg(), "settings": env, "results": results}
    with open(os.path.join(out, "drain.json"), "w") as file:
        json.dump(about, file, indent=1)
    with open(os.path.join(out, "drain.md"), "w") as file:
        file.write(table(results))
    print(table(results), end="")


if __name__ == "__main__":
    main()
