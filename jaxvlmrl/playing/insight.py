"""One turn of a policy, and what went on in it: each token's rivals, what else it might have done, where it looked.

One teacher-forced pass beside the sampler's own: row 0 is the answer that was given, the others say every other command
behind the same thought. The answer may also be somebody else's, so a conversation can go on from a person's game.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxvlmrl.acting import Conversation
from jaxvlmrl.conversation import Place, Turns, embed_turns
from jaxvlmrl.models.attention import KeyValue, attend_parts, attention_weights, heads_first
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import FORBIDDEN, Policy
from jaxvlmrl.sampler import past_parts, take_turn
from jaxvlmrl.thinking import is_thought
from jaxvlmrl.tomography import of_picture

RIVALS = 4  # tokens shown beside the one that was said


class Given(NamedTuple):
    """Somebody else's answer, G tokens; it counts where `counts`."""

    ids: jax.Array | np.ndarray  # [G] int32
    valid: jax.Array | np.ndarray  # [G] bool
    counts: bool


class Insight(NamedTuple):
    """Of one turn; log-probs are of the sampling distribution."""

    ids: jax.Array  # [G] int32, the answer's tokens
    valid: jax.Array  # [G] bool
    action: jax.Array  # int32
    log_probs: jax.Array  # [G]
    rival_ids: jax.Array  # [G, RIVALS] the likeliest tokens in their order
    rival_log_probs: jax.Array  # [G, RIVALS]
    of_actions: jax.Array  # [actions] of the canonical wording of each of the environment's actions, end included
    on_image: jax.Array  # [layers, heads, I] attention of the answer's tokens, adding up to at most 1
    prompt_hidden: jax.Array  # [D]


class Read(NamedTuple):
    """What a pass over whole turns yields."""

    hidden: jax.Array  # [B, S, D]
    weights: jax.Array  # [layers, B, N, S, S]
    kv: list[KeyValue]  # [B, K, S, H] by layer


def turn(
    policy: Policy, params: Params, at: Conversation, image: jax.Array, given: Given
) -> tuple[Insight, Conversation]:
    """(what is to be said of the answer, the conversation after it): the greedy answer, or the one that is given."""
    prefix, decoding = policy.prefix(params), policy.model.unstacked(params)
    image_tokens = policy.model.image_tokens(params, image[None])
    key = jax.random.key(0)
    said, turns, said_kv = take_turn(policy, decoding, at.ring, prefix, at.place, image_tokens, key, greedy=True)
    ids = jnp.where(given.counts, given.ids, said.ids[0])
    valid = jnp.where(given.counts, given.valid, said.valid[0])
    other_ids, other_valid, is_command, fits = other_answers(policy, ids, valid)
    rows = jnp.concatenate([ids[None], other_ids]), jnp.concatenate([valid[None], other_valid])
    read = read_turns(policy, decoding, at, prefix, turns.observation, image_tokens, rows)

    first = policy.chat.num_observation_tokens - 1
    hidden, states = read.hidden[:, first:-1], jax.vmap(lambda ids: grammar_states(policy, ids))(rows[0])
    log_probs = policy.judge_tokens(decoding, hidden, rows[0], states).log_prob
    rivals = jax.lax.top_k(policy.next_token(decoding, hidden[0], states[0]).log_probs, RIVALS)
    of_actions = jnp.where(fits, jnp.sum(jnp.where(is_command, log_probs[1:], 0.0), axis=-1), FORBIDDEN)
    own = Turns(turns.observation, ids[None], valid[None], at.place.position, at.place.episode)
    on_image = of_picture(policy, read.weights[:, :1], own.valid, "answer")[:, 0]
    insight = Insight(
        ids, valid, policy.read(ids[None], valid[None])[0], jnp.where(valid, log_probs[0], 0.0), rivals[1], rivals[0],
        of_actions, on_image, read.hidden[0, first],
    )  # fmt: skip
    forced_kv = jax.tree.map(lambda x: x[:1], read.kv)
    kv = jax.tree.map(lambda forced, sampled: jnp.where(given.counts, forced, sampled), forced_kv, said_kv)
    place = at.place.after(policy, own, jnp.zeros(1, bool))
    return insight, Conversation(place, at.ring.write(at.turn, kv, own.valid), at.turn + 1)


def other_answers(policy: Policy, ids: jax.Array, valid: jax.Array) -> tuple[jax.Array, ...]:
    """An answer [G] with every action's command in place of its own.

    (ids, valid, which tokens are the command's, all [actions, G]; whether it fits [actions])
    """
    texts = [policy.env.answer_text(action) for action in policy.env.actions()]
    table_ids, table_valid = map(jnp.asarray, policy.chat.answer_table(texts))
    thought = jnp.sum(is_thought(policy, ids, valid)) if policy.thought_tokens else jnp.int32(0)
    behind = jnp.arange(len(ids)) - thought
    is_behind, slot = behind >= 0, jnp.maximum(behind, 0)

    def instead(command_ids: jax.Array, command_valid: jax.Array) -> tuple[jax.Array, ...]:
        is_command = is_behind & command_valid[slot]
        fits = thought + jnp.sum(command_valid) <= len(ids)
        return jnp.where(is_behind, command_ids[slot], ids), jnp.where(is_behind, is_command, valid), is_command, fits

    return jax.vmap(instead)(table_ids, table_valid)


def grammar_states(policy: Policy, ids: jax.Array) -> jax.Array:
    """[G] int32: the grammar's state in which each token of an answer stands."""
    step = lambda state, token: (policy.grammar_step(state, token), state)
    return jax.lax.scan(step, jnp.int32(0), ids)[1]


def read_turns(
    policy: Policy, params: Params, at: Conversation, prefix: list[KeyValue], observation, image_tokens: jax.Array,
    rows: tuple[jax.Array, jax.Array],
) -> Read:  # fmt: skip
    """One pass over a turn with B answers, ids and valid [B, G], to the same picture after the same past."""
    many = lambda x: jnp.broadcast_to(x, (len(rows[0]), *x.shape[1:]))
    place, ring, seen = Place(*map(many, at.place)), jax.tree.map(many, at.ring), jax.tree.map(many, observation)
    turns = Turns(seen, *rows, place.position, place.episode)
    valid = turns.valid
    slots = valid.shape[-1]
    causal = jnp.tril(jnp.ones((slots, slots), bool))[None] & valid[:, None, :]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, past: tuple[KeyValue, KeyValue]):
        kv = heads_first(k, v)
        parts = [*past_parts(past, ring, slots), (kv, causal)]
        of_heads = rearrange(attention_weights(q, parts), "b k g q s -> b (k g) q s")
        return attend_parts(q, parts), (of_heads[..., -slots:], kv)

    x = embed_turns(policy, params, turns, many(image_tokens))
    positions = policy.positions(place.position, valid)
    hidden, kept = policy.model.decode(params, x, positions, list(zip(prefix, ring.kv)), attend)
    return Read(hidden, jnp.stack([weights for weights, _ in kept]), [kv for _, kv in kept])
