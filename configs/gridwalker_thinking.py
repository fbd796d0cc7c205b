"""Thinking before every command: imitation of true thoughts, then VL-DAC with a bonus for thinking that only wins earn.

    python -m jaxvlmrl.train --config=configs/gridwalker_thinking.py

`:zero` leaves imitation out: commands are canonical, thoughts are whatever the model likes, and every whole one is paid.
Whether thinking helps, and whether the thoughts are true, is asked in docs/comparison.md.
"""

from envs_jax.grid_walker import Params
from envs_jax.grid_walker.players import FewestCommands
from jaxvlmrl.algorithms.vl_dac import VLDAC
from jaxvlmrl.config import Config, Conversation, ImitationPhase, RLPhase
from jaxvlmrl.imitation import Demonstrations
from jaxvlmrl.models.decoder import TextConfig
from jaxvlmrl.models.smolvlm import SmolVLM
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    config = Config(
        env_params=Params(step_cost=0.02, invalid_cost=0.1),
        model=SmolVLM(text=TextConfig(vocab_size=384)),
        conversation=Conversation(tokenizer="tiny_thinking", thought_tokens=12, max_answer_tokens=20),
        imitation=ImitationPhase(num_updates=300, demonstrations=Demonstrations(FewestCommands(), num_games=1000)),
        rl=RLPhase(num_updates=90, thought_reward=0.2, optimizer=Optimizer(warmup_updates=10, final_share=0.05)),
        algorithm=VLDAC(gamma=0.95, gae_lambda=0.9, value_coef=1.0, kl_coef=0.02, entropy_coef=0.002),
    )
    names = variant.split(",")
    if "zero" in names:
        config.imitation.num_updates = 0
        config.conversation.constrained = True
        config.rl = RLPhase(
            num_updates=240, thought_reward=0.02, thought_paid_for="every turn",
            optimizer=Optimizer(warmup_updates=5, final_share=0.05),
        )  # fmt: skip
        config.algorithm = VLDAC(
            gamma=0.95, gae_lambda=0.9, value_coef=1.0, kl_coef=0.0, entropy_coef=0.1, final_entropy_coef=0.005
        )
    return config.variant(",".join(name for name in names if name != "zero"))
