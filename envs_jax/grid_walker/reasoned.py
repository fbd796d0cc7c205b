"""The harness's second expert, whose games are shown with reasons: it knows the way, but looks for the gold before it goes.

While the gold is out of view it turns on the spot; once it sees it, it follows the shortest path in bursts. Where no side
shows the gold it never goes. Departures: the path is planned anew after every turn, where the original goes on with a plan
that no longer fits; turns have no budget but the episode's; games that are lost are shown too. Source: reference sheet
"harness", Expert data 2.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs_jax.grid_walker import commands
from envs_jax.grid_walker.players import ShortestPath, headings
from envs_jax.grid_walker.questions import gold_in_view
from envs_jax.grid_walker.rules import State
from envs_jax.players import Memory, Player

NOTHING = -1
LONGEST_SEARCH, LONGEST_STAND = 2, 3  # turns in search, turns of any kind on the spot, before the aligned one is due
BURSTS = (
    (1.0, 0.0, 0.0, 0.0),
    (1.0, 3.0, 0.0, 0.0),
    (1.0, 2.0, 3.0, 0.0),
    (1.0, 2.0, 3.0, 5.0),
)  # weights by cells left


class Search(NamedTuple):
    """What it remembers: int32 and bool scalars."""

    last: jax.Array  # the last command, NOTHING at the start
    searched: jax.Array  # turns in search in a row
    stood: jax.Array  # turns of any kind in a row
    owes_aligned: jax.Array  # the last turn in search was the opposite one


@dataclass(unsafe_hash=True)
class ReasonedExpert(Player):
    """Full knowledge of the way; whether the gold is seen is geometry, blocks hide nothing."""

    opposite: float = 0.5  # chance of a turn in search that is away from the path
    never_undo: bool = True  # a turn that would take the last one back repeats it
    bursts: bool = True  # runs are cut

    def start(self, env: Any, state: State) -> Search:
        return Search(jnp.int32(NOTHING), jnp.int32(0), jnp.int32(0), jnp.bool_(False))

    def act(self, env: Any, key: jax.Array, state: State, memory: Memory) -> tuple[jax.Array, Search]:
        side_key, coin_key, burst_key = jax.random.split(key, 3)
        planned, _ = ShortestPath().act(env, key, state, ())
        away = (headings(env, state)[state.cell[0], state.cell[1]] - state.facing) % 4
        either = jax.random.bernoulli(side_key).astype(jnp.int32)  # the path begins ahead, or behind
        aligned = jnp.where(away == 1, commands.RIGHT, jnp.where(away == 3, commands.LEFT, either))
        is_due = memory.owes_aligned | (memory.searched >= LONGEST_SEARCH) | (memory.stood >= LONGEST_STAND)
        is_opposite = ~is_due & jax.random.bernoulli(coin_key, self.opposite)
        turn = jnp.where(is_opposite, other(aligned), aligned)
        if self.never_undo:
            turn = jnp.where(memory.last == other(turn), memory.last, turn)
        seen = gold_in_view(env, state)
        action = jnp.where(seen, self.cut(burst_key, planned), turn)
        stands = action < commands.FORWARD
        return action, Search(
            action, jnp.where(seen, 0, memory.searched + 1), jnp.where(stands, memory.stood + 1, 0), ~seen & is_opposite
        )

    def cut(self, key: jax.Array, planned: jax.Array) -> jax.Array:
        """The first burst of a run; turns stay."""
        cells = planned - commands.FORWARD
        if not self.bursts:
            return planned
        weights = jnp.asarray(BURSTS)[jnp.clip(cells - 1, 0, len(BURSTS) - 1)]
        burst = 1 + jax.random.categorical(key, jnp.log(weights))
        return jnp.where(cells > 0, commands.FORWARD + burst, planned).astype(jnp.int32)


def other(turn: jax.Array) -> jax.Array:
    """Right for left and left for right."""
    return jnp.where(turn == commands.LEFT, commands.RIGHT, commands.LEFT)
