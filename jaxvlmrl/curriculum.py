"""An automatic curriculum inside the update: levels are drawn as 1 / mean turns of their episodes.

Every episode that begins draws its level anew, so levels that are won quickly come often and all get about the same number
of turns. Source: reference sheet "odysseus", section 4.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from envs_jax.environment import Params as EnvParams
from envs_jax.wrappers import Levels
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.algorithms.odysseus import level_probabilities
from jaxvlmrl.rollout import Trajectory
from jaxvlmrl.rollout_metrics import Metrics, Outcomes


@dataclass(unsafe_hash=True)
class Curriculum:
    """`levels` are environment params, the easiest first; with none of them all episodes have the config's own."""

    levels: tuple = ()

    def first(self, otherwise: EnvParams) -> EnvParams:
        """The easiest level, on which lessons before reinforcement learning are given."""
        return self.levels[0] if self.levels else otherwise

    @property
    def num_levels(self) -> int:
        return max(len(self.levels), 1)

    def start(self) -> jax.Array:
        """[levels] chances, all alike."""
        return jnp.full(self.num_levels, 1 / self.num_levels)

    def begun(self, chances: jax.Array, otherwise: EnvParams) -> Levels:
        """What episodes begin on."""
        if not self.levels:
            return Levels.only(otherwise)
        return Levels(jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *self.levels), chances)

    def learn(self, chances: jax.Array, recent: Outcomes) -> jax.Array:
        """New chances [levels], from the episodes that ended of late; the old ones where none did."""
        if not self.levels:
            return chances
        nobodys = self.num_levels  # the level of a mean over nothing
        known = jnp.where(recent.episodes > 0, jnp.arange(self.num_levels), nobodys)
        _, new = level_probabilities(recent.turns_per_episode, known, self.num_levels)
        return jnp.where(jnp.any(recent.episodes > 0), new, chances)

    def metrics(self, chances: jax.Array, trajectory: Trajectory, is_played: jax.Array, recent: Outcomes) -> Metrics:
        """How each level goes."""
        told = {}
        for index in range(len(self.levels)):
            is_level = (trajectory.level == index).astype(jnp.float32)
            told[f"level/{index}/success_rate"] = recent.success_rate[index]
            told[f"level/{index}/turns_per_episode"] = recent.turns_per_episode[index]
            told[f"level/{index}/share_of_turns"] = masked_mean(is_level, is_played)
            told[f"level/{index}/chance"] = chances[index]
        return told
