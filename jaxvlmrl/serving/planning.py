"""What is left to be read of a conversation, and whether it fits: a job before it has a row."""

from typing import NamedTuple

import numpy as np

from jaxvlmrl.serving.conversations import Block, Dialogue, Kept, Picture
from jaxvlmrl.serving.errors import RequestError
from jaxvlmrl.serving.programs import START, Programs
from jaxvlmrl.serving.rows import Job, Part, Span, Usage, lay_out
from jaxvlmrl.serving.wording import Wording


class Plan(NamedTuple):
    """A job, what is kept of its conversation, and the parts to be read after that."""

    job: Job
    heard: Dialogue
    names: list[bytes]  # of the start and the answered turns
    kept: list[Block]  # the start and the last turns that the next one sees; none where all is to be read
    kept_turns: list[int]  # of each block
    parts: list[Part]  # pictures not looked at yet
    pictures: list[list[Picture]]  # of each part
    is_cut: list[bool]  # of each part
    room: int  # tokens that any answer may have here

    @property
    def budget(self) -> int:
        """Tokens that this one may have."""
        return min(self.job.sampling.max_tokens, self.room)

    @property
    def kept_lengths(self) -> list[int]:
        return [block.length for block in self.kept]

    @property
    def pinned(self) -> int:
        """Tokens of the start."""
        return self.kept[0].length if self.kept else len(self.parts[0].ids)

    def spans(self) -> list[Span]:
        """Where the parts' tokens will lie."""
        first, found = sum(self.kept_lengths), []
        for part, is_cut in zip(self.parts, self.is_cut):
            found.append(Span(part.turn, first, first + len(part.ids), part.next_position, is_cut))
            first += len(part.ids)
        return found

    def usage(self, window: int) -> Usage:
        """Of what the answer will see."""
        in_sight = lambda turn: turn == START or turn > len(self.heard.turns) - window
        cached = sum(length for turn, length in zip(self.kept_turns, self.kept_lengths) if in_sight(turn))
        return Usage(cached + sum(len(part.ids) for part in self.parts if in_sight(part.turn)), cached, 0)


def plan_of(job: Job, programs: Programs, wording: Wording, kept: Kept) -> Plan:
    """Raises `RequestError` for a conversation that cannot be told to the model, or does not fit."""
    policy = programs.policy
    heard = wording.heard(job.dialogue)
    names, answers = kept.named(heard)
    found = kept.longest(names, policy.window)
    blocks, done = (found.blocks, found.turns) if found else ([], 0)
    turns = [START, *range(done - len(blocks) + 2, done + 1)] if found else []
    plan = Plan(job, heard, names, blocks, turns, [], [], [], 0)
    position, is_cut = (found.last.position, found.last.is_cut) if found else (0, False)
    unseen = np.zeros((0, programs.image_width), np.float32)

    def add(turn: int, ids: list[int], pictures: list[Picture], is_cut: bool) -> None:
        start = plan.parts[-1].next_position if plan.parts else position
        plan.parts.append(lay_out(policy.model, policy.chat.image_id, turn, ids, unseen, start))
        plan.pictures.append(pictures)
        plan.is_cut.append(is_cut)

    if not found:
        add(START, wording.start(heard), [], False)
    for number, turn in list(enumerate(heard.turns, start=1))[done:]:
        ids = wording.observation(turn, number, is_cut)
        is_cut = False
        if turn.answer is not None:
            answer = answers[number] or wording.answer(turn.answer)
            is_cut = answer[-1] != policy.chat.end_id
            ids = [*ids, *answer]
        add(number, ids, turn.pictures, is_cut)
    return plan._replace(room=min(programs.sizes.answer, room(plan, programs)))


def room(plan: Plan, programs: Programs) -> int:
    """Tokens that the answer may take. Raises `RequestError` where the conversation does not fit."""
    window, space = programs.policy.window, programs.sizes.slots - plan.pinned
    lengths = plan.kept_lengths[1:] + [len(part.ids) for part in plan.parts if part.turn != START]
    most = max(sum(lengths[max(0, end - window) : end]) for end in range(1, len(lengths) + 1))
    if most >= space:
        whole = programs.sizes.slots
        raise too_long(f"the conversation takes {most + plan.pinned} tokens in sight, the server has room for {whole}")
    positions = programs.policy.model.text.max_positions - plan.parts[-1].next_position
    if positions < 1:
        raise too_long("the conversation is longer than the model's positions")
    return min(space - sum(lengths[-window:]), positions)


def too_long(message: str) -> RequestError:
    return RequestError(message, code="context_length_exceeded", param="messages")
