#!/usr/bin/env bash
# Train the shipped models, or those that are named, one after the other. A run that was stopped goes on.
#
#     tools/models/train.sh [--gpu] [fashion-mnist] [fashion-mnist-classifier] [fashion-mnist-small] [emoji]
#                           [emoji-classifier] [emoji-upsampler]
#
# The options of a model are in NAME.toml beside this file; its run directory is runs/NAME, and what training prints is in
# runs/NAME.log (RUNS names another folder). --gpu trains on ten times as many images, in larger batches. On a CPU, use
# one thread beside other work: OMP_NUM_THREADS=1 nice -n 10 tools/models/train.sh. SIGTERM saves and stops.
set -uo pipefail
here=$(dirname "$0") runs=${RUNS:-runs} gpu=
[ "${1:-}" = --gpu ] && gpu=1 && shift
[ $# -gt 0 ] || set -- fashion-mnist fashion-mnist-classifier fashion-mnist-small emoji emoji-classifier emoji-upsampler

options() {  # what a GPU changes
    case $1 in
        fashion-mnist) echo --batch-size 256 --steps 80000 --lr 2e-3 --lr-anneal-steps 8000 --ema-snapshots 4000 ;;
        fashion-mnist-classifier) echo --batch-size 256 --steps 30000 ;;
        fashion-mnist-small) echo --batch-size 64 --steps 10000 ;;
        emoji) echo --batch-size 128 --steps 60000 --lr 2e-3 ;;
        emoji-classifier) echo --batch-size 256 ;;
        emoji-upsampler) echo --batch-size 64 --steps 60000 --lr 1e-3 ;;
    esac
}

mkdir -p "$runs"
for name; do
    case $name in *-classifier) command=train-classifier ;; *-upsampler) command=train-upsampler ;; *) command=train ;; esac
    extra=${gpu:+$(options "$name") --checkpoint-every 2000 --log-every 500 --preview-every 20000}
    # shellcheck disable=SC2086
    ${PYTHON:-python} -m admg $command --config "$here/$name.toml" $extra --out "$runs/$name" >> "$runs/$name.log" 2>&1 &
    child=$!
    trap 'kill -TERM $child' TERM INT  # which saves
    wait $child || { wait $child; code=$?; tail -n 1 "$runs/$name.log"; exit $code; }
done
