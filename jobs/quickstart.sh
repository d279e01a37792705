#!/usr/bin/env bash
# From a bare Debian 12 or Ubuntu 24.04 to a trace: installs what is missing, builds, evaluates a small model of this
# repository on two ranks, and shows the result. The model's weights are random, so it retrieves nothing: its score is 0.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
# shellcheck source=jobs/setup.sh
. "$root/jobs/setup.sh"

install_build_packages
build release tessera
use_one_machine_mpi
export PATH="$root/build/release/bin:$PATH" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cd "$root"
mkdir -p traces
trace=traces/quickstart.h5

command=(mpirun -np 2 tessera eval --model tests/fixtures/qwen2-tied --task ruler_niah --length 2048 --samples 4
  --tp 2 --max-output-tokens 32 --trace "$trace" --fresh)
say "${command[*]}"
"${command[@]}"

say "the samples, as the trace holds them (tessera trace export $trace --table samples)"
tessera trace export "$trace" --table samples --format jsonl |
  sed -E 's/.*"sample":([0-9]+).*"input_tokens":([0-9]+).*"output_tokens":([0-9]+).*"score":([0-9.]+|null).*"prefill_s":([0-9.e-]+).*"tpot_s":([0-9.e-]+).*/sample \1: \2 tokens in, \3 out, score \4, prefill \5 s, then \6 s a token/'
say "the trace is $root/$trace (any HDF5 reader opens it), its journal beside it"
