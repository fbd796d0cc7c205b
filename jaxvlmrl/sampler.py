"""One turn of a batch of conversations: the observation in, an answer out, token by token with cached keys and values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxvlmrl.conversation import Place, Ring, Turns
from jaxvlmrl.models.attention import KeyValue, attend_parts, attention_weights, heads_first
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy
from jaxvlmrl.text.chat import Observation


class Answer(NamedTuple):
    """What was sampled in one turn. G tokens an answer, padded on the right."""

    ids: jax.Array  # [B, G] int32
    valid: jax.Array  # [B, G] bool
    log_probs: jax.Array  # [B, G] float32, of the sampling distribution; 0 where not valid
    grammar_states: jax.Array  # [B, G] int32, in which each token was drawn
    prompt_hidden: jax.Array  # [B, D]


class _Decoding(NamedTuple):
    index: jax.Array
    hidden: jax.Array  # [B, D], predicts the next token
    kv: list[KeyValue]  # of the turn under way, [B, K, S, H] by layer
    grammar_state: jax.Array  # [B]
    is_over: jax.Array  # [B]
    answer: Answer


def take_turn(
    policy: Policy, params: Params, ring: Ring, prefix: list[KeyValue], place: Place,
    image_tokens: jax.Array, key: jax.Array, greedy: jax.Array | bool = False,
) -> tuple[Answer, Turns, list[KeyValue]]:  # fmt: skip
    """(answer, the turn as token slots, its keys and values): for every environment of the batch, stopping early."""
    observation = place.observation(policy)
    hidden, kv = read_observation(policy, params, ring, prefix, place, observation, image_tokens)
    state = _start(policy, hidden, kv)
    budget = policy.chat.max_answer_tokens

    def step(state: _Decoding) -> _Decoding:
        state, ids = _draw(policy, params, state, jax.random.fold_in(key, state.index), greedy)
        return _feed(policy, params, state, ids, ring, prefix, place, observation)

    state = jax.lax.while_loop(lambda s: (s.index < budget) & ~jnp.all(s.is_over), step, state)
    turn = Turns(observation, state.answer.ids, state.answer.valid, place.position, place.episode)
    return state.answer, turn, state.kv


def read_observation(
    policy: Policy, params: Params, ring: Ring, prefix: list[KeyValue], place: Place,
    observation: Observation, image_tokens: jax.Array,
) -> tuple[jax.Array, list[KeyValue]]:  # fmt: skip
    """(hidden state [B, D] at the prompt's last token, keys and values [B, K, S, H] by layer of the turn so far)."""
    length, budget = policy.chat.num_observation_tokens, policy.chat.max_answer_tokens
    x = policy.embed_observation(params, observation, image_tokens)
    positions = policy.positions(place.position, observation.valid)
    causal = jnp.tril(jnp.ones((length, length), bool))[None] & observation.valid[:, None, :]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, past: tuple[KeyValue, KeyValue]):
        kv = heads_first(k, v)
        seen = causal[:, -q.shape[1] :]
        out = attend_parts(q, [*past_parts(past, ring, q.shape[1]), (kv, seen)])
        return out, jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, budget), (0, 0))), kv)

    hidden, kv = policy.model.decode(params, x, positions, list(zip(prefix, ring.kv)), attend, lambda x: x[:, -1:])
    return hidden[:, 0], kv


def attention(
    policy: Policy,
    params: Params,
    ring: Ring,
    prefix: list[KeyValue],
    place: Place,
    turns: Turns,
    image_tokens: jax.Array,
) -> jax.Array:
    """[layers, B, N, S, S] float32: how a turn's tokens looked at each other, queries before keys; the past's share is left
    out."""
    valid = turns.valid
    slots = valid.shape[-1]
    observation = policy.embed_observation(params, turns.observation, image_tokens)
    x = jnp.concatenate([observation, policy.model.embed(params, turns.answer_ids)], axis=-2)
    causal = jnp.tril(jnp.ones((slots, slots), bool))[None] & valid[:, None, :]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, past: tuple[KeyValue, KeyValue]):
        parts = [*past_parts(past, ring, slots), (heads_first(k, v), causal)]
        of_heads = rearrange(attention_weights(q, parts), "b k g q s -> b (k g) q s")
        return attend_parts(q, parts), of_heads[..., -slots:]

    positions = policy.positions(place.position, valid)
    return jnp.stack(policy.model.decode(params, x, positions, list(zip(prefix, ring.kv)), attend)[1])


