"""An automatic curriculum inside the update: levels are drawn as 1 / mean turns of their episodes.

Levels that are won quickly come often, so all levels get about the same number of turns. Every update draws each
environment's level anew; an episode under way keeps its board, so levels that differ in their turn limit want an algorithm
that learns from whole episodes. Source: reference sheet "odysseus", section 4.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs_jax.environment import Params as EnvParams
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.algorithms.odysseus import level_probabilities
from jaxvlmrl.rollout import Trajectory


class Lessons(NamedTuple):
    """Where a curriculum stands."""

    chances: jax.Array  # [levels], of each to be drawn
    level: jax.Array  # [B] int32, of the episodes that begin in this update
    board: jax.Array  # [B] int32, of the episodes under way as it begins; one above all levels if of none of them


@dataclass(unsafe_hash=True)
class Curriculum:
    """`levels` are environment params, the easiest first; with none of them all environments have the config's own."""

    levels: tuple = ()

    def first(self, otherwise: EnvParams) -> EnvParams:
        """The easiest level, on which lessons before reinforcement learning are given."""
        return self.levels[0] if self.levels else otherwise

    def start(self, num_envs: int) -> Lessons:
        """All levels alike."""
        count = max(len(self.levels), 1)
        nothing = jnp.zeros(num_envs, jnp.int32)
        return Lessons(jnp.full(count, 1 / count), nothing, nothing + len(self.levels))

    def draw(self, lessons: Lessons, key: jax.Array, alike: int, all_begin: bool) -> Lessons:
        """Levels for the next update; so many neighbours have the same. `all_begin`: no episode is under way."""
        if not self.levels:
            return lessons
        groups = len(lessons.level) // alike
        level = jax.random.choice(key, len(self.levels), (groups,), p=lessons.chances)
        level = jnp.repeat(level, alike).astype(jnp.int32)
        return lessons._replace(level=level, board=level if all_begin else lessons.board)

    def params(self, lessons: Lessons, otherwise: EnvParams) -> EnvParams:
        """[B] params of the environments."""
        if not self.levels:
            return otherwise
        table = jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *self.levels)
        return jax.tree.map(lambda column: column[lessons.level], table)

    def learn(
        self, lessons: Lessons, trajectory: Trajectory, is_played: jax.Array
    ) -> tuple[Lessons, dict[str, jax.Array]]:
        """New chances, from the episodes that ended; and how each level goes."""
        if not self.levels:
            return lessons, {}
        ends = trajectory.terminated | trajectory.truncated
        was_under_way = jnp.cumsum(ends, axis=0) - ends == 0
        level = jnp.where(was_under_way, lessons.board[None], lessons.level[None]).reshape(-1)
        board = jnp.where(jnp.any(ends, axis=0), lessons.level, lessons.board)
        is_done = (ends & is_played).reshape(-1)
        turns = (trajectory.turns_so_far + 1).reshape(-1).astype(jnp.float32)
        nobodys = len(self.levels)  # the level of turns that ended no episode
        _, chances = level_probabilities(turns, jnp.where(is_done, level, nobodys), len(self.levels))
        metrics = {}
        for index in range(len(self.levels)):
            of_level = is_done & (level == index)
            won = trajectory.info["success"].reshape(-1).astype(jnp.float32)
            metrics[f"level/{index}/success_rate"] = masked_mean(won, of_level)
            metrics[f"level/{index}/turns"] = masked_mean(turns, of_level)
            metrics[f"level/{index}/chance"] = chances[index]
        return lessons._replace(chances=chances, board=board), metrics
