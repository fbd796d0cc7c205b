"""Questions about pictures: the answers are the board's, and a policy can be taught them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from envs_jax import GridWalker
from envs_jax.grid_walker import commands
from envs_jax.grid_walker.layout import Layout
from jaxvlmrl import building, train
from jaxvlmrl.watchdog import Watchdog

ENV = GridWalker()
TURN_LEFT, TURN_RIGHT = commands.LEFT, commands.RIGHT


def answers(goal: tuple[int, int], blocks: list[tuple[int, int]], actions: list[int]) -> dict[str, str]:
    """What is true after some commands from the middle (4, 4) of an 8 x 8 board, looking north."""
    spots = [*blocks, *[(-1, -1)] * (3 - len(blocks))]
    state = ENV.init_from_layout(Layout(jnp.asarray(goal), jnp.asarray(spots), jnp.uint32(0)), jnp.int32(8))
    for action in actions:
        state = ENV.transition(jax.random.key(0), state, jnp.int32(action), ENV.default_params())[0]
    return {q.name: q.answers[int(q.answer(state))] for q in ENV.questions()}


@pytest.mark.parametrize(
    ("goal", "blocks", "actions", "expected"),
    [
        ((4, 2), [], [], ("ahead", "2", "free", "4")),
        ((4, 3), [], [], ("ahead", "1", "gold", "4")),
        ((3, 2), [(4, 3)], [], ("left", "2", "block", "0")),
        ((5, 2), [(4, 1)], [], ("right", "2", "free", "2")),
        ((4, 7), [], [], ("hidden", "hidden", "free", "4")),
        ((1, 4), [], [TURN_LEFT], ("ahead", "3", "free", "4")),
        ((1, 4), [], [TURN_RIGHT], ("hidden", "hidden", "free", "3")),
        ((0, 0), [], [commands.FORWARD + 4], ("hidden", "hidden", "wall", "0")),
        ((4, 2), [], [commands.FORWARD + 2], ("here", "0", "free", "2")),
    ],
)
def test_answers_are_the_boards(goal, blocks, actions, expected):
    assert tuple(answers(goal, blocks, actions).values()) == expected


def test_hidden_is_what_the_picture_does_not_show():
    """No pixel is of the gold's yellow where the answer is `hidden`, and some are where it is not."""
    env = GridWalker(height=96, width=96)
    states = jax.vmap(lambda n: env.init_from_number(n, env.default_params()))(jnp.arange(64, dtype=jnp.uint32))
    is_hidden = np.asarray(jax.vmap(env.questions()[0].answer)(states)) == 0
    red, green, blue = np.moveaxis(np.asarray(jax.vmap(env.observe)(states)["image"]).astype(int), -1, 0)
    is_yellow = (green > 0.75 * red) & (red > blue + 80)
    has_gold = is_yellow.sum(axis=(1, 2)) > 0
    assert 5 < is_hidden.sum() < 59
    assert np.mean(has_gold == ~is_hidden) > 0.9  # a block may stand before it, an edge of its tile may show


@pytest.mark.slow
def test_a_policy_is_taught(tmp_path: Path):
    """Questions first, then games; the figures of both end up in the summary, and what is kept is the taught policy."""
    config = quickstart.get_config("tiny")
    config.perception.num_updates, config.perception.num_frames = 12, 32
    config.perception.optimizer.learning_rate = 3e-3
    config.rl.num_updates = 0
    summary = train.train(config, tmp_path, started=0.0)
    rows = [row for row in train.Run(tmp_path, config).rows() if row["phase"] == "perception"]
    assert len(rows) == 12
    assert rows[-1]["perception/loss"] < 0.6 * rows[0]["perception/loss"]
    assert set(summary["perception"]["after"]) == {q.name for q in ENV.questions()}
    assert 0 <= summary["perception"]["before"]["gold_side"] <= 1
    assert rows[-1]["validation/commonest_answer/gold_side"] < 1
    building.whole_params(tmp_path)


def test_the_watchdog_says_what_is_not_seen():
    dog = Watchdog()
    seen = {"validation/perception/a": 0.9, "validation/commonest_answer/a": 0.4}
    unseen = {"validation/perception/b": 0.41, "validation/commonest_answer/b": 0.4}
    assert dog.look(seen | unseen) == []
    said = dog.look({"rollout/success_rate": 0.1})
    assert len(said) == 1
    assert said[0].startswith("perception of b: 41%")
