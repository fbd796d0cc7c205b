"""SmolVLM-256M imitates the expert in GridWalker, the whole model, in the harness's own words.

    python -m jaxvlmrl.train --config=configs/smolvlm_256m_gridwalker_sft.py --config.model.weights=SmolVLM-256M-Instruct

Frames are rendered at the tower's own 512 pixels: nothing is resized. For an accelerator; `:tiny` runs anywhere.
"""

from envs_jax import GridWalker
from envs_jax.grid_walker.players import FewestCommands
from jaxvlmrl.config import Config, Conversation, ImitationPhase
from jaxvlmrl.imitation import Demonstrations
from jaxvlmrl.models.critics import CNNCritic
from jaxvlmrl.models.smolvlm import smolvlm_256m
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    config = Config(
        env=GridWalker(height=512, width=512),
        model=smolvlm_256m(dtype="bfloat16", remat=True),
        critic=CNNCritic(widths=(32, 64, 64), strides=(16, 4, 2)),
        conversation=Conversation(
            tokenizer="weights",
            template="smolvlm",
            short_prompt=False,
            window=4,
            max_answer_tokens=8,
            tokens_at_once=2048,
        ),
        imitation=ImitationPhase(
            num_updates=1000,
            minibatches=8,
            validate_every=100,
            demonstrations=Demonstrations(FewestCommands(), num_games=0),
            optimizer=Optimizer(learning_rate=5e-5, warmup_updates=50, decay="cosine", final_share=0.1, b2=0.95),
        ),
    )
    return config.variant(variant)
