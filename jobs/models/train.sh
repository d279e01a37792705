#!/usr/bin/env bash
# Trains mini models from nothing: builds tessera, learns the tokenizer where there is none, makes rows of generated
# text, trains on one GPU and writes jobs/models/NAME. Repeating the command goes on where it was stopped.
#
#   jobs/models/train.sh mini-m            # or mini-s, mini-l, several of them
#   SECONDS_A_PIECE=600 jobs/models/train.sh mini-l
#
# Needs Python 3 with torch, numpy, tokenizers and safetensors; TRAIN_DIR (default build/train) holds rows and checkpoints.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
# shellcheck source=jobs/setup.sh
. "$root/jobs/setup.sh"
[ $# -gt 0 ] || { echo "train.sh: name a model: mini-s, mini-m or mini-l" >&2; exit 2; }
python=${PYTHON:-python3}
"$python" -c 'import numpy, safetensors, tokenizers, torch' || {
  echo "train.sh: $python lacks one of torch, numpy, tokenizers, safetensors: set PYTHON or install them" >&2
  exit 2
}
if [ -z "${TESSERA:-}" ]; then
  install_build_packages
  build release tessera
  TESSERA=$root/build/release/bin/tessera
fi
work=${TRAIN_DIR:-$root/build/train}
models=$root/jobs/models
[ -f "$models/tokenizer.json" ] ||
  "$python" "$models/make_tokenizer.py" --tessera "$TESSERA" --output "$models/tokenizer.json"
"$python" "$models/make_rows.py" --tessera "$TESSERA" --output "$work/rows"
for model in "$@"; do
  "$python" "$models/train.py" "$model" --rows "$work/rows" --work "$work/$model" --output "$models/$model" \
    ${SECONDS_A_PIECE:+--seconds "$SECONDS_A_PIECE"}
done
