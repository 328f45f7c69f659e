#!/usr/bin/env bash
# A private PostgreSQL, a lake in a directory, and huella between them: a first copy, live changes, a SIGKILL in the
# middle, and the proof that both sides are equal. Everything is below .demo/ and on the loopback interface.
#
#   KEEP=1          leave server and huella running at the end
#   HUELLA_BIN=…    use this huella instead of building one
#   DEMO_SECONDS=…  length of the live phase (default 24, at most 60)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
demo=$repo/.demo
lake=$demo/lake
keep=${KEEP:-}
seconds=${DEMO_SECONDS:-24}
binary=${HUELLA_BIN:-}
tables=(hogar_de_paso proveedores donantes casos donaciones gastos)

# Nothing of the caller's own database or configuration may reach the demo.
for name in "${!HUELLA_@}" "${!PG@}" PORT STORAGE_EMULATOR_HOST; do unset "$name"; done
export LC_ALL=C

title() { printf '\n== %s\n' "$*"; }
say() { printf '   %s\n' "$*"; }
fail() {
    printf '\ndemo: %s\n' "$*" >&2
    exit 1
}

[[ $seconds =~ ^[0-9]+$ ]] && ((seconds >= 4 && seconds <= 60)) || fail "DEMO_SECONDS must be 4 to 60, not '$seconds'"

# ---- who runs the server: it refuses to run as root ----

as_server=()
server_user=$(id -un)
if [ "$(id -u)" = 0 ]; then
    command -v setpriv >/dev/null || fail "setpriv is missing (package util-linux); or run the demo as a normal user"
    server_user=$(id -un postgres 2>/dev/null || echo nobody)
    as_server=(setpriv "--reuid=$server_user" "--regid=$(id -g "$server_user")" --clear-groups env HOME=/)
fi

# ---- PostgreSQL's programs ----

# Sets bin (server programs) and psql, or fails; versions 14 and later that the server's user can run.
find_postgres() {
    local candidate version
    bin='' psql=''
    local candidates=()
    candidate=$(command -v pg_ctl || true)
    [ -n "$candidate" ] && candidates+=("$(dirname "$(readlink -f "$candidate")")")
    while IFS= read -r candidate; do candidates+=("$candidate"); done < <(
        printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/local/pgsql/bin /opt/homebrew/opt/postgresql*/bin "$repo"/.stack/pg*/native/bin | sort -rV)
    for candidate in "${candidates[@]}"; do
        [ -x "$candidate/initdb" ] && [ -x "$candidate/pg_ctl" ] || continue
        version=$(cd / && "${as_server[@]}" "$candidate/postgres" --version 2>/dev/null | sed 's/^[^0-9]*\([0-9]*\).*/\1/') || continue
        [ "${version:-0}" -ge 14 ] || continue
        [ -n "$bin" ] || bin=$candidate
        [ -n "$psql" ] || { [ -x "$candidate/psql" ] && psql=$candidate/psql; } || true
    done
    [ -n "$psql" ] || psql=$(command -v psql || true)
    [ -n "$bin" ] && [ -n "$psql" ]
}

install_postgres() {
    command -v apt-get >/dev/null || fail "no PostgreSQL 14 or later found (initdb, pg_ctl, psql); install it, or put it on the PATH"
    local root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "no PostgreSQL found and no sudo to install it: run 'apt-get install postgresql' as root"
        root=(sudo)
    fi
    say "no PostgreSQL found: installing Debian's package postgresql"
    # Its own cluster would be started at once and left running: not wanted.
    local quiet=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o=Dpkg::Use-Pty=0)
    {
        "${quiet[@]}" update
        "${quiet[@]}" install -y --no-install-recommends postgresql-common
        "${root[@]}" sed -i 's/^#* *create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
        "${quiet[@]}" install -y --no-install-recommends postgresql
    } >"$demo/apt.log" 2>&1 || fail "apt-get could not install postgresql; its words are in $demo/apt.log"
}

