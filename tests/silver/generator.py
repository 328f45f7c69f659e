"""The project's own generator, asked for scripts one at a time."""

import json
import subprocess

from stack import HERE, REPOSITORY, die_with_parent


class GeneratorRefused(Exception):
    """What would be an error of compilation."""


class Generator:
    def __init__(self, includes=REPOSITORY / "dataform/includes"):
        self.process = subprocess.Popen(
            ["node", HERE / "generate.js", includes], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def __call__(self, generated, source, cut, rules="plain", soft=False):
        """{"raw": DDL of the external table, "script": the merge, "target": its quoted path}"""
        self.process.stdin.write(json.dumps({"generated": generated, "source": source, "cut": cut, "ruleset": {"name": rules, "soft": soft}}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise GeneratorRefused(answer["error"])
        return answer
