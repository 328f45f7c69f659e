#!/usr/bin/env python3
"""Times huella's first copy against the server's own binary COPY of the same table.

Makes a private PostgreSQL, one table of six columns, then pairs of runs, one after the other:
  A  COPY table TO STDOUT (FORMAT binary), one connection, thrown away
  B  huella run --until-caught-up into a new local lake
and prints both medians, their ratio, CPU times (which a busy machine does not distort) and huella's largest resident size.

  bench/copy.py --binary target/release/huella [--rows 5000000] [--runs 5] [--out bench/runs/DATE]

The server refuses root: run by root, it is started as nobody through setpriv.
"""
import argparse, datetime, json, os, pathlib, pwd, shutil, socket, statistics, subprocess, sys, tempfile, time

SQL = """
CREATE TABLE donaciones (
  id bigint PRIMARY KEY, donante int NOT NULL, monto numeric(12,2), medio text, creado timestamptz, aprobada bool);
INSERT INTO donaciones
SELECT i, (i::bigint * 7919) % 100003, ((i::bigint * 37) % 1000000)::numeric / 100, 'medio de pago ' || (i % 1000),
       '2024-01-01 00:00:00+00'::timestamptz + i * interval '7 seconds', i % 3 = 0
  FROM generate_series(1, {rows}) i;
"""


def server_bin():
    if os.environ.get("HUELLA_PG_BIN"):
        return pathlib.Path(os.environ["HUELLA_PG_BIN"])
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        sys.exit("no PostgreSQL server programs: install them, or set HUELLA_PG_BIN")
    return found[-1].parent


class Server:
    def __init__(self, folder):
        self.bin, self.data = server_bin(), folder / "data"
        self.prefix = []
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
            self.prefix = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        self.run("initdb", "-N", "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "-D", self.data)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write(f"port = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n"
                       "wal_level = logical\nshared_buffers = 1GB\nmax_wal_size = 8GB\n")
        self.log = open(folder / "log", "w")
        self.process = subprocess.Popen([*self.prefix, self.bin / "postgres", "-D", self.data], stderr=self.log, stdout=self.log)
        for _ in range(300):
            if self.psql("SELECT 1", check=False).returncode == 0:
                return
            time.sleep(0.1)
        sys.exit("the server does not answer")

    def run(self, program, *args):
        subprocess.run([*self.prefix, self.bin / program, *map(str, args)], check=True, stdout=subprocess.DEVNULL)

    def psql(self, sql, check=True, out=subprocess.DEVNULL):
        url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        return subprocess.run(["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", url, "-c", sql], check=check, stdout=out,
                              stderr=None if check else subprocess.DEVNULL)

    def cpu_secs(self):
        """CPU time of all sessions that have ended."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(2)
        self.process.wait()


def ended_sessions_cpu_secs(server, before):
    time.sleep(0.3)  # the server collects its sessions a moment after their end
    return server.cpu_secs() - before


def plain_copy(server):
    before = server.cpu_secs()
    with open("/dev/null", "wb") as nowhere:
        begun = time.monotonic()
        server.psql("COPY donaciones TO STDOUT (FORMAT binary)", out=nowhere)
        wall = time.monotonic() - begun
    return {"copy_secs": wall, "copy_server_cpu_secs": ended_sessions_cpu_secs(server, before)}


def copy(binary, server, folder, rows):
    lake = folder / "lake"
    shutil.rmtree(lake, ignore_errors=True)
    server.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots; DROP PUBLICATION IF EXISTS huella")
    env = {k: v for k, v in os.environ.items() if not k.startswith("HUELLA_")}
    env.update(HUELLA_SOURCE_URL=f"postgresql://postgres@127.0.0.1:{server.port}/postgres?sslmode=disable",
               HUELLA_LAKE_URL=str(lake), HUELLA_HTTP_LISTEN="")
    before = server.cpu_secs()
    with open(folder / "huella.log", "w") as log:
        begun = time.monotonic()
        process = subprocess.Popen([binary, "--log-format", "json", "run", "--until-caught-up"], env=env, cwd=folder, stderr=log)
        high_kb = 0
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            try:
                for line in open(f"/proc/{process.pid}/status"):
                    if line.startswith("VmHWM"):
                        high_kb = max(high_kb, int(line.split()[1]))
            except (FileNotFoundError, ProcessLookupError):
                pass
            time.sleep(0.02)
        wall = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"huella ended with {process.returncode}:\n{(folder / 'huella.log').read_text()}")
    watermark = json.loads((lake / "watermark.json").read_text())
    manifests = [json.loads(p.read_text()) for p in (lake / "commits").glob("*.json")]
    marks = [mark for manifest in manifests for mark in manifest["snapshots"]]
    assert watermark["tables"]["public.donaciones"]["version"] == 1 and sum(mark["rows"] for mark in marks) == rows, marks
    files = [f for manifest in manifests for f in manifest["files"]]
    return {"wall_secs": wall, "user_secs": usage.ru_utime, "system_secs": usage.ru_stime, "resident_mib": high_kb / 1024,
            "server_cpu_secs": ended_sessions_cpu_secs(server, before),
            "files": len(files), "file_mib": sum(f["bytes"] for f in files) / 2**20}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/huella")
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench/runs") / datetime.date.today().isoformat())
    asked = parser.parse_args()
    binary = str(pathlib.Path(asked.binary).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        server = Server(folder)
        try:
            server.psql(SQL.format(rows=asked.rows))
            server.psql("VACUUM (FREEZE, ANALYZE) donaciones")
            server.psql("CHECKPOINT")
            plain_copy(server)  # warms the server's cache
            runs = []
            for n in range(asked.runs):
                one = {**plain_copy(server), **copy(binary, server, folder, asked.rows), "load": os.getloadavg()[0]}
                one["ratio"] = one["wall_secs"] / one["copy_secs"]
                print(f"run {n + 1}: " + ", ".join(f"{k} {v:.2f}" for k, v in one.items()), flush=True)
                runs.append(one)
        finally:
            server.stop()
    median = {k: statistics.median(run[k] for run in runs) for k in runs[0]}
    print("median: " + ", ".join(f"{k} {v:.2f}" for k, v in median.items()))
    asked.out.mkdir(parents=True, exist_ok=True)
    report = {"rows": asked.rows, "cores": os.cpu_count(), "median": median, "runs": runs}
    (asked.out / "copy.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