# ---- what is started here is ended here ----

cluster=''
scratch=''
huella_pid=''

stop_huella() {
    [ -n "$huella_pid" ] || return 0
    local pid=$huella_pid
    huella_pid=''
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null
}

stop_server() {
    [ -n "$cluster" ] && [ -f "$cluster/postmaster.pid" ] || return 0
    local pid
    pid=$(head -n 1 "$cluster/postmaster.pid")
    (cd / && "${as_server[@]}" "$bin/pg_ctl" -D "$cluster" -m fast -t 20 -w stop) >/dev/null 2>&1 || kill -QUIT "$pid" 2>/dev/null || true
}

finish() {
    local code=$?
    trap - EXIT INT TERM HUP
    set +e
    if [ "$code" != 0 ] || [ -z "$keep" ]; then
        stop_huella
        stop_server
        [ -n "$scratch" ] && rm -rf "$scratch"
        [ -d "$demo" ] && rm -rf "$demo/pg/data" "$demo/stop"
    fi
    [ "$code" = 0 ] || [ ! -s "$demo/huella.log" ] || printf 'huella wrote to %s\n' "$demo/huella.log" >&2
    exit "$code"
}

# ---- a clean folder; an earlier demo that was kept is stopped first ----

title "Preparing"
[ ! -x "$demo/stop" ] || "$demo/stop" >/dev/null || fail "an earlier demo could not be stopped: see $demo/stop"
rm -rf "$demo" 2>/dev/null || fail "$demo belongs to another user: remove it first"
mkdir -p "$demo" "$lake"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

find_postgres || { install_postgres && find_postgres; } || fail "PostgreSQL's programs were not found after installing them"
if [ -z "$binary" ]; then
    say "building huella"
    (cd "$repo" && cargo build --quiet)
    binary=${CARGO_TARGET_DIR:-$repo/target}/debug/huella
fi
[ -x "$binary" ] || fail "$binary is not a program"
say "$("$binary" --version); PostgreSQL's programs in $bin"

# ---- a private cluster ----

