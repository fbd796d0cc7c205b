"""Makes the tiny model's tokenizer: `python -m jaxvlmrl.text.train_tokenizer` writes data/tokenizer.json.

Byte-level BPE of a few hundred entries with SmolLM2's pre-tokeniser (single digits, then GPT-2's pattern), trained on the
project's own prompts and answers, with SmolVLM's special tokens.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from envs_jax import GridWalker
from jaxvlmrl.text.tokenizer import TINY

VOCAB_SIZE = 320
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
    "<end_of_utterance>",
]


def corpus() -> list[str]:
    """Everything the tiny model reads and writes, each answer often enough that its words become tokens."""
    env = GridWalker(max_size=32)
    answers = [env.answer_text(action) for action in env.actions()]
    roles = ["System:", "User:", "Assistant:"]
    return [env.prompt] * 2 + [env.short_prompt] * 20 + roles * 20 + answers * 10


def train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def main(path: Path = TINY) -> None:
    train().save(str(path))


if __name__ == "__main__":
    main()
