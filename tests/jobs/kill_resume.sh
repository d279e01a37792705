#!/usr/bin/env bash
# Kills an evaluation at random instants and resumes it: kill_resume.sh [INSTANTS [SEED]]
#
# At each instant one rank, all ranks, mpirun, or everything gets SIGKILL. Then no process of the job may remain after
# 15 s; the trace must be rebuildable from the journal and hold every sample that was acknowledged before the kill; and
# the same command, on another grid too, must go on and end with every sample in journal and trace exactly once, the
# acknowledged lines unchanged, and the predictions those of a run that nobody killed. With the same seed the instants
# and victims are the same. TESSERA names another binary than that of build/release.
set -uo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
# shellcheck source=jobs/setup.sh
. "$root/jobs/setup.sh"
instants=${1:-10} seed=${2:-1}
tessera=${TESSERA:-$root/build/release/bin/tessera}
samples=40
use_one_machine_mpi
export OMP_NUM_THREADS=1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# run_job TRACE RANKS GRID-OPTIONS...: becomes mpirun, leader of a session of its own; call it in a subshell.
run_job() {
  local trace=$1 ranks=$2
  shift 2
  exec setsid mpirun -np "$ranks" "$tessera" eval --model "$root/tests/fixtures/qwen2-tied" --task ruler_niah \
    --length 2048 --samples "$samples" --seed 7 --max-output-tokens 64 --threads 1 --trace "$trace" "$@"
}
grids=("1" "2 --tp 2" "2 --sp 2" "3 --sp 3" "4 --tp 2 --sp 2" "4 --tp 2")

fail() {
  echo "FAILED: $*"
  [ -f "$folder/out.log" ] && tail -n 15 "$folder/out.log"
  exit 1
}