home=$demo/pg
mkdir "$home"
[ ${#as_server[@]} = 0 ] || chown "$server_user" "$home"
if ! (cd / && "${as_server[@]}" sh -c 'cd "$1" && test -w .' sh "$home") 2>/dev/null; then
    # The repository lies where the server's user may not look (below /root, say).
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/huella-demo.XXXXXX")
    chown "$server_user" "$scratch"
    home=$scratch
fi
# Before anything is started, so that an interrupted start is stopped as well.
cluster=$home/data
pg() { (cd / && "${as_server[@]}" "$@"); }
# Whoever may log in as a superuser may run programs as the server's user (COPY … TO PROGRAM): other users of this machine may not.
password=$(od -An -N 24 -tx1 /dev/urandom | tr -d ' \n')
(umask 077 && printf '127.0.0.1:*:*:postgres:%s\n' "$password" >"$demo/pgpass")
export PGPASSFILE=$demo/pgpass
printf '%s\n' "$password" | pg sh -c 'umask 077 && cat >"$1"' sh "$home/password"
pg "$bin/initdb" -D "$cluster" -U postgres --auth=scram-sha-256 --pwfile="$home/password" --encoding=UTF8 --no-locale --no-sync >"$demo/initdb.log" 2>&1 ||
    fail "initdb failed; its words are in $demo/initdb.log"
pg tee -a "$cluster/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
wal_level = logical
fsync = off              # a demo's data may be lost with the machine
max_connections = 30
CONF
pg tee "$cluster/pg_hba.conf" >/dev/null <<HBA
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
HBA
pg rm "$home/password"

port=''
for _ in 1 2 3 4 5; do
    try=$((20000 + RANDOM % 12000))
    if (exec 3<>"/dev/tcp/127.0.0.1/$try") 2>/dev/null; then continue; fi
    if pg "$bin/pg_ctl" -D "$cluster" -l "$home/server.log" -o "-p $try" -w -t 30 start >/dev/null 2>&1; then
        port=$try
        break
    fi
done
[ -n "$port" ] || fail "the server did not start: $(tail -n 3 "$home/server.log" 2>/dev/null)"
server=postgresql://postgres@127.0.0.1:$port
sql() { "$psql" -X -q -v ON_ERROR_STOP=1 -tA "$server/fundacion" "$@"; }
"$psql" -X -q "$server/postgres" -c 'CREATE DATABASE fundacion'
sql -f "$here/schema.sql" -f "$here/data.sql"
say "PostgreSQL $(sql -c 'SHOW server_version' | cut -d' ' -f1) on 127.0.0.1:$port, database fundacion"
say "$(sql -c "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") tables: donors, cases, donations, expenses and two catalogues"

# ---- huella's configuration, and a small script that calls it with that ----

cat >"$demo/huella.toml" <<TOML
[source]
url = "$server/fundacion?sslmode=disable"

[lake]
url = '$lake'

[batch]
max_age = "2s"       # small, so that there is something to see
heartbeat = "2s"

[http]
listen = ""

$(printf '[[table]]\nname = "public.%s"\n\n' hogar_de_paso proveedores casos gastos)

[[table]]
name = "public.donantes"
exclude = ["notas", "archivos"]       # private: never leaves the decoder
hash = ["identificacion"]             # the same person, without the number

[[table]]
name = "public.donaciones"
exclude = ["comprobante"]
TOML
cat >"$demo/huella" <<RUN
#!/bin/sh
# huella with the demo's configuration and nothing of the caller's: .demo/huella status, .demo/huella files …
exec env -i PATH="\$PATH" HOME="\$HOME" PGPASSFILE="$demo/pgpass" HUELLA_HASH_KEY=only-for-the-demo-0123456789 "$binary" --config "$demo/huella.toml" --log-format text "\$@"
RUN
chmod +x "$demo/huella"

# nohup, the script and env all `exec`: the process has the id that is noted here.
start_huella() {
    nohup "$demo/huella" run >/dev/null 2>>"$demo/huella.log" </dev/null &
    huella_pid=$!
}

# Whether the replicator still runs; if not, the demo ends with what it said last.
alive() { kill -0 "$huella_pid" 2>/dev/null || fail "huella ended by itself: $(tail -n 3 "$demo/huella.log")"; }

# Waits until the command given succeeds; $1 seconds at most.
await() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        ((SECONDS < end)) || fail "waited too long for $what"
        alive
        sleep 0.2
    done
}

copied() {
    local files table
    files=$("$demo/huella" files 2>/dev/null) || return 1
    for table in "${tables[@]}"; do [[ $files == *"/tables/public.$table/"* ]] || return 1; done
}

acked() { [ "$(sql -c "SELECT confirmed_flush_lsn >= '$1' FROM pg_replication_slots WHERE slot_name = 'huella'")" = t ]; }

rows() { sql -c "SELECT sum(n) FROM (SELECT count(*) AS n FROM $(printf 'public.%s UNION ALL SELECT count(*) FROM ' "${tables[@]}" | sed 's/ UNION ALL SELECT count(\*) FROM $//')) AS t"; }

title "First start: publication, slot, and a copy of every table"
start_huella
await 60 "the first copy" copied
say "$(rows) rows copied into $("$demo/huella" files | wc -l | tr -d ' ') Parquet files"

# ---- live ----

title "Live for $seconds seconds: inserts, updates, deletes, changed keys, a truncate, rollbacks"
begin=$SECONDS
round=0 killed='' back='' truncated='' told=0
while ((SECONDS - begin < seconds)); do
    round=$((round + 1))
    sql -v n="$round" -f "$here/live.sql"
    elapsed=$((SECONDS - begin))
    if [ -z "$truncated" ] && ((elapsed * 4 >= seconds)); then
        sql -f "$here/truncate.sql"
        truncated=yes
        say "$(printf '%2d s' $elapsed)  gastos truncated and loaded again, in one transaction"
    elif [ -z "$killed" ] && ((elapsed * 2 >= seconds)); then
        alive
        kill -KILL "$huella_pid"
        { wait "$huella_pid"; } 2>/dev/null || true
        huella_pid=''
        killed=$SECONDS
        say "$(printf '%2d s' $elapsed)  huella killed with SIGKILL; the foundation goes on working"
    elif [ -n "$killed" ] && [ -z "$back" ] && ((SECONDS - killed >= 2)); then
        start_huella
        back=yes
        say "$(printf '%2d s' $elapsed)  huella started again: it goes on where the lake ends"
    elif ((elapsed >= told + 4)); then
        [ -z "$huella_pid" ] || alive
        told=$elapsed
        say "$(printf '%2d s' $elapsed)  $round rounds; the lake is $(sql -c "SELECT pg_size_pretty(pg_current_wal_lsn() - confirmed_flush_lsn) FROM pg_replication_slots WHERE slot_name = 'huella'") of WAL behind"
    fi
    sleep 0.1
done
[ -n "$back" ] || start_huella
say "done: $round rounds, $(rows) rows in the tables now"

title "Catching up"
end_lsn=$(sql -c 'SELECT pg_current_wal_insert_lsn()')
await 60 "the last changes to be committed" acked "$end_lsn"
say "everything up to $end_lsn is committed in the lake and acknowledged to PostgreSQL"

title "huella status"
"$demo/huella" status

title "huella files (counted by table)"
"$demo/huella" files >"$demo/files.txt"
for table in "${tables[@]}"; do
    say "$(printf '%-22s %4d' "public.$table" "$(grep -c "/tables/public\.$table/" "$demo/files.txt")")"
done
say "for example:"
say "$(tail -n 1 "$demo/files.txt")"

title "huella verify"
code=0
"$demo/huella" verify || code=$?
[ "$code" = 0 ] || fail "verify ended with $code: source and lake are not equal"
say "source and lake are equal"

# ---- what to do next ----

title "Look at it"
say "The lake: $lake"
say "The replicator's log: $demo/huella.log"
say "With DuckDB:"
printf "     duckdb -c \"SELECT _op, count(*) FROM read_parquet([\$(.demo/huella files public.donaciones | sed \"s/.*/'&'/\" | paste -sd, -)]) GROUP BY 1\"\n"
say "With pyarrow:"
printf "     .demo/huella files public.donantes | python3 -c 'import sys, pyarrow.dataset as d; print(*d.dataset(sys.stdin.read().splitlines()).head(5).to_pylist(), sep=\"\\\\n\")'\n"

if [ -n "$keep" ]; then
    cat >"$demo/stop" <<STOP
#!/bin/sh
# Stops the demo that was left running: huella first, by its id if that is still huella, then the server.
if ps -o args= -p $huella_pid 2>/dev/null | grep -qF "$demo/huella.toml"; then
    kill -TERM $huella_pid
    for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 $huella_pid 2>/dev/null || break; sleep 1; done
    kill -KILL $huella_pid 2>/dev/null
fi
cd /
[ ! -f "$cluster/postmaster.pid" ] || ${as_server[*]} "$bin/pg_ctl" -D "$cluster" -m fast -w stop || exit 1
${scratch:+rm -rf "$scratch"}
rm -f "$demo/stop"
STOP
    chmod +x "$demo/stop"
    disown "$huella_pid"
    title "Left running"
    say "Change something: PGPASSFILE=$demo/pgpass $psql $server/fundacion"
    say "huella: .demo/huella status | files | verify"
    say "Stop both: .demo/stop"
else
    title "Stopping"
    pid=$huella_pid code=0
    kill -TERM "$pid"
    wait "$pid" || code=$?
    huella_pid=''
    [ "$code" = 0 ] || fail "huella ended with $code after SIGTERM"
    say "huella committed and left with 0; the server is stopped and removed, the lake stays"
    say "make demo KEEP=1 leaves both running"
fi
