"""Plain generation: one prompt in, tokens out, with cached keys and values. For a model by itself, outside of conversations.

The conversation's sampler (jaxvlmrl/sampler.py) shares the model's `decode`; this is its shortest use.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvlmrl.models.attention import KeyValue, attend_parts, heads_first
from jaxvlmrl.models.decoder import LanguageModel, VisionLanguageModel
from jaxvlmrl.models.layers import Params

Choose = Callable[[jax.Array, jax.Array], jax.Array]  # (logits [B, V], key) -> ids [B]


class _State(NamedTuple):
    index: jax.Array
    hidden: jax.Array  # [B, D], predicts the next token
    kv: list[KeyValue]  # [B, K, L + N, H] by layer
    ids: jax.Array  # [B, N]
    is_over: jax.Array  # [B]


def greedy(logits: jax.Array, key: jax.Array) -> jax.Array:
    del key
    return jnp.argmax(logits, axis=-1)


def prompt(
    model: LanguageModel, params: Params, ids: jax.Array, image_tokens: jax.Array | None = None, image_id: int = -1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(embeddings [B, L, E], positions [B, L] or [B, L, 3], next position [B]) of prompts of one wording, ids [B, L].

    The pictures' tokens [B, pictures, I, E] fill the slots that hold `image_id`, in order.
    """
    x = model.embed(params, ids)
    if image_tokens is None:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        return x, positions, jnp.full(len(ids), ids.shape[1])
    assert isinstance(model, VisionLanguageModel)
    offsets, advance = (jnp.asarray(part) for part in model.image_positions())
    is_image = ids == image_id
    number = jnp.cumsum(is_image, axis=-1) - 1  # of an image token among all
    flat = image_tokens.reshape(len(ids), -1, x.shape[-1]).astype(x.dtype)
    filled = jnp.take_along_axis(flat, jnp.maximum(number, 0)[..., None], axis=1)
    x = jnp.where(is_image[..., None], filled, x)
    within = jnp.maximum(number, 0) % len(offsets)
    moves = jnp.where(is_image, jnp.where(within == len(offsets) - 1, advance, 0), 1)
    before = jnp.cumsum(moves, axis=-1) - moves
    own = jnp.where(is_image.reshape(*ids.shape, *[1] * (offsets.ndim - 1)), offsets[within], 0)
    positions = before + own if offsets.ndim == 1 else before[..., None] + own
    return x, positions, jnp.sum(moves, axis=-1)


def generate(
    model: LanguageModel, params: Params, x: jax.Array, positions: jax.Array, next_position: jax.Array, num_tokens: int,
    end_id: int = -1, choose: Choose = greedy, key: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """[B, num_tokens] int32 continuations of what `prompt` made; zeros after `end_id`, and the loop ends when all have."""
    batch, length, _ = x.shape
    key = jax.random.key(0) if key is None else key
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))

    def read(q: jax.Array, k: jax.Array, v: jax.Array, kept: None):
        kv = heads_first(k, v)
        room = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, num_tokens), (0, 0))), kv)
        return attend_parts(q, [(kv, causal[:, -q.shape[1] :])]), room

    decoding = model.unstacked(params)
    hidden, kv = model.decode(decoding, x, positions, None, read, lambda x: x[:, -1:])
    nothing = jnp.zeros((batch, num_tokens), jnp.int32)
    state = _State(jnp.int32(0), hidden[:, 0], kv, nothing, jnp.zeros(batch, bool))

    def step(state: _State) -> _State:
        logits = model.logits(decoding, state.hidden)
        ids = choose(logits, jax.random.fold_in(key, state.index)).astype(jnp.int32)
        ids = jnp.where(state.is_over, 0, ids)
        slot = length + state.index
        seen = jnp.broadcast_to(jnp.arange(length + num_tokens) <= slot, (batch, 1, length + num_tokens))

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: KeyValue):
            put = lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, slot, axis=2)
            cache = jax.tree.map(put, cache, heads_first(k, v))
            return attend_parts(q, [(cache, seen)]), cache

        position = (next_position + state.index)[:, None]
        hidden, kv = model.decode(decoding, model.embed(decoding, ids)[:, None], position, state.kv, attend)
        all_ids = jax.lax.dynamic_update_slice_in_dim(state.ids, ids[:, None], state.index, axis=1)
        return _State(state.index + 1, hidden[:, 0], kv, all_ids, state.is_over | (ids == end_id))

    return jax.lax.while_loop(lambda s: (s.index < num_tokens) & ~jnp.all(s.is_over), step, state).ids
