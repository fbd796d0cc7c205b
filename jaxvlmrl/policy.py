"""A model that speaks: from token slots to hidden states, and from hidden states to the distribution of the next token.

Sampler and trainer are this one policy. `next_token` holds everything that shapes the sampling distribution: special ids,
the answer grammar, the temperature; so a token's log-prob is that of the distribution it was drawn from, on both sides.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.environment import TextEnvironment
from jaxvlmrl.models.attention import KeyValue, attend_causally
from jaxvlmrl.models.decoder import VisionLanguageModel
from jaxvlmrl.models.layers import Params
from jaxvlmrl.text.answers import Grammar, grammar_of, read_answer
from jaxvlmrl.text.chat import Chat, Observation

FORBIDDEN = -1e30  # finite: a token with it is never drawn and gives no gradient


class NextToken(NamedTuple):
    """A distribution over the vocabulary, float32."""

    log_probs: jax.Array  # [..., V]

    def of(self, ids: jax.Array) -> jax.Array:
        """Log-probs of ids [...]."""
        return jnp.take_along_axis(self.log_probs, ids[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        """In nats, [...]."""
        return -jnp.sum(jnp.exp(self.log_probs) * jnp.maximum(self.log_probs, FORBIDDEN / 2), axis=-1)


class Judged(NamedTuple):
    """What is said of given tokens, all of one shape."""

    log_prob: jax.Array  # float32
    entropy: jax.Array  # of the distribution they came from, in nats
    is_likeliest: jax.Array  # bool: no other token had a higher probability


def likeliest(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """[..., V] bool: the tokens that top-k and top-p sampling leave. Of equally likely ones at the border all stay."""
    ordered = -jnp.sort(-logits, axis=-1)
    if top_k:
        rank = jnp.broadcast_to(jnp.arange(ordered.shape[-1]), ordered.shape)
        ordered = jnp.where(rank < top_k, ordered, FORBIDDEN)
    probs = jax.nn.softmax(ordered, axis=-1)
    is_needed = (jnp.cumsum(probs, axis=-1) - probs < top_p) & (ordered > FORBIDDEN / 2)
    last = jnp.min(jnp.where(is_needed, ordered, jnp.inf), axis=-1, keepdims=True)
    return logits >= last


@dataclass(unsafe_hash=True)
class Policy:
    """A model with its conversation and its answers. `window` turns are in sight, the current one included."""

    model: VisionLanguageModel
    chat: Chat
    env: TextEnvironment
    window: int
    constrained: bool
    temperature: float
    top_k: int = 0  # only the k likeliest tokens can be drawn; 0 for all
    top_p: float = 1.0  # only the likeliest that together have this probability
    tokens_at_once: int = 0  # of a vocabulary's log-probs in training; 0 for all of a minibatch
    thought_tokens: int = 0  # at most so many before the command; 0 for commands alone

    @cached_property
    def grammar(self) -> Grammar:
        """What may follow what: the canonical commands, or anything but special tokens; a thought before is free."""
        vocab_size, never = self.chat.tokenizer.vocab_size, self.chat.never_sampled
        grammar = Grammar.anything_but(never, vocab_size)
        if self.constrained:
            answers = [self.chat.answer_ids(self.env.answer_text(action)) for action in self.env.actions()]
            grammar = grammar_of(answers, vocab_size)
        if not self.thought_tokens:
            return grammar
        leaves_out = (*never, self.chat.end_id) if self.constrained else never
        in_thought = Grammar.anything_but(leaves_out, vocab_size).allows(0)
        return grammar.after_thought(*self.chat.thought_ids, self.thought_tokens, in_thought)

    def next_token(self, params: Params, hidden: jax.Array, grammar_state: jax.Array) -> NextToken:
        """The sampling distribution after hidden states [..., D] in grammar states [...]."""
        logits = self.model.logits(params, hidden)
        grammar = self.grammar
        may_follow = jnp.asarray(grammar.allowed)[jnp.asarray(grammar.row)[grammar_state]]
        padding = logits.shape[-1] - may_follow.shape[-1]  # a vocabulary may have more rows than the tokenizer has ids
        may_follow = jnp.pad(may_follow, [(0, 0)] * (may_follow.ndim - 1) + [(0, padding)])
        logits = jnp.where(may_follow, logits / self.temperature, FORBIDDEN)
        if self.top_k or self.top_p < 1:
            logits = jnp.where(likeliest(logits, self.top_k, self.top_p), logits, FORBIDDEN)
        return NextToken(jax.nn.log_softmax(logits, axis=-1))

    def judge_tokens(self, params: Params, hidden: jax.Array, ids: jax.Array, grammar_states: jax.Array) -> Judged:
        """Tokens `ids` [...] after hidden states [..., D]: what training needs of their distributions.

        `tokens_at_once` of them at a time, computed again in the backward pass: no array of all tokens by the vocabulary.
        """

        def judge(part: tuple[jax.Array, jax.Array, jax.Array]) -> Judged:
            hidden, ids, states = part
            distribution = self.next_token(params, hidden, states)
            log_prob = distribution.of(ids)
            return Judged(log_prob, distribution.entropy(), log_prob >= jnp.max(distribution.log_probs, axis=-1))

        count = ids.size
        if not 0 < self.tokens_at_once < count:
            return judge((hidden, ids, grammar_states))
        flat = (hidden.reshape(count, -1), ids.reshape(-1), grammar_states.reshape(-1))
        padded = -count % self.tokens_at_once
        parts = jax.tree.map(
            lambda x: jnp.pad(x, [(0, padded)] + [(0, 0)] * (x.ndim - 1)).reshape(
                -1, self.tokens_at_once, *x.shape[1:]
            ),
            flat,
        )
        judged = jax.lax.map(jax.checkpoint(judge), parts)
        return Judged(*(x.reshape(-1)[:count].reshape(ids.shape) for x in judged))

    def grammar_step(self, grammar_state: jax.Array, ids: jax.Array) -> jax.Array:
        grammar = self.grammar
        return jnp.asarray(grammar.next_state)[grammar_state, jnp.asarray(grammar.column)[ids]]

    @cached_property
    def _slots(self) -> tuple[np.ndarray, np.ndarray]:
        """Of a turn's S slots: how far a token there moves the running position, and its own offset from it.

        A picture's tokens all stand at the position where it begins, at the model's offsets from it.
        """
        offsets, advance = self.model.image_positions()
        start, end = self.chat.image_slot, self.chat.image_slot + len(offsets)
        moves = np.ones(self.chat.tokens_per_turn, np.int32)
        moves[start:end] = 0
        moves[end - 1] = advance
        of_slot = np.zeros((self.chat.tokens_per_turn, *offsets.shape[1:]), np.int32)
        of_slot[start:end] = offsets
        return moves, of_slot

    def positions(self, start: jax.Array, valid: jax.Array) -> jax.Array:
        """[..., S] or [..., S, 3] int32: positions of a turn's slots, or of its first few; padding takes none."""
        moves, offsets = (table[: valid.shape[-1]] for table in self._slots)
        moved = valid * jnp.broadcast_to(moves, valid.shape)
        before = start[..., None] + jnp.cumsum(moved, axis=-1) - moved
        if offsets.ndim > 1:
            before = jnp.broadcast_to(before[..., None], (*valid.shape, offsets.shape[-1]))
        return before + jnp.broadcast_to(offsets, before.shape)

    def positions_taken(self, valid: jax.Array) -> jax.Array:
        """[...] int32: how far a turn with tokens in the slots `valid` [..., S] moves the running position."""
        return jnp.sum(valid * jnp.broadcast_to(self._slots[0], valid.shape), axis=-1)

    def prefix(self, params: Params) -> list[KeyValue]:
        """Keys and values [K, P, H] by layer of the conversation's start, shared by all environments."""
        ids = jnp.asarray(self.chat.prefix_ids, jnp.int32)
        x = self.model.embed(params, ids)
        return self.model.decode(params, x, jnp.arange(len(ids)), None, attend_causally)[1]

    def embed_observation(self, params: Params, observation: Observation, image_tokens: jax.Array) -> jax.Array:
        """[..., O, D] with the picture's tokens [..., I, D] in their slots."""
        start = self.chat.image_slot
        text = self.model.embed(params, observation.ids)
        end = start + self.chat.num_image_tokens
        return jnp.concatenate([text[..., :start, :], image_tokens.astype(text.dtype), text[..., end:, :]], axis=-2)

    def read(self, ids: jax.Array, valid: jax.Array) -> jax.Array:
        """Actions [B] of sampled answers [B, G]."""
        parser = self.env.answer_parser()
        return jax.vmap(lambda i, v: read_answer(parser, self.chat.tokenizer, i, v))(ids, valid)
