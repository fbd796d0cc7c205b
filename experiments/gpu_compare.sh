#!/usr/bin/env bash
# Methods side by side on a GPU: bash experiments/gpu_compare.sh [SECONDS], from the repository's root; figures under $OUT.
# A row's seeds are one program (together.py), rows are processes beside each other that share the card. On an H100 three rows
# of five seeds at once compiled for 99 to 116 s and made 70,000 environment steps a second (nine rows, with XLA's tuning,
# compiled for 380 s and made 30,000). What is not finished after SECONDS is left for the next call. `random thinking`, the
# groups of the record, want 1,200 s; METHODS="RLOO,LOOP" leaves all but those rows out. `long` (24 x 24, 100 turns) is a call
# of its own: bash experiments/gpu_compare.sh 3600 long.
. experiments/gpu_setup.sh
export XLA_PYTHON_CLIENT_PREALLOCATE=false
unset XLA_PYTHON_CLIENT_MEM_FRACTION
seconds=${1:-3000}
groups=${2:-random thinking ablations,long_small}
compare() {
  python experiments/compare.py --settings="$1" --together --nopins --parallel="${PARALLEL:-3}" --runs=runs/compare \
    --seeds="${SEEDS:-0,1,2,3,4}" --methods="${METHODS:-}" --override=rl.microbatches=1 --results="$OUT" "${@:2}"
}
set -m # each group of its own, to be ended with all that it began
for group in $groups; do compare "$group" & done
waited=0
while [ -n "$(jobs -rp)" ] && [ "$waited" -lt "$seconds" ]; do sleep 5; waited=$((waited + 5)); done
for leader in $(jobs -rp); do kill -- "-$leader"; done
wait
for group in $groups; do compare "$group" --norun; done 2>&1 | tee "$OUT/compare.txt"
(cd runs/compare && tar czf "$OUT/compare_runs.tar.gz" --exclude=best --exclude=critic --exclude=tensorboard --exclude=checkpoints \
  --exclude=games.json --exclude='*.gif' --exclude='*.png' .)
