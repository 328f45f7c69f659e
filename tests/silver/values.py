"""Cells of silver as text: how to ask BigQuery for them, and one spelling for each value whoever wrote it."""

import decimal
import json


def selected(name, kind):
    """The SQL that gives a column's cells as text without losing anything."""
    if kind in ("TIMESTAMP", "DATETIME"):
        return f"FORMAT_{kind}('%Y-%m-%d %H:%M:%E6S', `{name}`)"
    if kind == "BYTES":
        return f"CONCAT('\\\\x', TO_HEX(`{name}`))"
    # TO_JSON_STRING makes a text of NULL as well, the one that JSON's own null has.
    return f"IF(`{name}` IS NULL, NULL, TO_JSON_STRING(`{name}`))" if kind == "JSON" else f"CAST(`{name}` AS STRING)"


def canonical(kind, text):
    """A value of a silver type as one text, from BigQuery's answer or from PostgreSQL."""
    if text is None:
        return None
    if kind in ("NUMERIC", "BIGNUMERIC"):
        return str(decimal.Decimal(text).normalize() + 0)
    if kind == "FLOAT64":
        return repr(float(text))
    if kind == "BOOL":
        return "true" if text in ("t", "true") else "false"
    if kind == "JSON":
        return json.dumps(json.loads(text), sort_keys=True)
    if kind in ("TIMESTAMP", "DATETIME") and text[0].isdigit() and not text.endswith("BC"):
        whole, _, fraction = text.replace("T", " ").removesuffix("+00").partition(".")
        return f"{whole}.{fraction.ljust(6, '0')}"
    return text
