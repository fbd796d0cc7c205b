"""REINFORCE++: discounted token returns, whitened over the whole batch; and its form with a group baseline.

    q = -beta (log old - log ref), plus R on an episode's last token;   G_i = sum over j >= i of gamma^(j - i) q_j
    A = (G - mean) / sqrt(max(var, 1e-8)) over all tokens of the batch
    L = token mean of -min(r A, clip(r) A)

With the baseline the group's mean is taken from R first, q has no KL, and the loss has it as k2. Source: reference sheet
"critic_free" (2501.03262).
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms import groups, kl
from jaxvlmrl.algorithms.algorithm import Credit, Experience, Steps
from jaxvlmrl.algorithms.group_method import GroupMethod
from jaxvlmrl.algorithms.groups import Same
from jaxvlmrl.algorithms.masking import by_episode, by_turn, is_last, masked_mean

VARIANCE_FLOOR = 1e-8


@dataclass(unsafe_hash=True)
class ReinforcePP(GroupMethod):
    """`token_gamma` discounts by token slot, padding included, as the original does; 1 unless you know why."""

    kl_estimator: str = field(default="k2", metadata={"choices": tuple(kl.ESTIMATORS)})
    group_size: int = 1
    token_gamma: float = 1.0
    has_group_baseline: bool = False  # wants a group_size above 1

    is_mean_over_rows: ClassVar[bool] = False

    @property
    def fewest_alike(self) -> int:
        return 2 if self.has_group_baseline else 1

    @property
    def kl_in_loss(self) -> bool:
        return self.has_group_baseline

    def advantage(self, outcome: Float[Array, " B"], same: Same) -> Float[Array, " B"]:
        return groups.centred(outcome, same) if self.has_group_baseline else outcome

    def credit(self, experience: Experience) -> Credit:
        outcome = self.advantage(self.outcome(experience), groups.alike(experience.group))
        is_token = experience.is_action_token & experience.is_played[..., None]
        _, _, advantage = self.of_tokens(outcome, is_token, experience.old_log_prob, experience.ref_log_prob)
        of_turns = jnp.broadcast_to(outcome[None], experience.reward.shape)
        return Credit(advantage, of_turns, experience.is_played)

    def of_tokens(
        self,
        outcome: Float[Array, " B"],
        is_token: Bool[Array, "T B G"],
        old_log_prob: Float[Array, "T B G"],
        ref_log_prob: Float[Array, "T B G"],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(rewards, returns, whitened advantages) of tokens, [T, B, G]; 0 where there is none."""
        back = partial(by_turn, num_turns=len(is_token))
        mask = by_episode(is_token)
        reward = jnp.where(is_last(mask), outcome[:, None], 0.0)
        if not self.has_group_baseline:
            reward -= jnp.where(mask, self.kl_coef * by_episode(old_log_prob - ref_log_prob), 0.0)

        def backward(later: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
            total = now + self.token_gamma * later
            return total, total

        returns = jax.lax.scan(backward, jnp.zeros(len(mask)), reward.T, reverse=True)[1].T
        returns = jnp.where(mask, returns, 0.0)
        return back(reward), back(returns), back(jnp.where(mask, whiten(returns, mask), 0.0))

    def mean(self, terms: Float[Array, "b T G"], steps: Steps) -> Float[Array, ""]:
        return masked_mean(terms, steps.is_action_token)


def whiten(x: Float[Array, "*s"], mask: Bool[Array, "*s"]) -> Float[Array, "*s"]:
    """Mean 0 and variance 1 (ddof 0, floored) over what counts; all 0 if that is equal."""
    mean = masked_mean(x, mask)
    variance = masked_mean(jnp.square(x - mean), mask)
    highest, lowest = jnp.max(jnp.where(mask, x, -jnp.inf)), jnp.min(jnp.where(mask, x, jnp.inf))
    return jnp.where(highest > lowest, (x - mean) / jnp.sqrt(jnp.maximum(variance, VARIANCE_FLOOR)), 0.0)
