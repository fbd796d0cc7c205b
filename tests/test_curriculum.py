"""Levels of a curriculum: begun as 1 / mean turns, so that all get their turns; alike within groups."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from envs_jax import GridWalker
from envs_jax.grid_walker import Params
from envs_jax.wrappers import AutoReset, Levels
from jaxvlmrl import rollout, runs, train
from jaxvlmrl.building import make_env, make_policy
from jaxvlmrl.config import ConfigError, from_json, to_json
from jaxvlmrl.curriculum import Curriculum
from jaxvlmrl.rollout_metrics import Outcomes, outcomes
from tests.small import BATCH, fresh, make_actor_critic, make_config

LEVELS = (Params(size=4, num_blocks=2, max_turns=2), Params(size=8, num_blocks=3, max_turns=6))


def lately(curriculum: Curriculum, found: SimpleNamespace) -> Outcomes:
    """Of one update, all of whose turns count."""
    return outcomes(found, jnp.ones_like(found.terminated), curriculum.num_levels)  # pyright: ignore


def played_on(level: jax.Array, ends: jax.Array, turns_so_far: jax.Array) -> SimpleNamespace:
    return SimpleNamespace(
        terminated=ends, truncated=jnp.zeros_like(ends), info={"success": ends}, turns_so_far=turns_so_far, level=level
    )


def test_a_level_that_takes_half_the_turns_comes_twice_as_often():
    """Two turns on level 0, four on level 1: chances 2/3 and 1/3, whatever is still under way."""
    curriculum = Curriculum(LEVELS)
    ends = np.zeros((4, 3), bool)
    ends[1, 0] = ends[3, 1] = True
    level = jnp.broadcast_to(jnp.array([0, 1, 1]), (4, 3))
    played = played_on(level, jnp.asarray(ends), jnp.broadcast_to(jnp.arange(4)[:, None], (4, 3)))
    recent = lately(curriculum, played)
    chances = curriculum.learn(curriculum.start(), recent)
    told = curriculum.metrics(chances, played, jnp.ones((4, 3), bool), recent)  # pyright: ignore
    np.testing.assert_allclose(chances, [2 / 3, 1 / 3], rtol=1e-5)
    assert float(told["level/0/success_rate"]) == 1.0
    assert float(told["level/1/turns_per_episode"]) == 4.0
    assert float(told["level/1/share_of_turns"]) == pytest.approx(2 / 3)


def test_an_update_in_which_nothing_ended_changes_no_chances():
    chances = jnp.array([0.9, 0.1])
    nothing = Outcomes.none(1, 2).over(axis=0)
    np.testing.assert_array_equal(Curriculum(LEVELS).learn(chances, nothing), chances)


def test_levels_get_the_same_number_of_turns():
    """Nobody moves, so episodes last as long as their level lets them, in segments shorter than the longest."""
    curriculum, batch = Curriculum(LEVELS), 256
    env = AutoReset(GridWalker(), jnp.zeros((0, 2), jnp.uint32))

    def turn(levels: Levels, carry, key):
        state, level, turns_so_far = carry
        keys = jax.random.split(key, batch)
        next_level = jax.vmap(levels.draw)(keys)
        step = jax.vmap(env.step)(keys, state, jnp.full(batch, -1), levels.of(level), levels.of(next_level))
        ends = step.terminated | step.truncated
        after = jnp.where(ends, next_level, level), jnp.where(ends, 0, turns_so_far + 1)
        return (step.state, *after), (level, ends, turns_so_far)

    def update(carry, key):
        chances, at = carry
        at, found = jax.lax.scan(partial(turn, curriculum.begun(chances, None)), at, jax.random.split(key, 4))
        chances = curriculum.learn(chances, lately(curriculum, played_on(*found)))
        return (chances, at), jnp.mean(found[0] == 0)

    @jax.jit
    def shares(key):
        levels, keys = curriculum.begun(curriculum.start(), None), jax.random.split(key, batch)
        level = jax.vmap(levels.draw)(keys)
        at = jax.vmap(env.init)(keys, levels.of(level)), level, jnp.zeros(batch, jnp.int32)
        return jax.lax.scan(update, (curriculum.start(), at), jax.random.split(key, 40))

    (chances, _), share = shares(jax.random.key(0))
    np.testing.assert_allclose(chances, [0.75, 0.25], rtol=1e-5)
    assert abs(float(jnp.mean(share[10:])) - 0.5) < 0.02


def test_a_rollout_plays_each_episode_on_the_level_it_drew():
    """The limit of turns is the level's, also of an episode that an earlier update began."""
    config = make_config(window=1, max_turns=6)
    actor_critic, _ = make_actor_critic(config)
    levels = Curriculum(LEVELS).begun(jnp.array([0.5, 0.5]), None)
    policy, env = actor_critic.policy, actor_critic.env

    @jax.jit
    def run(params, key):
        def one(session, key):
            trajectory, session = rollout.play(policy, params, env, levels, session, key, 5)
            return session, trajectory._replace(next_hidden=())

        begun = rollout.begin(policy, env, levels, key, BATCH)
        found = jax.lax.scan(one, begun, jax.random.split(key, 2))[1]
        return jax.tree.map(lambda x: x.reshape(10, *x.shape[2:]), found)

    played = jax.device_get(run(fresh(config), jax.random.key(1)))
    limit = np.asarray([level.max_turns for level in LEVELS])[played.level]
    np.testing.assert_array_equal(played.truncated, ~played.terminated & (played.turns_so_far + 1 == limit))
    assert set(played.level[played.truncated]) == {0, 1}, "this key shows nothing"
    goes_on = ~(played.terminated | played.truncated)[:-1]
    assert (played.level[1:] == played.level[:-1])[goes_on].all()


