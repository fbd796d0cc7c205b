"""As far as the tiny model goes in 30 minutes on two cores: fresh games labelled by the explorer, then VL-DAC.

    python -m jaxvlmrl.train --config=configs/gridwalker_best.py

The explorer knows only what has been in view, so it shows nothing that cannot be seen: its labels can be learned to the
end, where those of a player with full knowledge stop at what looking allows.
"""

from envs_jax.grid_walker.grid_walker import Params
from envs_jax.grid_walker.players import Explorer
from jaxvlmrl.algorithms.vl_dac import VLDAC
from jaxvlmrl.config import Config, Conversation, ImitationPhase, RLPhase
from jaxvlmrl.imitation import Demonstrations
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    config = Config(
        env_params=Params(step_cost=0.02, invalid_cost=0.1),
        conversation=Conversation(window=4),
        imitation=ImitationPhase(
            num_updates=1500, validate_every=100, demonstrations=Demonstrations(Explorer(), num_games=0)
        ),
        rl=RLPhase(
            num_updates=550,
            num_turns=15,
            validate_every=20,
            optimizer=Optimizer(learning_rate=1e-3, warmup_updates=10, final_share=0.02),
        ),
        algorithm=VLDAC(
            gamma=0.95, gae_lambda=0.9, value_coef=1.0, kl_coef=0.01, entropy_coef=0.003, final_entropy_coef=0.0
        ),
    )
    return config.variant(variant)
