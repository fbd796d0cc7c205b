"""The game's state, and what a command does to it. Facts: reference sheet of the game."""

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.grid_walker import commands


class State(struct.PyTreeNode):
    """Cells are (x east, z south)."""

    size: jax.Array  # int32
    goal: jax.Array  # [2] int32
    blocks: jax.Array  # [max_blocks, 2] int32, (-1, -1) where there is none
    cell: jax.Array  # [2] int32, the player's
    facing: jax.Array  # int32, 0 north, 1 east, 2 south, 3 west
    won: jax.Array  # bool
    turn: jax.Array  # int32, answers given so far
    total_steps: jax.Array  # int32, the game's counters
    total_tries: jax.Array  # int32
    eye: jax.Array  # [3] float32, the camera's place in the world (east, up, south)
    target: jax.Array  # [3] float32, what it looks at


def direction(facing: jax.Array) -> jax.Array:
    """[2] int32 step of one cell in a facing; any integer facing, modulo 4."""
    x = jnp.asarray([0, 1, 0, -1])[facing % 4]
    return jnp.stack([x, jnp.asarray([-1, 0, 1, 0])[facing % 4]])


def obey(state: State, action: jax.Array) -> State:
    """The state after a command the game accepts.

    A forward run stops before a block. At the border it stays in place but goes on counting steps, so only a block cuts
    the count; the border is a clip at the end.
    """
    turn = jnp.where(action == commands.LEFT, -1, jnp.where(action == commands.RIGHT, 1, 0))
    count = jnp.clip(action - commands.FORWARD, 0, 2 * state.size)
    step = direction(state.facing)
    steps = jnp.minimum(count, free_cells_ahead(state, state.cell, step))
    cell = jnp.clip(state.cell + steps * step, 0, state.size - 1)
    return state.replace(
        cell=cell,
        facing=(state.facing + turn) % 4,
        won=jnp.all(cell == state.goal),
        total_steps=state.total_steps + steps,
        total_tries=state.total_tries + (count > 0),
    )


def free_cells_ahead(state: State, cell: jax.Array, step: jax.Array) -> jax.Array:
    """Cells before the next block in a direction; a large number if there is none before the border."""
    offset = state.blocks - cell[None]
    ahead = offset @ step
    is_in_line = jnp.sum(jnp.abs(offset), axis=-1) == ahead
    is_block = state.blocks[:, 0] >= 0
    return jnp.min(jnp.where(is_block & is_in_line & (ahead > 0), ahead - 1, 1 << 20), initial=1 << 20)


def efficiency(state: State) -> jax.Array:
    """The game's own score in percent: cells from the start to the gold over cells walked, each plus one."""
    away = jnp.sum(jnp.abs(state.goal - state.size // 2))
    return jnp.floor(100.0 * (away + 1) / (state.total_steps + 1) + 0.5)
