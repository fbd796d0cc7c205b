#!/usr/bin/env bash
# What the published sizes cost on a GPU: bash experiments/gpu_models.sh, from the repository's root, figures under $OUT.
# Random weights of the published sizes; no model hub is needed. Wheels that the machine lacks lie in .whl/ beforehand.
set -uo pipefail
OUT=${OUT:-experiments/results}
mkdir -p "$OUT"
export PYTHONPATH="$PWD:$PWD/.whl:${PYTHONPATH:-}"
for wheel in .whl/*.whl; do [ -e "$wheel" ] && python -m zipfile -e "$wheel" .whl; done
python -c 'import jax; print(jax.__version__, jax.devices())' | tee "$OUT/device.txt"
python experiments/bench_generate.py --random --batches=1,64,256 --json="$OUT/bench_generate_gpu.json" | tee "$OUT/bench_generate_gpu.txt"
for config in smolvlm_256m_gridwalker_sft smolvlm_256m_gridwalker_vl_dac qwen3_vl_2b_gridwalker_vl_dac; do
  python -m jaxvlmrl.plan --config="configs/$config.py" --config.conversation.tokenizer=tiny --config.conversation.template=tiny \
    --config.conversation.short_prompt=true | tee "$OUT/plan_$config.txt"
done
python -m jaxvlmrl.train --config=configs/smollm2_135m_gridwalker.py --workdir="$OUT/smollm2" \
  --config.imitation.num_updates=300 --config.rl.num_updates=30 | tee "$OUT/smollm2_gpu.txt"
rm -rf "$OUT"/smollm2/checkpoints