def test_draws_follow_the_chances_and_groups_begin_alike():
    levels = Curriculum(LEVELS).begun(jnp.array([0.9, 0.1]), None)
    policy = make_policy(make_config(window=1))
    env = AutoReset(policy.env, jnp.zeros((0, 2), jnp.uint32))
    begin = jax.jit(lambda key: rollout.begin(policy, env, levels, key, batch=4000, alike=4))
    begun = begin(jax.random.key(0))
    groups = np.asarray(begun.level).reshape(-1, 4)
    layouts = np.asarray(jax.vmap(env.env.fingerprint)(begun.state)).reshape(-1, 4, 2)
    assert (groups == groups[:, :1]).all()
    assert (layouts == layouts[:, :1]).all()
    assert len(np.unique(layouts[:, 0], axis=0)) > 500, "each group has its own"
    assert abs(groups.mean() - 0.1) < 0.03
    np.testing.assert_array_equal(levels.of(jnp.array([1, 0])).size, [8, 4])


@pytest.mark.slow
def test_a_run_over_two_levels(tmp_path: Path):
    config = quickstart.get_config("odysseus,tiny")
    config.imitation.num_updates, config.curriculum = 0, Curriculum(LEVELS)
    assert from_json(to_json(config)) == config
    train.train(config, tmp_path, time.time())
    row = runs.read_rows(tmp_path)[-1]
    assert row["level/0/chance"] + row["level/1/chance"] == pytest.approx(1.0)


def test_an_impossible_level_is_refused():
    config = quickstart.get_config("tiny")
    config.curriculum = Curriculum((dataclasses.replace(LEVELS[0], size=99),))
    with pytest.raises(ConfigError, match="size 99"):
        config.check()


def test_a_level_whose_every_layout_is_held_out_is_refused():
    """Its first game would be drawn again for ever."""
    config = quickstart.get_config()
    config.curriculum = Curriculum((dataclasses.replace(LEVELS[1], num_blocks=0), LEVELS[1]))
    with pytest.raises(ConfigError, match=r"hold out every layout of .*num_blocks=0"):
        make_env(config)
