"""Levels of a curriculum: drawn as 1 / mean turns, alike within groups, each environment on its own board."""

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from envs_jax.grid_walker.grid_walker import Params
from jaxvlmrl import runs, train
from jaxvlmrl.config import ConfigError, from_json, to_json
from jaxvlmrl.curriculum import Curriculum

LEVELS = (Params(size=4, num_blocks=0), Params(size=8, num_blocks=3))


def test_a_level_that_takes_half_the_turns_comes_twice_as_often():
    """Two turns on level 0, four on level 1: chances 2/3 and 1/3, whatever is still under way."""
    curriculum = Curriculum(LEVELS)
    lessons = curriculum.start(3)._replace(board=jnp.array([0, 1, 1]))
    ends = np.zeros((4, 3), bool)
    ends[1, 0] = ends[3, 1] = True
    nothing = jnp.zeros((4, 3), bool)
    played = SimpleNamespace(
        terminated=jnp.asarray(ends), truncated=nothing, info={"success": jnp.asarray(ends)},
        turns_so_far=jnp.broadcast_to(jnp.arange(4)[:, None], (4, 3)),
    )  # fmt: skip
    lessons, told = curriculum.learn(lessons, played, ~nothing)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(lessons.chances, [2 / 3, 1 / 3], rtol=1e-5)
    assert float(told["level/0/success_rate"]) == 1.0
    assert float(told["level/1/turns"]) == 4.0


def test_draws_follow_the_chances_and_groups_share_a_level():
    curriculum = Curriculum(LEVELS)
    lessons = curriculum.start(4000)._replace(chances=jnp.array([0.9, 0.1]))
    level = np.asarray(curriculum.draw(lessons, jax.random.key(0), alike=4, all_begin=True).level)
    assert (level.reshape(-1, 4) == level.reshape(-1, 4)[:, :1]).all()
    assert abs(level.mean() - 0.1) < 0.03
    boards = curriculum.params(lessons._replace(level=jnp.array([1, 0])), None)
    np.testing.assert_array_equal(boards.size, [8, 4])


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
