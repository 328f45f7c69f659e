"""The programs that the proof runs on, each on a port of its own on the loopback, none of them left behind.

Owns: the emulator's process, the proxy for external tables, the metadata server that gives Dataform a token, the scratch directory.
"""

import ctypes
import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from bigquery import BigQuery
from external import Proxy

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
INSTALLED = REPOSITORY / ".stack" / "silver"
START_SECONDS = 60  # the emulator needs two on an idle machine


def die_with_parent():
    """For a child: a process that outlives its parent's SIGKILL would hold its port and memory for ever."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Metadata(http.server.BaseHTTPRequestHandler):
    ANSWERS = {
        "/token": ("application/json", json.dumps({"access_token": "test", "expires_in": 3599, "token_type": "Bearer"})),
        "/project/project-id": ("text/plain", "test"),
        "/universe-domain": ("text/plain", "googleapis.com"),
        "/email": ("text/plain", "test@test.iam.gserviceaccount.com"),
    }

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.split("?")[0]
        kind, text = next((answer for end, answer in self.ANSWERS.items() if path.endswith(end)), ("text/plain", "default/\n"))
        self.send_response(200)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Stack:
    """with Stack(project) as stack: stack.query("SELECT 1")"""

    def __init__(self, project="p"):
        self.project = project

    def __enter__(self):
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="huella-silver-"))
        self.process = self.proxy = self.metadata = None
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        log = self.scratch / "emulator.log"
        self.process = subprocess.Popen(
            [
                INSTALLED / "venv/bin/python",
                HERE / "emulator.py",
                "start",
                "--rest-port",
                "0",
                "--grpc-port",
                "0",
                "--log-level",
                "info",
                "--log-format",
                "json",
            ],
            stdout=open(log, "wb"),
            stderr=subprocess.STDOUT,
            cwd=self.scratch,
            preexec_fn=die_with_parent,
            # Its cache of results does not see that a view's files changed.
            env={**os.environ, "HOME": str(INSTALLED / "home"), "BQEMU_QUERY_CACHE_TTL_SECONDS": "0"},
        )
        port = self.listening(log)
        self.proxy = Proxy(port, str(self.scratch))
        self.metadata = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
        self.metadata.daemon_threads = True
        threading.Thread(target=self.metadata.serve_forever, daemon=True).start()
        self.query = BigQuery(self.proxy.port, self.project)

    def listening(self, log):
        """The port that the emulator took, once it answers."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            found = re.search(r"Uvicorn running on http://127\.0\.0\.1:(\d+)", log.read_text(errors="replace"))
            if found:
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=5)
                    connection.request("GET", f"/bigquery/v2/projects/{self.project}/datasets")
                    connection.getresponse().read()
                    return int(found[1])
                except OSError:
                    pass
            time.sleep(0.1)
        raise RuntimeError("the emulator did not start:\n" + log.read_text(errors="replace")[-2000:])

    def __exit__(self, *_):
        if self.proxy:
            self.proxy.stop()
        if self.metadata:
            self.metadata.shutdown()
            self.metadata.server_close()
        if self.process:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)
