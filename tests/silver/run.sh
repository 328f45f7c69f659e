#!/usr/bin/env bash
# Proves the Dataform project: one line for each claim, exit code 1 if one is false.
#   tests/silver/run.sh [--seeds N] [--first SEED] [--mutants] [--group NAME]
set -euo pipefail
cd "$(dirname "$0")"
./setup.sh
exec ../../.stack/silver/venv/bin/python prove.py "$@"
