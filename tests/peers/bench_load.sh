#!/usr/bin/env bash
# Rate of loading a checkpoint with first touch of every byte, against `cat` copying the same warm files to a pipe:
#
#   bench_load.sh MODEL_DIR [REPEATS]
#
# The two take turns; the figures are medians. Exit code 1 when loading is below 0.8 of cat's rate.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
tessera=${TESSERA:-$root/build/release/bin/tessera}
model=${1:?usage: bench_load.sh MODEL_DIR [REPEATS]} repeats=${2:-5}

mapfile -t files < <(find "$model" -maxdepth 1 -name 'model*.safetensors' | sort)
bytes=$(cat "${files[@]}" | wc -c) # also warms the page cache

seconds() { date +%s.%N; }
median() { sort -g | awk '{v[NR] = $1} END {print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2}'; }

for ((i = 0; i < repeats; i++)); do
  begin=$(seconds)
  cat "${files[@]}" | cat >/dev/null
  echo "cat $(awk "BEGIN {print $(seconds) - $begin}")"
  answer=$("$tessera" bench load --model "$model" --threads 2 --repeats 1 --json)
  echo "load $(sed -n 's/.*"seconds": *\([0-9.e-]*\).*/\1/p' <<<"$answer")"
done | tee /dev/stderr >"${TMPDIR:-/tmp}/bench_load.$$"
trap 'rm -f "${TMPDIR:-/tmp}/bench_load.$$"' EXIT

cat_s=$(awk '$1 == "cat" {print $2}' "${TMPDIR:-/tmp}/bench_load.$$" | median)
load_s=$(awk '$1 == "load" {print $2}' "${TMPDIR:-/tmp}/bench_load.$$" | median)
awk -v b="$bytes" -v c="$cat_s" -v l="$load_s" 'BEGIN {
  printf "cat %.2f GB/s, load %.2f GB/s, ratio %.2f (target 0.8)\n", b / c / 1e9, b / l / 1e9, c / l
  exit c / l < 0.8
}'
