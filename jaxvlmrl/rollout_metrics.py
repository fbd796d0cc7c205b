"""What happened in a rollout, as scalars: how it went, what was said, what was thought, and signs of collapse.

What a rollout did not show, as nothing of the kind happened in it, is NaN: null in metrics.jsonl.
"""

import jax
import jax.numpy as jnp

from jaxvlmrl import thinking
from jaxvlmrl.algorithms.masking import masked_mean, mean_if_any
from jaxvlmrl.policy import Policy
from jaxvlmrl.rollout import Trajectory

Metrics = dict[str, jax.Array]


def spread(x: jax.Array, counts: jax.Array) -> jax.Array:
    """The largest minus the smallest of what counts."""
    return jnp.max(jnp.where(counts, x, -jnp.inf)) - jnp.min(jnp.where(counts, x, jnp.inf))


def played(policy: Policy, trajectory: Trajectory, is_played: jax.Array, may_have_lost: jax.Array) -> Metrics:
    """What happened in a rollout, as scalars.

    `may_have_lost`: the time limit has come for episodes that began with the first update. Until then only wins end.
    """
    is_done = (trajectory.terminated | trajectory.truncated) & is_played
    of_episodes = lambda x: mean_if_any(x, is_done & may_have_lost)
    of_turns = lambda x: masked_mean(x.astype(jnp.float32), is_played)
    metrics = {
        "rollout/success_rate": of_episodes(trajectory.info["success"]),
        "rollout/turns_per_episode": of_episodes(trajectory.turns_so_far + 1),
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
