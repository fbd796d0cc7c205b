"""LOOP: RLOO's advantage with PPO's ratio, several epochs on one rollout, episodes of small advantage left out.

    A = R - mean of the others,   episodes with |A| < 0.01 are dropped
    L = (1/M) sum over kept episodes of mean over tokens of -min(r A, clip(r, 1/(1 + e), 1 + e) A)

M is constant, not the number of episodes left. Source: reference sheet "critic_free" (2502.01600).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms import groups
from jaxvlmrl.algorithms.algorithm import Steps
from jaxvlmrl.algorithms.group_method import GroupMethod, of_episodes
from jaxvlmrl.algorithms.groups import Same
from jaxvlmrl.algorithms.masking import masked_mean


@dataclass(unsafe_hash=True)
class LOOP(GroupMethod):
    """The ratio is a token's, or a whole episode's; `clip_high` is e."""

    clip_high: float = 0.1
    clip_low: float = 0.0  # follows from clip_high
    least_advantage: float = 0.01
    divisor: float = 0.0  # M; 0 takes the episodes of the minibatch
    ratio: str = field(default="token", metadata={"choices": ("token", "episode")})

    is_mean_over_rows: ClassVar[bool] = False

    def advantage(self, outcome: Float[Array, " B"], same: Same) -> Float[Array, " B"]:
        return groups.minus_others(outcome, same)

    def is_kept(self, outcome: Float[Array, " B"], advantage: Float[Array, " B"], same: Same) -> Bool[Array, " B"]:
        return jnp.abs(advantage) >= self.least_advantage

    def mean(self, terms: Float[Array, "b T G"], steps: Steps) -> Float[Array, ""]:
        of_each = masked_mean(of_episodes(terms), of_episodes(steps.is_action_token), axis=-1)
        return jnp.sum(of_each) / (self.divisor or len(terms))

    @property
    def bounds(self) -> tuple[float, float]:
        return 1 / (1 + self.clip_high), 1 + self.clip_high

    def log_ratio(self, log_prob: Float[Array, "b T G"], steps: Steps) -> Float[Array, "b T G"]:
        of_tokens = super().log_ratio(log_prob, steps)
        if self.ratio == "token":
            return of_tokens
        return jnp.broadcast_to(jnp.sum(of_tokens, axis=(1, 2), keepdims=True), of_tokens.shape)
