"""Answers as token automata: reading a free answer on the device, and allowing only canonical ones.

Reading walks each token's bytes through the environment's byte parser, so it holds for any tokenizer. Constraining uses the
smallest automaton over tokens that accepts the canonical answers; it is small, so it may own a [states, V] table.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxvlmrl.text.tokenizer import Tokenizer

MAX_STATES = 64


@runtime_checkable
class ByteParser(Protocol):
    """What reads bytes; see envs_jax.environment.AnswerParser."""

    def start(self) -> Any: ...

    def feed(self, state: Any, byte: jax.Array) -> Any: ...

    def action(self, state: Any) -> jax.Array: ...


def read_answer(
    parser: ByteParser, tokenizer: Tokenizer, ids: Int[Array, " G"], valid: Bool[Array, " G"]
) -> Int[Array, ""]:
    """The action of one sampled answer, as the host's parser would find it in the decoded text; `vmap` for a batch."""
    table, lengths = (jnp.asarray(part) for part in tokenizer.byte_table)
    longest = table.shape[1]

    def feed(state: Any, byte: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        fed = parser.feed(state, byte[0])
        return jax.tree.map(lambda new, old: jnp.where(byte[1], new, old), fed, state), None

    is_byte = (jnp.arange(longest)[None] < lengths[ids][:, None]) & valid[:, None]
    state, _ = jax.lax.scan(feed, parser.start(), (table[ids].reshape(-1), is_byte.reshape(-1)))
    return parser.action(state)


class Grammar(NamedTuple):
    """An automaton over tokens. State 0 is the start; after the end token the state does not matter."""

    allowed: np.ndarray  # [states, V] bool
    next_state: np.ndarray  # [states, V] int32


def grammar_of(answers: list[list[int]], vocab_size: int) -> Grammar:
    """The smallest automaton that accepts exactly these token sequences (each with its end token)."""
    states: dict[tuple, int] = {}
    rows: list[dict[int, int]] = []

    def state_of(suffixes: frozenset[tuple[int, ...]]) -> int:
        """Equal sets of suffixes are one state, which makes the automaton smallest."""
        key = tuple(sorted(suffixes))
        if key not in states:
            states[key] = len(rows)
            rows.append({})
            row = rows[-1]
            for token in sorted({suffix[0] for suffix in suffixes if suffix}):
                row[token] = state_of(frozenset(suffix[1:] for suffix in suffixes if suffix[:1] == (token,)))
        return states[key]

    state_of(frozenset(tuple(answer) for answer in answers))
    if len(rows) > MAX_STATES:
        raise ValueError(f"the constrained grammar has {len(rows)} states, at most {MAX_STATES} fit")
    allowed = np.zeros((len(rows), vocab_size), bool)
    next_state = np.zeros((len(rows), vocab_size), np.int32)
    for state, row in enumerate(rows):
        for token, following in row.items():
            allowed[state, token], next_state[state, token] = True, following
    return Grammar(allowed, next_state)
