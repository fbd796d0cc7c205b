"""The published recipe on a laptop: imitate 1,000 fixed expert games, then VL-DAC.

python -m jaxvlmrl.train --config=configs/quickstart.py
"""

from envs_jax.grid_walker import Params
from envs_jax.grid_walker.players import FewestCommands
from jaxvlmrl.algorithms.vl_dac import VLDAC
from jaxvlmrl.config import Config, ImitationPhase, RLPhase
from jaxvlmrl.imitation import Demonstrations
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    config = Config(
        env_params=Params(step_cost=0.02, invalid_cost=0.1),
        imitation=ImitationPhase(num_updates=300, demonstrations=Demonstrations(FewestCommands(), num_games=1000)),
        rl=RLPhase(num_updates=90, optimizer=Optimizer(warmup_updates=10, final_share=0.05)),
        algorithm=VLDAC(gamma=0.95, gae_lambda=0.9, value_coef=1.0, kl_coef=0.02, entropy_coef=0.002),
    )
    return config.variant(variant)
