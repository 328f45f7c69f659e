"""A PostgreSQL server of the tests' own, and what the source's cells are as text."""

import os
import pathlib
import pwd
import signal
import socket
import subprocess
import time

import psycopg

from stack import REPOSITORY, die_with_parent

# What huella's own sessions pin, so that text means the same on both sides.
PINS = "-c DateStyle=ISO -c IntervalStyle=postgres -c TimeZone=UTC -c extra_float_digits=3 -c bytea_output=hex -c lc_monetary=C"


def programs():
    """As the other tests choose them: HUELLA_PG_BIN, else the newest of the system, else the newest that tests/setup.sh brought."""
    if "HUELLA_PG_BIN" in os.environ:
        return pathlib.Path(os.environ["HUELLA_PG_BIN"]).resolve()
    for folder, pattern in ((pathlib.Path("/usr/lib/postgresql"), "[0-9]*/bin/initdb"), (REPOSITORY / ".stack", "pg[0-9]*/native/bin/initdb")):
        version = lambda path: int(path.relative_to(folder).parts[0].removeprefix("pg"))
        found = sorted(folder.glob(pattern), key=version)
        if found:
            return found[-1].resolve().parent
    raise SystemExit("no PostgreSQL found: tests/setup.sh installs it, or HUELLA_PG_BIN names its programs' folder")


class Postgres:
    """A server of our own on the loopback. It refuses to run as root, so root lends it to another user."""

    def __init__(self, folder):
        self.folder, self.lend, self.bin = pathlib.Path(folder), [], programs()
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

    def run(self, *statements):
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def stop(self):
        self.process.send_signal(signal.SIGQUIT)  # at once: nothing here is kept
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
