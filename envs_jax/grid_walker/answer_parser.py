"""The harness's answer parser as a byte automaton: `commands.parse_answer` of the decoded text, on the device.

Bytes become characters, characters become classes, classes drive a lexer that finds the words left and right and
"forward <digits>". What it finds is noted twice: for the whole text, and for the inside of the first pair of backticks.
"""

import sys
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax import utf8
from envs_jax.environment import UNPARSABLE
from envs_jax.grid_walker.commands import FORWARD, LEFT, MAX_COUNT, RIGHT

WORDS = ("left", "right", "forward")
LETTERS = "".join(sorted(set("".join(WORDS))))

# Character classes: the words' letters, the ten digits (of any script), and
SPACE, BACKTICK, WORD, OTHER, WORD_THEN_OTHER = range(len(LETTERS) + 10, len(LETTERS) + 15)
NUM_CLASSES = WORD_THEN_OTHER + 1

# Lexer states: every beginning of a word, and
BEGINNINGS = sorted({word[:length] for word in WORDS for length in range(1, len(word) + 1)})
STATES = ("boundary", "in word", "forward, spaces", "number", *BEGINNINGS)
BOUNDARY, IN_WORD, AFTER_FORWARD, NUMBER = range(4)
NO_QUOTE, EMPTY_QUOTE, IN_QUOTE, QUOTED = range(4)  # how far the first non-empty pair of backticks has come


class Found(NamedTuple):
    """What a text holds, [2]: in all of it, and inside the backticks."""

    left: jax.Array  # bool
    right: jax.Array  # bool
    count: jax.Array  # int32, of the first "forward <digits>"; -1 if there is none


class ParserState(NamedTuple):
    character: utf8.Utf8State
    lexer: jax.Array  # int32
    number: jax.Array  # int32, saturated at MAX_COUNT
    quote: jax.Array  # int32
    found: Found


@dataclass(frozen=True)
class GridWalkerAnswerParser:
    """See `envs_jax.environment.AnswerParser`."""

    def start(self) -> ParserState:
        none = jnp.zeros(2, bool)
        zero = jnp.int32(0)
        return ParserState(utf8.start(), zero, zero, zero, Found(none, none, jnp.full(2, -1, jnp.int32)))

    def feed(self, state: ParserState, byte: jax.Array) -> ParserState:
        character, code_point, is_broken = utf8.feed(state.character, byte)
        mended = jax.tree.map(lambda a, b: jnp.where(is_broken, a, b), read(state, jnp.int32(OTHER)), state)
        read_on = read(mended, class_of(jnp.maximum(code_point, 0)))
        state = jax.tree.map(lambda a, b: jnp.where(code_point >= 0, a, b), read_on, mended)
        return state._replace(character=character)

    def action(self, state: ParserState) -> jax.Array:
        found = read(state, jnp.int32(OTHER)).found  # the end of the text ends a word
        forward = jnp.where(found.count >= 0, FORWARD + found.count, UNPARSABLE)
        whole, quoted = jnp.where(found.left, LEFT, jnp.where(found.right, RIGHT, forward))
        return jnp.where((state.quote == QUOTED) & (quoted != UNPARSABLE), quoted, whole)


def read(state: ParserState, character_class: jax.Array) -> ParserState:
    """The state after one more character."""
    # The one class that stands for two characters (a letter whose lower case is a letter and a mark) goes in two steps.
    is_double = character_class == WORD_THEN_OTHER
    lexer, number, event = lex(state.lexer, state.number, jnp.where(is_double, WORD, character_class))
    lexer = jnp.where(is_double, BOUNDARY, lexer)
    scopes = jnp.stack([jnp.bool_(True), (state.quote == EMPTY_QUOTE) | (state.quote == IN_QUOTE)])
    ends_forward = scopes & (event == FORWARD)
    found = Found(
        state.found.left | (scopes & (event == LEFT)),
        state.found.right | (scopes & (event == RIGHT)),
        jnp.where(ends_forward & (state.found.count < 0), state.number, state.found.count),
    )
    is_tick = character_class == BACKTICK
    on_tick = jnp.where(state.quote == NO_QUOTE, EMPTY_QUOTE, jnp.where(state.quote == IN_QUOTE, QUOTED, state.quote))
    on_text = jnp.where(state.quote == EMPTY_QUOTE, IN_QUOTE, state.quote)
    return state._replace(lexer=lexer, number=number, quote=jnp.where(is_tick, on_tick, on_text), found=found)


def lex(lexer: jax.Array, number: jax.Array, character_class: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(lexer state, number, action whose wording ended before this character or `UNPARSABLE`)."""
    next_state, events = lexer_tables()
    after = jnp.asarray(next_state)[lexer, character_class]
    digit = character_class - len(LETTERS)
    grown = jnp.minimum(jnp.where(lexer == NUMBER, number, 0) * 10 + digit, MAX_COUNT)
    return after, jnp.where(after == NUMBER, grown, number), jnp.asarray(events)[lexer, character_class]


@cache
def lexer_tables() -> tuple[np.ndarray, np.ndarray]:
    """(next state, event), both [states, classes] int32."""
    next_state = np.full((len(STATES), NUM_CLASSES), IN_WORD, np.int32)
    events = np.full_like(next_state, UNPARSABLE)
    ends = {"left": LEFT, "right": RIGHT, "number": FORWARD}
    not_in_words = [SPACE, BACKTICK, OTHER]
    for index, name in enumerate(STATES):
        next_state[index, not_in_words] = BOUNDARY
        events[index, not_in_words] = ends.get(name, UNPARSABLE)
        begun = "" if index in (BOUNDARY, AFTER_FORWARD) else name
        for letter_class, letter in enumerate(LETTERS):
            if begun + letter in STATES:
                next_state[index, letter_class] = STATES.index(begun + letter)
    digits = slice(len(LETTERS), len(LETTERS) + 10)
    next_state[[AFTER_FORWARD, NUMBER], digits] = NUMBER
    next_state[[STATES.index("forward"), AFTER_FORWARD], SPACE] = AFTER_FORWARD
    return next_state, events


def class_of(code_point: jax.Array) -> jax.Array:
    """The class of a character, by a table of the distinct blocks of 256 characters."""
    block_of, blocks = class_tables()
    return jnp.asarray(blocks)[jnp.asarray(block_of)[code_point >> 8], code_point & 255].astype(jnp.int32)


@cache
def class_tables() -> tuple[np.ndarray, np.ndarray]:
    """(block of a character's upper bits, classes [blocks, 256]) for all of Unicode, after lower-casing."""
    classes = np.array([_class_of(chr(point)) for point in range(sys.maxunicode + 1)], np.uint8)
    blocks, block_of = np.unique(classes.reshape(-1, 256), axis=0, return_inverse=True)
    return block_of.reshape(-1).astype(np.int32), blocks


def _class_of(character: str) -> int:
    first, *rest = character.lower()
    if rest:  # only U+0130, whose lower case is i and a combining dot
        return WORD_THEN_OTHER
    if first in LETTERS:
        return LETTERS.index(first)
    if first.isdecimal():
        return len(LETTERS) + int(first)
    if first == "`":
        return BACKTICK
    if first.isspace():
        return SPACE
    return WORD if first.isalnum() or first == "_" else OTHER