# Processes of the job's session that are not zombies, "PID NAME" a line: mpirun and its ranks, and nobody else's.
session() {
  local stat rest pid name
  for stat in /proc/[0-9]*/stat; do
    { read -r rest <"$stat"; } 2>/dev/null || continue
    pid=${rest%% *} name=${rest#*(} name=${name%)*} rest=${rest##*) }
    # after the name: state, parent, group, session
    # shellcheck disable=SC2086
    set -- $rest
    [ "$4" = "$job" ] && [ "$1" != Z ] && echo "$pid $name"
  done
}

sample_lines() { grep '"type":"sample"' "$1" 2>/dev/null; }
number_of() { sed -n 's/.*[{,]"sample":\([0-9]*\)[,}].*/\1/p'; }
prediction_of() { sed -n 's/.*[{,]"prediction":\("\([^"\\]\|\\.\)*"\)[,}].*/\1/p'; }
# "SAMPLE PREDICTION" a line, of a table in JSON lines
answers() { paste -d ' ' <(number_of <"$1") <(prediction_of <"$1") | sort -n; }
exported() { "$tessera" trace export "$1" --table samples --format jsonl; }

[ -x "$tessera" ] || fail "$tessera is not there: build it first"
echo "seed $seed, $instants instants, $samples samples"

begin=$(date +%s%N)
(run_job "$folder/whole.h5" 4 --tp 2) >"$folder/out.log" 2>&1 || fail "the undisturbed run ended with code $?"
took_ms=$((($(date +%s%N) - begin) / 1000000))
exported "$folder/whole.h5" >"$folder/table.txt"
answers "$folder/table.txt" >"$folder/whole.txt"
[ "$(wc -l <"$folder/whole.txt")" -eq "$samples" ] || fail "the undisturbed run has not $samples samples in its trace"
echo "an undisturbed run takes $took_ms ms"

RANDOM=$seed
while_running=0
for ((i = 1; i <= instants; i++)); do
  trace=$folder/$i.h5 journal=$folder/$i.h5.journal
  delay_ms=$(((RANDOM * 32768 + RANDOM) % (took_ms * 9 / 10)))
  victim=$((i % 4)) pick=$((RANDOM % 4)) grid=${grids[RANDOM % ${#grids[@]}]}
  run_job "$trace" 4 --tp 2 >"$folder/out.log" 2>&1 &
  job=$!
  disown "$job" # no message of the shell about its end
  sleep "$(printf '%d.%03d' $((delay_ms / 1000)) $((delay_ms % 1000)))"

  # What is in the journal now is acknowledged. The last line may still be on its way to the disk: leave out a torn one.
  sample_lines "$journal" | grep '}$' >"$folder/before.txt"
  mapfile -t ranks < <(session | awk '$2 == "tessera" {print $1}')
  mapfile -t all < <(session | awk '{print $1}')
  case $victim in
    0) what="one rank" killed=("${ranks[@]:$((${#ranks[@]} ? pick % ${#ranks[@]} : 0)):1}") ;;
    1) what="all ranks" killed=("${ranks[@]}") ;;
    2) what="mpirun" killed=("$job") ;;
    3) what="everything" killed=("${all[@]}") ;;
  esac
  running=${#all[@]}
  [ "$running" -gt 0 ] && while_running=$((while_running + 1))
  [ ${#killed[@]} -gt 0 ] && kill -KILL "${killed[@]}" 2>/dev/null
  [ ${#killed[@]} -eq 0 ] && [ "$running" -gt 0 ] && kill -KILL "$job" # no rank had started yet

  deadline=$((SECONDS + 15))
  while [ -n "$(session)" ] && [ $SECONDS -lt $deadline ]; do sleep 0.1; done
  left=$(session)
  if [ -n "$left" ]; then
    awk '{print $1}' <<<"$left" | xargs kill -KILL 2>/dev/null
    fail "instant $i ($what at $delay_ms ms): processes remain after 15 s: $left"
  fi

  acknowledged=$(number_of <"$folder/before.txt" | sort -n)
  label="instant $i: $what at $delay_ms ms, $(wc -w <<<"$acknowledged") acknowledged, then ${grid%% *} ranks"

  # The trace as it can be made from the journal alone, before anything resumes.
  if [ -n "$acknowledged" ]; then
    rm -f "$trace"
    "$tessera" trace rebuild "$trace" >"$folder/out.log" 2>&1 || fail "$label: trace rebuild ended with code $?"
    exported "$trace" | number_of | sort -n >"$folder/rebuilt.txt"
    for sample in $acknowledged; do
      grep -qx "$sample" "$folder/rebuilt.txt" || fail "$label: sample $sample is not in the rebuilt trace"
    done
    [ $((RANDOM % 2)) -eq 0 ] && rm -f "$trace"
  fi

  # shellcheck disable=SC2086
  (run_job "$trace" $grid) >"$folder/out.log" 2>&1 || fail "$label: resuming ended with code $?"
  sample_lines "$journal" >"$folder/after.txt"
  while IFS= read -r line; do
    grep -qxF -- "$line" "$folder/after.txt" || fail "$label: an acknowledged line has changed: ${line:0:120}"
  done <"$folder/before.txt"
  number_of <"$folder/after.txt" | sort -n | cmp -s - <(seq 0 $((samples - 1))) ||
    fail "$label: the journal does not hold each sample once: $(number_of <"$folder/after.txt" | sort -n | xargs)"
  exported "$trace" >"$folder/table.txt" || fail "$label: trace export ended with code $?"
  number_of <"$folder/table.txt" | sort -n | cmp -s - <(seq 0 $((samples - 1))) ||
    fail "$label: the trace does not hold each sample once"
  answers "$folder/table.txt" | cmp -s - "$folder/whole.txt" || fail "$label: predictions differ from the undisturbed run"
  "$tessera" trace check "$trace" >"$folder/out.log" 2>&1 || fail "$label: trace check ended with code $?"
  echo "$label: ok"
  rm -f "$trace" "$journal"
done
echo "$instants instants, $while_running of them while the job ran: every acknowledged sample is there"
