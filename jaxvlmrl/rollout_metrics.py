"""What happened in a rollout, as scalars: how it went, what was said, what was thought, and signs of collapse.

What a rollout did not show, as nothing of the kind happened in it, is NaN: null in metrics.jsonl.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvlmrl import thinking
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.policy import Policy
from jaxvlmrl.rollout import Trajectory

Metrics = dict[str, jax.Array]


class Outcomes(NamedTuple):
    """Of episodes that ended, sums by level: float32 [levels], or [updates, levels]."""

    wins: jax.Array
    episodes: jax.Array
    turns: jax.Array  # that they took

    @classmethod
    def none(cls, num_updates: int, num_levels: int) -> "Outcomes":
        return cls(*jnp.zeros((3, num_updates, num_levels)))

    @property
    def success_rate(self) -> jax.Array:
        return self._mean(self.wins)

    @property
    def turns_per_episode(self) -> jax.Array:
        return self._mean(self.turns)

    def over(self, axis: int) -> "Outcomes":
        """Summed, of all levels or of all updates."""
        return Outcomes(*(jnp.sum(x, axis=axis) for x in self))

    def _mean(self, total: jax.Array) -> jax.Array:
        return jnp.where(self.episodes > 0, total / jnp.maximum(self.episodes, 1.0), jnp.nan)


def outcomes(trajectory: Trajectory, is_played: jax.Array, num_levels: int) -> Outcomes:
    """Of the episodes that ended in a rollout, [levels]."""
    is_done = (trajectory.terminated | trajectory.truncated) & is_played

    def of_level(level: jax.Array) -> Outcomes:
        ended = is_done & (trajectory.level == level)
        total = lambda x: jnp.sum(jnp.where(ended, x, 0), dtype=jnp.float32)
        return Outcomes(total(trajectory.info["success"]), total(1), total(trajectory.turns_so_far + 1))

    return jax.vmap(of_level)(jnp.arange(num_levels))


def spread(x: jax.Array, counts: jax.Array) -> jax.Array:
    """The largest minus the smallest of what counts."""
    return jnp.max(jnp.where(counts, x, -jnp.inf)) - jnp.min(jnp.where(counts, x, jnp.inf))


def played(policy: Policy, trajectory: Trajectory, is_played: jax.Array, recent: Outcomes) -> Metrics:
    """What happened in a rollout, as scalars; `recent` are the outcomes of as many updates as show losses with wins."""
    is_done = (trajectory.terminated | trajectory.truncated) & is_played
    of_all = recent.over(axis=0)
    of_turns = lambda x: masked_mean(x.astype(jnp.float32), is_played)
    metrics = {
        "rollout/success_rate": of_all.success_rate,
        "rollout/turns_per_episode": of_all.turns_per_episode,
        "rollout/episodes": jnp.sum(is_done),
        "rollout/turns": jnp.sum(is_played),
        "rollout/reward_per_turn": of_turns(trajectory.reward),
        "rollout/reward_spread": spread(trajectory.reward, is_played),
        "rollout/unparsable_share": of_turns(trajectory.action < 0),
        "rollout/tokens": jnp.sum(trajectory.turns.answer_valid & is_played[..., None]),
    }
    metrics |= collapse(trajectory, is_played)
    if policy.thought_tokens:
        metrics |= thoughts(policy, trajectory, is_played)
    for action in policy.env.actions():
        name = policy.env.answer_text(action).strip("`").replace(" ", "_")
        metrics[f"command/{name}"] = of_turns(trajectory.action == action)
    return metrics


def thoughts(policy: Policy, trajectory: Trajectory, is_played: jax.Array) -> Metrics:
    """What was thought in a rollout."""
    flat = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    states, ids, valid = flat((trajectory.state, trajectory.turns.answer_ids, trajectory.turns.answer_valid))
    found = thinking.figures(thinking.judge(policy, states, ids, valid), is_played.reshape(-1))
    tokens = jnp.sum(thinking.is_thought(policy, ids, valid), axis=-1).astype(jnp.float32)
    found["tokens"] = masked_mean(tokens, is_played.reshape(-1))
    return {f"thought/{name}": x for name, x in found.items()}


def collapse(trajectory: Trajectory, is_played: jax.Array) -> Metrics:
    """Signs that a policy says the same whatever it sees."""
    turns, action = trajectory.turns, trajectory.action
    ids, valid = turns.answer_ids, turns.answer_valid & is_played[..., None]
    is_same = (action[1:] == action[:-1]) & (action[1:] >= 0)
    goes_on = (turns.episode[1:] == turns.episode[:-1]) & is_played[1:]
    repeats = (ids[..., 1:] == ids[..., :-1]) & valid[..., 1:]
    return {
        "collapse/repeated_commands": masked_mean(is_same.astype(jnp.float32), goes_on),
        "collapse/repeated_tokens": masked_mean(repeats.astype(jnp.float32), valid[..., 1:]),
    }
