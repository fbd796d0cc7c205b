"""Conversations on the device: turns as token slots, and the ring of past turns that a sampler looks back at.

    slots of a turn   [ pad obs obs img img img img obs | ans ans ans end pad ]
                        0 .......................... O-1  O ............... S-1     S = O + G

All environments of a batch stand at the same turn; padding is masked and takes no position, so positions differ.
A window of W turns keeps W - 1 past ones. Source: DESIGN 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvlmrl.models.attention import KeyValue
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy
from jaxvlmrl.text.chat import AFTER_ANSWER, AFTER_CUT_ANSWER, FIRST_TURN, Observation


class Turns(NamedTuple):
    """Token slots of turns, any leading axes."""

    observation: Observation  # ids and valid [..., O]
    answer_ids: jax.Array  # [..., G] int32
    answer_valid: jax.Array  # [..., G] bool, the end token included
    position: jax.Array  # [...] int32, position of the turn's first token
    episode: jax.Array  # [...] int32, differs between an environment's episodes; negative where there is no turn

    @property
    def valid(self) -> jax.Array:
        """[..., S] bool: slots that hold a token."""
        return jnp.concatenate([self.observation.valid, self.answer_valid], axis=-1) & (self.episode >= 0)[..., None]


class Place(NamedTuple):
    """Where each environment stands in its conversation: what the next observation is made from. Fields [B]."""

    beginning: jax.Array  # int32, what the next observation follows
    turn: jax.Array  # int32, turns of this episode so far
    position: jax.Array  # int32, the next token's
    episode: jax.Array  # int32

    @classmethod
    def start(cls, policy: Policy, batch: int) -> "Place":
        zeros = jnp.zeros(batch, jnp.int32)
        return cls(zeros + FIRST_TURN, zeros, zeros + len(policy.chat.prefix_ids), zeros)

    def observation(self, policy: Policy) -> Observation:
        return policy.chat.observation(self.beginning, self.turn)

    def after(self, policy: Policy, turns: Turns, is_done: jax.Array) -> "Place":
        """The place after one turn [B] that ended an episode where `is_done`."""
        is_ended = jnp.any((turns.answer_ids == policy.chat.end_id) & turns.answer_valid, axis=-1)
        going_on = Place(
            jnp.where(is_ended, AFTER_ANSWER, AFTER_CUT_ANSWER),
            self.turn + 1,
            self.position + policy.positions_taken(turns.valid),
            self.episode,
        )
        fresh = Place.start(policy, len(is_done))._replace(episode=self.episode + 1)
        return jax.tree.map(lambda new, old: jnp.where(is_done, new, old), fresh, going_on)


class Ring(NamedTuple):
    """Keys and values of the last W - 1 turns; the slot of turn t is t mod (W - 1)."""

    kv: list[KeyValue]  # [B, K, (W - 1) S, H] by layer
    valid: jax.Array  # [B, (W - 1) S] bool: a token, and of the episode under way

    @classmethod
    def empty(cls, policy: Policy, batch: int) -> "Ring":
        text, slots = policy.model.text, (policy.window - 1) * policy.chat.tokens_per_turn
        zeros = jnp.zeros((batch, text.num_kv_heads, slots, text.head_dim), policy.model.dtype)
        return cls([KeyValue(zeros, zeros)] * text.num_layers, jnp.zeros((batch, slots), bool))

    def write(self, turn: jax.Array, kv: list[KeyValue], valid: jax.Array) -> "Ring":
        """With one turn's keys and values [B, K, S, H] by layer in the slot of the oldest."""
        size = valid.shape[-1]
        if not self.valid.shape[-1]:
            return self
        start = (turn % (self.valid.shape[-1] // size)) * size
        put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=old.ndim - 2)
        valid = jax.lax.dynamic_update_slice_in_dim(self.valid, valid, start, axis=1)
        return Ring(jax.tree.map(put, self.kv, kv), valid)

    def forget(self, is_done: jax.Array) -> "Ring":
        """Without what belongs to episodes that ended."""
        return self._replace(valid=self.valid & ~is_done[:, None])


def embed_turns(policy: Policy, params: Params, turns: Turns, image_tokens: jax.Array) -> jax.Array:
    """[..., S, D] embeddings of all slots of turns, given the pictures' tokens [..., I, D]."""
    observation = policy.embed_observation(params, turns.observation, image_tokens)
    return jnp.concatenate([observation, policy.model.embed(params, turns.answer_ids)], axis=-2)
