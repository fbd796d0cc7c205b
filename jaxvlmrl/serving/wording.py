"""From a conversation to token ids: in the checkpoint's own words, or in the client's.

A tiny model knows only the prompt it was trained with, so `own` wording leaves out what the client says and keeps its
pictures and the answers; `client` wording puts the client's texts into the template that the model's family speaks. In both,
the ids of a conversation are those of its written form, part by part: a start, then each turn's observation and answer.
"""

from dataclasses import dataclass

from jaxvlmrl.serving.conversations import Dialogue, Picture, Turn
from jaxvlmrl.serving.errors import RequestError
from jaxvlmrl.text.chat import Chat

KINDS = ("own", "client")


@dataclass(frozen=True)
class Wording:
    """One of the two, for one checkpoint's chat."""

    chat: Chat
    kind: str

    def heard(self, dialogue: Dialogue) -> Dialogue:
        """What the model is told of a conversation. Raises `RequestError` for what it cannot be told."""
        if self.kind == "own":
            return Dialogue(None, tuple(self._own(turn, number) for number, turn in enumerate(dialogue.turns, start=1)))
        for turn in dialogue.turns:
            for part in (*turn.content, turn.answer or ""):
                self._check(part if isinstance(part, str) else "")
        self._check(dialogue.system or "")
        return dialogue

    def _own(self, turn: Turn, number: int) -> Turn:
        pictures = turn.pictures
        if len(pictures) != 1:
            raise RequestError(
                f"turn {number} has {len(pictures)} pictures: this checkpoint's own wording has one in every turn",
                param="messages",
            )
        self._check(turn.answer or "")
        return Turn((pictures[0],), turn.answer)

    def _check(self, text: str) -> None:
        """Special tokens are the template's to write: text that spells one could end its own message."""
        for token in self.chat.tokenizer.special_tokens:
            if token in text:
                raise RequestError(f"a text holds the model's special token {token}", param="messages")

    # Token ids

    def start(self, dialogue: Dialogue) -> list[int]:
        if self.kind == "own":
            return list(self.chat.prefix_ids)
        template = self.chat.template
        written = template.no_system if dialogue.system is None else template.system
        return self.chat.tokenizer.encode(_filled(written, prompt=dialogue.system or ""))

    def observation(self, turn: Turn, number: int, after_cut_answer: bool) -> list[int]:
        """Of the turn of this number, counted from 1."""
        template = self.chat.template
        picture = _filled(template.image, tokens=template.image_token * self.chat.num_image_tokens)
        if self.kind == "own":
            said = template.turn.format(image=picture, turn=number)
        else:
            content = "".join(picture if isinstance(part, Picture) else part for part in turn.content)
            said = _filled(template.message, content=content)
        before = (template.end_of_answer if after_cut_answer else "") + template.after_answer
        return self.chat.tokenizer.encode((before if number > 1 else "") + said)

    def answer(self, text: str) -> list[int]:
        """Of an answer that nobody here has sampled, as it would have been."""
        written = _filled(self.chat.template.answer, answer=text.strip())
        return [*self.chat.tokenizer.encode(written), self.chat.end_id]


def _filled(template: str, **values: str) -> str:
    """`str.format` for texts that clients wrote: braces in them mean nothing."""
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", value)
    return template
