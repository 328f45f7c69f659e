"""A PostgreSQL server of the bench's own, and whole-process measuring.

Owns: starting and ending the server (loopback, own folder, gone with the process), timing a command from outside.
Does not own: what is measured. Standard library only.
"""

import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

# Nothing here may outlive the bench: a hung program is an error, not a wait.
COMMAND_SECS_MAX = 900


def bin_dir():
    """HUELLA_PG_BIN, else the newest PostgreSQL of the system that has pg_recvlogical."""
    if os.environ.get("HUELLA_PG_BIN"):
        return os.environ["HUELLA_PG_BIN"]
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_recvlogical"))
    if not found:
        raise SystemExit("no PostgreSQL with pg_recvlogical: install postgresql and postgresql-client, or set HUELLA_PG_BIN")
    return os.path.dirname(found[-1])


class Server:
    """A server in a temporary folder; `with Server() as server`."""

    def __init__(self, settings=None, parent=None):
        self.bin = bin_dir()
        self.dir = tempfile.mkdtemp(prefix="huella-bench-", dir=parent)
        self.root = os.geteuid() == 0
        if self.root:  # the server's programs refuse root
            shutil.chown(self.dir, "nobody")
        data = os.path.join(self.dir, "data")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run("initdb", "-N", "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "-D", data)
        # fsync off: the source's disk is not what is measured. wal_sender_timeout stays as it is: without one the server looks for
        # replies after every row.
        wanted = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off", "wal_level": "logical",
            "max_wal_size": "32GB", "shared_buffers": "256MB", "autovacuum": "off", "max_locks_per_transaction": 256,
            **(settings or {}),
        }
        with open(os.path.join(data, "postgresql.conf"), "a") as conf:
            conf.writelines(f"{key} = '{value}'\n" for key, value in wanted.items())
        log = open(os.path.join(self.dir, "log"), "w")
        self.process = subprocess.Popen(self._as_nobody(os.path.join(self.bin, "postgres"), "-D", data), stdout=log, stderr=log)
        limit = time.monotonic() + 30
        while subprocess.run(self._psql("SELECT 1"), capture_output=True).returncode != 0:
            if time.monotonic() > limit or self.process.poll() is not None:
                raise SystemExit(f"the server does not answer: see {self.dir}/log")
            time.sleep(0.1)

    def _as_nobody(self, *command):
        if not self.root:
            return list(command)
        return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=QUIT", *command]

    def _run(self, program, *args):
        subprocess.run(self._as_nobody(os.path.join(self.bin, program), *args), check=True, stdout=subprocess.DEVNULL)

    def _psql(self, *statements):
        each = [part for sql in statements for part in ("-c", sql)]
        return [os.path.join(self.bin, "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", self.url("psql"), *each]

    def url(self, user_agent="bench"):
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable&application_name={user_agent}"

    def sql(self, *statements):
        """Runs each in its own transaction, on one connection; returns the output."""
        done = subprocess.run(self._psql(*statements), capture_output=True, text=True, timeout=COMMAND_SECS_MAX)
        if done.returncode != 0:
            raise SystemExit(f"{done.stderr.strip()}\nin: {statements[0][:200]}")
        return done.stdout.strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGQUIT)  # immediate shutdown: nothing of it is kept
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        shutil.rmtree(self.dir, ignore_errors=True)


def lsn(text):
    """`X/X` as a number."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def walsender_cpu(server, slot, into, stop):
    """Keeps the last seen CPU seconds of the walsender that serves `slot`, read from the kernel, in `into`."""
    ticks = os.sysconf("SC_CLK_TCK")
    pid = None
    while not stop.wait(0.1):
        if pid is None:
            pid = server.sql(f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}' AND active") or None
            continue
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            into["cpu_secs"] = (int(fields[11]) + int(fields[12])) / ticks
        except FileNotFoundError:
            return


def measure(command, env=None, server=None, slot=None, log=None):
    """Runs a command to its end: wall, user and system seconds, peak resident MiB; the walsender's CPU if a slot is named."""
    sender, stop = {}, threading.Event()
    watcher = threading.Thread(target=walsender_cpu, args=(server, slot, sender, stop)) if slot else None
    with open(log or os.devnull, "ab") as out:
        begun = time.monotonic()
        child = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=out, stderr=out)
        killer = threading.Timer(COMMAND_SECS_MAX, child.kill)
        killer.start()
        if watcher:
            watcher.start()
        _, status, used = os.wait4(child.pid, 0)
        wall = time.monotonic() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    killer.cancel()
    stop.set()
    if watcher:
        watcher.join()
    if child.returncode != 0:
        raise SystemExit(f"{command[0]} ended with {child.returncode}; its log: {log}")
    figures = {"wall_secs": wall, "user_secs": used.ru_utime, "sys_secs": used.ru_stime, "cpu_secs": used.ru_utime + used.ru_stime,
               "peak_mib": used.ru_maxrss / 1024}
    if sender:
        figures["walsender_cpu_secs"] = sender["cpu_secs"]
    return {key: round(value, 3) for key, value in figures.items()}
