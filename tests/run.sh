#!/usr/bin/env bash
# Installs what is missing (bare Debian 12 or Ubuntu 24.04), builds and runs every test, with or without CUDA, and ends
# with one line: N passed, N failed, N skipped. Exit code 0 when nothing failed.
# shellcheck disable=SC2317  # the checks are called through step
set -uo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
# shellcheck source=jobs/setup.sh
. "$root/jobs/setup.sh"
logs=$root/build/test-logs
passed=0 failed=0 skipped=0

# step NAME COMMAND...: one test. Exit code 77 means that it cannot run here; its last line says why.
step() {
  local name=$1 log="$logs/${1// /-}.log" code
  shift
  say "$name"
  "$@" >"$log" 2>&1
  code=$?
  case $code in
    0) passed=$((passed + 1)); tail -n 1 "$log" ;;
    77) skipped=$((skipped + 1)); echo "SKIPPED: $name: $(tail -n 1 "$log")" ;;
    *) failed=$((failed + 1)); tail -n 40 "$log"; echo "FAILED: $name (exit $code); all of it: $log" ;;
  esac
  return $code
}

skip() { echo "$*"; return 77; }

finish() {
  printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
  [ "$failed" -eq 0 ]
  exit
}

# Adds ctest's counts to ours, and what test programs say they had to pass over.
run_ctest() {
  local report=$logs/ctest.xml all=$root/build/release/Testing/Temporary/LastTest.log notes=$logs/ctest-skips.log
  say "ctest"
  rm -f "$report" "$all"
  # One at a time: the tests under mpirun use both cores themselves.
  ctest --test-dir "$root/build/release" --output-on-failure --output-junit "$report" >"$logs/ctest.log" 2>&1
  if grep -q '\*\*\*' "$logs/ctest.log"; then tail -n 200 "$logs/ctest.log"; else tail -n 4 "$logs/ctest.log"; fi
  if [ ! -s "$report" ]; then
    failed=$((failed + 1))
    echo "FAILED: ctest left no report"
    return
  fi
  # The suite's own attributes stand in front of the first test, one a line.
  count() { sed -n "s/.*[[:space:]]$1=\"\([0-9]*\)\".*/\1/p" "$report" | head -n 1; }
  local tests failures not_run
  tests=$(count tests) failures=$(count failures) not_run=$(($(count skipped) + $(count disabled)))
  grep -iE '^ *\[?skip(ped|ping)?\b' "$all" | sort -u >"$notes"
  cat "$notes"
  passed=$((passed + tests - failures - not_run))
  failed=$((failed + failures))
  skipped=$((skipped + not_run + $(wc -l <"$notes")))
}

check_sanitized() {
  build asan test_io && "$root/build/asan/bin/test_io"
}

check_format() {
  local tool
  tool=$(command -v clang-format-14) || {
    clang-format --version 2>/dev/null | grep -q 'version 14\.' && tool=clang-format
  }
  [ -n "$tool" ] || { skip "clang-format 14 is not installed, and other versions format differently"; return; }
  local files
  mapfile -t files < <(cd "$root" && find runtime parallel attention kvcache io jobs tests \
    -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh')
  (cd "$root" && "$tool" --dry-run -Werror "${files[@]}" && echo "${#files[@]} files are formatted")
}

# A Python with h5py: the system's, or one in .venv, made if it can be. Prints its path.
python_with_h5py() {
  local python
  for python in python3 "$root/.venv/bin/python"; do
    "$python" -c 'import h5py' 2>/dev/null && { echo "$python"; return 0; }
  done
  python3 -m venv "$root/.venv" >/dev/null 2>&1 && "$root/.venv/bin/pip" install -q h5py >/dev/null 2>&1 || return 1
  echo "$root/.venv/bin/python"
}

check_trace_in_h5py() {
  local python trace=$root/traces/quickstart.h5
  python=$(python_with_h5py) || { skip "no Python with h5py, and none can be installed"; return; }
  "$root/build/release/bin/tessera" trace export "$trace" --table samples --format jsonl >"$logs/quickstart.jsonl" &&
    "$python" "$root/tests/io/check_trace.py" "$trace" "$logs/quickstart.jsonl"
}

start=$SECONDS
mkdir -p "$logs"
cd "$root" || exit 1
install_build_packages || echo "building with what is here"
command -v clang-format-14 >/dev/null || install_packages clang-format-14 >/dev/null 2>&1
use_one_machine_mpi
step "build" build release || finish
run_ctest
step "quickstart" "$root/jobs/quickstart.sh"
step "trace in h5py" check_trace_in_h5py
step "parsers under sanitizers" check_sanitized
step "kill and resume" "$root/tests/jobs/kill_resume.sh" 10
step "format" check_format
echo "took $((SECONDS - start)) s"
finish
