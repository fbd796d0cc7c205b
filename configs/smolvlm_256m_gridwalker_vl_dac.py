"""SmolVLM-256M learns GridWalker by VL-DAC: a little imitation, then reinforcement learning of the whole model.

    python -m jaxvlmrl.train --config=configs/smolvlm_256m_gridwalker_vl_dac.py --config.model.weights=SmolVLM-256M-Instruct

To go on from a run of smolvlm_256m_gridwalker_sft.py: --config.start_from=RUN --config.imitation.num_updates=0.
"""

from envs_jax import GridWalker
from envs_jax.grid_walker import Params
from envs_jax.grid_walker.players import FewestCommands
from jaxvlmrl.algorithms.vl_dac import VLDAC
from jaxvlmrl.config import Config, Conversation, ImitationPhase, RLPhase
from jaxvlmrl.imitation import Demonstrations
from jaxvlmrl.models.critics import CNNCritic
from jaxvlmrl.models.smolvlm import smolvlm_256m
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    config = Config(
        env=GridWalker(height=512, width=512),
        env_params=Params(step_cost=0.02, invalid_cost=0.1),
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
            num_updates=300,
            minibatches=8,
            validate_every=50,
            demonstrations=Demonstrations(FewestCommands(), num_games=1000),
            optimizer=Optimizer(learning_rate=5e-5, warmup_updates=30, decay="cosine", final_share=0.1, b2=0.95),
        ),
        rl=RLPhase(
            num_updates=200,
            num_envs=512,
            num_turns=12,
            minibatches=16,
            microbatches=4,
            envs_at_once=128,
            optimizer=Optimizer(learning_rate=1e-5, warmup_updates=10, final_share=0.1, max_grad_norm=1.0),
        ),
        algorithm=VLDAC(gamma=0.95, gae_lambda=0.95, kl_coef=0.02, entropy_coef=0.002, warmup_updates=5),
    )
    return config.variant(variant)
