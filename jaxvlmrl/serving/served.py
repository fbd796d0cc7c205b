"""What is served: a run directory's best policy, or a Hugging Face folder, as one thing."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from envs_jax import GridWalker
from jaxvlmrl.building import first_params, image_shape, make_policy, whole_params
from jaxvlmrl.config import Config, ConfigError, Conversation
from jaxvlmrl.models import weights
from jaxvlmrl.models.hf_config import QWEN_TYPES, SMOLVLM_TYPES
from jaxvlmrl.models.layers import Params
from jaxvlmrl.models.qwen3_vl import Qwen3VL
from jaxvlmrl.models.smolvlm import SmolVLM
from jaxvlmrl.models.weights import WeightsError
from jaxvlmrl.policy import Policy
from jaxvlmrl.runs import read_config
from jaxvlmrl.serving.programs import Sizes
from jaxvlmrl.serving.wording import KINDS
from jaxvlmrl.text.tokenizer import OWN

EVERYTHING = 1 << 30  # a window that no conversation fills
CLIENT_SLOTS, CLIENT_CHUNK, CLIENT_ANSWER = 4096, 128, 512  # of conversations in the client's words, at most
PIECE = 16  # tokens drawn before the host looks, where answers are longer than twice that
PICTURES, LIKELIEST = 16, 20


class Served(NamedTuple):
    """A policy with all that a server needs to know of it."""

    name: str
    policy: Policy
    params: Params
    picture_shape: tuple[int, int]  # (height, width) it looks at
    way: str  # how pictures of another size become so, of serving.pictures.WAYS
    prompt: str  # of serving.wording.KINDS
    sizes: Sizes


class Asked(NamedTuple):
    """What the command line says of it; None and 0 leave the choice to the checkpoint."""

    prompt: str | None = None
    template: str | None = None
    rows: int = 16
    context: int = 0
    max_tokens: int = 0
    window: int = 0


def load(folder: Path, asked: Asked) -> Served:
    """Raises `ConfigError` for a folder that cannot be served."""
    if asked.prompt not in (None, *KINDS):
        raise ConfigError(f"--prompt={asked.prompt} is neither {' nor '.join(KINDS)}")
    served = _run(folder, asked) if is_run(folder) else _published(folder, asked)
    chat = served.policy.chat
    if served.prompt == "client" and "{content}" not in chat.template.message:
        raise ConfigError(
            f"the chat template {chat.template_name} has no field message with {{content}} in it, which conversations in"
            " the client's words need; --prompt=own does without"
        )
    return served


def is_run(folder: Path) -> bool:
    """A run directory's config.json says what type it is of; a Hugging Face folder's does not."""
    try:
        data = json.loads((folder / "config.json").read_text())
    except OSError as error:
        raise ConfigError(
            f"there is no config.json in {folder}: it is no run directory and no model's folder"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{folder / 'config.json'} is damaged: {error}") from error
    return isinstance(data, dict) and "type" in data


def _run(folder: Path, asked: Asked) -> Served:
    config = read_config(folder)
    for name in ("template", "window"):
        if getattr(asked, name):
            raise ConfigError(f"--{name} is for a Hugging Face folder; a run directory has its own")
    prompt = asked.prompt or ("own" if config.conversation.tokenizer in OWN else "client")
    policy = make_policy(config)
    answer = policy.chat.max_answer_tokens
    if prompt == "client" and asked.max_tokens:
        answer = asked.max_tokens
    elif asked.max_tokens > answer:
        raise ConfigError(f"--max_tokens={asked.max_tokens}: the checkpoint's answers have {answer} tokens at most")
    sizes = sizes_of(policy, prompt, answer, asked)
    return Served(folder.resolve().name, policy, whole_params(folder), image_shape(config), "middle", prompt, sizes)


def _published(folder: Path, asked: Asked) -> Served:
    """As `config.model.weights` takes it. Conversations are remembered whole unless --window says less."""
    try:
        model: Any = dataclasses.replace(weights.read_model(folder), weights=str(folder))
        if not isinstance(model, SmolVLM | Qwen3VL):
            raise ConfigError(
                f"{folder} holds a model that does not see; {' and '.join(SMOLVLM_TYPES + QWEN_TYPES)} do"
            )
        height, width = model.image_shape
        family = "smolvlm" if isinstance(model, SmolVLM) else "qwen3_vl"
        template = asked.template or family
        answer = asked.max_tokens or CLIENT_ANSWER
        talk = Conversation("weights", template, window=asked.window or EVERYTHING, max_answer_tokens=answer)
        config = Config(GridWalker(height=height, width=width), model=model, conversation=talk)
        config.env_params.max_turns = 1  # the conversations are not the environment's
        policy, params = make_policy(config), first_params(config)
    except WeightsError as error:
        raise ConfigError(str(error)) from error
    prompt = asked.prompt or "client"
    sizes = sizes_of(policy, prompt, answer, asked)
    return Served(folder.resolve().name, policy, params, model.image_shape, family, prompt, sizes)


def sizes_of(policy: Policy, prompt: str, answer: int, asked: Asked) -> Sizes:
    """A conversation in the checkpoint's own words has turns of known length; one in the client's words has not."""
    chat, limit = policy.chat, policy.model.text.max_positions
    if prompt == "own" and policy.window < EVERYTHING:
        turn = chat.num_observation_tokens + 2 * answer  # answers of the client's own may be longer
        slots, chunk = asked.context or len(chat.prefix_ids) + policy.window * turn, chat.num_observation_tokens
    else:
        slots, chunk = asked.context or min(limit, CLIENT_SLOTS), max(CLIENT_CHUNK, chat.num_observation_tokens)
    slots = min(slots, limit)
    least = len(chat.prefix_ids) + chat.num_observation_tokens + 1
    if slots < least:
        raise ConfigError(f"--context={slots} has no room for one turn, which takes {least} tokens")
    piece = answer if answer <= 2 * PIECE else PIECE
    likeliest = min(LIKELIEST, policy.model.text.vocab_size)
    return Sizes(asked.rows, slots, min(chunk, slots), piece, min(PICTURES, asked.rows), likeliest, answer)
