"""DAPO: GRPO without KL, with a higher upper clip, a token mean over the batch, and groups of one outcome dropped.

    L = sum over kept tokens of -min(r A, clip(r, 1 - 0.2, 1 + 0.28) A) / number of kept tokens

The paper draws again until a batch is full; here the batch shrinks, so no start is preferred for being half solved.
Source: reference sheet "critic_free" (2503.14476).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms import groups
from jaxvlmrl.algorithms.algorithm import Credit, Experience, Steps
from jaxvlmrl.algorithms.group_method import GroupMethod
from jaxvlmrl.algorithms.groups import Same
from jaxvlmrl.algorithms.masking import masked_mean


@dataclass(unsafe_hash=True)
class DAPO(GroupMethod):
    """Episodes of more than `max_tokens - cached_tokens` tokens lose reward, down to -1 at `max_tokens`; 0 is off."""

    clip_high: float = 0.28
    std_eps: float = 1e-6
    max_tokens: float = 0.0
    cached_tokens: float = 0.0

    is_mean_over_rows: ClassVar[bool] = False

    def advantage(self, outcome: Float[Array, " B"], same: Same) -> Float[Array, " B"]:
        return groups.z_scores(outcome, same, self.std_eps)

    def mean(self, terms: Float[Array, "b T G"], steps: Steps) -> Float[Array, ""]:
        return masked_mean(terms, steps.is_action_token)

    def length_penalty(self, tokens: Float[Array, " B"]) -> Float[Array, " B"]:
        if not self.max_tokens:
            return jnp.zeros_like(tokens)
        if not self.cached_tokens:
            return jnp.where(tokens > self.max_tokens, -1.0, 0.0)
        return jnp.clip((self.max_tokens - self.cached_tokens - tokens) / self.cached_tokens, -1.0, 0.0)

    def credit(self, experience: Experience) -> Credit:
        """The outcome alone decides which groups are kept; what is compared within them has the penalty in it."""
        outcome = self.outcome(experience)
        is_token = experience.is_action_token & experience.is_played[..., None]
        tokens = jnp.sum(is_token, axis=(0, 2)).astype(jnp.float32)
        shaped, keeps, advantage = self.shape(outcome, outcome, tokens, groups.alike(experience.group))
        of_turns = lambda x: jnp.broadcast_to(x[None], experience.reward.shape)
        return Credit(of_turns(advantage), of_turns(shaped), experience.is_played & of_turns(keeps))

    def shape(
        self, outcome: Float[Array, " B"], accuracy: Float[Array, " B"], tokens: Float[Array, " B"], same: Same
    ) -> tuple[Float[Array, " B"], Bool[Array, " B"], Float[Array, " B"]]:
        """(outcomes with the penalty, which episodes are kept, advantages); `accuracy` decides what is kept."""
        shaped = outcome + self.length_penalty(tokens)
        keeps = groups.varies(accuracy, same)
        return shaped, keeps, jnp.where(keeps, self.advantage(shaped, same), 0.0)
