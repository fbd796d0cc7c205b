"""One answer as it grows: from drawn ids to text in pieces, and where it ends."""

from collections.abc import Sequence

from jaxvlmrl.text.tokenizer import Tokenizer

BROKEN = "�"  # what an unfinished character decodes to


class Transcript:
    """Text is given out as soon as no later token can change it or make a stop text of it."""

    def __init__(self, tokenizer: Tokenizer, end_id: int, stop: Sequence[str] = ()):
        self._tokenizer, self._end_id, self._stop = tokenizer, end_id, tuple(stop)
        self.ids: list[int] = []
        self.text = ""  # so far, the stop text and what follows it left out
        self.is_ended = False  # by the end token or a stop text
        self.met_stop = False
        self._given = 0

    def add(self, token: int) -> None:
        """One more token; none may follow the end."""
        assert not self.is_ended
        self.ids.append(token)
        self.is_ended = token == self._end_id
        self.text = self._tokenizer.decode(self.ids)
        places = [place for place in map(self.text.find, self._stop) if place >= 0]
        if places:
            self.text, self.is_ended, self.met_stop = self.text[: min(places)], True, True

    def take(self, is_last: bool) -> str:
        """The text that has become certain since the last call; all of it when no token will follow."""
        end = len(self.text) if is_last or self.is_ended else self._certain()
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _certain(self) -> int:
        end = len(self.text.rstrip(BROKEN))
        for stop in self._stop:
            for length in range(min(len(stop) - 1, end), 0, -1):
                if self.text[:end].endswith(stop[:length]):
                    end -= length
                    break
        return end
