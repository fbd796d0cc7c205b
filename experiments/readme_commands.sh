#!/usr/bin/env bash
# The measurements that README.md and docs/ name, one after another: bash experiments/readme_commands.sh [--full].
# Each is run with what follows its `--`, small enough to see that it works, in a copy of the tracked files: no record is
# touched. With --full they run as documented, in the checkout, for many hours.
set -euo pipefail
cd "$(dirname "$0")/.."
full=${1:-}
python=${PYTHON:-python}
if [ -z "$full" ]; then
  there=$(mktemp -d)
  trap 'rm -rf "$there"' EXIT
  git ls-files -z | xargs -0 cp --parents -t "$there"
  cd "$there"
fi
export PYTHONPATH="$PWD:${PYTHONPATH:-}"

# run python experiments/NAME.py FLAGS [-- SMALLER FLAGS]
run() {
  local command=()
  shift # the word python
  while [ $# -gt 0 ] && [ "$1" != -- ]; do command+=("$1"); shift; done
  [ $# -gt 0 ] && shift
  if [ -z "$full" ]; then command+=("$@"); fi
  echo "== python ${command[*]}"
  "$python" "${command[@]}"
}

run python experiments/frame.py
run python experiments/bench_env.py -- --seconds=0.01
run python experiments/bench_train_step.py -- --quick --repeats=1
run python experiments/seeds.py --config=configs/quickstart.py -- --config=configs/quickstart.py:tiny --seeds=0
run python experiments/seeds.py --config=configs/gridwalker_best.py -- --config=configs/gridwalker_best.py:tiny --seeds=0
run python experiments/seeds.py --config=configs/gridwalker_from_scratch.py -- --config=configs/gridwalker_from_scratch.py:tiny --seeds=0
run python experiments/compare.py --settings=weak -- --methods=VL-DAC --seeds=0
run python experiments/bench_serve.py -- --repeats=1 --turns=2
# These two stand beside transformers: they need the extra `parity`, the first one also SmolLM2's wheel.
if "$python" -c 'import torch, transformers' 2>/dev/null; then
  run python experiments/bench_generate.py -- --batches=1 --length=8 --new=2 --repeats=1
  run python experiments/bench_rollout.py -- --turns=2 --new=2 --repeats=1
fi