def past_parts(past: tuple[KeyValue, KeyValue], ring: Ring, length: int):
    """What every token of a turn may look at: the conversation's start and the turns before."""
    start, turns = past
    batch, slots = ring.valid.shape
    everywhere = jnp.ones((batch, length, start.keys.shape[-2]), bool)
    return [(start, everywhere), (turns, jnp.broadcast_to(ring.valid[:, None, :], (batch, length, slots)))]


def _start(policy: Policy, hidden: jax.Array, kv: list[KeyValue]) -> _Decoding:
    batch, budget = len(hidden), policy.chat.max_answer_tokens
    nothing = jnp.zeros((batch, budget), jnp.int32)
    answer = Answer(nothing, nothing.astype(bool), nothing.astype(jnp.float32), nothing, hidden)
    over = jnp.zeros(batch, bool)
    return _Decoding(jnp.int32(0), hidden, kv, jnp.zeros(batch, jnp.int32), over, answer)


def _draw(policy: Policy, params: Params, state: _Decoding, key: jax.Array, greedy: jax.Array | bool):
    """The state with one more token noted for every answer that is not over, and those tokens [B]."""
    distribution = policy.next_token(params, state.hidden, state.grammar_state)
    log_probs = distribution.log_probs
    scores = log_probs + jnp.where(greedy, 0.0, jax.random.gumbel(key, log_probs.shape))
    ids = first_maximum(scores)
    ids = jnp.where(state.is_over, 0, ids)
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new[:, None].astype(old.dtype), state.index, axis=1)
    was = state.answer
    answer = was._replace(
        ids=put(was.ids, ids),
        valid=put(was.valid, ~state.is_over),
        log_probs=put(was.log_probs, jnp.where(state.is_over, 0.0, distribution.of(ids))),
        grammar_states=put(was.grammar_states, state.grammar_state),
    )
    is_over = state.is_over | (ids == policy.chat.end_id)
    grammar_state = jnp.where(is_over, 0, policy.grammar_step(state.grammar_state, ids))
    return state._replace(answer=answer, is_over=is_over, grammar_state=grammar_state), ids


def first_maximum(x: jax.Array) -> jax.Array:
    """argmax over the last axis as two plain reductions: XLA's own took a tenth of a rollout on a CPU."""
    is_maximum = x == jnp.max(x, axis=-1, keepdims=True)
    places = jnp.broadcast_to(jnp.arange(x.shape[-1], dtype=jnp.int32), x.shape)
    return jnp.min(jnp.where(is_maximum, places, x.shape[-1] - 1), axis=-1)


def _feed(
    policy: Policy, params: Params, state: _Decoding, ids: jax.Array, ring: Ring, prefix: list[KeyValue], place: Place,
    observation: Observation,
) -> _Decoding:  # fmt: skip
    """The state after the tokens just drawn have been read; also the last one, which the next turns look at."""
    slot = policy.chat.num_observation_tokens + state.index
    valid = jnp.concatenate([observation.valid, state.answer.valid], axis=-1)
    positions = jax.lax.dynamic_slice_in_dim(policy.positions(place.position, valid), slot, 1, axis=1)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, kept):
        *past, kv = kept
        new = heads_first(k, v)
        kv = jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, slot, axis=2), kv, new)
        return attend_parts(q, [*past_parts(tuple(past), ring, 1), (kv, valid[:, None, :])]), kv

    x = policy.model.embed(params, ids)[:, None, :]
    hidden, kv = policy.model.decode(params, x, positions, list(zip(prefix, ring.kv, state.kv)), attend)
    return state._replace(index=state.index + 1, hidden=hidden[:, 0], kv=kv)
