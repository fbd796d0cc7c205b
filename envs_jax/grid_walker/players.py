"""GridWalker's scripted players: two that know the board, and one that knows only what it has seen."""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.grid_walker import commands, planner
from envs_jax.grid_walker import scene as world
from envs_jax.grid_walker.rules import State, direction, free_cells_ahead
from envs_jax.players import Memory, Player
from envs_jax.rendering.camera import project
from envs_jax.rendering.vector import Vec

if TYPE_CHECKING:
    from envs_jax.grid_walker.grid_walker import GridWalker


@dataclass(unsafe_hash=True)
class ShortestPath(Player):
    """The harness's expert: full knowledge, a breadth-first path in the order north, east, south, west, runs merged.

    First found in that order is the alphabetically first of the shortest paths, so the path needs no queue: from each
    cell take the first of the four directions that comes nearer. Behind is reached by two turns to the right.
    """

    def act(self, env: Any, key: jax.Array, state: State, memory: Memory) -> tuple[jax.Array, Memory]:
        heading = headings(env, state)
        wanted = heading[state.cell[0], state.cell[1]]

        def walk(carry, _):
            cell, count, goes_on = carry
            goes_on = goes_on & (heading[cell[0], cell[1]] == wanted) & jnp.any(cell != state.goal)
            return (jnp.where(goes_on, cell + direction(wanted), cell), count + goes_on, goes_on), None

        (_, count, _), _ = jax.lax.scan(walk, (state.cell, jnp.int32(0), jnp.bool_(True)), length=env.max_size)
        turn = jnp.where((wanted - state.facing) % 4 == 3, commands.LEFT, commands.RIGHT)
        return jnp.where(wanted == state.facing, commands.FORWARD + count, turn), memory


def headings(env: "GridWalker", state: State) -> jax.Array:
    """[x, z] int32: the facing of the first step of the expert's path from each cell."""
    steps = planner.steps_to_goal(state, planner.free_cells(state, env.max_size))
    nearer = jnp.stack([planner.ahead(steps, facing, planner.UNREACHABLE) < steps for facing in range(4)])
    return jnp.argmax(nearer, axis=0)


@dataclass(unsafe_hash=True)
class FewestCommands(Player):
    """Full knowledge, as few commands as can be; of equally good ones the shortest run, then right, then left."""

    def act(self, env: Any, key: jax.Array, state: State, memory: Memory) -> tuple[jax.Array, Memory]:
        is_free = planner.free_cells(state, env.max_size)
        return quickest(state, planner.commands_to_goal(state, is_free), env.max_size), memory


def quickest(state: State, rest: jax.Array, max_size: int) -> jax.Array:
    """The best command in a pose, given commands_to_goal; never a run into what stops it."""
    step, counts = direction(state.facing), jnp.arange(1, max_size)
    cells = state.cell[None] + counts[:, None] * step[None]
    is_open = jnp.all((cells >= 0) & (cells < state.size), axis=-1)
    is_open &= counts <= free_cells_ahead(state, state.cell, step)
    cells = jnp.clip(cells, 0, max_size - 1)
    forward = jnp.where(is_open, rest[state.facing, cells[:, 0], cells[:, 1]], planner.UNREACHABLE)
    turned = lambda by: rest[(state.facing + by) % 4, state.cell[0], state.cell[1]]
    costs = jnp.concatenate([forward, jnp.stack([turned(1), turned(-1)])])
    actions = jnp.concatenate([commands.FORWARD + counts, jnp.asarray([commands.RIGHT, commands.LEFT])])
    return actions[jnp.argmin(costs)]


PATCH = 0.5  # a cell is in view if any of the middle half of its tile is
STILL_HIDDEN = 5.0  # commands that a cell costs which two commands did not show; 4 to 7 do equally well


class Seen(NamedTuple):
    """What an explorer remembers, over [x, z]."""

    cells: jax.Array  # bool, has been in view


@dataclass(unsafe_hash=True)
class Explorer(Player):
    """Knows what has been in view of the settled camera, and no more: a reference for what looking is worth.

    Once it has seen the gold it goes there by the fewest commands, taking unseen cells for free ones; until then it
    looks around (`look`). A cell is in view if the middle of its tile reaches into the frame, blocks hide nothing.
    """

    def start(self, env: Any, state: State) -> Seen:
        return Seen(jnp.zeros((env.max_size, env.max_size), bool))

    def act(self, env: Any, key: jax.Array, state: State, memory: Seen) -> tuple[jax.Array, Seen]:
        views = all_views(env)
        seen = memory.cells | around(views, state.cell, state.facing, env.max_size)
        is_known = seen[state.blocks[:, 0], state.blocks[:, 1]] & (state.blocks[:, 0] >= 0)
        believed = state.replace(blocks=jnp.where(is_known[:, None], state.blocks, -1))
        rest = planner.commands_to_goal(believed, planner.free_cells(believed, env.max_size))
        knows_gold = seen[state.goal[0], state.goal[1]]
        action = jnp.where(knows_gold, quickest(believed, rest, env.max_size), look(env, views, believed, seen))
        return action, Seen(seen)


