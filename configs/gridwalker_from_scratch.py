"""VL-DAC from random weights, no demonstrations: only canonical answers can be sampled, wins and a cost a turn are all.

    python -m jaxvlmrl.train --config=configs/gridwalker_from_scratch.py

A turn direction dies out where its advantage outweighs the entropy bonus before it has been seen to be useful. The bonus
holds a command of advantage -A (in deviations) near exp(-A / entropy_coef), so it starts high, and it falls linearly.
"""

from envs_jax.grid_walker import Params
from jaxvlmrl.algorithms.vl_dac import VLDAC
from jaxvlmrl.config import Config, Conversation, RLPhase
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    config = Config(
        env_params=Params(step_cost=0.02),
        conversation=Conversation(constrained=True),
        rl=RLPhase(num_updates=240, optimizer=Optimizer(warmup_updates=5, final_share=0.05)),
        algorithm=VLDAC(
            gamma=0.95, gae_lambda=0.9, value_coef=1.0, kl_coef=0.0, entropy_coef=0.1, final_entropy_coef=0.005
        ),
    )
    return config.variant(variant)
