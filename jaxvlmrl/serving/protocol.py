"""The bodies of /v1/chat/completions: what of a request is understood, and what an answer looks like.

Every field is either read here, or accepted at the one value that changes nothing, or refused with a sentence that names it.
The field's place in the body is the error's `param`, as in the API.
"""

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxvlmrl.serving.conversations import Dialogue, Picture, Turn
from jaxvlmrl.serving.errors import RequestError
from jaxvlmrl.serving.rows import Sampling, Token, Usage
from jaxvlmrl.text.tokenizer import Tokenizer

# Fields that change nothing whatever they are, and those that are accepted at these values alone.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
           "parallel_tool_calls")  # fmt: skip
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}  # fmt: skip
MAX_STOPS, MAX_STOP_LENGTH, MAX_LIKELIEST = 4, 200, 20
SMALLEST_TOP_P = 1e-6  # leaves the likeliest token
NEVER = -9999.0  # the API's log-prob of what cannot be said


@dataclass(frozen=True)
class Limits:
    """Of one request."""

    body_bytes: int = 32 << 20
    messages: int = 2048
    pictures: int = 256
    pixels: int = 1 << 28  # as they are sent, all pictures together
    text_chars: int = 1 << 20  # all texts together
    choices: int = 16


See = Callable[[str, str, Callable[[int], None]], Picture]  # of (data URI, place, what its pixels are told to)


class ChatRequest(NamedTuple):
    """A request that can be answered."""

    dialogue: Dialogue
    choices: list[Sampling]
    logprobs: bool
    stream: bool
    include_usage: bool


