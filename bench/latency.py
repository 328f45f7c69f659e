#!/usr/bin/env python3
"""From COMMIT to visible: inserts one row at a time into a caught-up stream and waits for the watermark to pass it.

    bench/latency.py [--samples 50] [--max-age 1s]

The clock starts when the client has the answer to its COMMIT and stops when `watermark.json` covers it (looked at every
2 ms). Samples begin at random moments, so that they do not march in step with the batches.
"""

import argparse
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from private import Server, lsn, measure  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE_SECS = 60
LOOK_SECS = 0.002


def through(lake):
    with open(os.path.join(lake, "watermark.json")) as file:
        return lsn(json.load(file)["through"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--max-age", default="1s")
    parser.add_argument("--huella", default=os.path.join(HERE, "../target/release/huella"))
    parser.add_argument("--out", help="folder of the results; default: bench/runs/<date>")
    args = parser.parse_args()
    with Server(parent="/dev/shm" if os.path.isdir("/dev/shm") else None) as server:
        lake, log = os.path.join(server.dir, "lake"), os.path.join(server.dir, "huella.log")
        env = {"HUELLA_SOURCE_URL": server.url("huella"), "HUELLA_LAKE_URL": lake, "HUELLA_HTTP_LISTEN": "",
               "HUELLA_BATCH_MAX_AGE": args.max_age}
        server.sql("CREATE TABLE donaciones(id_donacion bigint PRIMARY KEY, monto numeric(12,2))")
        measure([args.huella, "run", "--until-caught-up"], env, log=log)
        with open(log, "ab") as out:
            huella = subprocess.Popen([args.huella, "run"], env={**os.environ, **env}, stdout=out, stderr=out)
        try:
            waits = [sample(server, huella, lake, n) for n in range(args.samples + 1)][1:]  # the first one waits for the start
        finally:
            huella.terminate()
            huella.wait(timeout=PATIENCE_SECS)
    figures = {"samples": args.samples, "max_age": args.max_age, "min_secs": min(waits), "median_secs": statistics.median(waits),
               "max_secs": max(waits), "cpus": os.cpu_count(), "load_average": os.getloadavg()}
    out = args.out or os.path.join(HERE, "runs", datetime.date.today().isoformat())
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "latency.json"), "w") as file:
        json.dump({**figures, "waits_secs": waits}, file, indent=1)
    print(json.dumps(figures))


def sample(server, huella, lake, number):
    time.sleep(random.random())
    # One call of psql, two transactions: the position is asked for once the row's COMMIT is answered.
    answer = server.sql("INSERT INTO donaciones VALUES (%d, 1.5)" % number, "SELECT pg_current_wal_insert_lsn()")
    begun, wanted = time.monotonic(), lsn(answer)
    while through(lake) < wanted:
        if time.monotonic() - begun > PATIENCE_SECS or huella.poll() is not None:
            raise SystemExit(f"row {number} did not become visible")
        time.sleep(LOOK_SECS)
    return round(time.monotonic() - begun, 4)


if __name__ == "__main__":
    main()
