"""What the page asks beside a person's own game: the model's, everybody's scores on a board, and a GIF to share.

Each question is a method from a request's JSON to an answer's; what cannot be asked raises `BadRequest`.
"""

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from PIL import Image

from envs_jax.grid_walker import GridWalker
from envs_jax.players import Player
from jaxvlmrl import pictures
from jaxvlmrl.episodes import ENDED, scripted_episode
from jaxvlmrl.playing import game, model
from jaxvlmrl.playing.bad_request import BadRequest
from jaxvlmrl.playing.game import OWN, Start, one_at_a_time, read_done, read_start
from jaxvlmrl.playing.model import TURNS, Model, load_model

__all__ = ["Table", "load_model"]

SIZES = (8, 16, 32)  # boards a compiled player has room for


class Table:
    """A board at which scripted players sit and, where there is a checkpoint, its policy."""

    def __init__(self, model: Model | None):
        self.seated = model

    def about(self) -> dict[str, Any]:
        seated = self.seated
        told = seated and {
            "name": seated.name,
            "image": list(seated.policy.model.image_shape),
            "largest": seated.largest,
            "blocks": seated.board.max_blocks,
            "turns": seated.most_turns,
            "layers": seated.config.model.text.num_layers,
            "window": seated.policy.window,
            "has_critic": seated.critic is not None,
        }
        return {"turns": TURNS, "model": told}

    def warm_up(self) -> None:
        """Compiles what the page asks first, in its order."""
        if self.seated:
            self.model(game.FIRST)
        self.scores(game.FIRST)

    def model(self, data: Any) -> dict[str, Any]:
        """The model's game after `done`: commands, or `OWN` where it answered for itself."""
        start, done = read_start(data), read_done(data)
        with one_at_a_time:
            seated = self._model()
            step = seated.step(start, done)
            return {
                "done": list(done),
                "played": seated.played(start, done),
                "score": game.score(step.state)._asdict(),
                "sharp": game.as_uri(game.sharp_picture(start, step.state)),
                "image": game.as_uri(step.image),
            } | model.view(seated, start, done)

    def scores(self, data: Any) -> list[dict[str, Any]]:
        """How the others do on this board, within as many turns each."""
        start = read_start(data)
        with one_at_a_time:
            found = [{"player": name} | self._scripted(start, player) for name, player in self._players(start).items()]
            if self.seated and start.size <= self.seated.largest:
                done = self.seated.to_the_end(start)
                last = self.seated.step(start, done).state
                found.insert(0, {"player": "model, greedy"} | game.score(last)._asdict())
            return found

    def gif(self, data: Any) -> bytes:
        """A game as an animation, a picture a turn with what was done under it."""
        start, done = read_start(data), read_done(data)
        with one_at_a_time:
            file = io.BytesIO()
            pictures.save_gif([self._film(start, done)], file)
            return file.getvalue()

    def _model(self) -> Model:
        if self.seated is None:
            raise BadRequest("the page was opened without a checkpoint: there is no model to ask")
        return self.seated

    def _players(self, start: Start) -> dict[str, Player]:
        players = player_env(start).players()
        return {name: players[name] for name in sorted(players, key=lambda name: name != "explorer")}

    def _scripted(self, start: Start, player: Player) -> dict[str, Any]:
        env = player_env(start)
        state = game.first_state(env, start)
        *_, actions = scripted(player, env)(start.params, state, jax.random.key(0))
        for action in actions[actions != ENDED]:
            state = game.obey(env, start, state, int(action))
        return game.score(state)._asdict()

    def _film(self, start: Start, done: tuple[str, ...]) -> list[Image.Image]:
        words, commands = list(done), list(done)
        if OWN in done:
            seated = self._model()
            said = [seated.step(start, done[:turn]).said for turn in range(len(done))]
            decode = seated.policy.chat.tokenizer.decode
            words = [decode(s.ids[s.valid].tolist()) if d == OWN and s else d for d, s in zip(done, said)]
            commands = [command or "" for command in seated.played(start, done)]
        return film(start, words, commands)


def film(start: Start, words: list[str], commands: list[str]) -> list[Image.Image]:
    """A captioned picture of each turn, and of the end."""
    env = game.people_env(start)
    state = game.first_state(env, start)
    name = f"seed {game.printable(start.seed.strip()) or '0'}"[:40]
    sheets = []
    for turn, (said, command) in enumerate(zip(words, commands, strict=True)):
        sheets.append(pictures.captioned(small(start, state), f"{name}, turn {turn + 1}", said or "(says nothing)"))
        state = game.obey(env, start, state, game.parse_command(command))
    ending = f"won in {int(state.turn)}" if bool(state.won) else f"after {int(state.turn)} turns"
    return [*sheets, pictures.captioned(small(start, state), name, ending)]


def small(start: Start, state: Any) -> np.ndarray:
    """The picture for people at the size of a GIF's, smoothed."""
    picture = Image.fromarray(game.sharp_picture(start, state))
    return np.asarray(picture.resize((pictures.FRAME, pictures.FRAME), Image.Resampling.LANCZOS))


def player_env(start: Start) -> GridWalker:
    """The environment scripted players play in."""
    room = next(size for size in SIZES if start.size <= size)
    return GridWalker(max_size=room, max_blocks=game.capacity(start.blocks))


@cache
def scripted(player: Player, env: GridWalker) -> Callable[..., Any]:
    """A whole game of `TURNS` turns, compiled once: (params, state, key) -> ..., actions."""

    def play(params: Any, state: Any, key: jax.Array) -> tuple[jax.Array, ...]:
        return scripted_episode(player, env, params, TURNS, state, key)

    run = jax.jit(play)
    return lambda params, state, key: jax.tree.map(np.asarray, run(params, state, key))
