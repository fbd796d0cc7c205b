"""A policy at the board: its games as the page asks for them, step by step, from any mixture of its own and given turns.

A game is (start, what was done so far); a turn of the policy's own is `OWN`, since greedy answers follow from what came
before. Steps that were computed are remembered for a while, so that going forward costs one turn and going back none.
"""

import dataclasses
import math
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.grid_walker import GridWalker, Params
from envs_jax.grid_walker.commands import FORWARD, UNPARSABLE, command_text, parse_command
from envs_jax.grid_walker.layout import hash_text
from envs_jax.grid_walker.rules import State
from jaxvlmrl import runs
from jaxvlmrl.acting import Conversation
from jaxvlmrl.building import image_shape, make_policy, whole_params
from jaxvlmrl.config import Config, ConfigError
from jaxvlmrl.conversation import Place, Ring
from jaxvlmrl.models.layers import Params as Weights
from jaxvlmrl.playing import insight
from jaxvlmrl.playing.bad_request import BadRequest
from jaxvlmrl.playing.game import OWN, WON, Start, capacity, rules
from jaxvlmrl.playing.insight import Given, Insight
from jaxvlmrl.policy import Policy
from jaxvlmrl.tomography import grid

TURNS = 50  # the original harness's limit
REMEMBERED = 1 << 28  # bytes of conversations


class Step(NamedTuple):
    """Where a game stands, and what the policy makes of it."""

    state: State
    before: Conversation
    image: np.ndarray  # uint8, what it sees
    said: Insight | None  # its own answer; None when the game is won
    value: float | None  # the critic's, where there is one
    after: Conversation  # its own answer included


