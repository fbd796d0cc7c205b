"""Distances on a GridWalker board, by relaxation over all cells at once.

Boards are arrays over [x, z] of the environment's static size; what lies outside the episode's size is not free.
"""

import jax
import jax.numpy as jnp

from envs_jax.grid_walker.rules import State

UNREACHABLE = 1 << 20
NORTH, EAST, SOUTH, WEST = range(4)


def free_cells(state: State, max_size: int) -> jax.Array:
    """[max_size, max_size] bool: cells of the board without a block."""
    cells = jnp.stack(jnp.meshgrid(jnp.arange(max_size), jnp.arange(max_size), indexing="ij"), axis=-1)
    is_on_board = jnp.all(cells < state.size, axis=-1)
    taken = jnp.zeros((max_size, max_size), bool)
    taken = taken.at[state.blocks[:, 0], state.blocks[:, 1]].set(True, mode="drop", wrap_negative_indices=False)
    return is_on_board & ~taken


def ahead(values: jax.Array, facing: int, outside: int) -> jax.Array:
    """values of the next cell in a facing, [..., x, z]; `outside` beyond the array."""
    axis = -2 if facing in (EAST, WEST) else -1
    shift = 1 if facing in (EAST, SOUTH) else -1
    rolled = jnp.roll(values, -shift, axis)
    edge = jnp.arange(values.shape[axis]) == (values.shape[axis] - 1 if shift == 1 else 0)
    edge = edge[:, None] if axis == -2 else edge[None, :]
    return jnp.where(jnp.broadcast_to(edge, rolled.shape), outside, rolled)


def until_settled(sweep, start):
    """Applies `sweep` until nothing changes."""
    changed = lambda new, old: jnp.any(jnp.stack([jnp.any(a != b) for a, b in zip(new, old, strict=True)]))

    def again(carry):
        values, _ = carry
        swept = sweep(values)
        return swept, changed(swept, values)

    return jax.lax.while_loop(lambda carry: carry[1], again, (start, jnp.bool_(True)))[0]


def steps_to_goal(state: State, is_free: jax.Array) -> jax.Array:
    """[x, z] int32: single steps from each cell to the goal, `UNREACHABLE` where there is no way."""
    at_goal = jnp.zeros(is_free.shape, bool).at[state.goal[0], state.goal[1]].set(True)

    def sweep(values):
        (steps,) = values
        best = jnp.min(jnp.stack([ahead(steps, facing, UNREACHABLE) for facing in range(4)]), axis=0) + 1
        return (jnp.where(is_free, jnp.minimum(steps, best), UNREACHABLE),)

    return until_settled(sweep, (jnp.where(at_goal, 0, UNREACHABLE),))[0]


def commands_to_goal(state: State, is_free: jax.Array) -> jax.Array:
    """[facing, x, z] int32: the fewest commands from each pose that end on the goal, `UNREACHABLE` if none do.

    A forward command is a run that may stop in any cell, so `run` is the cost-to-go of one under way: paid for already.
    """
    at_goal = jnp.zeros(is_free.shape, bool).at[state.goal[0], state.goal[1]].set(True)
    start = jnp.broadcast_to(jnp.where(at_goal, 0, UNREACHABLE), (4, *is_free.shape))

    def sweep(values):
        rest, run = values
        onward = jnp.stack([ahead(run[facing], facing, UNREACHABLE) for facing in range(4)])
        turned = jnp.minimum(jnp.roll(rest, 1, axis=0), jnp.roll(rest, -1, axis=0))
        rest = jnp.minimum(rest, 1 + jnp.minimum(turned, onward))
        return rest, jnp.where(is_free[None], jnp.minimum(rest, onward), UNREACHABLE)

    return until_settled(sweep, (start, start))[0]
