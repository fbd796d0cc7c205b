"""Makes the tiny model's tokenizers: `python -m jaxvlmrl.text.train_tokenizer` writes data/tokenizer*.json.

Byte-level BPE of a few hundred entries with SmolLM2's pre-tokeniser (single digits, then GPT-2's pattern), trained on the
project's own prompts and answers, with SmolVLM's special tokens. The one for thinking also knows the words of thoughts.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from envs_jax import GridWalker
from jaxvlmrl.text.chat import THOUGHT_BEGINS, THOUGHT_ENDS
from jaxvlmrl.text.tokenizer import OWN

VOCAB_SIZE, THINKING_VOCAB_SIZE = 320, 384
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


def train(texts: list[str], vocab_size: int, markers: tuple[str, ...] = ()) -> Tokenizer:
    """Of so many entries, `markers` included: tokens of their own that are text like any other."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(markers),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in markers])
    return tokenizer


def train_all() -> dict[str, Tokenizer]:
    """The package's own, by name."""
    thoughts = list(GridWalker().thoughts().texts) * 10
    markers = (THOUGHT_BEGINS, THOUGHT_ENDS)
    return {
        "tiny": train(corpus(), VOCAB_SIZE),
        "tiny_thinking": train(corpus() + thoughts, THINKING_VOCAB_SIZE, markers),
    }


def main() -> None:
    for name, tokenizer in train_all().items():
        tokenizer.save(str(OWN[name]))


if __name__ == "__main__":
    main()
