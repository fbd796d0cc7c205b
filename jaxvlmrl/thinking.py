"""Thoughts in answers, `<think>...</think>` before the command: which tokens, what they earn, whether they are true.

A thought is whole if it begins the answer and ends. It can be judged if it is, token by token, one of those that the
environment knows.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from envs_jax.environment import State, Thoughts
from jaxvlmrl.algorithms.masking import mean_if_any
from jaxvlmrl.policy import Policy
from jaxvlmrl.text.chat import THOUGHT_BEGINS, THOUGHT_ENDS

PAID = ("every turn", "wins")


class Verdict(NamedTuple):
    """What is to be said of answers' thoughts, bool of any one shape; all False where nothing was thought."""

    is_whole: jax.Array
    is_known: jax.Array  # it is one of those that can be judged
    is_true: jax.Array
    imagines: jax.Array  # says that something is seen which is not in the picture


def is_thought(
    policy: Policy, answer_ids: Int[Array, "*b G"], answer_valid: Bool[Array, "*b G"]
) -> Bool[Array, "*b G"]:
    """Tokens of a thought, its marks included; an answer that does not end its thought is all thought."""
    begin, end = policy.chat.thought_ids
    ends = (answer_ids == end) & answer_valid
    before_end = jnp.cumsum(ends, axis=-1) - ends == 0
    return answer_valid & before_end & (answer_ids[..., :1] == begin)


def is_whole(policy: Policy, answer_ids: Int[Array, "*b G"], answer_valid: Bool[Array, "*b G"]) -> Bool[Array, "*b"]:
    begin, end = policy.chat.thought_ids
    return (answer_ids[..., 0] == begin) & jnp.any((answer_ids == end) & answer_valid, axis=-1)


@lru_cache
def known_thoughts(policy: Policy) -> tuple[Thoughts, np.ndarray]:
    """(what the environment can think, its tokens [texts, G] with their marks, -1 behind them)."""
    thoughts, encode = policy.env.thoughts(), policy.chat.tokenizer.encode
    assert thoughts is not None, "building.make_policy asks for them"
    marked = [encode(marked_text(text)) for text in thoughts.texts]
    longest = max(policy.chat.max_answer_tokens, *map(len, marked))
    ids = np.array([row + [-1] * (longest - len(row)) for row in marked], np.int32)
    ids[:, 0] = np.where(
        (ids[:, policy.chat.max_answer_tokens :] >= 0).any(axis=1), -2, ids[:, 0]
    )  # too long to be said
    return thoughts, ids[:, : policy.chat.max_answer_tokens]


def marked_text(thought: str) -> str:
    return f"{THOUGHT_BEGINS}{thought}{THOUGHT_ENDS}"


def judge(policy: Policy, states: State, answer_ids: Int[Array, " B G"], answer_valid: Bool[Array, " B G"]) -> Verdict:
    """Of B answers given in as many states."""
    thoughts, table = known_thoughts(policy)
    ids = jnp.where(is_thought(policy, answer_ids, answer_valid), answer_ids, -1)
    matches = jnp.all(ids[:, None] == jnp.asarray(table)[None], axis=-1)
    said = lambda of_text: jnp.any(matches & jax.vmap(of_text)(states), axis=-1)
    known = jnp.any(matches, axis=-1)
    return Verdict(is_whole(policy, answer_ids, answer_valid), known, said(thoughts.is_true), said(thoughts.imagines))


def pay(
    policy: Policy, reward: float, paid_for: str, answer_ids: Int[Array, "T B G"], answer_valid: Bool[Array, "T B G"],
    is_done: Bool[Array, "T B"], is_won: Bool[Array, "T B"],
) -> Float[Array, "T B"]:  # fmt: skip
    """What whole thoughts add to the rewards.

    "every turn": `reward` each. "wins": with a win, `reward` times the share of the episode's turns with one, counted from
    where the rollout begins; thoughts of games that are lost earn nothing. Source: reference sheet "gridwalker_grpo", 4.
    """
    whole = is_whole(policy, answer_ids, answer_valid).astype(jnp.float32)
    if paid_for == "every turn":
        return reward * whole

    def count(carry: tuple[jax.Array, jax.Array], turn: tuple[jax.Array, jax.Array]):
        whole, ends = turn
        thoughts, turns = carry[0] + whole, carry[1] + 1
        return (jnp.where(ends, 0.0, thoughts), jnp.where(ends, 0.0, turns)), thoughts / turns

    nothing = jnp.zeros(whole.shape[1])
    share = jax.lax.scan(count, (nothing, nothing), (whole, is_done))[1]
    return reward * share * (is_done & is_won)


def figures(verdict: Verdict, counts: Bool[Array, "*b"]) -> dict[str, jax.Array]:
    """Of the turns that count: shares of whole and of known thoughts; of the known, shares of true and of imagined ones.

    True is what is said of the gold's side; what is said of the plan is not judged.
    """
    known = verdict.is_known & counts
    return {
        "whole": mean_if_any(verdict.is_whole, counts),
        "known": mean_if_any(verdict.is_known, counts),
        "true": mean_if_any(verdict.is_true, known),
        "imagined": mean_if_any(verdict.imagines, known),
    }
