#!/usr/bin/env bash
# Methods side by side on a GPU: bash experiments/gpu_compare.sh, from the repository's root, figures under $OUT.
# The small settings fit into minutes; `long` is 24 x 24 with 100 turns, five million steps a run.
set -uo pipefail
OUT=${OUT:-experiments/results}
mkdir -p "$OUT"
export PYTHONPATH="$PWD:$PWD/.whl:${PYTHONPATH:-}"
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
for wheel in .whl/*.whl; do [ -e "$wheel" ] && python -m zipfile -e "$wheel" .whl; done
python -c 'import jax; print(jax.__version__, jax.devices())' | tee "$OUT/device.txt"
for settings in weak,random,thinking long; do
  python experiments/compare.py --settings="$settings" --seeds=0,1,2 --parallel=1 --nopins --runs="$OUT/compare" \
    --results="$OUT" | tee "$OUT/compare_$settings.txt"
done
find "$OUT/compare" -name checkpoints -exec rm -rf {} +
