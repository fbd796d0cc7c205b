"""From the small board to the large one: imitation on 8 x 8, then VL-DAC over levels up to 16 x 16 with ten blocks.

    python -m jaxvlmrl.train --config=configs/gridwalker_curriculum.py

Every episode draws its level, with chances of 1 / mean turns: those that are won quickly come often, and all get as many
turns. Pictures are of 64 pixels: on 32 the gold is gone from eight cells on. Evaluation is on the largest board, within 25
turns.
"""

from envs_jax import GridWalker
from envs_jax.grid_walker import Params
from envs_jax.grid_walker.players import Explorer
from jaxvlmrl.algorithms.vl_dac import VLDAC
from jaxvlmrl.config import Config, Conversation, ImitationPhase, RLPhase
from jaxvlmrl.curriculum import Curriculum
from jaxvlmrl.imitation import Demonstrations
from jaxvlmrl.models.critics import CNNCritic
from jaxvlmrl.models.smolvlm import SmolVLM, VisionConfig
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    level = lambda size, blocks: Params(size=size, num_blocks=blocks, max_turns=25, step_cost=0.02, invalid_cost=0.1)
    levels = (level(8, 3), level(10, 5), level(13, 7), level(16, 10))
    config = Config(
        env=GridWalker(max_size=16, max_blocks=10, height=64, width=64),
        env_params=levels[-1],
        curriculum=Curriculum(levels),
        model=SmolVLM(vision=VisionConfig(image_size=64), shuffle=4),
        critic=CNNCritic(widths=(32, 64, 64), strides=(4, 2, 2)),
        conversation=Conversation(max_answer_tokens=7),
        imitation=ImitationPhase(num_updates=400, demonstrations=Demonstrations(Explorer(), num_games=0)),
        rl=RLPhase(num_updates=80, optimizer=Optimizer(warmup_updates=10, final_share=0.05)),
        algorithm=VLDAC(gamma=0.97, gae_lambda=0.9, value_coef=1.0, kl_coef=0.005, entropy_coef=0.005),
    )
    return config.variant(variant)
