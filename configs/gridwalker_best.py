"""As far as the tiny model goes in 30 minutes on two cores: fresh games labelled by the explorer, then VL-DAC.

    python -m jaxvlmrl.train --config=configs/gridwalker_best.py

Frames have 64 pixels a side: at 32 far gold falls between the pixels, and wins take 4.0 turns however long it is trained,
where these take 3.8 after 300 imitation updates. The explorer knows only what has been in view, so it shows nothing that
cannot be seen: its labels can be learned to the end, where those of a player with full knowledge stop at what looking
allows. Answers are constrained to the nine commands: an entropy bonus over free answers goes into other spellings of them.
"""

from envs_jax import GridWalker
from envs_jax.grid_walker import Params
from envs_jax.grid_walker.players import Explorer
from jaxvlmrl.algorithms.vl_dac import VLDAC
from jaxvlmrl.config import Config, Conversation, ImitationPhase, RLPhase
from jaxvlmrl.imitation import Demonstrations
from jaxvlmrl.models.critics import CNNCritic
from jaxvlmrl.models.smolvlm import SmolVLM, VisionConfig
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    config = Config(
        env=GridWalker(height=64, width=64),
        model=SmolVLM(vision=VisionConfig(image_size=64, patch_size=16)),
        critic=CNNCritic(strides=(8, 2)),
        env_params=Params(step_cost=0.1),
        conversation=Conversation(window=4, constrained=True),
        imitation=ImitationPhase(
            num_updates=500,
            minibatches=4,  # 192 turns each: at 300 updates twice as large ones win 90.6%, these 95.3%
            validate_every=100,
            demonstrations=Demonstrations(Explorer(), num_games=0),
        ),
        rl=RLPhase(
            num_updates=450,
            num_turns=15,
            validate_every=20,
            optimizer=Optimizer(learning_rate=5e-4, warmup_updates=20, final_share=0.02),
        ),
        algorithm=VLDAC(
            gamma=0.95, gae_lambda=0.9, value_coef=1.0, kl_coef=0.03, entropy_coef=0.02, final_entropy_coef=0.002,
            warmup_updates=5,
        ),
    )  # fmt: skip
    return config.variant(variant)
