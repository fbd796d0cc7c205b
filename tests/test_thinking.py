"""Thinking answers: the budget, which tokens are thought, what is paid, and whether a thought is true of its picture."""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gridwalker_thinking
from envs_jax import GridWalker
from envs_jax.grid_walker import Params
from envs_jax.grid_walker.questions import gold_in_view
from envs_jax.grid_walker.reasoned import ReasonedExpert
from jaxvlmrl import episodes, runs, thinking, train
from jaxvlmrl.building import make_policy
from jaxvlmrl.config import ConfigError
from jaxvlmrl.policy import Policy
from jaxvlmrl.text.answers import grammar_of

ENV = GridWalker()


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy(gridwalker_thinking.get_config())


def tokens(policy: Policy, text: str) -> tuple[jax.Array, jax.Array]:
    """(ids [G], valid [G]) of an answer that ends."""
    ids, valid = policy.chat.answer_table([text])
    return jnp.asarray(ids[0]), jnp.asarray(valid[0])


def test_every_thought_is_apt_to_what_is_seen_and_done():
    """On 300 states: the thought before an action is true, imagines nothing, and names the action's own direction."""
    thoughts = ENV.thoughts()
    states = jax.vmap(lambda seed: ENV.init_from_number(seed, Params()))(jnp.arange(300, dtype=jnp.uint32))
    states = states.replace(facing=jnp.arange(300) % 4)
    keys = jax.random.split(jax.random.key(0), 300)
    true, imagines = jax.vmap(thoughts.is_true)(states), jax.vmap(thoughts.imagines)(states)
    used = set()
    apt = jax.vmap(thoughts.apt, in_axes=(0, 0, None))
    for action, word in ((0, "left"), (1, "right"), (4, " on")):
        index = apt(keys, states, jnp.int32(action))
        assert bool(jnp.all(jnp.take_along_axis(true, index[:, None], 1)))
        assert not bool(jnp.any(jnp.take_along_axis(imagines, index[:, None], 1)))
        texts = {thoughts.texts[i] for i in np.asarray(index)}
        assert all(word in text.split(",")[1] for text in texts)
        used |= texts
    seen = {text.split(",")[0] for text in used}
    assert seen >= {"no gold in sight", "gold ahead", "gold on the left", "gold on the right"}


def test_thoughts_of_finished_episodes_are_counted():
    """Two episodes of two turns, the second's last not played: two of three thoughts are known, one of those is true."""
    known = np.array([[True, True], [False, True]])
    verdict = thinking.Verdict(np.ones((2, 2), bool), known, np.array([[True, False], [True, True]]), ~known)
    found = episodes.thought_figures(verdict, np.array([[True, True], [True, False]]))
    expected = {"thoughts_whole": 1, "thoughts_known": 2 / 3, "thoughts_true": 0.5, "thoughts_imagined": 0}
    assert found == pytest.approx(expected)


def test_a_grammar_behind_a_thought_counts_its_tokens():
    """Begin 5, end 6, at most two tokens of {1, 2}; then 3 0 or 4 0, as without a thought."""
    plain = grammar_of([[3, 0], [4, 0]], vocab_size=7)
    grammar = plain.after_thought(5, 6, 2, np.isin(np.arange(7), [1, 2]))
    found = set()

    def walk(state: int, path: tuple[int, ...]) -> None:
        for token in np.flatnonzero(grammar.allows(state)):
            if token == 0:
                found.add((*path, 0))
            else:
                walk(grammar.after(state, int(token)), (*path, int(token)))

    walk(0, ())
    thoughts = [(), *[(a,) for a in (1, 2)], *[(a, b) for a in (1, 2) for b in (1, 2)]]
    assert found == {(a, 0) for a in (3, 4)} | {(5, *t, 6, a, 0) for t in thoughts for a in (3, 4)}


def test_the_mask_of_a_thought_ends_with_its_mark(policy: Policy):
    for text, count in (
        ("<think>gold ahead, walk on</think>`forward 3`", 7),
        ("`forward 3`", 0),
        ("`left`<think>gold</think>", 0),
    ):
        ids, valid = tokens(policy, text)
        mask = thinking.is_thought(policy, ids, valid)
        assert int(mask.sum()) == count, text
        assert bool(thinking.is_whole(policy, ids, valid)) == (count > 0)
    ids, valid = tokens(policy, "<think>gold ahead")
    assert bool(jnp.all(thinking.is_thought(policy, ids, valid) == valid))
    assert not bool(thinking.is_whole(policy, ids, valid))


