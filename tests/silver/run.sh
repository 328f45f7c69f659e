#!/usr/bin/env bash
# Proves the Dataform project: one line for each claim, exit code 1 if one is false.
#   tests/silver/run.sh [--seeds N] [--first SEED] [--mutants] [--huella BINARY] [--group NAME]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
"$here/setup.sh"
exec "$here/../../.stack/silver/venv/bin/python" "$here/prove.py" "$@"
