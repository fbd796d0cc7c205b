"""What can be asked of GridWalker's picture, with the true answers: perception as a lesson of its own, and as a probe.

Whatever is not in the picture is not asked for: gold out of view is "hidden". A cell is in view as the explorer has it.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from envs_jax.environment import Question
from envs_jax.grid_walker.players import all_views, around
from envs_jax.grid_walker.rules import State, direction, free_cells_ahead

if TYPE_CHECKING:
    from envs_jax.grid_walker.grid_walker import GridWalker

HIDDEN = "hidden"
SIDES = (HIDDEN, "here", "ahead", "behind", "left", "right")
THINGS = ("free", "gold", "block", "wall")
FAR = (2, 4, 6, 8)  # cells, the last of each class of distances


def questions(env: "GridWalker") -> tuple[Question, ...]:
    """Where the gold is, how many rows ahead, what stands in the next cell, and how far one can walk."""
    counts = tuple(str(count) for count in range(env.max_size))
    return (
        Question("gold_side", "Where is the gold?", SIDES, lambda state: gold_side(env, state)),
        Question("gold_rows", "How many rows ahead is the gold?", (HIDDEN, *counts), lambda state: gold_rows(env, state)),
        Question("next_cell", "What is ahead?", THINGS, next_cell),
        Question("free_ahead", "How many cells ahead are free?", counts, free_ahead),
    )  # fmt: skip


def traits(env: "GridWalker") -> tuple[Question, ...]:
    """How far the gold is in cells walked were there no blocks, and whether the first picture shows it."""
    names = (*(f"{far - 1} or {far}" for far in FAR), f"above {FAR[-1]}")
    cells = lambda state: jnp.sum(jnp.abs(state.goal - state.cell))
    return (
        Question("distance", "How many cells away is the gold?", names,
                 lambda state: jnp.sum(cells(state) > jnp.asarray(FAR))),
        Question("at first", "Does the first picture show the gold?", ("gold hidden", "gold in view"),
                 lambda state: gold_in_view(env, state).astype(jnp.int32)),
    )  # fmt: skip


def gold_offset(state: State) -> tuple[jax.Array, jax.Array]:
    """(cells to the right, cells ahead) of the player's, int32."""
    step, away = direction(state.facing), state.goal - state.cell
    return away[1] * step[0] - away[0] * step[1], away @ step


def gold_in_view(env: "GridWalker", state: State) -> jax.Array:
    return around(all_views(env), state.cell, state.facing, env.max_size)[state.goal[0], state.goal[1]]


def gold_side(env: "GridWalker", state: State) -> jax.Array:
    """Index in `SIDES`; a column beside the player's is left or right, however far ahead."""
    right, ahead = gold_offset(state)
    in_line = jnp.where(ahead == 0, 1, jnp.where(ahead > 0, 2, 3))
    return jnp.where(gold_in_view(env, state), jnp.where(right == 0, in_line, jnp.where(right < 0, 4, 5)), 0)


def gold_rows(env: "GridWalker", state: State) -> jax.Array:
    """1 + rows ahead, 0 where hidden; gold behind the player is 0 rows ahead."""
    return jnp.where(gold_in_view(env, state), 1 + jnp.maximum(gold_offset(state)[1], 0), 0)


def free_ahead(state: State) -> jax.Array:
    """Cells before the next block or wall."""
    step = direction(state.facing)
    border = jnp.where(step > 0, state.size - 1 - state.cell, state.cell) @ jnp.abs(step)
    return jnp.minimum(border, free_cells_ahead(state, state.cell, step))


def next_cell(state: State) -> jax.Array:
    """Index in `THINGS`."""
    cell = state.cell + direction(state.facing)
    is_wall = jnp.any((cell < 0) | (cell >= state.size))
    is_block = jnp.any(jnp.all(state.blocks == cell[None], axis=-1))
    return jnp.where(is_wall, 3, jnp.where(is_block, 2, jnp.all(cell == state.goal).astype(jnp.int32)))
