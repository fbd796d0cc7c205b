"""A conversation's wording as data, and the fixed-size token blocks it becomes on the device.

A conversation is append-only: a start with the rules, then for every turn an observation (what the template says, with the
picture's tokens in it) and the model's own answer. A turn has `O` observation slots, padded on the left so that the
prompt ends in slot O - 1, and `G` answer slots, padded on the right. Source: DESIGN 2.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvlmrl.text.tokenizer import Tokenizer

TEMPLATES = Path(__file__).parent / "data" / "templates"
THOUGHT_BEGINS, THOUGHT_ENDS = "<think>", "</think>"  # tokens of the text, not special ones
FIRST_TURN, AFTER_ANSWER, AFTER_CUT_ANSWER = range(3)  # what a turn's observation follows


@dataclass(frozen=True)
class ChatTemplate:
    """The wording around prompts, pictures and answers: a JSON file, of text/data/templates or anybody's own."""

    system: str  # the conversation's start; {prompt} stands for the rules
    turn: str  # one observation; {image} stands for the picture, {turn} for its number, counted from 1
    image: str  # a picture; {tokens} stands for its image tokens
    image_token: str
    answer: str  # how an answer begins and ends; {answer} stands for its text
    end_of_answer: str  # the token a model ends its answer with
    after_answer: str  # what follows that
    # For conversations in other words than the environment's (jaxvlmrl/serving):
    message: str = ""  # what a user says; {content} stands for texts and pictures in any order
    no_system: str = ""  # the conversation's start without rules

    @classmethod
    def load(cls, name: str) -> "ChatTemplate":
        """A template by its name in the package, or a path that ends in .json."""
        path = Path(name) if name.endswith(".json") else TEMPLATES / f"{name}.json"
        if not path.is_file():
            known = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.json")))
            raise FileNotFoundError(f"there is no chat template {name}; the package has {known}")
        return cls(**json.loads(path.read_text()))


class Observation(NamedTuple):
    """An observation's token slots: arrays [..., O]."""

    ids: jax.Array  # int32
    valid: jax.Array  # bool, False for padding


@dataclass(frozen=True)
class Chat:
    """A template made of one tokenizer's ids for one number of image tokens and turns."""

    tokenizer: Tokenizer
    template_name: str
    prompt: str
    num_image_tokens: int
    max_turns: int
    max_answer_tokens: int  # G

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate.load(self.template_name)

    @cached_property
    def end_id(self) -> int:
        return self.tokenizer.id_of(self.template.end_of_answer)

    @cached_property
    def image_id(self) -> int:
        return self.tokenizer.id_of(self.template.image_token)

    @cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """The conversation's start, shared by all."""
        return tuple(self.tokenizer.encode(self.template.system.format(prompt=self.prompt)))

    @property
    def num_observation_tokens(self) -> int:
        """O."""
        return self._tables[0].shape[-1]

    @property
    def tokens_per_turn(self) -> int:
        return self.num_observation_tokens + self.max_answer_tokens

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, valid), both [3 beginnings, turns, O]: one turn if the wording does not count them."""
        template = self.template
        picture = template.image.format(tokens=template.image_token * self.num_image_tokens)
        beginnings = ("", template.after_answer, template.end_of_answer + template.after_answer)
        turns = range(1, self.max_turns + 1) if "{turn}" in template.turn else range(1, 2)
        written = [
            [self.tokenizer.encode(start + template.turn.format(image=picture, turn=turn)) for turn in turns]
            for start in beginnings
        ]
        length = max(len(ids) for row in written for ids in row)
        padded = [[[0] * (length - len(ids)) + ids for ids in row] for row in written]
        valid = [[[False] * (length - len(ids)) + [True] * len(ids) for ids in row] for row in written]
        return np.array(padded, np.int32), np.array(valid)

    @cached_property
    def image_slot(self) -> int:
        """Where in the O slots the picture's tokens start; the same in every turn, since blocks are padded on the left."""
        ids, valid = self._tables
        is_image = (ids == self.image_id) & valid
        first = is_image.argmax(axis=-1)
        expected = np.arange(ids.shape[-1]) - first[..., None]
        if (first != first.flat[0]).any() or (is_image != ((expected >= 0) & (expected < self.num_image_tokens))).any():
            raise ValueError("the chat template must hold the picture's tokens in one run that ends in the same slot")
        return int(first.flat[0])

    def observation(self, beginning: jax.Array, turn: jax.Array) -> Observation:
        """The token slots of a turn (counted from 0) of its episode; both arguments int32 of any shape."""
        ids, valid = (jnp.asarray(table) for table in self._tables)
        turn = jnp.minimum(turn, ids.shape[1] - 1)
        return Observation(ids[beginning, turn], valid[beginning, turn])

    @cached_property
    def never_sampled(self) -> tuple[int, ...]:
        """Special tokens that no answer may hold: all but the one that ends it."""
        return tuple(index for index in self.tokenizer.special_ids if index != self.end_id)

    @cached_property
    def thought_ids(self) -> tuple[int, int]:
        """The tokens a thought begins and ends with."""
        return self.tokenizer.id_of(THOUGHT_BEGINS), self.tokenizer.id_of(THOUGHT_ENDS)

    def answer_ids(self, text: str) -> list[int]:
        """A written answer with its end token, as it would have been sampled."""
        ids = [*self.tokenizer.encode(self.template.answer.format(answer=text)), self.end_id]
        if len(ids) > self.max_answer_tokens:
            raise ValueError(f"the answer {text!r} takes {len(ids)} tokens, the budget is {self.max_answer_tokens}")
        return ids

    def answer_table(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids [texts, G] int32, valid [texts, G] bool) of canonical answers."""
        ids = np.zeros((len(texts), self.max_answer_tokens), np.int32)
        valid = np.zeros(ids.shape, bool)
        for row, text in enumerate(texts):
            answer = self.answer_ids(text)
            ids[row, : len(answer)], valid[row, : len(answer)] = answer, True
        return ids, valid