def read_json(body: bytes) -> dict[str, Any]:
    """Raises `RequestError` for what is no JSON object."""

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        data = json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {str(error)[:200]}", code="invalid_json") from error
    if not isinstance(data, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    return data


class Reader:
    """Fields of the body with their types."""

    def __init__(self, data: dict[str, Any]):
        self.data = {name: value for name, value in data.items() if value is not None}

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.data.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise wrong(name, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.data.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(name, f"must be a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        value = self.data.pop(name, False)
        if not isinstance(value, bool):
            raise wrong(name, "must be true or false")
        return value

    def stop(self) -> tuple[str, ...]:
        value = self.data.pop("stop", [])
        texts = [value] if isinstance(value, str) else value
        fits = lambda text: isinstance(text, str) and 0 < len(text) <= MAX_STOP_LENGTH
        if not isinstance(texts, list) or len(texts) > MAX_STOPS or not all(map(fits, texts)):
            raise wrong("stop", f"must be up to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters")
        return tuple(texts)

    def nothing_else(self) -> None:
        """Raises `RequestError` for a field that is left and would have changed the answer."""
        for name, value in self.data.items():
            if name in NEUTRAL and value not in NEUTRAL[name]:
                values = " or ".join(json.dumps(neutral) for neutral in NEUTRAL[name])
                raise RequestError(
                    f"{name} is not supported, other than {values}", code="unsupported_parameter", param=name
                )
            if name not in NEUTRAL and name not in IGNORED:
                raise RequestError(f"the field {name[:60]!r} is not known", code="unknown_parameter", param=name[:60])


def wrong(name: str, rule: str) -> RequestError:
    return RequestError(f"{name} {rule}", code="invalid_value", param=name)


def read_request(data: dict[str, Any], model: str, answer: int, limits: Limits, see: See) -> ChatRequest:
    """The request in a body; `see` makes pictures of data URIs. Raises `RequestError`."""
    asked = Reader(data)
    name = asked.data.pop("model", None)
    if not isinstance(name, str):
        raise wrong("model", "must be the name of a model")
    if name != model:
        raise RequestError(f"there is no model {name[:100]!r}, only {model}", 404, "model_not_found", "model")
    messages = asked.data.pop("messages", None)
    choices = asked.whole("n", 1, 1, limits.choices)
    stream, logprobs = asked.flag("stream"), asked.flag("logprobs")
    likeliest = asked.whole("top_logprobs", 0, 0, MAX_LIKELIEST)
    if likeliest and not logprobs:
        raise wrong("top_logprobs", "needs logprobs")
    most = [asked.whole(field, answer, 1, 1 << 31) for field in ("max_tokens", "max_completion_tokens")]
    temperature, top_p = asked.number("temperature", 1.0, 0, 2), max(asked.number("top_p", 1.0, 0, 1), SMALLEST_TOP_P)
    seed = asked.whole("seed", secrets.randbits(32), -(1 << 63), (1 << 63) - 1)
    stop, include_usage = asked.stop(), stream_options(asked, stream)
    asked.nothing_else()
    samplings = [
        Sampling(temperature, top_p, (seed + 0x9E3779B9 * index) % (1 << 32), min(answer, *most), stop, likeliest)
        for index in range(choices)
    ]
    return ChatRequest(read_messages(messages, limits, see), samplings, logprobs, stream, include_usage)


def stream_options(asked: Reader, stream: bool) -> bool:
    """Whether the stream ends with the usage."""
    options = asked.data.pop("stream_options", None)
    if options is None:
        return False
    if not stream:
        raise wrong("stream_options", "needs stream")
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise wrong("stream_options", "may hold include_usage")
    return Reader(options).flag("include_usage")


# Messages


def read_messages(messages: Any, limits: Limits, see: See) -> Dialogue:
    """System messages first, then user and assistant in turn; several of one side in a row are one."""
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "must be a list of messages")
    if len(messages) > limits.messages:
        raise wrong("messages", f"has {len(messages)} messages, at most {limits.messages} are taken")
    left = _Left(limits.pictures, limits.pixels, limits.text_chars)
    system: str | None = None
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise wrong(where, "must be an object with a role")
        role, content = message["role"], message.get("content")
        if role in ("system", "developer") and not turns:
            said = "".join(_texts(content, where, left))
            system = said if system is None else f"{system}\n{said}"
        elif role == "user":
            parts = tuple(_content(content, where, left, see))
            if turns and turns[-1].answer is None:
                turns[-1] = Turn((*turns[-1].content, *parts))
            else:
                turns.append(Turn(parts))
        elif role == "assistant" and turns and turns[-1].answer is None:
            _check_answer(message, where)
            turns[-1] = turns[-1]._replace(answer="".join(_texts(content, where, left)))
        else:
            raise wrong(
                f"{where}.role", f"{role[:40]!r} cannot stand here: system first, then user and assistant in turn"
            )
    if not turns or turns[-1].answer is not None:
        raise wrong("messages", "must end with a message of the user")
    return Dialogue(system, tuple(turns))


def _check_answer(message: dict[str, Any], where: str) -> None:
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise wrong(f"{where}.{name}", "is not supported")


class _Left:
    """What a request may still hold."""

    def __init__(self, pictures: int, pixels: int, chars: int):
        self.pictures, self.pixels, self.chars = pictures, pixels, chars

    def text(self, text: str, where: str) -> str:
        self.chars -= len(text)
        if self.chars < 0:
            raise wrong(where, "makes the texts longer than this server takes")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise wrong(where, "holds half of a surrogate pair") from error
        return text

    def picture(self, where: str) -> None:
        self.pictures -= 1
        if self.pictures < 0:
            raise wrong(where, "is one picture more than this server takes")

    def spend(self, pixels: int) -> None:
        self.pixels -= pixels
        if self.pixels < 0:
            raise wrong("messages", "have pictures of more pixels, all together, than this server takes")


def _texts(content: Any, where: str, left: _Left) -> list[str]:
    """Of a message that has no pictures."""

    def no_picture(url: str, param: str, spend: Callable[[int], None]) -> Picture:
        raise wrong(param, "is a picture, which only users may send")

    return [part for part in _content(content, where, left, no_picture) if isinstance(part, str)]


def _content(content: Any, where: str, left: _Left, see: See) -> list[str | Picture]:
    where = f"{where}.content"
    if isinstance(content, str):
        return [left.text(content, where)]
    if not isinstance(content, list) or not content:
        raise wrong(where, "must be a text or a list of parts")
    found: list[str | Picture] = []
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            found.append(left.text(part["text"], at))
        elif kind == "image_url":
            left.picture(at)
            found.append(see(_url(part.get("image_url"), at), f"{at}.image_url", left.spend))
        else:
            raise wrong(at, "must be a part of type text or image_url")
    return found


def _url(image: Any, where: str) -> str:
    """`detail` is accepted: pictures have one size here anyway."""
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise wrong(f"{where}.image_url", "must hold a url")
    return url


# Answers


@dataclass(frozen=True)
class Writer:
    """The objects that answer one request."""

    model: str
    tokenizer: Tokenizer
    end_id: int
    id: str
    created: int

    @classmethod
    def of(cls, model: str, tokenizer: Tokenizer, end_id: int) -> "Writer":
        return cls(model, tokenizer, end_id, f"chatcmpl-{secrets.token_hex(12)}", int(time.time()))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def whole(self, choices: list[dict[str, Any]], usage: list[Usage]) -> dict[str, Any]:
        return self._head("chat.completion") | {"choices": choices, "usage": usage_of(usage)}

    def choice(self, index: int, text: str, reason: str, tokens: list[Token] | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self.logprobs(tokens), "finish_reason": reason}

    def piece(
        self, index: int, delta: dict[str, Any], reason: str | None, tokens: list[Token] | None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": self.logprobs(tokens), "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def last(self, usage: list[Usage]) -> dict[str, Any]:
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage_of(usage)}

    def logprobs(self, tokens: list[Token] | None) -> dict[str, Any] | None:
        """Of the checkpoint's own distribution: special ids and its grammar left out, before temperature and top_p."""
        if tokens is None:
            return None
        one = lambda token: (
            self._token(token.id, token.log_prob)
            | {"top_logprobs": [self._token(*best) for best in token.likeliest if best[1] > NEVER]}
        )
        return {"content": [one(token) for token in tokens if token.id != self.end_id], "refusal": None}

    def _token(self, index: int, log_prob: float) -> dict[str, Any]:
        data = self.tokenizer.token_bytes[index] if index < self.tokenizer.vocab_size else b""
        text = data.decode(errors="replace") or self.tokenizer.written(index)
        return {"token": text, "logprob": max(log_prob, NEVER), "bytes": list(data)}


def usage_of(usage: list[Usage]) -> dict[str, Any]:
    """Of all choices of one prompt."""
    prompt, cached, answers = usage[0].prompt, usage[0].cached, sum(one.answer for one in usage)
    return {
        "prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip
