#!/usr/bin/env bash
# What the main job shows, on a GPU: bash experiments/gpu_main.sh, from the repository's root, figures under $OUT.
. experiments/gpu_setup.sh
python experiments/bench_env.py --json="$OUT/bench_env_gpu.json" | tee "$OUT/bench_env_gpu.txt"
python experiments/bench_train_step.py --json="$OUT/bench_train_step_gpu.json" | tee "$OUT/bench_train_step_gpu.txt"
# The same learning with 16 times the environments: minibatches grow with them, the learning rate stays.
python -m jaxvlmrl.train --config=configs/gridwalker_from_scratch.py --workdir="$OUT/from_scratch_4096" \
  --config.rl.num_envs=4096 --config.rl.microbatches=1 --config.rl.num_updates=260 | tee "$OUT/from_scratch_gpu.txt"
rm -rf "$OUT"/from_scratch_4096/checkpoints
