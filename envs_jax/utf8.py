"""UTF-8 on the device, one byte at a time, as Python's `bytes.decode("utf-8", errors="replace")` reads it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NOT_YET = -1  # no character ends with this byte
REPLACEMENT = 0xFFFD


class Utf8State(NamedTuple):
    """A character under way."""

    value: jax.Array  # int32, its bits so far
    remaining: jax.Array  # int32, bytes to come
    low: jax.Array  # int32, the range of the next byte: no overlong forms, no surrogates
    high: jax.Array


def start() -> Utf8State:
    return Utf8State(jnp.int32(0), jnp.int32(0), jnp.int32(0x80), jnp.int32(0xBF))


def feed(state: Utf8State, byte: jax.Array) -> tuple[Utf8State, jax.Array, jax.Array]:
    """(state, character that ends here or `NOT_YET`, whether a broken character came to its end before this byte)."""
    continues = (state.remaining > 0) & (state.low <= byte) & (byte <= state.high)
    is_broken = (state.remaining > 0) & ~continues
    is_ascii = byte < 0x80
    extra = jnp.where(byte >= 0xF0, 3, jnp.where(byte >= 0xE0, 2, 1))
    is_lead = (byte >= 0xC2) & (byte <= 0xF4)
    low = jnp.where(byte == 0xE0, 0xA0, jnp.where(byte == 0xF0, 0x90, 0x80))
    high = jnp.where(byte == 0xED, 0x9F, jnp.where(byte == 0xF4, 0x8F, 0xBF))
    value = jnp.where(continues, (state.value << 6) | (byte & 0x3F), byte & (0x3F >> extra))
    remaining = jnp.where(continues, state.remaining - 1, jnp.where(is_lead, extra, 0))
    alone = jnp.where(is_ascii, byte, REPLACEMENT)
    character = jnp.where(remaining > 0, NOT_YET, jnp.where(continues, value, alone))
    after = Utf8State(value, remaining, jnp.where(continues, 0x80, low), jnp.where(continues, 0xBF, high))
    return after, character, is_broken
