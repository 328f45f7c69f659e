"""The emulator's own program, with two changes: NUMERIC has nine decimals, and each SQL text is parsed once.

DuckDB's DECIMAL without precision has three decimals, so columns and casts of the emulator would round what BigQuery does not. And to translate
a statement the emulator parses the same texts about thirty times over, which is most of what a merge costs here.
"""

import functools
import sys

import sqlglot.dialects.dialect
import sqlglot.expressions
import sqlglot.generators.duckdb

from bqemulator.cli import main

TEXTS = 4096  # of a few kilobytes each

types = sqlglot.generators.duckdb.DuckDBGenerator.TRANSFORMS
plain_type = types[sqlglot.expressions.DataType]


def duckdb_type(generator, kind):
    if kind.this == sqlglot.expressions.DataType.Type.DECIMAL and not kind.expressions:
        return "DECIMAL(38, 9)"
    return plain_type(generator, kind)


types[sqlglot.expressions.DataType] = duckdb_type

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
