"""A batch of environments played by the policy for T turns, inside `jit`, and what the trainer needs of it.

Environments restart on their own and an update may begin mid-episode: carried over are environment states and the token
slots of the last W - 1 turns, never keys and values. Those are computed again with the current parameters, by the very
pass the trainer makes, and stand in front of the training sequence too.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs_jax.environment import Environment, Info, State
from envs_jax.wrappers import AutoReset, Levels
from jaxvlmrl import packed
from jaxvlmrl.conversation import Place, Ring, Turns
from jaxvlmrl.models.attention import KeyValue
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy
from jaxvlmrl.sampler import read_observation, take_turn


class Session(NamedTuple):
    """Where a batch of environments stands between updates."""

    state: State  # [B]
    level: jax.Array  # [B] int32, of the episodes under way
    place: Place  # [B]
    past: Turns  # [W - 1, B], oldest first
    past_states: State  # [W - 1, B], what was seen in them


class Trajectory(NamedTuple):
    """T turns of B environments, arrays [T, B, ...]. Pictures are not kept but rendered again from the states."""

    state: State  # what was seen
    final_state: State  # what the action led to, before any reset
    turns: Turns
    log_probs: jax.Array  # [T, B, G], of the sampling distribution
    grammar_states: jax.Array  # [T, B, G]
    prompt_hidden: jax.Array  # [T, B, D]
    final_hidden: jax.Array  # [T, B, D], after reading final_state where truncated; zeros unless asked for
    turns_so_far: jax.Array  # [T, B] int32, of the episode before this one
    level: jax.Array  # [T, B] int32, of the episode
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: Info
    next_hidden: jax.Array  # [B, D], after reading what is seen next; zeros unless asked for


def begin(policy: Policy, env: AutoReset, levels: Levels, key: jax.Array, batch: int, alike: int = 1) -> Session:
    """Fresh episodes of `batch` environments. So many neighbours begin in the same state."""
    keys = jnp.repeat(jax.random.split(key, batch // alike), alike)
    level = jax.vmap(levels.draw)(keys)
    state = jax.vmap(env.init)(keys, levels.of(level))
    past, budget = policy.window - 1, policy.chat.max_answer_tokens
    zeros = jnp.zeros((past, batch), jnp.int32)
    no_answer = jnp.zeros((past, batch, budget), jnp.int32)
    turns = Turns(policy.chat.observation(zeros, zeros), no_answer, no_answer > 0, zeros, zeros - 1)
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (past, *x.shape)), state)
    return Session(state, level, Place.start(policy, batch), turns, repeated)


def images(env: Environment, states: State, lead: int) -> jax.Array:
    """[..., height, width, 3] uint8 pictures of states with `lead` leading axes."""
    shape = jax.tree.leaves(states)[0].shape[:lead]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[lead:]), states)
    draw = lambda: jax.vmap(partial(picture, env))(flat)
    drawn = jax.lax.cond(always(flat), draw, lambda: jnp.zeros(jax.eval_shape(draw).shape, jnp.uint8))
    return drawn.reshape(*shape, *drawn.shape[1:])


@partial(jax.jit, static_argnums=0)
def picture(env: Environment, state: State) -> jax.Array:
    """Of one state; a function of its own, so that a program which draws in many places traces it once."""
    return env.observe(state)["image"]


def always(tree: State) -> jax.Array:
    """True, though the compiler cannot know it: a branch on it is compiled apart, and not fused with what follows."""
    leaves = [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    first = leaves[0].reshape(-1)[0].astype(jnp.float32)
    return ~(first == -1.2345e30)


def look(policy: Policy, params: Params, env: Environment, states: State, lead: int) -> jax.Array:
    """[..., I, D] image tokens of states with `lead` leading axes."""
    return policy.model.image_tokens(params, images(env, states, lead))


def batch_major(tree):
    """[T, B, ...] to [B, T, ...]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def remembered(policy: Policy, params: Params, env: Environment, session: Session, prefix: list[KeyValue]) -> Ring:
    """The ring of the session's past turns, computed with these parameters; not if all episodes are at their start."""
    batch = len(session.place.turn)
    if policy.window == 1:
        return Ring.empty(policy, batch)
    past = batch_major(session.past)
    valid = past.valid & (past.episode == session.place.episode[:, None])[..., None]

    def read() -> list[KeyValue]:
        image_tokens = look(policy, params, env, batch_major(session.past_states), lead=2)
        return packed.forward(policy, params, past, image_tokens, prefix).kv

    kv = jax.lax.cond(jnp.any(valid), read, lambda: Ring.empty(policy, batch).kv)
    return Ring(kv, valid.reshape(batch, -1))


