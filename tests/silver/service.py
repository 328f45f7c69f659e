"""Dataform's REST interface, as much of it as `huella dataform run` asks for, over a project on the disk.

Owns: compilations and invocations as resources. An invocation is run by Dataform's own program, against the emulator, before its creation is
answered. So what reaches silver is what huella itself hands over.
"""

import http.server
import json
import re
import threading

REPOSITORY_NAME = "projects/p/locations/l/repositories/r"


class Service:
    """Serves as long as this process lives. `url` is what `[dataform] endpoint` must say."""

    def __init__(self, project, stack):
        self.project, self.stack = project, stack
        self.variables, self.invocations, self.output = [], [], ""
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def serve(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                found = service.answer(self.command, self.path.split("?")[0], json.loads(body) if body else {})
                text = json.dumps(found if found is not None else {"error": {"code": 404, "message": "no such resource"}}).encode()
                self.send_response(200 if found is not None else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = serve

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def answer(self, method, path, sent):
        """The resource that is asked for; None: there is none."""
        rest = path.removeprefix(f"/v1/{REPOSITORY_NAME}/")
        if (method, rest) == ("POST", "compilationResults"):
            self.variables.append(sent["codeCompilationConfig"]["vars"]["huella_cut"])
            name = f"{REPOSITORY_NAME}/compilationResults/{len(self.variables) - 1}"
            return {**sent, "name": name, "resolvedGitCommitSha": "disk", "compilationErrors": []}
        if (method, rest) == ("POST", "workflowInvocations"):
            return self.invoke(sent)
        if (method, rest) == ("GET", "workflowInvocations"):
            return {"workflowInvocations": [invocation for invocation, _ in self.invocations]}
        one = re.fullmatch(r"workflowInvocations/(\d+)(:query)?", rest)
        if not one or int(one[1]) >= len(self.invocations):
            return None
        invocation, actions = self.invocations[int(one[1])]
        return {"workflowInvocationActions": actions} if one[2] else invocation

    def invoke(self, sent):
        self.project.set_variable(self.variables[int(sent["compilationResult"].rsplit("/", 1)[1])])
        verdicts, self.output, code = self.project.run(self.stack, "--tags", *sent["invocationConfig"]["includedTags"])
        states = {"passed": "SUCCEEDED", "failed": "FAILED", "skipped": "SKIPPED"}
        actions = [
            {"target": dict(zip(("schema", "name"), target.split("."))), "state": states[verdict], "failureReason": ""}
            for target, verdict in verdicts.items()
        ]
        name = f"{REPOSITORY_NAME}/workflowInvocations/{len(self.invocations)}"
        self.invocations.append(({**sent, "name": name, "state": "FAILED" if code else "SUCCEEDED"}, actions))
        return self.invocations[-1][0]
