"""Qwen3-VL-2B learns GridWalker by VL-DAC with LoRA: the weights stay in bfloat16, only adapters are trained.

python -m jaxvlmrl.train --config=configs/qwen3_vl_2b_gridwalker_vl_dac.py --config.model.weights=Qwen3-VL-2B-Instruct
"""

from envs_jax import GridWalker
from envs_jax.grid_walker import Params
from jaxvlmrl.adapters import Tuning
from jaxvlmrl.algorithms.vl_dac import VLDAC
from jaxvlmrl.config import Config, Conversation, RLPhase
from jaxvlmrl.models.critics import CNNCritic
from jaxvlmrl.models.qwen3_vl import qwen3_vl_2b
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    config = Config(
        env=GridWalker(height=256, width=256),
        env_params=Params(step_cost=0.02, invalid_cost=0.1),
        model=qwen3_vl_2b(height=256, width=256, dtype="bfloat16", param_dtype="bfloat16", remat=True),
        tuning=Tuning(frozen=(".*",), lora=("text_model/layers/.*_proj",), rank=16, alpha=32.0),
        critic=CNNCritic(widths=(32, 64, 64), strides=(8, 4, 2)),
        conversation=Conversation(
            tokenizer="weights",
            template="qwen3_vl",
            short_prompt=False,
            window=4,
            max_answer_tokens=8,
            tokens_at_once=512,
        ),
        rl=RLPhase(
            num_updates=200,
            num_envs=128,
            num_turns=12,
            minibatches=8,
            microbatches=8,
            envs_at_once=64,
            optimizer=Optimizer(learning_rate=5e-5, warmup_updates=10, final_share=0.1, max_grad_norm=1.0),
        ),
        algorithm=VLDAC(gamma=0.95, gae_lambda=0.95, kl_coef=0.02, warmup_updates=5),
    )
    return config.variant(variant)
