"""The emulator's own program, with one change: it parses each SQL text once.

To translate a statement it parses the same texts about ten times over, which is most of what a merge costs here.
"""
import functools
import sys

import sqlglot.dialects.dialect

from bqemulator.cli import main

TEXTS = 4096  # of a few kilobytes each

parse = sqlglot.dialects.dialect.Dialect.parse


@functools.lru_cache(maxsize=TEXTS)
def parsed(kind, sql):
    trees = parse(kind(), sql)
    # Where a name stood in its text matters for messages only, and is most of the work of copying a tree.
    for node in (node for tree in trees if tree for node in tree.walk()):
        if node._meta and node._meta.keys() <= {"line", "col", "start", "end"}:
            node._meta = None
    return trees


def parse_once(self, sql, **options):
    if options or self.settings:
        return parse(self, sql, **options)
    # Callers change the trees they get.
    return [tree and tree.copy() for tree in parsed(type(self), sql)]


sqlglot.dialects.dialect.Dialect.parse = parse_once

if __name__ == "__main__":
    sys.exit(main())