def all_views(env: "GridWalker") -> np.ndarray:
    """[2 S + 1, 2 S + 1] bool: whether the cell (right - S, ahead - S) of the player's is in view."""
    reach = np.arange(-env.max_size, env.max_size + 1)
    right, ahead = np.meshgrid(2.0 * reach, 2.0 * reach, indexing="ij")
    half = np.tan(np.radians(world.FIELD_OF_VIEW) / 2)

    def shows(shift_right: float, shift_ahead: float) -> np.ndarray:
        point = Vec(right + shift_right, 0.0, ahead + shift_ahead)
        with jax.ensure_compile_time_eval():
            across, up, depth = (np.asarray(v) for v in project(world.settled_camera(), point))
        return (depth > world.NEAR) & (np.abs(up) < half) & (np.abs(across) < half * env.width / env.height)

    return np.any([shows(*shift) for shift in product((-PATCH, 0.0, PATCH), repeat=2)], axis=0)


def around(table: np.ndarray, cell: jax.Array, facing: jax.Array, max_size: int) -> jax.Array:
    """[x, z]: what a table over (right, ahead) says of each cell, for a player on `cell` looking `facing`."""
    x = jnp.arange(max_size)[:, None] - cell[0]
    z = jnp.arange(max_size)[None, :] - cell[1]
    step = direction(facing)
    right, forward = -x * step[1] + z * step[0], x * step[0] + z * step[1]
    return jnp.asarray(table)[right + max_size, forward + max_size]


def open_board_costs(max_size: int) -> np.ndarray:
    """[2 S + 1, 2 S + 1] commands to the cell (right - S, ahead - S) where nothing is in the way."""
    reach = np.arange(-max_size, max_size + 1)
    right, ahead = np.meshgrid(np.abs(reach), reach, indexing="ij")
    beside = np.where(ahead > 0, 3, np.where(ahead == 0, 2, 4))
    straight = np.where(ahead > 0, 1, np.where(ahead == 0, 0, 3))
    return np.where(right > 0, beside, straight).astype(np.float32)


def look(env: "GridWalker", views: np.ndarray, state: State, seen: jax.Array) -> jax.Array:
    """The command with the smallest expected number of commands to the gold, which may be in any unseen cell.

    Looks two commands ahead: a cell that comes into view costs the way there on an open board, one that does not,
    `STILL_HIDDEN` more.
    """
    size = env.max_size
    actions = jnp.concatenate([jnp.asarray([commands.LEFT, commands.RIGHT]), commands.FORWARD + jnp.arange(1, size)])
    is_hidden = ~seen & (jnp.arange(size)[:, None] < state.size) & (jnp.arange(size)[None, :] < state.size)
    costs = open_board_costs(size)

    def after(cell: jax.Array, facing: jax.Array, hidden: jax.Array, action: jax.Array):
        """(cell, facing, still hidden, summed cost of what was shown, whether the command is possible)."""
        count = jnp.maximum(action - commands.FORWARD, 0)
        step = direction(facing)
        cell_after = cell + count * step
        is_open = jnp.all((cell_after >= 0) & (cell_after < state.size))
        is_open &= count <= free_cells_ahead(state, cell, step)
        facing = (facing + jnp.where(action == commands.LEFT, -1, jnp.where(action == commands.RIGHT, 1, 0))) % 4
        shown = hidden & around(views, cell_after, facing, size)
        cost = jnp.sum(jnp.where(shown, around(costs, cell_after, facing, size), 0.0))
        return cell_after, facing, hidden & ~shown, cost, is_open

    def expected(action: jax.Array) -> jax.Array:
        cell, facing, hidden, cost, is_open = after(state.cell, state.facing, is_hidden, action)
        _, _, remaining, then_cost, then_open = jax.vmap(lambda then: after(cell, facing, hidden, then))(actions)
        best = jnp.min(jnp.where(then_open, then_cost + STILL_HIDDEN * jnp.sum(remaining, axis=(1, 2)), jnp.inf))
        return jnp.where(is_open, cost + jnp.sum(hidden) + best, jnp.inf)

    return actions[jnp.argmin(jax.lax.map(expected, actions))]
