"""Pictures of a run: its learning curve, and episodes with the model's own answers under the frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs_jax.environment import Params as EnvParams
from envs_jax.environment import TextEnvironment
from jaxvlmrl.episodes import ENDED, Game

matplotlib.use("Agg")

from matplotlib import pyplot as plt

FRAME = 256  # pixels on a side of a GIF's frames
CAPTION = 44
INK, PAPER, GOLD = "#1c2430", "#ffffff", "#c98a00"


def learning_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Win rates along a run, imitation and reinforcement learning on one axis of turns played."""
    figure, axis = plt.subplots(figsize=(7, 4), dpi=120, layout="constrained")
    of_phase = lambda phase, name: [
        (row["turns"], row[name]) for row in rows if row["phase"] == phase and row.get(name) is not None
    ]
    if played := of_phase("rl", "rollout/success_rate"):
        axis.plot(*zip(*played), color="#9fb4d0", linewidth=1, label="training games, sampled answers")
    for phase, name, colour in (("imitation", "imitation", "#8a6d1f"), ("rl", "reinforcement learning", "#1f5fbf")):
        if points := of_phase(phase, "validation/win_rate"):
            axis.plot(*zip(*points), color=colour, marker="o", markersize=3, label=f"validation games, greedy: {name}")
    if (imitated := of_phase("imitation", "update")) and played:
        axis.axvline(imitated[-1][0], color=INK, linewidth=0.8, linestyle=":")
    axis.set(xlabel="turns played", ylabel="share of games won", ylim=(0, 1.02))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1e3:.0f}k")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path)
    plt.close(figure)


def episode_frames(env: TextEnvironment, env_params: EnvParams, games: Sequence[Game]) -> list[list[Image.Image]]:
    """Of each game: one picture a turn with the answer under it, then one of the end."""

    def film(seed: jax.Array, actions: jax.Array) -> jax.Array:
        def turn(state, action):
            return env.transition(jax.random.key(0), state, action, env_params)[0], env.observe(state)["image"]

        last, images = jax.lax.scan(turn, env.init_from_number(seed, env_params), actions)
        return jnp.concatenate([images, env.observe(last)["image"][None]])

    longest = max(game.turns for game in games)
    actions = np.array([game.actions + [ENDED] * (longest - game.turns) for game in games], np.int32)
    films = np.asarray(jax.jit(jax.vmap(film))(np.array([game.seed for game in games], np.uint32), actions))
    sheets = []
    for game, frames in zip(games, films, strict=True):
        titles = [f"seed {game.seed}, turn {turn + 1}" for turn in range(game.turns)]
        answers = [answer or "(says nothing)" for answer in game.answers]
        ending = f"won in {game.turns}" if game.won else "not won"
        captions = zip(frames, [*titles, f"seed {game.seed}"], [*answers, ending])
        sheets.append([captioned(*caption) for caption in captions])
    return sheets


def captioned(image: np.ndarray, title: str, text: str) -> Image.Image:
    """A frame enlarged without smoothing, over two lines of text."""
    picture = Image.new("RGB", (FRAME, FRAME + CAPTION), PAPER)
    frame = Image.fromarray(image)
    height = round(FRAME * frame.height / frame.width)
    picture.paste(frame.resize((FRAME, height), Image.Resampling.NEAREST), (0, 0))
    draw = ImageDraw.Draw(picture)
    draw.text((8, FRAME + 4), title, fill="#5d6672", font=ImageFont.load_default(12))
    draw.text((8, FRAME + 20), text, fill=INK, font=ImageFont.load_default(17))
    return picture


def episode_gif(env: TextEnvironment, env_params: EnvParams, games: Sequence[Game], path: Path | BinaryIO) -> None:
    """Games side by side; one that is over shows its end until all are."""
    save_gif(episode_frames(env, env_params, games), path)


def save_gif(films: Sequence[Sequence[Image.Image]], path: Path | BinaryIO) -> None:
    """Films side by side; one that is over shows its last picture until all are."""
    length = max(map(len, films))
    width, height = films[0][0].size
    sheets = []
    for time in range(length + 1):  # the last picture stands twice as long
        sheet = Image.new("RGB", (len(films) * (width + 8) - 8, height), PAPER)
        for column, film in enumerate(films):
            sheet.paste(film[min(time, len(film) - 1)], (column * (width + 8), 0))
        sheets.append(sheet.quantize(128))
    options = {"save_all": True, "append_images": sheets[1:], "duration": 900, "loop": 0, "optimize": True}
    sheets[0].save(path, format="GIF", **options)
