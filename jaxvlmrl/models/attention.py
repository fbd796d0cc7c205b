"""Grouped-query attention over the token layouts of a conversation: a start, blocks of turns, and a cached past.

All take queries [*b L N H] and keys and values [*b L K H] with N a multiple of K; masks are True where a query may look.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

HIDDEN = -1e30  # finite, so that a row that may look nowhere stays finite


class KeyValue(NamedTuple):
    """Keys and values of some tokens, heads first as the products want them: [..., K, tokens, H]."""

    keys: jax.Array
    values: jax.Array


def heads_first(k: Float[Array, "*b L K H"], v: Float[Array, "*b L K H"]) -> KeyValue:
    return KeyValue(jnp.swapaxes(k, -3, -2), jnp.swapaxes(v, -3, -2))


def attend_parts(
    q: Float[Array, "*b L N H"], parts: list[tuple[KeyValue, Bool[Array, "..."]]]
) -> Float[Array, "*b L N H"]:
    """Softmax attention over several sets of keys at once, softmax in float32.

    A part is (keys and values [*b K S H], mask [*b L S]); keys without batch axes [K S H] are shared by the batch.
    """
    *batch, length, num_heads, head_dim = q.shape
    num_kv_heads = parts[0][0].keys.shape[-3]
    group = num_heads // num_kv_heads
    weights = attention_weights(q, parts).astype(q.dtype)
    weights = weights.reshape(*batch, num_kv_heads, group * length, -1)
    out, start = jnp.zeros((*batch, num_kv_heads, group * length, head_dim), q.dtype), 0
    for kv, _ in parts:
        size = kv.values.shape[-2]
        part = weights[..., start : start + size]
        shared = kv.values.ndim == 3
        out = out + jnp.einsum("...kqs,ksh->...kqh" if shared else "...kqs,...ksh->...kqh", part, kv.values)
        start += size
    return rearrange(out, "... k (g l) h -> ... l (k g) h", g=group)


def attention_weights(q: Float[Array, "*b L N H"], parts: list[tuple[KeyValue, Bool[Array, "..."]]]) -> jax.Array:
    """[*b, K, N / K, L, keys of all parts] float32, which add up to 1 for every query."""
    *batch, length, num_heads, head_dim = q.shape
    num_kv_heads = parts[0][0].keys.shape[-3]
    group = num_heads // num_kv_heads
    q = rearrange(q, "... l (k g) h -> ... k (g l) h", k=num_kv_heads) * head_dim**-0.5
    scores = []
    for kv, mask in parts:
        shared = kv.keys.ndim == 3
        score = jnp.einsum("...kqh,ksh->...kqs" if shared else "...kqh,...ksh->...kqs", q, kv.keys)
        score = score.reshape(*batch, num_kv_heads, group, length, -1).astype(jnp.float32)
        scores.append(jnp.where(jnp.broadcast_to(mask[..., None, None, :, :], score.shape), score, HIDDEN))
    return jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)


def attend_causally(q: jax.Array, k: jax.Array, v: jax.Array, kept: Any) -> tuple[jax.Array, KeyValue]:
    """Attention within one sequence; keeps its keys and values."""
    length = q.shape[-3]
    kv = heads_first(k, v)
    mask = jnp.tril(jnp.ones((length, length), bool))
    return attend_parts(q, [(kv, jnp.broadcast_to(mask, (*q.shape[:-3], length, length)))]), kv
