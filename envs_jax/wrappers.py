"""Episodes that follow one another, and episodes that training must never see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs_jax.environment import Environment, Info, Params, State


def held_out_table(env: Environment, params: Params, seeds: Sequence[tuple[int, int]]) -> jax.Array:
    """[episodes, 2] uint32 fingerprints of the episodes of half-open seed ranges, played with `params`."""
    numbers = [number for first, end in seeds for number in range(first, end)]
    if not numbers:
        return jnp.zeros((0, 2), jnp.uint32)
    fingerprint_of = lambda number: env.fingerprint(env.init_from_number(number, params))
    return jax.jit(jax.vmap(fingerprint_of))(jnp.asarray(numbers, jnp.uint32))


LEVEL = 0x1E7E1  # folded into an environment's key, for the level of the episode that begins


class Levels(NamedTuple):
    """Kinds of episodes, L of them, and how often each is begun."""

    params: Params  # leaves [L, ...]
    chances: jax.Array  # [L]

    @classmethod
    def only(cls, params: Params) -> "Levels":
        """The same numbers for all episodes."""
        return cls(jax.tree.map(lambda x: jnp.asarray(x)[None], params), jnp.ones(1))

    def draw(self, key: jax.Array) -> jax.Array:
        """int32; environments with one key begin on one level."""
        drawn = jax.random.choice(jax.random.fold_in(key, LEVEL), len(self.chances), p=self.chances)
        return drawn.astype(jnp.int32)

    def of(self, level: jax.Array) -> Params:
        """Params of levels [...], leaves [..., ...]."""
        return jax.tree.map(lambda column: column[level], self.params)


class Step(NamedTuple):
    """One step of an environment that starts anew when an episode ends."""

    state: State  # of the next turn: a fresh episode's where one ended
    final_state: State  # what the action led to
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: Info


@dataclass(frozen=True, eq=False)
class AutoReset:
    """One environment whose episodes follow one another, none of them held out."""

    env: Environment
    held_out: jax.Array  # [episodes, 2] uint32

    def init(self, key: jax.Array, params: Params) -> State:
        """A fresh episode; one that is held out is drawn again, blind to how it would end."""

        def is_held_out(carry) -> jax.Array:
            return jnp.any(jnp.all(self.held_out == self.env.fingerprint(carry[1])[None], axis=-1))

        def draw(carry):
            key, draw_key = jax.random.split(carry[0])
            return key, self.env.init(draw_key, params)

        first = draw((key, None))
        return first[1] if not len(self.held_out) else jax.lax.while_loop(is_held_out, draw, first)[1]

    def step(self, key: jax.Array, state: State, action: jax.Array, params: Params, next_params: Params) -> Step:
        """`next_params` are those of the episode that begins where this one ends."""
        step_key, reset_key = jax.random.split(key)
        final, reward, terminated, truncated, info = self.env.transition(step_key, state, action, params)
        fresh = self.init(reset_key, next_params)
        state = jax.tree.map(lambda new, old: jnp.where(terminated | truncated, new, old), fresh, final)
        return Step(state, final, reward, terminated, truncated, info)
