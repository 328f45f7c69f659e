"""A client for the one thing the tests ask of BigQuery: run this SQL, give me the rows."""

import http.client
import json


class QueryFailed(Exception):
    pass


def failed(answer):
    """The message of an answer that says the query failed, or None. The emulator sends a failed script with status 200 and `errors`."""
    faults = [answer["error"]] if "error" in answer else answer.get("errors") or []
    return faults[0].get("message", "failed without a message") if faults else None


class BigQuery:
    def __init__(self, port, project, seconds=120):
        self.port, self.project, self.seconds = port, project, seconds

    def __call__(self, sql):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.seconds)
        body = json.dumps({"query": sql, "useLegacySql": False, "maxResults": 1_000_000})
        connection.request("POST", f"/bigquery/v2/projects/{self.project}/queries", body, {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        failure = failed(answer)
        if failure:
            raise QueryFailed(failure)
        rows = [tuple(cell["v"] for cell in row["f"]) for row in answer.get("rows", [])]
        if int(answer.get("totalRows", len(rows))) != len(rows):
            raise QueryFailed(f"{len(rows)} of {answer['totalRows']} rows came back")
        return rows
