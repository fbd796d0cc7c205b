"""A chat completions endpoint, asked until it answers: `POST <base_url>/chat/completions`.

Knows nothing of games. What may pass is tried again: 408, 409, 429, 5xx, timeouts, broken connections, replies that cannot
be read. The key is the environment's OPENAI_API_KEY; it is in the requests' header, and struck out of whatever is said of
a reply.
"""

import asyncio
import email.utils
import os
import random
import re
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx

from jaxvlmrl.config import ConfigError

KEY = "OPENAI_API_KEY"
MAY_PASS = {408, 409, 429}  # and 5xx
LONGEST_PAUSE_S = 60.0  # of our own; Retry-After may ask for more
SAID = 300  # characters of a refusal that are passed on
TOO_LONG = re.compile(  # codes and words of servers for a conversation that does not fit the model
    r"context[ _](length|window|size)|maximum (model|prompt|sequence|input) length|too many (input )?tokens"
    r"|(prompt|input|conversation|messages?) (is|are) too long|exceeds the maximum number of tokens",
    re.IGNORECASE,
)


class Refused(ConfigError):
    """The request will not be served, however often it is sent."""


class TooLong(Refused):
    """The conversation is more than the endpoint takes; a shorter one may be served. `failures` has the tries before."""

    def __init__(self, message: str):
        super().__init__(message)
        self.failures: list[str] = []


class GaveUp(Exception):
    """All tries failed."""

    def __init__(self, failures: list[str]):
        super().__init__(f"no answer in {len(failures)} tries, the last one: {failures[-1]}")
        self.failures = failures


class Again(Exception):
    """A try failed, and the next one may not; `pause_s` is what Retry-After asks for."""

    def __init__(self, message: str, pause_s: float = 0.0):
        super().__init__(message)
        self.pause_s = pause_s


class Reply(NamedTuple):
    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    latency_s: float  # of the try that was answered
    failures: list[str]  # of the tries before


class Endpoint:
    """Use as `async with`; `ask` may be called by many at once."""

    def __init__(self, base_url: str, timeout_s: float, retries: int, backoff_s: float):
        self.timeout_s, self.retries, self.backoff_s = timeout_s, retries, backoff_s
        self.key = os.environ.get(KEY, "").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError(f"{KEY} holds characters that no key has")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.url = f"{base_url.rstrip('/')}/chat/completions"
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout_s, limits=httpx.Limits())  # as many as ask

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, request: dict[str, Any]) -> Reply:
        """Raises `Refused`, `TooLong` among them, or `GaveUp` after the last retry."""
        failures: list[str] = []
        while True:
            try:
                return (await self._try(request))._replace(failures=failures)
            except TooLong as refusal:
                refusal.failures = failures
                raise
            except Again as problem:
                failures.append(str(problem))
                if len(failures) > self.retries:
                    raise GaveUp(failures) from problem
                await asyncio.sleep(self._pause(len(failures), problem.pause_s))

    async def _try(self, request: dict[str, Any]) -> Reply:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout_s):  # httpx's own is one of each read: a dripping reply passes it
                response = await self._client.post(self.url, json=request)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Again(f"nothing within {self.timeout_s:g} s") from error
        except httpx.RequestError as error:
            raise Again(self._struck(f"{type(error).__name__} {error}".strip())) from error
        self._check(response)
        return self._read(response)._replace(latency_s=time.perf_counter() - started)

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in MAY_PASS or status >= 500:
            raise Again(f"status {status}{self._said(response)}", retry_after(response.headers.get("Retry-After", "")))
        if status != 200:
            hint = f" ({KEY} is not set)" if status == 401 and not self.key else ""
            is_too_long = status == 413 or (status == 400 and TOO_LONG.search(response.text) is not None)
            kind = TooLong if is_too_long else Refused
            raise kind(f"{self.url} refuses the request with status {status}{hint}{self._said(response)}")

    def _read(self, response: httpx.Response) -> Reply:
        try:
            data = response.json()
            choice = data["choices"][0]
            message = choice["message"]
            text = in_words(message.get("content")) or in_words(message.get("refusal"))
            usage = data.get("usage") or {}
            asked, replied = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
            return Reply(text, asked, replied, choice.get("finish_reason"), 0.0, [])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Again(f"a reply that is no chat completion{self._said(response)}") from error

    def _said(self, response: httpx.Response) -> str:
        """What a reply says is wrong, as the end of a sentence."""
        text = response.text
        try:
            error = response.json()["error"]
            text = error["message"] if isinstance(error, dict) else error
        except (ValueError, LookupError, TypeError):
            pass
        said = self._struck(" ".join(str(text).split()))[:SAID]
        return f": {said}" if said else ""

    def _struck(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text

    def _pause(self, failures: int, asked_s: float) -> float:
        """Seconds before the next try: doubled with every failure, a random half of it, never less than asked for."""
        own = min(self.backoff_s * 2 ** (failures - 1), LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
        return max(own, asked_s + self.backoff_s * random.uniform(0.0, 0.1))


def in_words(content: Any) -> str:
    """The text of a message's content: a string, parts of which some are text, or nothing."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content if isinstance(content, str) else ""


def count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for, a number or a date; 0 for anything else."""
    if value.strip().replace(".", "", 1).isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when.tzinfo else 0.0
