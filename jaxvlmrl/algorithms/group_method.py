"""What the critic-free methods share: one outcome an episode, compared within a group that began alike.

A row is a whole episode, all its turns' tokens in one; every token carries the episode's advantage. Source: reference
sheet "critic_free".
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms import groups, kl
from jaxvlmrl.algorithms.algorithm import Algorithm, Credit, Experience, PolicyLoss, Steps
from jaxvlmrl.algorithms.groups import Same
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.algorithms.surrogate import surrogate


@dataclass(unsafe_hash=True)
class GroupMethod(Algorithm):
    """`group_size` environments share each start; an outcome is an episode's summed reward."""

    group_size: int = 8
    clip_low: float = 0.2
    clip_high: float = 0.2

    whole_episodes: ClassVar[bool] = True

    @property
    def uses_critic(self) -> bool:
        return False

    @property
    def environments_alike(self) -> int:
        return self.group_size

    @property
    def fewest_alike(self) -> int:
        return 2

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the ratio."""
        return 1 - self.clip_low, 1 + self.clip_high

    @abstractmethod
    def advantage(self, outcome: Float[Array, " B"], same: Same) -> Float[Array, " B"]: ...

    def is_kept(self, outcome: Float[Array, " B"], advantage: Float[Array, " B"], same: Same) -> Bool[Array, " B"]:
        """Which episodes are learned from. Groups whose outcomes are equal teach nothing but to stay near the reference."""
        del advantage
        return groups.varies(outcome, same)

    def outcome(self, experience: Experience) -> Float[Array, " B"]:
        return jnp.sum(jnp.where(experience.is_played, experience.reward, 0.0), axis=0)

    def credit(self, experience: Experience) -> Credit:
        outcome, same = self.outcome(experience), groups.alike(experience.group)
        advantage = self.advantage(outcome, same)
        of_turns = lambda x: jnp.broadcast_to(x[None], experience.reward.shape)
        is_kept = experience.is_played & of_turns(self.is_kept(outcome, advantage, same))
        return Credit(of_turns(advantage), of_turns(outcome), is_kept)

    def policy_loss(self, log_prob: Float[Array, "b T G"], steps: Steps) -> PolicyLoss:
        log_ratio = self.log_ratio(log_prob, steps)
        terms, is_clipped = surrogate(log_ratio, steps.token_advantage, *self.bounds)
        kl_terms = kl.ESTIMATORS[self.kl_estimator](log_prob, steps.ref_log_prob)
        clip_fraction = masked_mean(is_clipped.astype(jnp.float32), steps.is_action_token)
        return PolicyLoss(self.mean(terms, steps), self.mean(kl_terms, steps), clip_fraction)

    def log_ratio(self, log_prob: Float[Array, "b T G"], steps: Steps) -> Float[Array, "b T G"]:
        return log_prob - steps.old_log_prob


def of_episodes(x: jax.Array) -> jax.Array:
    """[b, T, G] to [b, T G]."""
    return x.reshape(len(x), -1)


def mean_of_means(terms: Float[Array, "b T G"], steps: Steps) -> Float[Array, ""]:
    """Over all episodes of the mean over an episode's tokens; one without a token counts as 0."""
    return jnp.mean(masked_mean(of_episodes(terms), of_episodes(steps.is_action_token), axis=-1))
