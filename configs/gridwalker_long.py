"""A long horizon: 24 x 24 cells, 20 blocks, 100 turns, from random weights with canonical answers, by Odysseus.

    python -m jaxvlmrl.train --config=configs/gridwalker_long.py

`:small` is 12 x 12, 5 blocks and 40 turns on pictures of 32 pixels, for a CPU. Chance wins 1% of the large games and 10% of
the small ones. Critic-free estimates under the same loss: --config.algorithm.estimator=grpo_outcome, grpo_process,
reinforce_pp; with negative advantages too: --config.algorithm.keeps_only_positive=False.
"""

from envs_jax import GridWalker
from envs_jax.grid_walker import Params
from jaxvlmrl.algorithms.odysseus import Odysseus
from jaxvlmrl.config import Config, Conversation, RLPhase
from jaxvlmrl.models.critics import CNNCritic
from jaxvlmrl.models.smolvlm import SmolVLM, VisionConfig
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    names = variant.split(",")
    config = Config(
        env=GridWalker(max_size=24, max_blocks=20, height=64, width=64),
        env_params=Params(size=24, num_blocks=20, max_turns=100, step_cost=0.005),
        model=SmolVLM(vision=VisionConfig(image_size=64), shuffle=4),
        critic=CNNCritic(widths=(32, 64, 64), strides=(4, 2, 2)),
        conversation=Conversation(constrained=True, max_answer_tokens=7),
        rl=RLPhase(
            num_updates=300,
            num_turns=100,
            microbatches=1,
            epochs=1,
            optimizer=Optimizer(warmup_updates=5, final_share=0.05),
        ),
        algorithm=Odysseus(gamma=0.97, entropy_coef=0.1, final_entropy_coef=0.01),
    )
    if "small" in names:
        config.env = GridWalker(max_size=12, max_blocks=5)
        config.env_params = Params(size=12, num_blocks=5, max_turns=40, step_cost=0.005)
        config.model, config.critic = SmolVLM(), CNNCritic()
        config.rl.num_turns = 40
    return config.variant(",".join(name for name in names if name != "small"))
