"""Conversations as clients resend them, and the keys and values that are kept of those already seen.

A conversation is a start and turns; a kept block is the keys and values of one of them, named by a digest of everything up
to its end: the texts, the pictures' pixels, the answers. Whoever sends a conversation that begins like one already seen
finds its blocks, whichever client it is. Blocks that were not used for longest go first. Host only.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

KEPT_ANSWERS = 100_000  # sampled ids are small: they outlive their keys and values


class Picture(NamedTuple):
    """As the policy looks at it."""

    pixels: np.ndarray  # [height, width, 3] uint8
    digest: bytes

    @classmethod
    def of(cls, pixels: np.ndarray) -> "Picture":
        return cls(pixels, hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest())


class Turn(NamedTuple):
    """What was said to the model, and what it answered; None for the turn to be answered."""

    content: tuple[str | Picture, ...]
    answer: str | None = None

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.content if isinstance(part, Picture)]


class Dialogue(NamedTuple):
    """A conversation; only its last turn has no answer."""

    system: str | None
    turns: tuple[Turn, ...]

    def names(self) -> list[bytes]:
        """Of the start's block and each answered turn's."""
        found = [_digest([b"start", repr(self.system).encode()])]
        for turn in self.turns[:-1]:
            found.append(name_after(found[-1], turn))
        return found


def name_after(before: bytes, turn: Turn) -> bytes:
    """The name of a turn's block; blanks around an answer do not matter, clients strip them."""
    assert turn.answer is not None
    said = [part.digest if isinstance(part, Picture) else b"text" + part.encode() for part in turn.content]
    return _digest([before, *said, b"answer" + turn.answer.strip().encode()])


def _digest(parts: Sequence[bytes]) -> bytes:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.digest()


class Block(NamedTuple):
    """The start or a turn as the decoder remembers it."""

    kv: np.ndarray  # [layers, 2, K, n, H]
    position: int  # of the token behind it
    is_cut: bool  # its answer has no end token: what follows begins with one

    @property
    def length(self) -> int:
        """n"""
        return self.kv.shape[3]


class Found(NamedTuple):
    """What of a conversation is kept."""

    turns: int  # of it, all that was said in them included
    blocks: list[Block]  # the start, and those of these turns that the next one sees
    last: Block  # of the last of the turns, or the start


class Kept:
    """Blocks by name within a limit of bytes, and the ids of the answers that were sampled."""

    def __init__(self, limit_bytes: int):
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._answers: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def put(self, name: bytes, block: Block) -> None:
        self._drop(name)
        self._blocks[name] = block
        self.bytes += block.kv.nbytes
        while self.bytes > self.limit_bytes:
            self._drop(next(iter(self._blocks)))

    def _drop(self, name: bytes) -> None:
        if name in self._blocks:
            self.bytes -= self._blocks.pop(name).kv.nbytes

    def put_answer(self, name: bytes, ids: Sequence[int]) -> None:
        """What was sampled in the turn of this name; it is read again where the block is gone."""
        self._answers[name] = tuple(ids)
        self._answers.move_to_end(name)
        if len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)

    def answer(self, name: bytes) -> tuple[int, ...] | None:
        return self._answers.get(name)

    def longest(self, names: Sequence[bytes], window: int) -> Found | None:
        """What a conversation of these names goes on from; None where not even its start is kept."""
        if names[0] not in self._blocks:
            return None
        for last in range(len(names) - 1, -1, -1):
            in_sight = names[max(1, last - window + 2) : last + 1]
            if all(name in self._blocks for name in (names[0], *in_sight, names[last])):
                blocks = [self._touched(name) for name in (names[0], *in_sight)]
                return Found(last, blocks, self._blocks[names[last]])
        return None

    def _touched(self, name: bytes) -> Block:
        self._blocks.move_to_end(name)
        return self._blocks[name]
