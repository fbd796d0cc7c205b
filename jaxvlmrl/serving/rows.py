"""A request on its way through a row of the compiled batch: what is left to read, what has been drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxvlmrl.models.decoder import VisionLanguageModel
from jaxvlmrl.serving.conversations import Dialogue
from jaxvlmrl.serving.errors import RequestError
from jaxvlmrl.serving.transcript import Transcript


class Sampling(NamedTuple):
    """What a request asks of its answer."""

    temperature: float = 1.0  # 0 for the likeliest tokens
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 1
    stop: tuple[str, ...] = ()
    likeliest: int = 0  # alternatives wanted of each token


class Token(NamedTuple):
    """A drawn token; the end token is one too."""

    id: int
    log_prob: float
    likeliest: list[tuple[int, float]]  # (id, log-prob), the likeliest first


class Usage(NamedTuple):
    """Tokens: the prompt's that are in sight, those of them that were not read anew, and the answer's."""

    prompt: int
    cached: int
    answer: int


class Event(NamedTuple):
    """A piece of an answer; the last one has a reason and the usage, or an error."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    reason: str | None = None  # "stop" or "length"
    usage: Usage | None = None
    error: RequestError | None = None

    @property
    def is_last(self) -> bool:
        return self.reason is not None or self.error is not None


@dataclass(eq=False)
class Job:
    """One answer to be given. `emit` is called with its events, in the scheduler's thread."""

    dialogue: Dialogue
    sampling: Sampling
    emit: Callable[[Event], None]
    is_cancelled: bool = False


class Part(NamedTuple):
    """The start or a turn, laid out: tokens [n] to be read, and where the next one stands."""

    turn: int
    ids: np.ndarray  # [n] int32
    positions: np.ndarray  # [n] or [n, 3] int32
    is_image: np.ndarray  # [n] bool
    image_x: np.ndarray  # [image tokens, E], in order
    next_position: int


class Span(NamedTuple):
    """A turn's tokens in a row: numbers first to end - 1."""

    turn: int
    first: int
    end: int
    position: int  # of the token behind it
    is_cut: bool


def lay_out(
    model: VisionLanguageModel, image_id: int, turn: int, ids: list[int], image_x: np.ndarray, start: int
) -> Part:
    """Tokens with their positions from `start` on; a picture's all stand where it begins, at the model's offsets."""
    offsets, advance = model.image_positions()
    array = np.asarray(ids, np.int32)
    is_image = array == image_id
    within = np.maximum(np.cumsum(is_image) - 1, 0) % len(offsets)
    moves = np.where(is_image, np.where(within == len(offsets) - 1, advance, 0), 1)
    before = start + np.cumsum(moves) - moves
    own = np.where(is_image.reshape(-1, *[1] * (offsets.ndim - 1)), offsets[within], 0)
    positions = before.reshape(-1, *[1] * (offsets.ndim - 1)) + own
    return Part(turn, array, positions.astype(np.int32), is_image, image_x, start + int(moves.sum()))


@dataclass(eq=False)
class Row:
    """A job in its row. Numbers count the tokens in the row's cache, positions the model's."""

    job: Job
    names: list[bytes]  # of the start and the answered turns
    heard: Dialogue
    transcript: Transcript
    parts: list[Part]  # left to be read, the first of them from `offset` on
    spans: list[Span]
    pinned: int
    number: int
    position: int
    usage: Usage
    budget: int  # tokens the answer may have
    seed: int  # of 32 bits, this conversation's own
    offset: int = 0
    images_read: int = 0  # image tokens of the first part
    drawn: int = 0

    @property
    def turn(self) -> int:
        return len(self.heard.turns)
