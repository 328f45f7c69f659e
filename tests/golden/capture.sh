#!/usr/bin/env bash
# Captures what a real PostgreSQL sends for each NAME.sql here into NAME.hex, one message a line.
#
#   tests/golden/capture.sh [NAME…]        # default: all
#   GOLDEN=write cargo test --test golden  # then write the readable renderings beside them, and review the diff
#
# Every script gets a cluster of its own (so oids and xids repeat) and runs behind an existing slot; it creates the
# publication `golden` itself. A first line `-- options: …` adds output plugin options. PGBIN names the server's programs.
set -euo pipefail
cd "$(dirname "$0")"
pgbin=${PGBIN:-/usr/lib/postgresql/15/bin}
run=()
if [ "$(id -u)" = 0 ]; then run=(setpriv --reuid=nobody --regid=nogroup --clear-groups); fi # the server refuses root

if [ $# -gt 0 ]; then names=("$@"); else names=(*.sql); fi
for name in "${names[@]%.sql}"; do
  dir=$(mktemp -d)
  trap '"${run[@]}" "$pgbin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$dir"' EXIT
  if [ "$(id -u)" = 0 ]; then chown nobody:nogroup "$dir"; fi
  "${run[@]}" "$pgbin/initdb" -D "$dir/data" -U golden -A trust -E UTF8 --no-locale -N >/dev/null
  "${run[@]}" "$pgbin/pg_ctl" -D "$dir/data" -w -l "$dir/log" \
    -o "-c listen_addresses='' -c unix_socket_directories='$dir' -c wal_level=logical -c fsync=off -c autovacuum=off -c timezone=UTC" \
    start >/dev/null
  psql=("${run[@]}" "$pgbin/psql" -h "$dir" -U golden -d postgres -X -q -A -t -v ON_ERROR_STOP=1)
  options=$(sed -n '1s/^-- options: /, /p' "$name.sql")
  "${psql[@]}" -o /dev/null -c "SELECT pg_create_logical_replication_slot('golden', 'pgoutput')"
  "${psql[@]}" -o /dev/null < "$name.sql"
  {
    "${psql[@]}" -c "SELECT '# PostgreSQL ' || current_setting('server_version') || ', $name.sql'"
    "${psql[@]}" -c "SELECT encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('golden', NULL, NULL,
      'proto_version', '1', 'publication_names', 'golden'$options)"
  } > "$name.hex"
  "${run[@]}" "$pgbin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null
  rm -rf "$dir"
  echo "$name: $(grep -vc '^#' "$name.hex") messages"
done
