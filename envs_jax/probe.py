"""Probes: games so small that their optimum is known, to see in seconds whether an algorithm learns what it should.

The picture is red or green, the right answers are left and right: whoever answers all judged turns rightly wins at the end.
A player that looks, remembers and waits wins always, one that guesses 2^-judged of its games.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.environment import AnswerParser, Info, Observation, Outcome, TextEnvironment
from envs_jax.grid_walker import commands
from envs_jax.grid_walker.answer_parser import GridWalkerAnswerParser

COLOURS = ((200, 40, 40), (40, 200, 40))  # of an episode whose answer is left, right
GREY = (90, 90, 90)


@jax.tree_util.register_dataclass
@dataclass
class Params:
    max_turns: int = 1  # those of the probe


class State(struct.PyTreeNode):
    number: jax.Array  # uint32, the episode's
    turn: jax.Array  # int32, answers given so far
    all_right: jax.Array  # bool, of the judged ones so far

    @property
    def answer(self) -> jax.Array:
        """int32: `LEFT` or `RIGHT`, the same in all turns."""
        return (self.number & 1).astype(jnp.int32)


@dataclass(unsafe_hash=True)
class Probe(TextEnvironment):
    """Turns are counted from 0."""

    num_turns: int = 1
    shown: tuple[int, ...] = (0,)  # turns whose picture has the episode's colour; in others it is grey
    judged: tuple[int, ...] = (0,)  # turns whose answers count
    is_cut: bool = False  # it ends as by a time limit
    height: int = 16
    width: int = 16

    @property
    def name(self) -> str:
        return f"Probe-{self.num_turns}-v1"

    @property
    def prompt(self) -> str:
        return "Red is `left`, green is `right`."

    @property
    def short_prompt(self) -> str:
        return self.prompt

    def default_params(self) -> Params:
        return Params(max_turns=self.num_turns)

    def check(self, params: Params) -> None:
        if int(params.max_turns) != self.num_turns:
            raise ValueError(f"the probe has {self.num_turns} turns, not {int(params.max_turns)}")

    def init(self, key: jax.Array, params: Params) -> State:
        return self.init_from_number(jax.random.bits(key, (), jnp.uint32), params)

    def init_from_number(self, number: jax.Array, params: Params) -> State:
        return State(jnp.asarray(number, jnp.uint32), jnp.int32(0), jnp.bool_(True))

    def fingerprint(self, state: State) -> jax.Array:
        return jnp.stack([state.number, jnp.uint32(0)])

    def anchor(self, state: State) -> jax.Array:
        return state.turn * 4 + state.answer * 2 + state.all_right

    def transition(self, key: jax.Array, state: State, action: jax.Array, params: Params) -> Outcome:
        is_judged = jnp.isin(state.turn, jnp.asarray(self.judged))
        after = state.replace(turn=state.turn + 1, all_right=state.all_right & (~is_judged | (action == state.answer)))
        is_over = after.turn >= self.num_turns
        won = is_over & after.all_right
        info: Info = {"success": won, "efficiency": jnp.float32(100.0)}
        return after, won.astype(jnp.float32), is_over & (not self.is_cut), is_over & self.is_cut, info

    def observe(self, state: State) -> Observation:
        is_shown = jnp.isin(state.turn, jnp.asarray(self.shown))
        colour = jnp.where(is_shown, jnp.asarray(COLOURS)[state.answer], jnp.asarray(GREY)).astype(jnp.uint8)
        return {"image": jnp.broadcast_to(colour, (self.height, self.width, 3))}

    def actions(self) -> tuple[int, ...]:
        return (commands.LEFT, commands.RIGHT)

    def answer_text(self, action: int) -> str:
        return commands.answer_text(action)

    def parse_answer(self, text: str) -> int:
        return commands.parse_answer(text)

    def answer_parser(self) -> AnswerParser:
        return GridWalkerAnswerParser()


PROBES = {  # what it takes to win them
    "see": Probe(),
    "remember": Probe(num_turns=2, shown=(0,), judged=(1,)),
    "wait": Probe(num_turns=3, shown=(0,), judged=(0,)),  # for a reward that comes two turns after what earned it
    "stop": Probe(num_turns=2, shown=(0, 1), judged=(0, 1), is_cut=True),
    "combine": Probe(num_turns=3, shown=(0, 1, 2), judged=(0, 1, 2)),  # one win in eight by chance
}
