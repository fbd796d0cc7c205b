"""Answers as token automata: reading a free answer on the device, allowing only canonical ones, and bounding thoughts.

Reading walks each token's bytes through the environment's byte parser, so it holds for any tokenizer. Constraining uses the
smallest automaton over tokens that accepts the canonical answers. A thought is counted by an automaton in front of either.
"""

from collections.abc import Sequence
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
    """An automaton over tokens. State 0 is the start; after the end token the state does not matter.

    States that allow the same share a row of V, tokens that lead to the same share a column: budgets of thoughts make
    many states, vocabularies may be large.
    """

    allowed: np.ndarray  # [rows, V] bool
    row: np.ndarray  # [states] int32
    next_state: np.ndarray  # [states, columns] int32
    column: np.ndarray  # [V] int32

    @classmethod
    def of_tables(cls, allowed: np.ndarray, next_state: np.ndarray) -> "Grammar":
        """Of [states, V] each."""
        rows, row = np.unique(allowed, axis=0, return_inverse=True)
        columns, column = np.unique(next_state, axis=1, return_inverse=True)
        return cls(
            rows, row.reshape(-1).astype(np.int32), columns.astype(np.int32), column.reshape(-1).astype(np.int32)
        )

    @classmethod
    def anything_but(cls, never: Sequence[int], vocab_size: int) -> "Grammar":
        """One state, in which all tokens but these may follow."""
        allowed = np.ones((1, vocab_size), bool)
        allowed[:, list(never)] = False
        return cls.of_tables(allowed, np.zeros(allowed.shape, np.int32))

    def after_thought(self, begin: int, end: int, budget: int, in_thought: np.ndarray) -> "Grammar":
        """The same behind a thought that may be left out: `begin`, at most `budget` tokens of `in_thought` [V], `end`.

        start --begin--> 1 --any--> 2 --any--> ... budget + 1, where only `end` may follow
        1, 2, ... --end--> this grammar's start
        start --whatever this grammar begins with--> as in this grammar
        """
        is_begin, is_end = (np.arange(len(self.column)) == token for token in (begin, end))
        start, full, answer = 0, budget + 1, budget + 2  # states: of the thought, and the first behind it
        allowed = [*self.allowed, self.allowed[self.row[0]] | is_begin, in_thought | is_end, is_end]
        row = len(self.allowed) + np.array([0, *[1] * budget, 2])
        own = np.concatenate([self.next_state, self.next_state[:, self.column[[begin, end]]]], axis=1) + answer
        thinks = np.repeat(np.minimum(np.arange(answer) + 1, full)[:, None], own.shape[1], axis=1)
        thinks[start], thinks[start, -2], thinks[start + 1 :, -1] = own[0], 1, answer
        column = np.where(is_begin, own.shape[1] - 2, np.where(is_end, own.shape[1] - 1, self.column))
        parts = (np.concatenate([row, self.row]), np.concatenate([thinks, own]), column)
        return Grammar(np.array(allowed), *(part.astype(np.int32) for part in parts))

    def allows(self, state: int) -> np.ndarray:
        """[V] bool: what may follow. Host only."""
        return self.allowed[self.row[state]]

    def after(self, state: int, token: int) -> int:
        """The state behind a token. Host only."""
        return int(self.next_state[state, self.column[token]])


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
    return Grammar.of_tables(allowed, next_state)
