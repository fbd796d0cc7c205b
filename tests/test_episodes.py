"""Evaluation: intervals and pass@k by hand, scripted players' known figures, episodes kept out of training."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax import GridWalker
from envs_jax.grid_walker import Params
from envs_jax.grid_walker.players import Explorer, FewestCommands, ShortestPath
from envs_jax.players import RandomPlayer
from envs_jax.wrappers import AutoReset, held_out_table
from jaxvlmrl.acting import Actor, load_policy
from jaxvlmrl.building import make_env, make_policy
from jaxvlmrl.episodes import ENDED, Evaluator, pass_at_k, play_scripted, summarise, wilson_interval
from tests.small import fresh, make_config, sharpened

SHIPPED = Path(__file__).parent.parent / "experiments" / "quickstart"
EXPERT_COMMANDS = [3, 2, 2, 5, 3, 4, 3, 6, 2, 3, 3, 3, 5, 3, 5, 7, 3, 1, 3, 5]  # reference sheet, seeds 0 to 19


def test_wilson_interval_by_hand():
    """8 of 20, z = 1.96: centre (0.4 + 0.0960) / 1.1921 = 0.4161, half width 0.1972."""
    low, high = wilson_interval(8, 20)
    assert (low, high) == (pytest.approx(0.2188, abs=1e-4), pytest.approx(0.6134, abs=1e-4))
    assert wilson_interval(0, 20)[0] == 0
    assert wilson_interval(20, 20)[1] == 1


def test_pass_at_k_by_hand():
    """Of 4 samples 1 won: pass@1 = 1/4, pass@2 = 1 - C(3,2)/C(4,2) = 1/2, pass@4 = 1; of 4 none: 0."""
    wins = np.array([1, 0])
    assert pass_at_k(wins, 4, 1) == pytest.approx((1 / 4 + 0) / 2)
    assert pass_at_k(wins, 4, 2) == pytest.approx((1 / 2 + 0) / 2)
    assert pass_at_k(wins, 4, 4) == pytest.approx((1 + 0) / 2)


def test_harness_expert_takes_as_many_commands_as_the_original():
    found = play_scripted(ShortestPath(), GridWalker(), Params(), range(20), jax.random.key(0))
    assert found.turns.tolist() == EXPERT_COMMANDS
    assert found.won.all()
    assert (found.actions[:, -1] == -2).all(), "nothing is recorded after the end"


def test_players_order():
    """Random, then looking, then knowing: shares and turns of 200 unseen games."""
    play = lambda player: summarise(play_scripted(player, GridWalker(), Params(), range(1000, 1200), jax.random.key(1)))
    chance, explorer, expert = play(RandomPlayer()), play(Explorer()), play(FewestCommands())
    assert chance["win_rate"] < 0.15
    assert explorer["win_rate"] >= 0.99
    assert expert["win_rate"] == 1
    assert expert["mean_turns"] < explorer["mean_turns"] < 4
    assert expert["efficiency"] > 95


def test_training_never_starts_in_an_evaluation_layout():
    env = make_env(make_config())
    params = Params()
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.jit(jax.vmap(lambda key: env.env.fingerprint(env.init(key, params))))(keys)
    drawn, held_out = ({tuple(row) for row in np.asarray(x)} for x in (drawn, env.held_out))
    assert len(held_out) >= 1200
    assert len(drawn) > 15_000
    assert not drawn & held_out
    free = AutoReset(env.env, jnp.zeros((0, 2), jnp.uint32))
    unguarded = jax.jit(jax.vmap(lambda key: env.env.fingerprint(free.init(key, params))))(keys)
    assert {tuple(row) for row in np.asarray(unguarded)} & held_out, "the guard is never needed: the test shows nothing"


def test_a_board_whose_layouts_are_nearly_all_held_out_still_starts():
    """A 2 x 2 board without blocks has 3 layouts; with all but one held out, that one is drawn."""
    env, params = GridWalker(max_size=2, max_blocks=0), Params(size=2, num_blocks=0)
    goals = {n: tuple(np.asarray(env.init_from_number(jnp.uint32(n), params).goal)) for n in range(12)}
    allowed = goals[0]
    ranges = [(n, n + 1) for n, goal in goals.items() if goal != allowed]
    guarded = AutoReset(env, held_out_table(env, params, ranges))
    drawn = jax.vmap(lambda key: guarded.init(key, params).goal)(jax.random.split(jax.random.key(0), 50))
    assert {tuple(goal) for goal in np.asarray(drawn)} == {allowed}


def test_evaluation_does_not_depend_on_batches_and_eyes_matter():
    """Of a policy that looks: the shipped one."""
    actor, key = load_policy(SHIPPED), jax.random.key(0)
    params, evaluator = actor.params, Evaluator(actor.policy, actor.config.env_params, batch=8)
    whole = evaluator.play(params, range(12), key, greedy=True)
    part = evaluator.play(params, range(8, 12), key, greedy=True)
    np.testing.assert_array_equal(whole.actions[8:], part.actions)
    assert whole.won.shape == (12,)
    blank = evaluator.play(params, range(12), key, greedy=True, eyes="blank")
    assert all(len(set(turn) - {ENDED}) == 1 for turn in blank.actions.T), "without eyes all games are played alike"
    first = evaluator.play(params, range(8), key, greedy=True).actions[:, 0]
    assert len(set(first)) > 1, "with them they are not"
    shuffled = evaluator.play(params, range(8), key, greedy=True, eyes="shuffled").actions[:, 0]
    np.testing.assert_array_equal(shuffled, np.roll(first, 1), err_msg="each sees its neighbour's picture")


def test_actor_says_what_the_evaluator_says():
    """The same greedy answers through `act`, one picture at a time, as in the compiled evaluation; beyond the window."""
    config = make_config(window=3, constrained=False, max_turns=6)
    policy, params = make_policy(config), sharpened(fresh(config))
    actor = Actor(config, policy, params)
    found = Evaluator(policy, config.env_params, batch=4).play(params, [7, 8, 9, 10], jax.random.key(0), greedy=True)
    env, conversation = config.env, actor.start()
    state = env.init_from_number(jnp.uint32(8), config.env_params)
    observe = jax.jit(lambda state: env.observe(state)["image"])
    for turn in range(int(found.turns[1])):
        answer, conversation = actor.act(np.asarray(observe(state)), conversation)
        kept = found.answer_ids[1, turn][found.answer_valid[1, turn]]
        assert answer.text == policy.chat.tokenizer.decode(kept.tolist())
        assert answer.action == found.actions[1, turn] == env.parse_answer(answer.text)
        state = env.transition(jax.random.key(0), state, jnp.int32(answer.action), config.env_params)[0]
    with pytest.raises(ValueError, match="uint8 pictures of shape"):
        actor.act(np.zeros((16, 16, 3), np.uint8), conversation)
