"""A lake in huella's layout, written by the tests: data files, manifests, reference schemas, the published cut."""

import hashlib
import json
import pathlib

import pyarrow
import pyarrow.parquet

KINDS = {
    "INT64": pyarrow.int64(),
    "STRING": pyarrow.string(),
    "BOOL": pyarrow.bool_(),
    "DATE": pyarrow.date32(),
    "FLOAT64": pyarrow.float64(),
    "BYTES": pyarrow.binary(),
    "NUMERIC": pyarrow.decimal128(38, 9),
    "TIMESTAMP": pyarrow.timestamp("us", tz="UTC"),
    "DATETIME": pyarrow.timestamp("us"),
    "JSON": pyarrow.string(),
}
METADATA = [
    ("_op", pyarrow.string()),
    ("_commit_lsn", pyarrow.int64()),
    ("_seq", pyarrow.int64()),
    ("_commit_ts", pyarrow.timestamp("us", tz="UTC")),
    ("_xid", pyarrow.int64()),
    ("_unchanged", pyarrow.string()),
    ("_old_key", pyarrow.string()),
    ("_exceptions", pyarrow.string()),
]
RAW = {"DATETIME": "TIMESTAMP", "JSON": "STRING"}
LONG = 100 * 365 * 86400  # seconds: cuts of these lakes are of invented days, so that none is old unless a test says so


class LakeTable:
    """One version of one table."""

    def __init__(self, lake, name, columns, key, version=1, mode="stream", schema="public", postgres=None):
        self.lake, self.name, self.columns, self.key, self.version, self.mode = lake, name, dict(columns), list(key), version, mode
        self.source = f"{schema}.{name}"
        self.postgres = postgres or {}  # types of the source that are not the silver ones' namesakes
        self.folder = f"tables/{self.source}/v{version}"
        self.files = []  # (path relative to the lake, dt)
        self.published = 0

    def row(self, commit_time, **cells):
        """A row of change; what is not named is NULL."""
        return {**dict.fromkeys(self.columns), **{name: None for name, _ in METADATA}, "_commit_ts": commit_time, "_xid": 1, **cells}

    def write(self, rows, columns=None):
        """One file for each dt among the rows; `columns` may leave out some, as files of before a column was added do."""
        names = columns or self.columns
        schema = pyarrow.schema([(name, KINDS[self.columns[name]]) for name in names] + METADATA)
        by_day = {}
        for row in rows:
            by_day.setdefault(row["_commit_ts"].strftime("%Y-%m-%d"), []).append(row)
        for day, some in by_day.items():
            relative = f"{self.folder}/dt={day}/{some[0]['_commit_lsn']:016X}-s{len(self.files):020}-e000001-p000.parquet"
            path = self.lake.root / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(some, schema=schema), path, compression="zstd")
            self.files.append((relative, day))

    def publish(self):
        folder = self.lake.root / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        schema = pyarrow.schema([(name, KINDS[kind]) for name, kind in self.columns.items()] + METADATA)
        pyarrow.parquet.write_table(schema.empty_table(), folder / "_published.schema.parquet")
        manifest = folder / "_published.manifest"
        manifest.with_suffix(".new").write_text("".join(f"{self.lake.url}/{relative}\n" for relative, _ in self.files))
        manifest.with_suffix(".new").replace(manifest)

    def fingerprint(self):
        """As huella makes it: tells one set of columns from another."""
        lines = (f"{name} {RAW.get(kind, kind)} {kind}\n" for name, kind in self.columns.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]

    def described(self):
        """The table's entry in huella_tables.json."""
        url = self.lake.url
        return {
            "source": self.source,
            "name": self.name,
            "version": self.version,
            "mode": self.mode,
            "manifest": f"{url}/{self.folder}/_published.manifest",
            "reference_schema": f"{url}/{self.folder}/_published.schema.parquet",
            "hive_prefix": f"{url}/{self.folder}/{{dt:DATE}}",
            "key": self.key,
            "columns_fingerprint": self.fingerprint(),
            "columns": [
                {"name": name, "source": name, "postgres": self.postgres.get(name, kind.lower()), "raw": RAW.get(kind, kind), "silver": kind}
                for name, kind in self.columns.items()
            ],
        }


class Lake:
    """`url` is the lake's own way to name its root: a directory, or gs://bucket/prefix with the bucket below the proxy's root."""

    def __init__(self, root, url=None, project="p", silver="silver", raw="raw"):
        self.root = pathlib.Path(root)
        self.url = url or str(self.root)
        self.project, self.silver, self.raw = project, silver, raw
        self.root.mkdir(parents=True, exist_ok=True)

    def generated(self, tables):
        return {
            "format": 1,
            "project": self.project,
            "location": "us-central1",
            "raw_dataset": self.raw,
            "silver_dataset": self.silver,
            "lake": self.url,
            "max_age_seconds": LONG,
            "tables": [table.described() for table in tables],
        }

    def write_generated(self, tables, path):
        pathlib.Path(path).write_text(json.dumps(self.generated(tables)))
