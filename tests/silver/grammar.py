"""A second opinion on whether generated SQL is BigQuery's: sqlglot's grammar of the dialect."""

import logging
import re

import sqlglot
import sqlglot.expressions
import sqlglot.errors

# sqlglot takes IF … THEN and END IF for opaque commands with everything inside them: without these lines it reads what they hold.
CONTROL = re.compile(r"^\s*(IF\b.*\bTHEN|ELSEIF\b.*\bTHEN|ELSE|END IF;)(\s*--.*)?$", re.M)
# What it has no grammar for and takes for an opaque command; the proxy reads these strictly instead.
OPAQUE = re.compile(r"^\s*CREATE OR REPLACE EXTERNAL TABLE\b", re.I)
logging.getLogger("sqlglot").setLevel(logging.ERROR)


def faults(sql):
    """(statements read, what is wrong with them)"""
    wrong, count = [], 0
    try:
        statements = sqlglot.parse(CONTROL.sub("", sql), dialect="bigquery")
    except sqlglot.errors.ParseError as error:
        return 0, [str(error)[:500]]
    for statement in statements:
        if statement is None or isinstance(statement, sqlglot.expressions.Semicolon):
            continue
        count += 1
        text = statement.sql(dialect="bigquery")
        if isinstance(statement, sqlglot.expressions.Command) and not OPAQUE.match(text):
            wrong.append(f"not understood: {text[:200]}")
            continue
        try:
            sqlglot.parse_one(text, dialect="bigquery")
        except sqlglot.errors.ParseError as error:
            wrong.append(f"{error}"[:500])
    return count, wrong
