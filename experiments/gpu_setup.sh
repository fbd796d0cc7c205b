# Sourced by the gpu_*.sh scripts, from the repository's root. Figures go under $OUT; wheels that the machine lacks (flax and
# others) lie in .whl/ beforehand, if it has no index to install from, and are unpacked there.
set -uo pipefail
OUT=${OUT:-experiments/results}
mkdir -p "$OUT"
export PYTHONPATH="$PWD:$PWD/.whl:${PYTHONPATH:-}"
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
for wheel in .whl/*.whl; do [ -e "$wheel" ] && python -m zipfile -e "$wheel" .whl; done
python -c 'import jax; print(jax.__version__, jax.devices())' | tee "$OUT/device.txt"
