"""GTR: RL4VLM's objective, and cross-entropy on thoughts as a corrector would have had them.

    L = L_RL4VLM + sft_coef (-mean over thought tokens of log pi(corrected thought))

Only thoughts are cloned, never actions. The corrector here is a simulator's true state put into words. Source: reference
sheet "rl4vlm_archer_others", section 5 (2503.08525).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.algorithms.rl4vlm import RL4VLM


@dataclass(unsafe_hash=True)
class GTR(RL4VLM):
    sft_coef: float = 1.0  # the paper's own weighting is not known

    def cloning_loss(self, log_prob: Float[Array, "*n L"], is_thought: Bool[Array, "*n L"]) -> Float[Array, ""]:
        """Of corrected thoughts, one mean over all their tokens; without its coefficient."""
        return -masked_mean(log_prob, jnp.asarray(is_thought))
