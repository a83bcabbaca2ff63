#!/usr/bin/env bash
# Measure everything of docs/speed.md that needs a GPU, one line after the other, and write OUT/*.json.
#
#   bash benchmarks/gpu.sh ../guided-diffusion out        # about half an hour on an H200
#   DEVICE=cpu SMALL=1 bash benchmarks/gpu.sh ../guided-diffusion out     # the same commands, small, to try them
set -euo pipefail
reference=${1:?the folder of a checkout of guided-diffusion} out=${2:?the folder of the results}
device=${DEVICE:-cuda} python=${PYTHON:-python}
mkdir -p "$out"
cd "$(dirname "$0")"

speed() {  # NAME MODELS BATCH PARTS [OPTIONS ...]
    local name=$1 models=$2 batch=$3 parts=$4
    shift 4
    if [ -n "${SMALL:-}" ]; then models=fashion-mnist batch=2; fi
    "$python" speed.py --models "$models" --batch "$batch" --parts "$parts" --device "$device" --rounds "${SMALL:-5}" \
        --reference "$reference" --json "$out/$name.json" "$@" | tee "$out/$name.txt"
}

reference=$(cd "$OLDPWD" && cd "$reference" && pwd) out=$(cd "$OLDPWD" && cd "$out" && pwd)
speed step-large adm-256,adm-128 32 step --no-diffusers              # guided step: 65 % of the peak is wanted
speed step-64 adm-64 64 step --no-diffusers
speed step-demo fashion-mnist 256 step,training --no-diffusers
if [ -z "${SMALL:-}" ]; then
    speed compiled adm-256 32 forward --compile-diffusers            # against diffusers compiled: 1.4 is wanted
fi
speed training-64 adm-64 64 training --no-diffusers
speed training-256 adm-256 8 training --no-diffusers                 # one GPU: 50 % of the peak is wanted
