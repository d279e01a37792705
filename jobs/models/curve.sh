#!/usr/bin/env bash
# Accuracy against sparsity of a mini model on this machine's cores: dense, and four methods at three sparsities, on four
# sequence-parallel ranks, so that what crosses ranks stands beside the score. Ends with the table of `tessera report`.
#
#   jobs/models/curve.sh                       # mini-m, ruler_niah and ruler_vt, 4,096 tokens, 50 samples
#   MODEL=mini-l TASKS=ruler_cwe SAMPLES=20 jobs/models/curve.sh
#
# Repeating the command goes on where it was stopped.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
# shellcheck source=jobs/setup.sh
. "$root/jobs/setup.sh"
install_build_packages
build release tessera
use_one_machine_mpi
export PATH="$root/build/release/bin:$PATH" OMP_NUM_THREADS=1
cd "$root"
model=${MODEL:-mini-m} length=${LENGTH:-4096} folder=traces/curve
mkdir -p "$folder"
parts=()

evaluate() { # TASK NAME OPTIONS...
  local task=$1 part=$folder/$model-$1-$length-$2.h5
  shift 2
  parts+=("$part")
  mpirun -q -np 4 tessera eval --model "jobs/models/$model" --task "$task" --length "$length" --samples "${SAMPLES:-50}" \
    --prompt-style compact --max-output-tokens 128 --sp 4 "$@" --trace "$part"
}

for task in ${TASKS:-ruler_niah ruler_vt}; do
  evaluate "$task" dense
  for s in ${SPARSITIES:-0.5 0.8 0.9}; do
    evaluate "$task" "vertical_slash-$s" --prefill vertical_slash --prefill-sparsity "$s"
    evaluate "$task" "block_sparse-$s" --prefill block_sparse --set block_sparse.edge=16 --prefill-sparsity "$s"
    evaluate "$task" "snapkv-$s" --decode snapkv --decode-sparsity "$s"
    evaluate "$task" "quest-$s" --decode quest --decode-sparsity "$s"
  done
done
tessera trace merge --output "$folder/$model-$length.h5" "${parts[@]}"
tessera report "$folder/$model-$length.h5" --format "${FORMAT:-text}"
