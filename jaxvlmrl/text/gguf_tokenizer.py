"""The tokenizer inside a GGUF file, SmolLM2's above all. Source: reference sheet "models", section 2.3."""

from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from jaxvlmrl.gguf_reading import field_of, open_gguf

CONTROL = 3  # the token type of special tokens
SMOLVLM_SPECIALS = (
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    *(f"<|reserved_special_token_{index}|>" for index in range(88)),
    "<end_of_utterance>",
)


def tokenizer(path: Path, extra: tuple[str, ...] = ()) -> HFTokenizer:
    """The file's tokenizer, with further special tokens behind its own: byte-level BPE that splits off every digit."""
    reader = open_gguf(path)
    tokens, types = field_of(reader, "tokenizer.ggml.tokens"), field_of(reader, "tokenizer.ggml.token_type")
    merges = [tuple(line.split(" ")) for line in field_of(reader, "tokenizer.ggml.merges")]
    found = HFTokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    found.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    found.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*special, *extra)])
    return found
