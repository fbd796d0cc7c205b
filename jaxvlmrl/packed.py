"""Whole trajectories as ONE teacher-forced sequence each, attending as the sampler's ring does.

A turn sees the conversation's start, the W - 1 turns before it and itself, within its episode. Turns are attended to in
blocks of W - 1: a block needs itself and the block before, so cost grows with T x W and not with T x T.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxvlmrl.conversation import Turns, embed_turns
from jaxvlmrl.models.attention import KeyValue, attend_parts, heads_first
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy


class Packed(NamedTuple):
    """What a teacher-forced pass yields."""

    answer_hidden: jax.Array  # [B, T, G, D], the states that predict the answers' tokens
    prompt_hidden: jax.Array  # [B, T, D], the states at the prompts' last tokens
    kv: list[KeyValue]  # [B, K, T S, H] by layer


def forward(policy: Policy, params: Params, turns: Turns, image_tokens: jax.Array, prefix: list[KeyValue]) -> Packed:
    """One pass over turns [B, T, ...] with pictures' tokens [B, T, I, D], after the shared start of `policy.prefix`."""
    batch, length = turns.episode.shape
    block = max(policy.window - 1, 1)
    padded = -length % block
    pad = lambda x: jnp.pad(x, [(0, 0), (0, padded)] + [(0, 0)] * (x.ndim - 2))
    x = pad(embed_turns(policy, params, turns, image_tokens))
    slots = x.shape[2]
    num_blocks = (length + padded) // block
    in_blocks = lambda x: x.reshape(batch, num_blocks, block * slots, *x.shape[3:])
    positions = in_blocks(pad(policy.positions(turns.position, turns.valid)))
    mask = band_mask(turns, policy.window, padded, block)

    first = policy.chat.num_observation_tokens - 1

    def pick_predicting(x: jax.Array) -> jax.Array:
        """The slots whose states predict an answer's tokens: G of each turn's S."""
        of_turns = x.reshape(batch, num_blocks, block, slots, *x.shape[3:])[:, :, :, first:-1]
        return of_turns.reshape(batch, num_blocks, -1, *x.shape[3:])

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, start: KeyValue):
        kv = heads_first(k, v)
        band = KeyValue(*(with_previous_block(part) for part in kv))
        seen = mask if q.shape[2] == mask.shape[2] else pick_predicting(mask)
        everywhere = jnp.ones((*q.shape[:3], start.keys.shape[-2]), bool)
        return attend_parts(q, [(start, everywhere), (band, seen)]), kv

    hidden, kv = policy.model.decode(params, in_blocks(x), positions, prefix, attend, pick_predicting)
    hidden = hidden.reshape(batch, num_blocks * block, slots - first - 1, -1)[:, :length]
    # [..., blocks, K, block S, H] -> [..., K, T S, H]
    joined = lambda y: rearrange(y, "... n k s h -> ... k (n s) h")[..., : length * slots, :]
    return Packed(hidden, hidden[:, :, 0], jax.tree.map(joined, kv))


def with_previous_block(x: jax.Array) -> jax.Array:
    """[B, blocks, K, tokens, H] with each block's predecessor in front of it: twice the tokens."""
    previous = jnp.pad(x, [(0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 2))[:, :-1]
    return jnp.concatenate([previous, x], axis=-2)


def band_mask(turns: Turns, window: int, padded: int, block: int) -> jax.Array:
    """[B, blocks, block S, 2 block S] bool: which of a block's and its predecessor's tokens a token may look at.

    Two turns a block (W = 3), one token a turn, no padding: rows are queries, columns keys.

              before  own
        q 0   . x     x .        turn t sees t-2, t-1, t
        q 1   . .     x x        (of "before" the first is out of sight or in it, as the window says)
    """
    valid = jnp.pad(turns.valid, ((0, 0), (0, padded), (0, 0)))
    batch, length, slots = valid.shape
    episode = jnp.pad(turns.episode, ((0, 0), (0, padded)), constant_values=-1)
    tokens = lambda x: jnp.broadcast_to(x, valid.shape).reshape(batch, length // block, block * slots)
    turn = tokens(jnp.arange(length)[None, :, None])
    slot = tokens(jnp.arange(slots)[None, None, :])
    query = (turn, slot, tokens(episode[:, :, None]))

    def keys(x: jax.Array, outside: int) -> jax.Array:
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)), constant_values=outside)[:, :-1]
        return jnp.concatenate([before, x], axis=-1)[:, :, None, :]

    key_turn, key_slot, key_episode = (keys(x, -1) for x in query)
    turn, slot, episode = (x[:, :, :, None] for x in query)
    is_before = (key_turn < turn) | ((key_turn == turn) & (key_slot <= slot))
    is_near = turn - key_turn < window
    return keys(tokens(valid), False) & is_before & is_near & (key_episode == episode)
