"""Answers: what may be sampled, and how sampled tokens are read, against the plain parser on the decoded text."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs_jax import GridWalker
from jaxvlmrl.building import make_policy
from jaxvlmrl.policy import likeliest
from jaxvlmrl.text.answers import grammar_of, read_answer
from jaxvlmrl.text.tokenizer import OWN, Tokenizer
from jaxvlmrl.text.train_tokenizer import train_all
from tests.small import fresh, make_config

TOKENIZER, ENV, LENGTH = Tokenizer(), GridWalker(), 12
FRAGMENTS = [
    "`",
    "left",
    "right",
    "forward",
    " ",
    "3",
    "12",
    "`forward 2`",
    "LEFT",
    "99999999999",
    "-",
    ".",
    "\n",
    "é",
    "Right`",
]


@functools.cache
def reader():
    return jax.jit(lambda ids, valid: read_answer(ENV.answer_parser(), TOKENIZER, ids, valid))


def check(ids: list[int]) -> None:
    padded = np.zeros(LENGTH, np.int32)
    padded[: len(ids)] = ids
    action = reader()(padded, np.arange(LENGTH) < len(ids))
    assert int(action) == ENV.parse_answer(TOKENIZER.decode(ids)), TOKENIZER.decode(ids)


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=LENGTH))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_tokens_are_read_as_the_decoded_text_is(ids: list[int]):
    check(ids)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=6))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_answers_like_text_are_read_as_the_host_reads_them(fragments: list[str]):
    check(TOKENIZER.encode("".join(fragments))[:LENGTH])


def test_every_canonical_answer_is_its_action_and_a_path_of_the_grammar():
    policy = make_policy(make_config(constrained=True))
    for action in ENV.actions():
        state = 0
        for token in policy.chat.answer_ids(ENV.answer_text(action)):
            assert policy.grammar.allows(state)[token]
            state = policy.grammar.after(state, token)
        check(policy.chat.answer_ids(ENV.answer_text(action)))


def test_grammar_accepts_nothing_else():
    """Three answers worked by hand: `a b e`, `a c e`, `b e` share the state after their last letter."""
    grammar = grammar_of([[1, 2, 0], [1, 3, 0], [2, 0]], vocab_size=4)
    accepted = set()

    def walk(state: int, path: tuple[int, ...]) -> None:
        for token in np.flatnonzero(grammar.allows(state)):
            if token == 0:
                accepted.add(path)
            else:
                walk(grammar.after(state, int(token)), (*path, int(token)))

    walk(0, ())
    assert accepted == {(1, 2), (1, 3), (2,)}
    assert len(grammar.row) == 4  # start, after 1, before the end, the end


def test_grammar_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="at most 64"):
        grammar_of([[i] * i + [0] for i in range(1, 80)], vocab_size=80)


@pytest.mark.parametrize("constrained", [True, False])
def test_forbidden_tokens_have_no_probability(constrained: bool):
    config = make_config(constrained=constrained)
    policy, params = make_policy(config), fresh(config)
    hidden = jax.random.normal(jax.random.key(0), (5, config.model.text.width)) * 10
    probabilities = np.exp(policy.next_token(params, hidden, jnp.zeros(5, jnp.int32)).log_probs)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert probabilities[:, list(policy.chat.never_sampled)].max() == 0
    assert policy.chat.image_id in policy.chat.never_sampled
    assert policy.chat.end_id not in policy.chat.never_sampled


def test_tokenizers_are_what_their_script_makes():
    made = train_all()
    assert made.keys() == OWN.keys()
    for name, tokenizer in made.items():
        assert tokenizer.to_str() == Tokenizer(name)._tokenizer.to_str()


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_token_bytes_spell_the_text(text: str):
    if any(special in text for special in ("<|", "<image>", "<fake", "<global", "<end_of")):
        return
    ids = TOKENIZER.encode(text)
    assert b"".join(TOKENIZER.token_bytes[i] for i in ids) == text.encode()
    assert TOKENIZER.decode(ids) == text


def test_chat_pads_observations_on_the_left_and_ends_a_cut_answer():
    chat = make_policy(make_config()).chat
    for beginning in range(3):
        observation = chat.observation(jnp.int32(beginning), jnp.int32(0))
        ids, valid = np.asarray(observation.ids), np.asarray(observation.valid)
        assert valid[-1]
        assert (np.diff(valid.astype(int)) >= 0).all(), "padding is on the left"
        assert (ids[chat.image_slot : chat.image_slot + chat.num_image_tokens] == chat.image_id).all()
        assert (beginning == 2) == (chat.end_id in ids[valid])


def test_top_k_and_top_p_leave_the_likeliest():
    logits = jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1]))
    kept = lambda k, p: np.asarray(likeliest(logits, k, p)).tolist()
    assert kept(0, 1.0) == [True] * 4
    assert kept(2, 1.0) == [True, True, False, False]
    assert kept(0, 0.35) == [True, False, False, False]
    assert kept(0, 0.5) == [True, True, False, False]
    assert kept(3, 0.75) == [True, True, False, False]  # top-p of what top-k left: 0.44, 0.33, 0.22


def test_tokens_are_judged_alike_however_many_at_once():
    config = make_config()
    policy, params = make_policy(config), fresh(config)
    hidden = jax.random.normal(jax.random.key(0), (3, 5, config.model.text.width))
    ids = jax.random.randint(jax.random.key(1), (3, 5), 0, policy.chat.tokenizer.vocab_size)
    states = jnp.zeros((3, 5), jnp.int32)
    in_parts = dataclasses.replace(policy, tokens_at_once=4)

    def total(policy, hidden):
        judged = policy.judge_tokens(params, hidden, ids, states)
        return jnp.sum(jnp.maximum(judged.log_prob, -50)) + jnp.sum(judged.entropy), judged

    of = lambda policy: jax.jit(jax.value_and_grad(lambda h: total(policy, h), has_aux=True))(hidden)
    (_, whole), gradient = of(policy)
    (_, parts), gradient_in_parts = of(in_parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)
    np.testing.assert_allclose(gradient, gradient_in_parts, atol=1e-5)
