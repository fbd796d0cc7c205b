"""Conversations as clients resend them, and the keys and values that are kept of those already seen.

A conversation is a start and turns; a kept block is the keys and values of one of them, named by a digest of everything up
to its end: the texts, the pictures' pixels, the answers. Whoever sends a conversation that begins like one already seen
finds its blocks, whichever client it is. Several sequences of tokens may have the same text: the first that was sampled
stands for it, and is part of the name too. Blocks that were not used for longest go first, a conversation's last ones before
its start. Host only.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
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

    def seed(self, asked: int) -> int:
        """Of 32 bits, for `asked` here: two conversations, or two turns of one, do not share their noise."""
        name = _start_name(self.system)
        for turn in self.turns:
            name = said_after(name, turn)
        return int.from_bytes(_digest([name, b"seed" + str(asked).encode()])[:4], "big")


def said_after(before: bytes, turn: Turn) -> bytes:
    """What a turn said behind `before`; blanks around an answer do not matter, clients strip them."""
    said = [part.digest if isinstance(part, Picture) else b"text" + part.encode() for part in turn.content]
    return _digest([before, *said, b"answer" + (turn.answer or "").strip().encode()])


def name_of(said: bytes, ids: Sequence[int] | None) -> bytes:
    """Of the block of a turn, by the ids its answer was sampled as; None for an answer that is only known as text."""
    return said if ids is None else _digest([said, b"ids" + repr(tuple(ids)).encode()])


def _start_name(system: str | None) -> bytes:
    return _digest([b"start", repr(system).encode()])


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


class Named(NamedTuple):
    """The start and the answered turns of a conversation; the start has no answer."""

    names: list[bytes]  # of their blocks
    answers: list[tuple[int, ...] | None]  # as they were sampled, if they were


class Kept:
    """Blocks by name within a limit of bytes, and the ids of the answers that were sampled."""

    def __init__(self, limit_bytes: int):
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._answers: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def put(self, chain: Sequence[bytes], blocks: Mapping[bytes, Block]) -> None:
        """New blocks of a conversation, whose blocks so far are a chain: each is of use only with those before it."""
        for name in reversed(chain):
            if name in blocks:
                self._drop(name)
                self._blocks[name] = blocks[name]
                self.bytes += blocks[name].kv.nbytes
        self._touch(chain)
        while self.bytes > self.limit_bytes:
            self._drop(next(iter(self._blocks)))

    def _drop(self, name: bytes) -> None:
        if name in self._blocks:
            self.bytes -= self._blocks.pop(name).kv.nbytes

    def put_answer(self, said: bytes, ids: Sequence[int]) -> bool:
        """Whether what was said is known by these ids from now on: the first that were sampled of a text stay.

        They are read again where the block is gone."""
        first = self._answers.setdefault(said, tuple(ids))
        self._answers.move_to_end(said)
        if len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)
        return first == tuple(ids)

    def named(self, dialogue: Dialogue) -> Named:
        found = Named([_start_name(dialogue.system)], [None])
        for turn in dialogue.turns[:-1]:
            said = said_after(found.names[-1], turn)
            ids = self._answers.get(said)
            found.names.append(name_of(said, ids))
            found.answers.append(ids)
        return found

    def longest(self, names: Sequence[bytes], window: int) -> Found | None:
        """What a conversation of these names goes on from; None where not even its start is kept."""
        if names[0] not in self._blocks:
            return None
        for last in range(len(names) - 1, -1, -1):
            in_sight = names[max(1, last - window + 2) : last + 1]
            if all(name in self._blocks for name in (names[0], *in_sight, names[last])):
                self._touch([names[0], *in_sight, names[last]])
                return Found(last, [self._blocks[name] for name in (names[0], *in_sight)], self._blocks[names[last]])
        return None

    def _touch(self, chain: Sequence[bytes]) -> None:
        """Used now, the first of them last: it goes last."""
        for name in reversed(chain):
            if name in self._blocks:
                self._blocks.move_to_end(name)
