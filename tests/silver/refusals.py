"""What does not fit together is refused at compilation, or by an action that says what to do, and never merged."""

import base64
import datetime
import json

from bigquery import QueryFailed
from generator import GeneratorRefused
from lake import Lake, LakeTable


def refuses(generator, generated, source, cut, words, rules="plain"):
    try:
        generator(generated, source, cut, rules=rules)
    except GeneratorRefused as refusal:
        if words not in str(refusal):
            raise AssertionError(f"the refusal says: {refusal}, not: {words}") from refusal
        return
    raise AssertionError(f"not refused: {words}")


def wrong_inputs(stack, generator):
    """Rules without their column, rules on keys, names of huella's own, LSNs that JavaScript has rounded: refused at compilation, with the reason"""
    lake = Lake(stack.scratch / "refused")
    good = LakeTable(lake, "r", {"id": "INT64", "a": "STRING", "n": "NUMERIC", "c": "INT64"}, ["id"])
    cut = {"through": 10, "commit": "c", "dt": "2026-01-02", "tables": {good.source: {"version": 1, "snapshot": 5, "snapshot_dt": "2026-01-02"}}}
    generator(lake.generated([good]), good.source, cut, rules="cleaned")
    refuses(
        generator, lake.generated([LakeTable(lake, "r", {"id": "INT64", "a": "STRING"}, ["id"])]), good.source, cut, "for column", rules="cleaned"
    )
    refuses(
        generator,
        lake.generated([LakeTable(lake, "r", {"a": "STRING", "c": "INT64", "n": "NUMERIC"}, ["a"])]),
        good.source,
        cut,
        "belongs to the key",
        rules="cleaned",
    )
    refuses(generator, lake.generated([LakeTable(lake, "r", {"id": "INT64", "dt": "DATE"}, ["id"])]), good.source, cut, "huella's own")
    refuses(generator, lake.generated([good, LakeTable(lake, "R", {"id": "INT64"}, ["id"], schema="other")]), good.source, cut, "same name")
    refuses(generator, lake.generated([good]), good.source, {**cut, "through": 2**60}, "not an LSN")
    refuses(generator, lake.generated([good]), good.source, {**cut, "through": 1.5}, "not an LSN")
    refuses(generator, lake.generated([good]), good.source, {**cut, "dt": "yesterday"}, "not a date")
    refuses(generator, {**lake.generated([good]), "format": 2}, good.source, cut, "format 2")
    refuses(generator, lake.generated([good]), good.source, "huella_cut", "not JSON")
    # In base64 a cut is the same, whatever its names' letters and its length.
    for letters in "ñ", "añ", "añ日":
        text = json.dumps({**cut, "commit": letters}, ensure_ascii=False)
        for encoded in base64.b64encode(text.encode()), base64.urlsafe_b64encode(text.encode()).rstrip(b"="):
            if generator(lake.generated([good]), good.source, encoded.decode()) != generator(lake.generated([good]), good.source, text):
                raise AssertionError(f"base64 of {text} is another cut")
    # As text every LSN is exact.
    script = generator(lake.generated([good]), good.source, {**cut, "through": str(2**60 + 1)})["script"]
    if f"huella_hi INT64 DEFAULT {2**60 + 1};" not in script:
        raise AssertionError("an LSN given as text is not exact")


def stale_tables_file(stack, generator):
    """A cut of a version that includes/huella_tables.json does not have fails that one action, and says what to run"""
    lake = Lake(stack.scratch / "stale")
    table = LakeTable(lake, "stale", {"id": "INT64"}, ["id"])
    cut = {"through": 10, "commit": "c", "dt": "2026-01-02", "tables": {table.source: {"version": 2, "snapshot": 5, "snapshot_dt": "2026-01-02"}}}
    try:
        stack.query(generator(lake.generated([table]), table.source, cut)["script"])
    except QueryFailed as failure:
        if "huella dataform generate" not in str(failure):
            raise AssertionError(f"it says: {failure}") from failure
        return
    raise AssertionError("a version that nobody described was merged")


def stale_is_red(stack, generator):
    """No cut, an old one, and tables, versions or columns that the project does not know fail the run, each with its reason; a young cut of what it knows does not"""
    lake = Lake(stack.scratch / "fresh")
    table, other = LakeTable(lake, "fresh", {"id": "INT64"}, ["id"]), LakeTable(lake, "other", {"id": "INT64", "a": "STRING"}, ["id"])
    now = datetime.datetime.now(datetime.timezone.utc)
    time = lambda **ago: (now - datetime.timedelta(**ago)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    entry = lambda of, **more: {"version": 1, "snapshot": 5, "snapshot_dt": "2026-01-02", "columns": of.fingerprint(), **more}
    young = {"through": 10, "commit": "c", "dt": "2026-01-02", "time": time(minutes=5), "tables": {table.source: entry(table)}}

    def says(cut, words, tables=(table,)):
        generated = {**lake.generated(tables), "max_age_seconds": 3600}
        try:
            stack.query(generator(generated, table.source, cut)["frescura"])
            said = "fresh"
        except QueryFailed as failure:
            said = str(failure)
        if words not in said:
            raise AssertionError(f"it says: {said}, not: {words}")

    says(young, "fresh")
    says({**young, "tables": {table.source: {name: value for name, value in entry(table).items() if name != "columns"}}}, "fresh")
    says(None, "compiled without the variable huella_cut")
    says(None, "silver stands at no cut")
    says({**young, "time": time(minutes=61)}, "the limit is 1 h")
    # A cut that does not say its time is as old as its day.
    says({name: value for name, value in young.items() if name != "time"}, "2026-01-02 00:00:00")
    says({**young, "tables": {**young["tables"], other.source: entry(other)}}, "public.other is in the published cut, and includes/huella_tables.json does not have it")
    says({**young, "tables": {table.source: entry(table, columns=other.fingerprint())}}, "has other columns in the published cut")
    says({**young, "tables": {table.source: entry(table, version=2)}}, "has version 2 in the published cut")
    says(young, "public.other is not in the published cut", tables=(table, other))
    refuses(generator, lake.generated([table]), table.source, {**young, "time": "soon"}, "not a time in UTC")


CLAIMS = [wrong_inputs, stale_tables_file, stale_is_red]
