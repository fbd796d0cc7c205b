"""Sampler and trainer are one network: what was sampled has the log-prob the trainer finds for it, in every case."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax.wrappers import Levels
from jaxvlmrl import rollout
from jaxvlmrl.config import Model
from jaxvlmrl.conversation import Turns
from jaxvlmrl.models.attention import attend_causally
from jaxvlmrl.models.qwen3_vl import Qwen3VL
from jaxvlmrl.update import Rows
from tests.small import BATCH, fresh, make_actor_critic, make_config, sharpened

MAX_GAP = 1e-4


@functools.cache
def two_rollouts(
    window: int, constrained: bool, model: Model | None = None, envs_at_once: int = 0, tokens_at_once: int = 0
):
    """Two rollouts, the second of which begins mid-episode: 6 turns of episodes of at most 5."""
    config = make_config(window, constrained, model=model, tokens_at_once=tokens_at_once)
    actor_critic, env_params = make_actor_critic(config)
    levels = Levels.only(env_params)
    no_steps: Any = None  # log-probs need none

    @jax.jit
    def run(params, key):
        first_key, *keys = jax.random.split(key, 3)
        session = rollout.begin(actor_critic.policy, actor_critic.env, levels, first_key, BATCH)
        found = []
        for play_key in keys:
            before = session
            trajectory, session = rollout.play_in_parts(
                actor_critic.policy, params, actor_critic.env, levels, session, play_key, actor_critic.num_turns,
                envs_at_once,
            )  # fmt: skip
            join = lambda old, new: jnp.swapaxes(jnp.concatenate([old, new]), 0, 1)
            rows = Rows(
                jax.tree.map(join, before.past_states, trajectory.state),
                jax.tree.map(join, before.past, trajectory.turns),
                jnp.swapaxes(trajectory.grammar_states, 0, 1),
                jnp.swapaxes(trajectory.log_probs, 0, 1),
                no_steps,
            )
            found.append((rows, trajectory, actor_critic.think(params, rows).log_probs))
        return found

    return actor_critic, sharpened(fresh(config)), run


SLOW = pytest.mark.slow
CASES = [(4, True), (4, False)]
OTHER_CASES = [
    pytest.param(window, is_constrained, marks=SLOW) for window in (1, 2, 8) for is_constrained in (True, False)
]


@pytest.mark.parametrize(("window", "constrained"), CASES + OTHER_CASES)
def test_sampled_log_probs_are_the_trainers(window: int, constrained: bool):
    _, params, run = two_rollouts(window, constrained)
    for weights in (params, params | {"lm_head": params["lm_head"] / 20}):
        for rows, trajectory, log_probs in run(weights, jax.random.key(1)):
            valid = np.swapaxes(np.asarray(trajectory.turns.answer_valid), 0, 1)
            gap = np.abs(np.swapaxes(np.asarray(trajectory.log_probs), 0, 1) - np.asarray(log_probs))[valid]
            assert gap.max() < MAX_GAP
            assert np.asarray(trajectory.truncated | trajectory.terminated).any(), "no reset was crossed"
            assert np.array_equal(
                np.asarray(rows.turns.answer_ids)[:, window - 1 :], np.swapaxes(trajectory.turns.answer_ids, 0, 1)
            ), "ids that are trained on are the ids that were sampled"


def test_so_are_those_of_a_model_with_deepstack_and_three_positions():
    """Qwen3-VL: image tokens take fewer positions than slots; tower and decoder share no width. In parts, for memory."""
    _, params, run = two_rollouts(4, False, Qwen3VL(remat=True), envs_at_once=2, tokens_at_once=7)
    for rows, trajectory, log_probs in run(params, jax.random.key(1)):
        valid = np.swapaxes(np.asarray(trajectory.turns.answer_valid), 0, 1)
        gap = np.abs(np.swapaxes(np.asarray(trajectory.log_probs), 0, 1) - np.asarray(log_probs))[valid]
        assert gap.max() < MAX_GAP
        assert np.asarray(rows.turns.position).max() > 0


def test_in_parts_is_the_same_game():
    """A model that is sure leaves nothing to chance: all at once and two environments at a time are one trajectory."""
    config = make_config(3, True)
    actor_critic, env_params = make_actor_critic(config)
    params, policy, env = sharpened(fresh(config), 1e5), actor_critic.policy, actor_critic.env
    levels = Levels.only(env_params)

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, envs_at_once):
        session = rollout.begin(policy, env, levels, jax.random.key(0), BATCH)
        key = jax.random.key(1)
        trajectory, after = rollout.play_in_parts(policy, params, env, levels, session, key, 4, envs_at_once)
        return trajectory.action, trajectory.turns, trajectory.next_hidden, after.past.answer_ids, after.place

    jax.tree.map(np.testing.assert_array_equal, run(params, 0), run(params, 2))


def test_second_rollout_begins_mid_episode():
    _, params, run = two_rollouts(4, True)
    (_, first, _), (_, second, _) = run(params, jax.random.key(1))
    went_on = ~(first.terminated | first.truncated)[-1]
    assert bool(jnp.any(went_on)), "this key shows nothing"
    assert np.array_equal(np.asarray(second.turns_so_far[0]) > 0, np.asarray(went_on))


def test_free_answers_that_are_cut_are_covered():
    """Random weights rarely end an answer, so the template's end token has to follow as context."""
    _, params, run = two_rollouts(4, False)
    (_, trajectory, _), _ = run(params, jax.random.key(1))
    assert bool(jnp.any(jnp.all(trajectory.turns.answer_valid, axis=-1)))