def play_in_parts(
    policy: Policy, params: Params, env: AutoReset, levels: Levels, session: Session, key: jax.Array,
    num_turns: int, envs_at_once: int = 0, read_final: bool = False,
) -> tuple[Trajectory, Session]:  # fmt: skip
    """`play`, so many environments at a time: the keys and values of the others need no memory meanwhile. 0 is all."""
    batch = len(session.place.turn)
    if not 0 < envs_at_once < batch:
        return play(policy, params, env, levels, session, key, num_turns, read_final=read_final)
    parts = batch // envs_at_once
    on = lambda session, do: Session(  # the batch is axis 1 of what is remembered of turns
        *(jax.tree.map(partial(do, axis=axis), part) for axis, part in zip((0, 0, 0, 1, 1), session, strict=True))
    )

    def cut(x: jax.Array, axis: int) -> jax.Array:
        return jnp.moveaxis(x.reshape(*x.shape[:axis], parts, envs_at_once, *x.shape[axis + 1 :]), axis, 0)

    def joined(x: jax.Array, axis: int) -> jax.Array:
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], batch, *x.shape[axis + 2 :])

    def part(xs: tuple[Session, jax.Array]) -> tuple[Trajectory, Session]:
        session, index = xs
        part_key = jax.random.fold_in(key, index)
        return play(policy, params, env, levels, session, part_key, num_turns, read_final=read_final)

    trajectory, session = jax.lax.map(part, (on(session, cut), jnp.arange(parts)))
    turns = jax.tree.map(partial(joined, axis=1), trajectory._replace(next_hidden=()))
    return turns._replace(next_hidden=joined(trajectory.next_hidden, axis=0)), on(session, joined)


def play(
    policy: Policy, params: Params, env: AutoReset, levels: Levels, session: Session, key: jax.Array,
    num_turns: int, greedy: jax.Array | bool = False, read_final: bool = False,
    see: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> tuple[Trajectory, Session]:  # fmt: skip
    """`num_turns` turns of every environment. `read_final`: also what the policy thinks of states that were cut off.

    `see` stands between the pictures [B, h, w, 3] and the policy's eyes.
    """
    prefix = policy.prefix(params)
    decoding = policy.model.unstacked(params)

    def turn(carry: tuple[State, jax.Array, Place, Ring], turn_index: jax.Array):
        state, level, place, ring = carry
        sample_key, env_key = jax.random.split(jax.random.fold_in(key, turn_index))
        image_tokens = policy.model.image_tokens(params, see(images(env.env, state, lead=1)))
        answer, turns, kv = take_turn(policy, decoding, ring, prefix, place, image_tokens, sample_key, greedy)
        action = policy.read(answer.ids, answer.valid)
        env_keys = jax.random.split(env_key, len(action))
        next_level = jax.vmap(levels.draw)(env_keys)
        step = jax.vmap(env.step)(env_keys, state, action, levels.of(level), levels.of(next_level))
        ring = ring.write(turn_index, kv, turns.valid)
        is_done = step.terminated | step.truncated
        going_on = place.after(policy, turns, jnp.zeros_like(is_done))
        final_hidden = jnp.zeros_like(answer.prompt_hidden)
        if read_final:
            thoughts = lambda: prompt_state(policy, decoding, env.env, step.final_state, going_on, ring, prefix)
            final_hidden = jax.lax.cond(jnp.any(step.truncated), thoughts, lambda: final_hidden)
        record = Trajectory(
            state, step.final_state, turns, answer.log_probs, answer.grammar_states, answer.prompt_hidden, final_hidden,
            place.turn, level, action, step.reward, step.terminated, step.truncated, step.info, final_hidden,
        )  # fmt: skip
        place = place.after(policy, turns, is_done)
        level = jnp.where(is_done, next_level, level)
        return (step.state, level, place, ring.forget(is_done)), record

    ring = remembered(policy, params, env.env, session, prefix)
    carry = (session.state, session.level, session.place, ring)
    (state, level, place, ring), trajectory = jax.lax.scan(turn, carry, jnp.arange(num_turns))
    next_hidden = trajectory.next_hidden[-1]
    if read_final:
        next_hidden = prompt_state(policy, decoding, env.env, state, place, ring, prefix)
    past = policy.window - 1
    last = lambda old, new: jnp.concatenate([old, new])[num_turns : num_turns + past]
    session = Session(
        state,
        level,
        place,
        jax.tree.map(last, session.past, trajectory.turns),
        jax.tree.map(last, session.past_states, trajectory.state),
    )
    return trajectory._replace(next_hidden=next_hidden), session


def prompt_state(
    policy: Policy, params: Params, env: Environment, state: State, place: Place, ring: Ring, prefix: list[KeyValue]
) -> jax.Array:
    """[B, D] hidden states after reading one more observation, without noting that it was read."""
    image_tokens = look(policy, params, env, state, lead=1)
    return read_observation(policy, params, ring, prefix, place, place.observation(policy), image_tokens)[0]
