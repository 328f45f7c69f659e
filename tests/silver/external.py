"""What the emulator lacks, added by a proxy in front of it: external tables, which become views, ALTER TABLE with several actions, RENAME,
after which the emulator's INFORMATION_SCHEMA would still have the old name, and descriptions of columns, which are left out.

CREATE EXTERNAL TABLE over a manifest becomes a view over `read_parquet` of the manifest's files. As in BigQuery, what a query reads is
what the manifest lists at that moment: before each query the proxy looks whether a manifest changed. Columns and types are those of the
reference file; a file without a column reads as NULL; the hive key comes from the path. A directory or file that nobody listed is invisible.
"""

import http.client
import http.server
import json
import re
import threading

import pyarrow
import pyarrow.parquet

from bigquery import failed

DDL = re.compile(
    r"CREATE\s+OR\s+REPLACE\s+EXTERNAL\s+TABLE\s+`(?P<name>[^`]+)`\s+WITH\s+PARTITION\s+COLUMNS\s*\((?P<keys>[^)]*)\)\s*OPTIONS\s*\((?P<options>(?:[^()']|'(?:[^'\\]|\\.)*'|\([^)]*\))*)\)",
    re.I,
)
OPTION = re.compile(r"(\w+)\s*=\s*(\[[^\]]*\]|'(?:[^'\\]|\\.)*')")
# DuckDB takes one action in an ALTER, BigQuery takes many in one.
# The emulator fails at a column's description.
DESCRIBED = re.compile(r"(`[^`]+`\s+\w+)\s+OPTIONS\s*\(description = '(?:[^'\\]|\\.)*'\)")
RENAME = re.compile(r"ALTER\s+TABLE\s+`(?P<path>[^`]+\.)(?P<old>[^`.]+)`\s+RENAME\s+TO\s+`(?P<new>[^`.]+)`", re.I)
ALTER = re.compile(r"ALTER\s+TABLE\s+(?P<name>`[^`]+`)\s+(?P<actions>ADD\s+COLUMN[^;]*);", re.I)
TEXT = re.compile(r"'((?:[^'\\]|\\.)*)'")


class Refused(Exception):
    """What BigQuery would answer with an error."""


def bigquery_type(kind):
    if pyarrow.types.is_timestamp(kind):
        return "TIMESTAMP"  # BigQuery does not distinguish isAdjustedToUTC
    if pyarrow.types.is_decimal(kind):
        return "NUMERIC" if kind.precision - kind.scale <= 29 and kind.scale <= 9 else "BIGNUMERIC"
    names = {"int64": "INT64", "string": "STRING", "bool": "BOOL", "date32[day]": "DATE", "double": "FLOAT64", "float": "FLOAT64", "binary": "BYTES"}
    if str(kind) not in names:
        raise Refused(f"a Parquet type that BigQuery does not document: {kind}")
    return names[str(kind)]