def test_a_thought_is_held_against_the_state(policy: Policy):
    state = ENV.init_from_number(jnp.uint32(0), Params())
    in_front = state.replace(cell=jnp.array([4, 6]), facing=jnp.int32(0), goal=jnp.array([4, 3]))
    at_the_back = in_front.replace(facing=jnp.int32(2), cell=jnp.array([4, 5]), goal=jnp.array([0, 0]))
    cases = {
        "<think>gold ahead, walk on</think>`forward 3`": ((True, True, True, False), (True, True, False, True)),
        "<think>no gold in sight, walk on</think>`left`": ((True, True, False, False), (True, True, True, False)),
        "<think>gold walk ahead</think>`left`": ((True, False, False, False), (True, False, False, False)),
        "`left`": ((False,) * 4, (False,) * 4),
    }
    for text, expected in cases.items():
        for where, verdict in zip((in_front, at_the_back), expected, strict=True):
            said = jax.tree.map(lambda x: x[None], (where, *tokens(policy, text)))
            assert tuple(bool(x[0]) for x in thinking.judge(policy, *said)) == verdict, text


def test_thoughts_earn_by_the_turn_or_with_a_win(policy: Policy):
    """Two games: thought in turns 0 and 2 of three and won, thought throughout and lost."""
    with_thought, without = tokens(policy, "<think>gold</think>`left`"), tokens(policy, "`left`")
    pick = lambda part: jnp.stack([jnp.stack([with_thought[part], with_thought[part]]),
                                   jnp.stack([without[part], with_thought[part]]),
                                   jnp.stack([with_thought[part], with_thought[part]])])  # fmt: skip
    is_done = jnp.zeros((3, 2), bool).at[2].set(True)
    is_won = jnp.zeros((3, 2), bool).at[2, 0].set(True)
    pay = lambda how: thinking.pay(policy, 0.3, how, pick(0), pick(1), is_done, is_won)
    np.testing.assert_allclose(pay("every turn"), [[0.3, 0.3], [0.0, 0.3], [0.3, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(pay("wins"), [[0.0, 0.0], [0.0, 0.0], [0.2, 0.0]], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["tiny", "zero,rl4vlm,tiny"])
def test_two_updates_with_thoughts(variant: str, tmp_path: Path):
    config = gridwalker_thinking.get_config(variant)
    config.imitation.num_updates = 0 if "zero" in variant else 1
    train.train(config, tmp_path, time.time())
    rows = runs.read_rows(tmp_path)
    assert rows[-1]["ratio/max_gap"] < 1e-4
    assert rows[-1]["thought/tokens"] <= 14, "two marks and the budget"
    assert np.isfinite(rows[-1]["loss/total"])


def test_what_cannot_be_thought_is_refused():
    config = gridwalker_thinking.get_config()
    talk = config.conversation
    with pytest.raises(ConfigError, match="no token <think>"):
        make_policy(dataclasses.replace(config, conversation=dataclasses.replace(talk, tokenizer="tiny")))
    with pytest.raises(ConfigError, match="takes 10 tokens"):
        make_policy(dataclasses.replace(config, conversation=dataclasses.replace(talk, thought_tokens=9)))
    with pytest.raises(ConfigError, match="take 20 tokens"):
        make_policy(dataclasses.replace(config, conversation=dataclasses.replace(talk, max_answer_tokens=19)))


def played(player: ReasonedExpert, count: int = 200, turns: int = 30):
    """(actions [T, N], whether the gold was in view [T, N], won [N]) of scripted games."""

    def game(seed: jax.Array):
        params = Params(max_turns=turns)
        state = ENV.init_from_number(seed, params)

        def turn(carry, key):
            state, memory = carry
            action, memory = player.act(ENV, key, state, memory)
            action = jnp.where(state.won, -1, action)
            after, *_ = ENV.transition(key, state, action, params)
            return (after, memory), (action, gold_in_view(ENV, state))

        keys = jax.random.split(jax.random.key(seed), turns)
        (state, _), record = jax.lax.scan(turn, (state, player.start(ENV, state)), keys)
        return *record, state.won

    actions, seen, won = jax.jit(jax.vmap(game, out_axes=(1, 1, 0)))(jnp.arange(count, dtype=jnp.uint32))
    return np.asarray(actions), np.asarray(seen), np.asarray(won)


def test_the_reasoned_expert_turns_until_it_sees_and_then_goes():
    actions, seen, won = played(ReasonedExpert())
    assert won.mean() > 0.75, "some gold is in view from no side; such games are not shown by the harness"
    assert set(np.unique(actions[~seen])) <= {-1, 0, 1}, "it walks only towards what it sees"
    assert actions[seen].max() <= 2 + 4, "in bursts of four cells at most"
    undone = (actions[1:] + actions[:-1] == 1) & (actions[1:] >= 0) & (actions[:-1] >= 0) & ~seen[1:]
    assert not undone.any(), "no turn in search takes the last one back"


def test_the_reasoned_experts_parts_can_be_left_out():
    actions, seen, _ = played(ReasonedExpert(opposite=0.0, never_undo=False, bursts=False))
    free, _, _ = played(ReasonedExpert(never_undo=False))
    undone = (free[1:] + free[:-1] == 1) & (free[1:] >= 0) & (free[:-1] >= 0)
    assert undone.any()
    single = lambda actions: (actions == 3).sum() / (actions > 2).sum()
    assert single(free) > single(actions) + 0.1, "runs are cut"
    assert (free[0][~seen[0]] != actions[0][~seen[0]]).mean() > 0.3, (
        "about half of the first turns are away from the path"
    )
