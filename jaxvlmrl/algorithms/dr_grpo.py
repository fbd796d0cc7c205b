"""Dr. GRPO: the outcome minus the group's mean, token sums over a constant; and the original GridWalker loop's variant.

    A = R - mean
    L = mean over episodes of (sum over tokens of -min(r A, clip(r) A)) / C

Without the two biases of GRPO: short answers that are right pushed harder, groups of low variance amplified. Source:
reference sheets "critic_free" (2503.20783) and "gridwalker_grpo", section 2.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms import groups
from jaxvlmrl.algorithms.algorithm import Steps
from jaxvlmrl.algorithms.group_method import GroupMethod
from jaxvlmrl.algorithms.groups import Same
from jaxvlmrl.algorithms.surrogate import bounded


@dataclass(unsafe_hash=True)
class DrGRPO(GroupMethod):
    """`length` is the constant C: what an episode may take, so the step size does not depend on what it took."""

    length: float = 60.0  # tokens: ten turns of six

    def advantage(self, outcome: Float[Array, " B"], same: Same) -> Float[Array, " B"]:
        return groups.centred(outcome, same)

    def mean(self, terms: Float[Array, "b T G"], steps: Steps) -> Float[Array, ""]:
        return jnp.sum(jnp.where(steps.is_action_token, terms, 0.0)) / (len(terms) * self.length)


@dataclass(unsafe_hash=True)
class GridWalkerGRPO(DrGRPO):
    """As the GridWalker author trained: a sum over all tokens of all episodes over 20, with k3 towards the reference.

    Nothing divides by the number of episodes, so the gradient grows with the batch; only clipping its norm hides that.
    """

    kl_coef: float = 0.04
    length: float = 20.0

    is_mean_over_rows: ClassVar[bool] = False

    def is_kept(self, outcome: Float[Array, " B"], advantage: Float[Array, " B"], same: Same) -> Bool[Array, " B"]:
        return jnp.ones_like(outcome, bool)

    def log_ratio(self, log_prob: Float[Array, "b T G"], steps: Steps) -> Float[Array, "b T G"]:
        return bounded(log_prob - steps.old_log_prob)

    def mean(self, terms: Float[Array, "b T G"], steps: Steps) -> Float[Array, ""]:
        return jnp.sum(jnp.where(steps.is_action_token, terms, 0.0)) / self.length


def gridwalker_reward(
    won: Bool[Array, ""], think_turns: Float[Array, ""], turns: Float[Array, ""], is_invalid: Bool[Array, ""]
) -> Float[Array, ""]:
    """The loop's reward of an episode: 1 for a win, 0.2 for thinking in every turn; 0 if an answer could not be read."""
    reward = won.astype(jnp.float32) + 0.2 * think_turns / jnp.maximum(turns, 1.0)
    return jnp.where(is_invalid, 0.0, reward)
