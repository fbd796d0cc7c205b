"""What an environment is: a hashable dataclass of static sizes with pure methods over arrays.

The step contract is gymnax 1.0's. An environment writes three methods, `init`, `transition` and `observe`; `reset` and
`step` follow from them. They stand apart because rendering is the dear part: whoever holds states renders only the
frames that are looked at.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jax

if TYPE_CHECKING:
    from envs_jax.players import Player

State = Any  # a pytree of arrays
Params = Any  # a pytree of numbers that may change, per environment, without recompiling
Observation = dict[str, jax.Array]  # obs["image"]: [height, width, 3] uint8
Info = Mapping[str, jax.Array]
Outcome = tuple[State, jax.Array, jax.Array, jax.Array, Info]  # state, reward, terminated, truncated, info

UNPARSABLE = -1  # the action of an answer that could not be read


@dataclass(unsafe_hash=True)
class Environment(ABC):
    """Base of all environments. Fields are static and hashable; numbers a curriculum may move live in `params`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name with version, such as "GridWalker-v1": it changes when behaviour does."""

    @abstractmethod
    def default_params(self) -> Params: ...

    @abstractmethod
    def init(self, key: jax.Array, params: Params) -> State:
        """A fresh episode's state."""

    def init_from_number(self, number: jax.Array, params: Params) -> State:
        """The episode of a uint32 seed, under `jit`: evaluations name their episodes by it."""
        return self.init(jax.random.key(number), params)

    def fingerprint(self, state: State) -> jax.Array:
        """[2] uint32 that tell apart what `init` drew, so that evaluation episodes can be kept out of training."""
        raise TypeError(f"{self.name} does not tell its episodes apart; it cannot hold any out")

    def anchor(self, state: State) -> jax.Array:
        """int32 that is the same for states of one episode in which the same can happen, whatever came before."""
        raise TypeError(f"{self.name} does not compare its states")

    @abstractmethod
    def transition(self, key: jax.Array, state: State, action: jax.Array, params: Params) -> Outcome:
        """(state, reward, terminated, truncated, info) after one action; never resets.

        `info` holds `success` (bool, the step won its episode) and `efficiency` (float32, the game's own score in percent).
        `params.max_turns` is where episodes are truncated.
        """

    @abstractmethod
    def observe(self, state: State) -> Observation:
        """What the player sees of a state."""

    def check(self, params: Params) -> None:  # noqa: B027 (an environment may have nothing to check)
        """Raises ValueError, in one sentence, for numbers no episode can be made of. Host only."""

    def reset(self, key: jax.Array, params: Params) -> tuple[Observation, State]:
        state = self.init(key, params)
        return self.observe(state), state

    def step(self, key: jax.Array, state: State, action: jax.Array, params: Params):
        """(obs, state, reward, terminated, truncated, info); the state is the episode's own, also when it ended."""
        state, *outcome = self.transition(key, state, action, params)
        return self.observe(state), state, *outcome


class AnswerParser(Protocol):
    """Reads an answer byte by byte on the device, as `TextEnvironment.parse_answer` reads the decoded text."""

    def start(self) -> State:
        """The state before the first byte."""
        ...

    def feed(self, state: State, byte: jax.Array) -> State:
        """The state after one more byte, an int32 scalar in 0..255."""
        ...

    def action(self, state: State) -> jax.Array:
        """The action if the answer ended here: int32, `UNPARSABLE` if none can be read."""
        ...


@dataclass(frozen=True, eq=False)
class Question:
    """Something to ask about one picture, with a closed set of answers."""

    name: str
    text: str
    answers: tuple[str, ...]
    answer: Callable[[State], jax.Array]  # int32 scalar, the index of the true one


@dataclass(frozen=True, eq=False)
class Thoughts:
    """What may be thought before an action, as a closed set of texts, and what of it is true in a state."""

    texts: tuple[str, ...]
    apt: Callable[[jax.Array, State, jax.Array], jax.Array]  # (key, state, action) -> int32 index of a true one
    is_true: Callable[[State], jax.Array]  # [texts] bool
    imagines: Callable[[State], jax.Array]  # [texts] bool: says that something is seen which is not in the picture


@dataclass(unsafe_hash=True)
class TextEnvironment(Environment):
    """An environment that is played with written answers; actions are int32 scalars."""

    @property
    @abstractmethod
    def prompt(self) -> str:
        """The rules, as a system message."""

    @property
    @abstractmethod
    def short_prompt(self) -> str:
        """A few words in their place, for a small model that is trained on nothing else."""

    @abstractmethod
    def actions(self) -> tuple[int, ...]:
        """The actions a sensible player chooses from, in a fixed order: expert data, constrained decoding, charts."""

    @abstractmethod
    def answer_text(self, action: int) -> str:
        """The canonical wording of an action."""

    @abstractmethod
    def parse_answer(self, text: str) -> int:
        """The action of a model's answer, on the host."""

    def players(self) -> dict[str, "Player"]:
        """Scripted players by name that tell an evaluation what knowing, or looking, is worth."""
        return {}

    def questions(self) -> tuple[Question, ...]:
        """What can be asked of its pictures, for lessons in perception."""
        return ()

    def traits(self) -> tuple[Question, ...]:
        """What tells episodes apart at their start, by which an evaluation splits its win rate."""
        return ()

    def without_goal(self, state: State) -> State:
        """The same without what is sought: where its picture differs, the goal is seen."""
        raise TypeError(f"{self.name} does not say what is sought")

    def thoughts(self) -> Thoughts | None:
        """What a player may think before it acts, for lessons in thinking; None where there is nothing."""
        return None

    @abstractmethod
    def answer_parser(self) -> AnswerParser:
        """The same on the device."""