class ExternalTable:
    def __init__(self, statement, root):
        match = DDL.search(statement)
        if not match:
            raise Refused("an external table in a form that this proxy does not know")
        options = {name.lower(): [text.replace("\\'", "'") for text in TEXT.findall(value)] for name, value in OPTION.findall(match["options"])}
        if options.get("format") != ["PARQUET"] or options.get("file_set_spec_type") != ["NEW_LINE_DELIMITED_MANIFEST"]:
            raise Refused(f"not Parquet over a manifest: {options}")
        self.name, self.root, self.start, self.end = match["name"], root, match.start(), match.end()
        self.keys = [key.strip().split() for key in match["keys"].split(",")]
        self.manifests, self.prefix, self.reference = (
            options["uris"],
            options["hive_partition_uri_prefix"][0],
            options["reference_file_schema_uri"][0],
        )
        if "{" in self.prefix:
            raise Refused("in DDL the partition columns are declared, not encoded in the prefix")
        self.footers, self.seen = {}, None

    def path(self, uri):
        if uri.startswith("gs://"):
            return f"{self.root}/{uri[5:]}"
        return uri.removeprefix("file://")

    def files(self):
        uris = []
        for uri in [*self.manifests, self.reference]:
            # "A common prefix for all source URIs": huella keeps to it for everything that BigQuery is told to open.
            if not uri.startswith(self.prefix + "/"):
                raise Refused(f"{uri} does not lie below the hive prefix {self.prefix}")
        for manifest in self.manifests:
            try:
                text = open(self.path(manifest), encoding="utf-8").read()
            except OSError as error:
                raise Refused(f"Not found: manifest {manifest}") from error
            uris += [line for line in text.split("\n") if line]
        for uri in uris:
            if "*" in uri or not re.fullmatch(re.escape(self.prefix) + "".join(f"/{key}=[^/]+" for key, _ in self.keys) + "/[^/]+", uri):
                raise Refused(f"the manifest lists {uri}, which has a wildcard or does not lie below {self.prefix} with its keys")
        if not uris:
            raise Refused(f"{self.manifests} list no file")
        return uris

    def columns_of(self, uri):
        if uri not in self.footers:
            try:
                self.footers[uri] = set(pyarrow.parquet.read_schema(self.path(uri)).names)
            except OSError as error:
                raise Refused(f"Not found: {uri}") from error
        return self.footers[uri]

    def view(self):
        """The view's SQL, or None if nothing changed since it was asked last."""
        uris = self.files()
        schema = pyarrow.parquet.read_schema(self.path(self.reference))
        now = (tuple(uris), schema)
        if now == self.seen:
            return None
        present = set().union(*(self.columns_of(uri) for uri in uris))
        if present - set(schema.names):
            raise Refused(f"the files of {self.name} have columns that the reference file lacks: {present - set(schema.names)}")
        cells = [
            f"CAST({f'`{field.name}`' if field.name in present else 'NULL'} AS {bigquery_type(field.type)}) AS `{field.name}`" for field in schema
        ]
        cells += [f"CAST(`{key}` AS {kind}) AS `{key}`" for key, kind in self.keys]
        listed = ", ".join("'" + self.path(uri).replace("'", "''") + "'" for uri in uris)
        self.seen = now
        return f"CREATE OR REPLACE VIEW `{self.name}` AS SELECT {', '.join(cells)} FROM read_parquet([{listed}], union_by_name=true, hive_partitioning=true)"


class Proxy:
    """Listens on a port of its own; passes everything else on to the emulator."""

    def __init__(self, upstream, root):
        self.upstream, self.root, self.tables, self.lock = upstream, root, {}, threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def serve(self):
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length) if length else b""
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length", "connection", "accept-encoding")}
                # Dataform's client sends paths without the service's prefix.
                path = self.path if self.path.startswith(("/bigquery/", "/upload/", "/discovery/")) else "/bigquery/v2" + self.path
                try:
                    body = proxy.prepare(self.command, path, body)
                    status, answer_headers, answer = proxy.call(self.command, path, body or None, headers)
                except (Refused, OSError, http.client.HTTPException) as refusal:
                    status, answer_headers = 400, [("Content-Type", "application/json")]
                    answer = json.dumps(
                        {"error": {"code": 400, "message": str(refusal), "errors": [{"reason": "invalid", "message": str(refusal)}]}}
                    ).encode()
                self.send_response(status)
                for name, value in answer_headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a client that hung up reads no answer
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def call(self, method, path, body, headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=300)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        result = answer.status, answer.getheaders(), answer.read()
        connection.close()
        return result

    def query(self, project, sql):
        _, _, answer = self.call(
            "POST",
            f"/bigquery/v2/projects/{project}/queries",
            json.dumps({"query": sql, "useLegacySql": False}),
            {"content-type": "application/json"},
        )
        failure = failed(json.loads(answer))
        if failure:
            raise Refused(failure)

    def prepare(self, method, path, body):
        if method != "POST" or not re.search(r"/(jobs|queries)(\?|$)", path):
            return body
        document = json.loads(body)
        query = document if isinstance(document.get("query"), str) else document.get("configuration", {}).get("query")
        if not query:
            return body
        project = re.search(r"/projects/([^/]+)", path)[1]
        with self.lock:
            if re.search(r"EXTERNAL\s+TABLE", query["query"], re.I):
                table = ExternalTable(query["query"], self.root)
                query["query"] = query["query"][: table.start] + table.view() + query["query"][table.end :]
                self.tables[table.name] = table
            else:
                query["query"] = DESCRIBED.sub(r"\1", query["query"])
                query["query"] = ALTER.sub(
                    lambda match: "".join(
                        f"ALTER TABLE {match['name']} {action}; " for action in re.split(r",\s*(?=ADD\s+COLUMN)", match["actions"])
                    ),
                    query["query"],
                )
                query["query"] = RENAME.sub(
                    r"CREATE TABLE `\g<path>\g<new>` AS SELECT * FROM `\g<path>\g<old>`; DROP TABLE `\g<path>\g<old>`", query["query"]
                )
                for name, table in self.tables.items():
                    if name in query["query"]:
                        view = table.view()
                        if view:
                            self.query(project, view)
        return json.dumps(document).encode()
