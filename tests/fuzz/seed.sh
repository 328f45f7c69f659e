#!/usr/bin/env bash
# Fills the corpus from the captures in tests/golden: each message for `decode`, each in an envelope for `envelope`.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p corpus/decode corpus/envelope
number=0
while read -r hex; do
  number=$((number + 1))
  bytes=$(sed 's/../\\x&/g' <<< "$hex")
  printf '%b' "$bytes" > "corpus/decode/seed-$number"
  printf '%b' "w\x00\x00\x00\x00\x01\x52\xb7\x58\x00\x00\x00\x00\x01\x52\xb7\x58\x00\x03\x04\x02\x96\xab\x53\x05$bytes" > "corpus/envelope/seed-$number"
done < <(grep -hv '^#' ../golden/*.hex)
printf 'k\0\0\0\0\1\122\267\130\0\3\4\2\226\253\123\5\1' > corpus/envelope/seed-keepalive
echo "$number seeds each"
