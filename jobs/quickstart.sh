#!/usr/bin/env bash
# From a bare Debian 12 or Ubuntu 24.04 to a table of accuracy against sparsity: installs what is missing, builds, and
# asks mini-m, a small trained model of this repository, two tasks at 4,096 tokens on two ranks: densely, and under three
# sparse methods at two sparsities each.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
# shellcheck source=jobs/setup.sh
. "$root/jobs/setup.sh"

install_build_packages
build release tessera
use_one_machine_mpi
export PATH="$root/build/release/bin:$PATH" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cd "$root"
mkdir -p traces/quickstart
trace=traces/quickstart.h5
parts=()

# evaluate NAME OPTIONS...: one run of both tasks, its trace in traces/quickstart/NAME.h5
evaluate() {
  local part=traces/quickstart/$1.h5
  shift
  parts+=("$part")
  local command=(mpirun -np 2 tessera eval --model jobs/models/mini-m --task ruler_niah,ruler_vt --length 4096
    --samples "${SAMPLES:-10}" --prompt-style compact --max-output-tokens 128 --sp 2 "$@" --trace "$part" --fresh)
  say "${command[*]}"
  "${command[@]}"
}

evaluate dense
for sparsity in 0.5 0.9; do
  evaluate "vertical_slash-$sparsity" --prefill vertical_slash --set vertical_slash.window=512 --prefill-sparsity "$sparsity"
  evaluate "block_sparse-$sparsity" --prefill block_sparse --set block_sparse.edge=16 --prefill-sparsity "$sparsity"
  # as the authors of quest have it: two layers stay dense
  evaluate "quest-$sparsity" --decode quest --decode-sparsity "$sparsity" --dense-layers 0,1
done
tessera trace merge --output "$trace" "${parts[@]}"

say "accuracy against measured sparsity (tessera report $trace)"
tessera report "$trace"
say "the trace is $root/$trace (any HDF5 reader opens it)"
