#!/usr/bin/env bash
# Installs what the proof of silver needs into .stack/silver, once: a BigQuery emulator and Dataform's own programs.
# Without network and in no time when both are there already.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=tests/silver
stack=.stack/silver
mkdir -p "$stack"

# A stamp holds what was installed, so that changed pins install anew and an interrupted installation is repeated.
python_wanted=$(cat "$here/requirements.txt")
if [ "$(cat "$stack/python.stamp" 2>/dev/null)" != "$python_wanted" ]; then
    echo "installing the BigQuery emulator"
    python3 -m venv "$stack/venv"
    "$stack/venv/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt"
    # DuckDB looks for extensions below HOME: a private one, so that nothing of the user's is touched.
    mkdir -p "$stack/home"
    HOME=$PWD/$stack/home "$stack/venv/bin/python" -c "from duckdb_extensions import import_extension; import_extension('spatial')"
    echo "$python_wanted" >"$stack/python.stamp"
fi

node_wanted=$(cat dataform/package.json)
if [ "$(cat "$stack/node.stamp" 2>/dev/null)" != "$node_wanted" ]; then
    echo "installing Dataform"
    mkdir -p "$stack/dataform"
    cp dataform/package.json "$stack/dataform/package.json"
    (cd "$stack/dataform" && npm install --silent --no-package-lock --no-audit --no-fund)
    echo "$node_wanted" >"$stack/node.stamp"
fi
