"""The Dataform project as its own command line sees it: a private copy with other tables and a cut, compiled and run."""

import json
import os
import re
import shutil
import signal
import subprocess

from stack import INSTALLED, REPOSITORY, die_with_parent

DATAFORM = INSTALLED / "dataform/node_modules/.bin/dataform"
SECONDS = 240  # of one run: twenty on an idle machine
COLOURS = re.compile(r"\x1b\[\d*m")
VERDICTS = [("fail", "failed"), ("skip", "skipped"), ("passed", "passed"), ("created", "passed"), ("completed", "passed")]
DONE = re.compile(r"^\s*(?P<what>.+?):\s+(?P<target>[\w.\-]+)(?:\s+\[\w+\])?", re.M)


class Project:
    """`generated`: a huella_tables.json to use instead of the committed example; `cut`: what huella passes as the variable huella_cut."""

    def __init__(self, folder, generated=None, cut=None):
        self.folder = folder
        shutil.copytree(REPOSITORY / "dataform", folder, ignore=shutil.ignore_patterns("node_modules", "README.md"))
        # Dataform needs its core really there, not linked.
        shutil.copytree(INSTALLED / "dataform/node_modules/@dataform/core", folder / "node_modules/@dataform/core")
        if generated is not None:
            self.set_tables(generated)
        self.settings = (folder / "workflow_settings.yaml").read_text()
        self.set_cut(cut)

    def set_tables(self, generated):
        (self.folder / "includes/huella_tables.json").write_text(json.dumps(generated))

    def set_cut(self, cut):
        self.set_variable(None if cut is None else json.dumps(cut))

    def set_variable(self, text):
        """The variable huella_cut, as the text that it is."""
        # JSON is YAML, so a JSON text is a YAML text.
        variables = f"vars:\n  huella_cut: {json.dumps(text)}\n" if text is not None else ""
        (self.folder / "workflow_settings.yaml").write_text(self.settings + variables)

    def change_settings(self, text):
        """More of workflow_settings.yaml."""
        self.settings += text
        (self.folder / "workflow_settings.yaml").write_text(self.settings)

    def compile(self, *arguments):
        """(graph, errors and warnings)"""
        done = self.command("compile", str(self.folder), "--json", *arguments)
        graph = json.loads(done.stdout) if done.stdout.strip() else {}
        faults = [f"{error.get('fileName')}: {error['message']}" for error in graph.get("graphErrors", {}).get("compilationErrors", [])]
        if done.returncode and not faults:
            faults.append(done.stderr.strip() or f"exit code {done.returncode}")
        return graph, faults + [line for line in done.stderr.splitlines() if "warn" in line.lower() or "deprecat" in line.lower()]

    def run(self, stack, *arguments):
        """{"dataset.name": "passed" | "failed" | "skipped"}, the whole output, the exit code"""
        credentials = stack.scratch / "credentials.json"
        credentials.write_text(json.dumps({"projectId": stack.project, "location": "us-central1"}))
        done = self.command(
            "run",
            str(self.folder),
            "--credentials",
            str(credentials),
            *arguments,
            BIGQUERY_EMULATOR_HOST=f"http://127.0.0.1:{stack.proxy.port}/bigquery/v2",
            GCE_METADATA_HOST=f"127.0.0.1:{stack.metadata.server_address[1]}",
            METADATA_SERVER_DETECTION="assume-present",
        )
        text = COLOURS.sub("", done.stdout + done.stderr)
        actions = {}
        for match in DONE.finditer(text):
            what = match["what"].lower()
            verdict = next((verdict for word, verdict in VERDICTS if word in what), None)
            if verdict:
                actions[".".join(match["target"].split(".")[-2:])] = verdict
        return actions, text, done.returncode

    @staticmethod
    def command(*arguments, **environment):
        # A group of its own, so that a run that hangs ends with all its workers.
        process = subprocess.Popen(
            [DATAFORM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            out, err = process.communicate(timeout=SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)
