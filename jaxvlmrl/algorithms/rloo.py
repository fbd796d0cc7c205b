"""RLOO: REINFORCE on whole episodes with the mean of the others as baseline, the KL inside the reward.

    R' = R - beta sum over tokens of (log old - log ref),   A = R' - mean of the others' R'
    L  = -mean over episodes of A sum over tokens of log new

No ratio: strictly on-policy, one epoch. Source: reference sheet "critic_free" (2402.14740).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms import groups, kl
from jaxvlmrl.algorithms.algorithm import Experience, PolicyLoss, Steps
from jaxvlmrl.algorithms.group_method import GroupMethod
from jaxvlmrl.algorithms.groups import Same


@dataclass(unsafe_hash=True)
class RLOO(GroupMethod):
    """`kl_coef` acts in the outcome, never in the loss."""

    has_ratio: ClassVar[bool] = False

    @property
    def kl_in_loss(self) -> bool:
        return False

    def outcome(self, experience: Experience) -> Float[Array, " B"]:
        is_token = experience.is_action_token & experience.is_played[..., None]
        moved = jnp.where(is_token, experience.old_log_prob - experience.ref_log_prob, 0.0)
        return super().outcome(experience) - self.kl_coef * jnp.sum(moved, axis=(0, 2))

    def advantage(self, outcome: Float[Array, " B"], same: Same) -> Float[Array, " B"]:
        return groups.minus_others(outcome, same)

    def is_kept(self, outcome: Float[Array, " B"], advantage: Float[Array, " B"], same: Same) -> Bool[Array, " B"]:
        return jnp.ones_like(outcome, bool)

    def mean(self, terms: Float[Array, "b T G"], steps: Steps) -> Float[Array, ""]:
        """Over episodes of the sum over tokens."""
        return jnp.sum(jnp.where(steps.is_action_token, terms, 0.0)) / len(terms)

    def policy_loss(self, log_prob: Float[Array, "b T G"], steps: Steps) -> PolicyLoss:
        divergence = kl.ESTIMATORS[self.kl_estimator](log_prob, steps.ref_log_prob)
        return PolicyLoss(
            -self.mean(steps.token_advantage * log_prob, steps), self.mean(divergence, steps), jnp.float32(0)
        )
