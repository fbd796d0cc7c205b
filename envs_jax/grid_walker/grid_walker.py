"""GridWalker-v1: stop on the gold square of a walled board, seen from behind, in written commands.

The browser game's layouts and dynamics to the bit and its picture to the pixel. Layouts are in `layout.py`, what a command
does in `rules.py`, wordings in `commands.py`, the picture in `renderer.py`, players in `players.py`.
Facts: reference sheets of game and harness.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from envs_jax.environment import (
    UNPARSABLE,
    AnswerParser,
    Info,
    Observation,
    Outcome,
    Question,
    TextEnvironment,
    Thoughts,
)
from envs_jax.grid_walker import commands, renderer
from envs_jax.grid_walker import scene as world
from envs_jax.grid_walker.answer_parser import GridWalkerAnswerParser
from envs_jax.grid_walker.layout import Layout, draw_layout, fingerprint, hash_number, hash_text, max_blocks_on
from envs_jax.grid_walker.players import Explorer, FewestCommands, ShortestPath
from envs_jax.grid_walker.questions import questions, traits
from envs_jax.grid_walker.reasoned import ReasonedExpert
from envs_jax.grid_walker.rules import State, direction, efficiency, obey
from envs_jax.grid_walker.thoughts import thoughts
from envs_jax.players import Player
from envs_jax.rendering.camera import look_at
from envs_jax.rendering.vector import Vec

PROMPT = (
    "You walk on a board, seen from behind. Stop on the gold square. Red blocks and grey walls are in the way. "
    "Answer with one command in backticks: `left`, `right` or `forward N`."
)
FAR_AWAY = 1000  # cells; nothing there is in any picture
EYE_KEEPS, TARGET_KEEPS = 0.93, 0.90  # share of the camera's distance to its place that is left after one drawn frame


@jax.tree_util.register_dataclass
@dataclass
class Params:
    """Numbers of an episode. Arrays may stand for any of them: they may differ between environments of a batch."""

    size: int = 8  # cells on a side, 2 to the environment's max_size
    num_blocks: int = 3  # 0 to max_blocks; the game caps it at a quarter of the cells
    max_turns: int = 10  # an episode is truncated after this many answers
    win_reward: float = 1.0
    step_cost: float = 0.0  # per turn
    invalid_cost: float = 0.0  # for an answer that cannot be read or that the game refuses
    min_camera_frames: float = jnp.inf  # frames drawn between a command and the picture, drawn uniformly
    max_camera_frames: float = jnp.inf  # from this range; inf is the settled camera. Live page: about 21


@dataclass(unsafe_hash=True)
class GridWalker(TextEnvironment):
    """Reward 1 for stopping on the gold. Actions: see `commands.py`; an answer always costs a turn."""

    max_size: int = 8
    max_blocks: int = 3
    height: int = 32
    width: int = 32
    quality: str = field(default="training", metadata={"choices": tuple(renderer.QUALITIES)})
    camera: str = field(
        default="settled", metadata={"choices": ("settled", "live")}
    )  # live: with the lag of the params

    @property
    def name(self) -> str:
        return "GridWalker-v1"

    @property
    def prompt(self) -> str:
        return PROMPT

    @property
    def short_prompt(self) -> str:
        return "Stop on the gold square."

    def default_params(self) -> Params:
        return Params(size=self.max_size, num_blocks=self.max_blocks)

    def check(self, params: Params) -> None:
        size, blocks = int(params.size), int(params.num_blocks)
        if not 2 <= size <= self.max_size:
            raise ValueError(f"a board of size {size} is outside 2..{self.max_size} (the environment's max_size)")
        most = min(self.max_blocks, int(max_blocks_on(size)))
        if not 0 <= blocks <= most:
            raise ValueError(f"{blocks} blocks on a board of size {size} are outside 0..{most}")
        if int(params.max_turns) < 1:
            raise ValueError(f"max_turns is {int(params.max_turns)}, an episode needs at least 1")
        low, high = float(params.min_camera_frames), float(params.max_camera_frames)
        if not (0 <= low <= high) or (low == float("inf")) != (high == float("inf")):
            raise ValueError(f"camera frames from {low} to {high} are no range; give both ends, or neither")
        if self.quality not in renderer.QUALITIES or self.camera not in ("settled", "live"):
            raise ValueError(f"quality {self.quality!r} or camera {self.camera!r} is unknown")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a picture of {self.width} x {self.height} pixels has nothing to show")

    # Starting an episode

    def init(self, key: jax.Array, params: Params) -> State:
        """The layout of the text of a random uint32."""
        return self.init_from_number(jax.random.bits(key, (), jnp.uint32), params)

    def init_from_number(self, number: jax.Array, params: Params) -> State:
        """The layout of seed text str(number), under `jit`."""
        return self.init_from_hash(hash_number(jnp.asarray(number, jnp.uint32)), params)

    def init_from_text(self, seed: str, params: Params) -> State:
        """The layout of a seed as typed into the game's page. Host only."""
        return self.init_from_hash(jnp.uint32(hash_text(seed)), params)

    def init_from_hash(self, seed_hash: jax.Array, params: Params) -> State:
        size = jnp.asarray(params.size, jnp.int32)
        return self.init_from_layout(draw_layout(seed_hash, size, jnp.int32(params.num_blocks), self.max_blocks), size)

    def init_from_layout(self, layout: Layout, size: jax.Array) -> State:
        nothing = jnp.int32(0)
        state = State(
            size=size, goal=layout.goal, blocks=layout.blocks, cell=jnp.full((2,), size // 2, jnp.int32),
            facing=nothing, won=jnp.bool_(False), turn=nothing, total_steps=nothing, total_tries=nothing,
            eye=jnp.zeros(3), target=jnp.zeros(3),
        )  # fmt: skip
        eye, target = settled_view(state)
        return state.replace(eye=eye, target=target)

    def fingerprint(self, state: State) -> jax.Array:
        return fingerprint(state.size, state.goal, state.blocks)

    def anchor(self, state: State) -> jax.Array:
        return (state.cell[0] * self.max_size + state.cell[1]) * 4 + state.facing

    # Playing

    def transition(self, key: jax.Array, state: State, action: jax.Array, params: Params) -> Outcome:
        accepted = (action >= 0) & (action != commands.FORWARD) & ~state.won
        after = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), obey(state, action), state)
        after = after.replace(turn=state.turn + 1)
        if self.camera == "live":
            after = follow(key, after, params)
        terminated = after.won
        truncated = ~terminated & (after.turn >= params.max_turns)
        reward = params.win_reward * (after.won & ~state.won) - params.step_cost - params.invalid_cost * ~accepted
        info: Info = {
            "accepted": accepted,
            "is_parsed": action != UNPARSABLE,
            "success": after.won,
            "efficiency": efficiency(after),
        }
        return after, jnp.asarray(reward, jnp.float32), terminated, truncated, info

    def observe(self, state: State) -> Observation:
        here = world.view_scene(state.size, state.goal, state.blocks, state.cell, state.facing)
        view = world.settled_camera()
        if self.camera == "live":
            view = look_at(*(world.from_world(here, Vec(*(p - ground(state)))) for p in (state.eye, state.target)))
        return {"image": renderer.render(here, view, self.height, self.width, renderer.QUALITIES[self.quality])}

    # Words

    def actions(self) -> tuple[int, ...]:
        forwards = range(commands.FORWARD + 1, commands.FORWARD + self.max_size)
        return (commands.LEFT, commands.RIGHT, *forwards)

    def answer_text(self, action: int) -> str:
        return commands.answer_text(action)

    def parse_answer(self, text: str) -> int:
        return commands.parse_answer(text)

    def players(self) -> dict[str, Player]:
        return {
            "expert, shortest path": ShortestPath(),
            "expert, fewest commands": FewestCommands(),
            "expert, looks first": ReasonedExpert(),
            "explorer": Explorer(),
        }

    def questions(self) -> tuple[Question, ...]:
        return questions(self)

    def traits(self) -> tuple[Question, ...]:
        return traits(self)

    def without_goal(self, state: State) -> State:
        return state.replace(goal=jnp.full_like(state.goal, -FAR_AWAY))

    def thoughts(self) -> Thoughts:
        return thoughts(self)

    def answer_parser(self) -> AnswerParser:
        return GridWalkerAnswerParser()


def ground(state: State) -> jax.Array:
    """[3] the player's place in the world."""
    x, z = 2.0 * state.cell - state.size + 1
    return jnp.stack([x, jnp.zeros_like(x), z])


def settled_view(state: State) -> tuple[jax.Array, jax.Array]:
    """([3] eye, [3] target) of the camera at rest behind the player."""
    x, z = direction(state.facing).astype(jnp.float32)
    ahead, up = jnp.stack([x, 0.0 * x, z]), jnp.asarray([0.0, 1.0, 0.0])
    place = lambda offset: ground(state) + offset[1] * up + offset[2] * ahead
    return place(world.EYE), place(world.TARGET)


def follow(key: jax.Array, state: State, params: Params) -> State:
    """The camera some drawn frames later: a fixed share nearer to its place with every frame."""
    low, high = jnp.float32(params.min_camera_frames), jnp.float32(params.max_camera_frames)
    frames = jnp.where(jnp.isinf(high), jnp.inf, low + jax.random.uniform(key) * (high - low))
    eye, target = settled_view(state)
    return state.replace(
        eye=eye + (state.eye - eye) * EYE_KEEPS**frames,
        target=target + (state.target - target) * TARGET_KEEPS**frames,
    )
