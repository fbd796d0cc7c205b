#!/usr/bin/env bash
# What the published sizes cost on a GPU: bash experiments/gpu_models.sh, from the repository's root, figures under $OUT.
# Random weights of the published sizes; no model hub is needed.
. experiments/gpu_setup.sh
# Decoding: tokens a second and their share of the bound, goal 60%.
for model in smolvlm_256m qwen3_vl_2b; do
  python experiments/bench_generate.py --model=$model --dtype=bfloat16 --batches=1,64,256 \
    --json="$OUT/bench_generate_$model.json" | tee "$OUT/bench_generate_$model.txt"
done
# A whole update: its parts (rendering and dynamics: below 5%), and learning's share of the matrix rate (25%, 40%).
words="--config.conversation.tokenizer=tiny --config.conversation.template=tiny --config.conversation.short_prompt=true"
for config in smolvlm_256m_gridwalker_vl_dac qwen3_vl_2b_gridwalker_vl_dac; do
  python experiments/bench_train_step.py --config="configs/$config.py" $words --json="$OUT/update_$config.json" |
    tee "$OUT/update_$config.txt"
  python -m jaxvlmrl.plan --config="configs/$config.py" $words | tee "$OUT/plan_$config.txt"
done
python -m jaxvlmrl.train --config=configs/smollm2_135m_gridwalker.py --workdir="$OUT/smollm2" \
  --config.perception.num_updates=400 --config.imitation.num_updates=300 --config.rl.num_updates=30 |
  tee "$OUT/smollm2_gpu.txt"
rm -rf "$OUT"/smollm2/checkpoints
