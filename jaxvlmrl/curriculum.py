"""An automatic curriculum inside the update: levels are drawn as 1 / mean turns of their episodes.

Every episode that begins draws its level anew, so levels that are won quickly come often and all get about the same number
of turns. Source: reference sheet "odysseus", section 4.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from envs_jax.environment import Params as EnvParams
from envs_jax.wrappers import Levels
from jaxvlmrl.algorithms.masking import masked_mean, mean_if_any
from jaxvlmrl.algorithms.odysseus import level_probabilities
from jaxvlmrl.rollout import Trajectory


@dataclass(unsafe_hash=True)
class Curriculum:
    """`levels` are environment params, the easiest first; with none of them all episodes have the config's own."""

    levels: tuple = ()

    def first(self, otherwise: EnvParams) -> EnvParams:
        """The easiest level, on which lessons before reinforcement learning are given."""
        return self.levels[0] if self.levels else otherwise

    def start(self) -> jax.Array:
        """[levels] chances, all alike."""
        count = max(len(self.levels), 1)
        return jnp.full(count, 1 / count)

    def begun(self, chances: jax.Array, otherwise: EnvParams) -> Levels:
        """What episodes begin on."""
        if not self.levels:
            return Levels.only(otherwise)
        return Levels(jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *self.levels), chances)

    def learn(
        self, chances: jax.Array, trajectory: Trajectory, is_played: jax.Array, may_have_lost: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """New chances, from the episodes that ended; and how each level goes, once losses can have ended too."""
        if not self.levels:
            return chances, {}
        is_done = (trajectory.terminated | trajectory.truncated) & is_played
        turns = (trajectory.turns_so_far + 1).astype(jnp.float32)
        nobodys = len(self.levels)  # the level of turns that ended no episode
        ended = jnp.where(is_done, trajectory.level, nobodys).reshape(-1)
        _, chances = level_probabilities(turns.reshape(-1), ended, len(self.levels))
        metrics = {}
        for index in range(len(self.levels)):
            is_level = trajectory.level == index
            counts = is_done & is_level & may_have_lost
            metrics[f"level/{index}/success_rate"] = mean_if_any(trajectory.info["success"], counts)
            metrics[f"level/{index}/turns_per_episode"] = mean_if_any(turns, counts)
            metrics[f"level/{index}/share_of_turns"] = masked_mean(is_level.astype(jnp.float32), is_played)
            metrics[f"level/{index}/chance"] = chances[index]
        return chances, metrics