class Model:
    """A checkpoint at the board. Boards up to the size its policy was made for, any number of blocks."""

    def __init__(self, name: str, config: Config, policy: Policy, params: Weights, critic: Weights | None):
        if not isinstance(config.env, GridWalker):
            raise ConfigError(f"the page shows GridWalker; this checkpoint plays {config.env.name}")
        self.board = config.env  # the one it was trained on
        self.name, self.config, self.policy, self.params, self.critic = name, config, policy, params, critic
        self.most_turns = policy.chat.max_turns
        self._turn = jax.jit(partial(insight.turn, policy))
        self._value = jax.jit(config.critic.value)
        self._steps: OrderedDict[tuple[Start, tuple[str, ...]], Step] = OrderedDict()

    @property
    def largest(self) -> int:
        return self.board.max_size

    def env(self, start: Start) -> GridWalker:
        """The environment it looks at: its own, with room for the blocks."""
        return dataclasses.replace(self.board, max_blocks=capacity(start.blocks))

    def env_params(self, start: Start) -> Params:
        return dataclasses.replace(
            self.config.env_params, size=start.size, num_blocks=start.blocks, max_turns=self.most_turns
        )

    def step(self, start: Start, done: tuple[str, ...]) -> Step:
        """The game after what was done. Raises `BadRequest` for what it cannot play."""
        if start.size > self.largest:
            raise BadRequest(f"this checkpoint was made for boards up to {self.largest} x {self.largest}")
        if len(done) > self.most_turns:
            raise BadRequest(f"the model's conversation has room for {self.most_turns} turns")
        known = next((k for k in range(len(done), -1, -1) if (start, done[:k]) in self._steps), None)
        step = self._first(start) if known is None else self._steps[start, done[:known]]
        for turn in range(known or 0, len(done)):
            step = self._next(start, step, done[turn])
            self._remember((start, done[: turn + 1]), step)
        self._remember((start, done), step)
        return step

    def to_the_end(self, start: Start, done: tuple[str, ...] = ()) -> tuple[str, ...]:
        """What is done when the policy goes on alone until it wins or the turns are used up."""
        while len(done) < self.most_turns and self.step(start, done).said is not None:
            done = (*done, OWN)
        return done

    def played(self, start: Start, done: tuple[str, ...]) -> list[str | None]:
        """The commands of a game's turns; None where an answer could not be read, or the game refused it."""
        answers = ((each, self.step(start, done[:turn]).said) for turn, each in enumerate(done))
        return [command_of(said) if each == OWN and said else each for each, said in answers]

    def _first(self, start: Start) -> Step:
        state = rules(self.env(start)).begin(np.uint32(hash_text(start.seed)), self.env_params(start))
        nothing = Conversation(Place.start(self.policy, 1), Ring.empty(self.policy, 1), jnp.int32(0))
        return self._look(start, state, nothing)

    def _next(self, start: Start, step: Step, what: str) -> Step:
        if step.said is None:
            raise BadRequest(WON)
        if what == OWN:
            action, conversation = int(step.said.action), step.after
        else:
            action, conversation = parse_command(what), self._told(step, what)
        key = jax.random.fold_in(jax.random.key(0), int(step.state.turn))  # of a camera that lags
        state = rules(self.env(start)).obey(key, step.state, action, self.env_params(start))[0]
        return self._look(start, state, conversation)

    def _look(self, start: Start, state: State, before: Conversation) -> Step:
        image = np.asarray(rules(self.env(start)).draw(state))
        if bool(state.won):
            return Step(state, before, image, None, None, before)
        budget = self.policy.chat.max_answer_tokens
        nothing = Given(np.zeros(budget, np.int32), np.zeros(budget, bool), False)
        said, after = self._turn(self.params, before, image, nothing)
        said = jax.tree.map(np.asarray, said)
        value = None
        if self.critic is not None:
            seen = said.prompt_hidden if self.config.critic.reads_hidden else image
            value = float(self._value(self.critic, seen))
        return Step(state, before, image, said, value, after)

    def _told(self, step: Step, command: str) -> Conversation:
        """The conversation when the policy's answer was this command."""
        chat, env = self.policy.chat, self.config.env
        try:
            ids, valid = chat.answer_table([env.answer_text(parse_command(command))])
        except ValueError:
            raise BadRequest(f"“{command}” is longer than the model's answers can be") from None
        given = Given(ids[0], valid[0], True)
        return self._turn(self.params, step.before, step.image, given)[1]

    def _remember(self, key: tuple[Start, tuple[str, ...]], step: Step) -> None:
        self._steps[key] = step
        self._steps.move_to_end(key)
        size = sum(x.nbytes for x in jax.tree.leaves(step.after)) + step.image.nbytes
        while len(self._steps) > max(REMEMBERED // size, self.most_turns + 1):
            self._steps.popitem(last=False)


def load_model(folder: Path) -> Model:
    """A run's best policy, and its critic where the run has kept one. Raises `ConfigError`."""
    config = runs.read_config(folder)
    try:
        roomy = dataclasses.replace(config, env_params=dataclasses.replace(config.env_params, max_turns=TURNS))
        policy = make_policy(roomy)
    except ConfigError:  # a conversation of so many turns is longer than the model
        policy = make_policy(config)
    params = whole_params(folder)
    shape = image_shape(config)
    like = jax.eval_shape(lambda key: config.critic.init(key, *shape, config.model.text.width), jax.random.key(0))
    return Model(folder.resolve().name, config, policy, params, runs.read_critic(folder, like))


# What a page is told


def view(model: Model, start: Start, done: tuple[str, ...]) -> dict[str, Any]:
    """The policy's side of a step, as JSON."""
    step = model.step(start, done)
    rows, columns = grid(model.policy)
    return {
        "image_shape": [rows, columns],
        "values": [model.step(start, done[:turn]).value for turn in range(len(done) + 1)],
        "said": None if step.said is None else spoken(model.policy, step.said),
    }


def spoken(policy: Policy, said: Insight) -> dict[str, Any]:
    """An answer in words: its tokens with their rivals, each command's probability, and where it looked."""
    count = int(said.valid.sum())
    ids = said.ids[:count].tolist()
    tokens = [
        {
            "text": token_text(policy, ids[index]),
            "probability": math.exp(said.log_probs[index]),
            "rivals": [
                {"text": token_text(policy, int(rival)), "probability": math.exp(log_prob)}
                for rival, log_prob in zip(said.rival_ids[index], said.rival_log_probs[index])
            ],
        }
        for index in range(count)
    ]
    commands = [command_text(action) for action in policy.env.actions()]
    return {
        "text": policy.chat.tokenizer.decode(ids),
        "command": command_of(said),
        "tokens": tokens,
        "actions": [
            {"command": command, "probability": math.exp(log_prob)}
            for command, log_prob in zip(commands, said.of_actions)
        ],
        "attention": said.on_image.mean(axis=1).round(5).tolist(),  # [layers, I]
    }


def command_of(said: Insight) -> str | None:
    """What the game obeys of an answer."""
    action = int(said.action)
    return None if action in (UNPARSABLE, FORWARD) else command_text(action)


def token_text(policy: Policy, token: int) -> str:
    """A token for people: what it adds to the text, or its name where it adds nothing."""
    if token == policy.chat.end_id:
        return "end"
    return policy.chat.tokenizer.token_bytes[token].decode("utf-8", "replace")