def test_cached_log_probs_are_those_of_one_plain_forward_pass():
    """Episode by episode: all tokens in a row, no padding, no ring, a causal mask and positions 0, 1, 2, ..."""
    actor_critic, params, run = two_rollouts(8, False)
    policy = actor_critic.policy
    (_, trajectory, _), _ = run(params, jax.random.key(1))
    images = rollout.images(policy.env, trajectory.state, lead=2)
    is_done = np.asarray(trajectory.terminated | trajectory.truncated)
    for b in range(is_done.shape[1]):
        length = int(np.argmax(is_done[:, b])) + 1 if is_done[:, b].any() else len(is_done)
        turns = jax.tree.map(lambda x, b=b, n=length: x[:n, b], trajectory.turns)
        found = plain_log_probs(policy, params, turns, images[:length, b])
        expected = np.asarray(trajectory.log_probs)[:length, b][np.asarray(turns.answer_valid)]
        np.testing.assert_allclose(found, expected, atol=MAX_GAP, rtol=0)


def plain_log_probs(policy, params, turns: Turns, images: jax.Array) -> np.ndarray:
    """Log-probs of an episode's sampled tokens, one after another."""
    pictures = policy.model.image_tokens(params, images)
    pieces, answers = [policy.model.embed(params, jnp.asarray(policy.chat.prefix_ids))], []
    start = policy.chat.image_slot
    total = len(policy.chat.prefix_ids)
    for t in range(len(turns.position)):
        ids, valid = turns.observation.ids[t], np.asarray(turns.observation.valid[t])
        block = policy.model.embed(params, ids).at[start : start + pictures.shape[1]].set(pictures[t])
        said = turns.answer_ids[t][np.asarray(turns.answer_valid[t])]
        pieces += [block[valid], policy.model.embed(params, said)]
        total += int(valid.sum())
        answers += [(total + i - 1, int(token)) for i, token in enumerate(said)]
        total += len(said)
    x = jnp.concatenate(pieces)
    hidden, _ = policy.model.decode(params, x, jnp.arange(total), None, attend_causally)
    log_probs = policy.next_token(params, hidden, jnp.zeros(total, jnp.int32)).log_probs
    return np.array([log_probs[position, token] for position, token in answers])


def test_order_of_environments_and_content_of_padding_change_nothing():
    actor_critic, params, run = two_rollouts(4, True)
    _, (rows, _, _) = run(params, jax.random.key(1))
    think = jax.jit(lambda rows: actor_critic.think(params, rows).log_probs)
    log_probs = think(rows)
    order = jnp.asarray([2, 0, 3, 1])
    shuffled = think(jax.tree.map(lambda x: x[order], rows))
    np.testing.assert_allclose(shuffled, log_probs[order], atol=1e-6)
    noise = lambda ids, valid: jnp.where(valid, ids, 17)
    turns = rows.turns
    dirty = turns._replace(
        observation=turns.observation._replace(ids=noise(turns.observation.ids, turns.observation.valid)),
        answer_ids=noise(turns.answer_ids, turns.answer_valid),
    )
    valid = np.asarray(turns.answer_valid[:, 3:])
    again = think(rows._replace(turns=dirty))
    np.testing.assert_allclose(np.asarray(again)[valid], np.asarray(log_probs)[valid], atol=1e-6)
