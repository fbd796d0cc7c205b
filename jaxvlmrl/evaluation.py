"""Playing named episodes to their end, and what came of it."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.environment import Environment, State
from envs_jax.environment import Params as EnvParams
from envs_jax.wrappers import AutoReset, Step
from jaxvlmrl import rollout
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy


class Results(NamedTuple):
    """Episodes, host arrays [N, ...]."""

    won: np.ndarray  # bool
    turns: np.ndarray  # int32, turns played
    actions: np.ndarray  # [N, turn limit] int32, -1 unparsable; -2 after the end
    answer_ids: np.ndarray  # [N, turn limit, G]
    answer_valid: np.ndarray


@dataclass(frozen=True, eq=False)
class OneEpisode(AutoReset):
    """An environment that stands still once its episode has ended."""

    def step(self, key: jax.Array, state: State, action: jax.Array, params: EnvParams) -> Step:
        after, reward, terminated, truncated, info = self.env.transition(key, state, action, params)
        return Step(after, after, reward, terminated, truncated, info)


def evaluate(
    policy: Policy, params: Params, env: Environment, env_params: EnvParams, seeds: np.ndarray, key: jax.Array,
    max_turns: int, greedy: bool,
) -> tuple[jax.Array, ...]:  # fmt: skip
    """(won, turns, actions, ids, valid) [N, ...] of the seeds' episodes; `env_params` are one episode's. For `jit`."""
    batch = len(seeds)
    one = OneEpisode(env, jnp.zeros((0, 2), jnp.uint32))
    many = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), (batch, *jnp.shape(x))), env_params)
    session = rollout.begin(policy, one, many, key)
    session = session._replace(state=jax.vmap(env.init_from_number)(seeds, many))
    trajectory, _ = rollout.play(policy, params, one, many, session, key, max_turns, greedy)
    is_done = trajectory.terminated | trajectory.truncated
    was_done = jnp.cumsum(is_done, axis=0) - is_done > 0
    actions = jnp.where(was_done, -2, trajectory.action)
    won = jnp.any(trajectory.info["success"] & is_done & ~was_done, axis=0)
    swap = lambda x: jnp.swapaxes(x, 0, 1)
    return (
        won,
        jnp.sum(~was_done, axis=0),
        swap(actions),
        swap(trajectory.turns.answer_ids),
        swap(trajectory.turns.answer_valid & ~was_done[..., None]),
    )
