"""Requests that a server must refuse in words, 200 and more, by what is wrong with them."""

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.serving import assistant, data_uri, noise, user

Request = tuple[str, bytes, dict[str, str]]  # (path, body, headers)

CHAT = "/v1/chat/completions"
PICTURE = user(data_uri(noise(1, (32, 32))[0]))
PNG = base64.b64decode(data_uri(noise(1, (32, 32))[0]).partition(",")[2])


def of(**fields: Any) -> bytes:
    """A good request's body, with other fields."""
    return json.dumps({"model": "quickstart", "messages": [PICTURE]} | fields).encode()


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def wrong_requests() -> Iterator[Request]:
    for kind in (no_json, wrong_fields, wrong_messages, wrong_pictures, wrong_places):
        yield from kind()


def no_json() -> Iterator[Request]:
    """Cut anywhere, nested without end, numbers and characters that are none."""
    body = of()
    for cut in range(0, len(body) - 1, len(body) // 20):
        yield CHAT, body[:cut], {}
    texts = [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"\x00", b"null", b"[]", b'"x"', b"NaN", b"1" * 10_000]
    texts += [body.replace(b'"quickstart"', text) for text in (b"NaN", b"Infinity", b'"\\ud800"', b"9" * 9999, b"")]
    yield from ((CHAT, text, {}) for text in texts)


def wrong_fields() -> Iterator[Request]:
    """Of another type, outside their range, or of no meaning here."""
    odd = [[], {}, "x", -1, 1e30, True, [[]], {"a": 1}]
    fields = [
        "model",
        "messages",
        "temperature",
        "top_p",
        "max_tokens",
        "n",
        "stop",
        "stream",
        "logprobs",
        "top_logprobs",
    ]
    for name in [*fields, "seed", "stream_options", "max_completion_tokens"]:
        fits = {"temperature": [True], "stop": [[], "x"], "stream": [True], "logprobs": [True], "seed": [-1]}
        fits |= {"stream_options": [{}], "top_p": [], "temperature": []}
        yield from ((CHAT, of(**{name: value}), {}) for value in odd if value not in fits.get(name, []))
    refused = {"presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"5": 1}, "tools": [{"type": "function"}]}
    refused |= {"response_format": {"type": "json_object"}, "modalities": ["audio"], "audio": {}, "best_of": 2}
    refused |= {"functions": [1], "tool_choice": "required", "reasoning_effort": "high", "__proto__": 1, "n": 10**6}
    refused |= {"\ud800": 1, "a\udfff" * 50: {}}
    refused |= {"temperature": 2.1, "top_p": -0.1, "stop": ["a"] * 5, "top_logprobs": 3, "max_tokens": 0}
    yield from ((CHAT, of(**{name: value}), {}) for name, value in refused.items())


def wrong_messages() -> Iterator[Request]:
    picture = PICTURE
    talks: list[Any] = [
        [], [{}], [1], [None], ["hi"], [{"role": "user"}], [{"role": "user", "content": []}], [user("no picture")],
        [user(data_uri(noise(1, (32, 32))[0]), data_uri(noise(1, (32, 32))[0]))], [assistant("first")],
        [picture, assistant("last")], [picture, assistant("a"), assistant("b"), picture],
        [user("x")] * 10_000, [user("\ud800"), picture],
        [picture, {"role": "system", "content": "late"}], [{"role": "tool", "content": "x"}, picture],
        [{"role": "wizard", "content": "x"}], [{"role": ["user"], "content": "x"}], [{"role": "user", "content": 5}],
        [{"role": "system", "content": picture["content"]}, picture], [picture, assistant("<image>"), picture],
        [picture, {"role": "assistant", "content": None, "tool_calls": [{}]}, picture], [picture, assistant(7), picture],
        [{"role": "user", "content": [{"type": "video"}]}], [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url"}]}], [{"role": "user", "content": [None]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}], [user("x" * 2_000_000)],
        [message for _ in range(3000) for message in (picture, assistant("a"))],
        [{"role": "user", "content": picture["content"] * 300}], [picture, assistant("`left` " * 4000), picture],
    ]  # fmt: skip
    yield from ((CHAT, of(messages=talk), {}) for talk in talks)


def wrong_pictures() -> Iterator[Request]:
    urls = [
        "http://127.0.0.1:1/x.png", "https://example.com/x.png", "file:///etc/passwd", "data:", "data:,", "data:image/png,x",
        "data:image/png;base64,", "data:image/png;base64,????", "data:image/png;base64,AAAA", "data:text/html;base64,AAAA",
        uri(b"GIF89a" + PNG), uri(PNG, "image/gif"), uri(PNG, "image/svg+xml"), uri(PNG, "image/jpeg"), uri(PNG[:-200]),
        uri(PNG[:33]), uri(b"\x00" * 1000), uri(b"\xff\xd8\xff" + b"\x00" * 500, "image/jpeg"), uri(claimed(30_000, 30_000)),
        uri(claimed(5000, 5000)), uri(b"\x00" * (9 << 20)), uri(PNG) + "!", uri(PNG)[:-2], "", "x", " data:",
        uri(b"RIFF\x00\x00\x00\x00WEBP", "image/webp"), uri(b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/png"),
    ]  # fmt: skip
    with_url = lambda url: [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    yield from ((CHAT, of(messages=with_url(url)), {}) for url in urls)
    rng = np.random.default_rng(0)
    for _ in range(20):  # a byte of the file changed where Pillow looks: header, length, checksum
        broken = bytearray(PNG)
        broken[int(rng.integers(0, 33))] ^= 0xFF
        yield CHAT, of(messages=with_url(uri(bytes(broken)))), {}


def wrong_places() -> Iterator[Request]:
    """Paths and headers."""
    body = of()
    paths = [
        "/",
        "/v1",
        "/v1/",
        "/v1/completions",
        "/v1/chat/completions/x",
        "/v1/chat/completions/../../../etc/passwd",
    ]
    paths += [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/v1/models",
        "/health",
        "/v1/models/%00",
    ]
    paths += ["/static/../config.json", "/v1/chat/completions%2f..", "/" + "a" * 5000, "/v1/models/../../config.json"]
    yield from ((path, body, {}) for path in paths)
    heads = [{"Content-Type": "text/plain"}, {"Content-Type": ""}, {"Content-Type": "multipart/form-data"}]
    heads += [{"Host": "evil.example"}, {"Host": ""}, {"Host": "127.0.0.1.evil.example"}]
    yield from ((CHAT, body, head) for head in heads)


def claimed(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is so large."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
