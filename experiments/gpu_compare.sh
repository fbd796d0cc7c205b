#!/usr/bin/env bash
# Methods side by side on a GPU: bash experiments/gpu_compare.sh, from the repository's root, figures under $OUT.
# The small settings fit into minutes; `long` is 24 x 24 with 100 turns, five million steps a run.
. experiments/gpu_setup.sh
for settings in weak,random,thinking long; do
  python experiments/compare.py --settings="$settings" --seeds=0,1,2 --parallel=1 --nopins --runs="$OUT/compare" \
    --results="$OUT" | tee "$OUT/compare_$settings.txt"
done
find "$OUT/compare" -name checkpoints -exec rm -rf {} +
