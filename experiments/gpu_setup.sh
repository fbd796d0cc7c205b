# Sourced by the gpu_*.sh scripts, from the repository's root. Figures go under $OUT; wheels that the machine lacks (flax and
# others) lie in .whl/ beforehand, if it has no index to install from, and are unpacked there.
set -uo pipefail
OUT=${OUT:-experiments/results}
mkdir -p "$OUT"
export PYTHONPATH="$PWD:$PWD/.whl:${PYTHONPATH:-}"
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-/tmp/jax_cache}
command -v python > /dev/null || python() { python3 "$@"; }
for wheel in .whl/*.whl; do [ -e "$wheel" ] && python -m zipfile -e "$wheel" .whl 2> /dev/null; done
# An update of reinforcement learning compiled for over 160 s of 16 cores on an H100 and jax 0.11.2 with XLA's defaults, which
# try many forms of every product; without that for 75 to 128 s, three to six programs at once. A flag XLA does not know ends
# a process, hence the question.
quick="--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
XLA_FLAGS=$quick python -c 'import jax; jax.numpy.ones(2).block_until_ready()' 2> /dev/null && export XLA_FLAGS=$quick
python -c 'import jax; print(jax.__version__, jax.devices())' | tee "$OUT/device.txt"
