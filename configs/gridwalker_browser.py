"""For the browser game's own pictures: 256 x 151 pixels of reference quality, whose camera is still on its way.

    python -m jaxvlmrl.train --config=configs/gridwalker_browser.py

The harness takes its picture some 21 drawn frames after a command (12 to 30 under load; reference sheet "gridwalker",
Camera lag), so the camera gets 8 to 60 of them here. The model resizes pictures itself, on the device, to 64 x 64: whoever
serves it sends what the game shows. For a GPU: a picture costs as much to draw as 38 of the quickstart's, and more for its
quality. Imitation alone wins 98.4% of 1,000 held-out games in 3.63 turns, 19 of the 20 published ones through HTTP.
"""

from envs_jax import GridWalker
from envs_jax.grid_walker import Params
from envs_jax.grid_walker.players import Explorer
from jaxvlmrl.algorithms.vl_dac import VLDAC
from jaxvlmrl.config import Config, Conversation, ImitationPhase, RLPhase
from jaxvlmrl.imitation import Demonstrations
from jaxvlmrl.models.critics import ValueHead
from jaxvlmrl.models.smolvlm import SmolVLM, VisionConfig
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    is_tiny = "tiny" in variant.split(",")  # the reference quality takes minutes to compile for a CPU
    config = Config(
        env=GridWalker(height=151, width=256, quality="training" if is_tiny else "reference", camera="live"),
        model=SmolVLM(vision=VisionConfig(image_size=64, patch_size=16), resize=True),
        critic=ValueHead(),
        env_params=Params(step_cost=0.1, min_camera_frames=8.0, max_camera_frames=60.0),
        conversation=Conversation(window=4, constrained=True),
        imitation=ImitationPhase(
            num_updates=500, minibatches=4, validate_every=100, demonstrations=Demonstrations(Explorer(), num_games=0)
        ),
        rl=RLPhase(
            num_updates=0,  # --config.rl.num_updates=250 would go on by VL-DAC
            num_turns=15,
            validate_every=25,
            optimizer=Optimizer(learning_rate=5e-4, warmup_updates=20, final_share=0.02),
        ),
        algorithm=VLDAC(
            gamma=0.95, gae_lambda=0.9, value_coef=1.0, kl_coef=0.03, entropy_coef=0.02, final_entropy_coef=0.002,
            warmup_updates=5,
        ),
    )  # fmt: skip
    return config.variant(variant)
