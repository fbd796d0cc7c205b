"""Pictures of a run: its learning curve, and episodes with the model's own answers under the frames."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs_jax.environment import Params as EnvParams
from envs_jax.environment import TextEnvironment
from jaxvlmrl.episodes import Episodes
from jaxvlmrl.text.tokenizer import Tokenizer

matplotlib.use("Agg")

from matplotlib import pyplot as plt

FRAME = 256  # pixels on a side of a GIF's frames
CAPTION = 44
INK, PAPER, GOLD = "#1c2430", "#ffffff", "#c98a00"


def learning_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Win rates along a run, imitation and reinforcement learning on one axis of turns played."""
    figure, axis = plt.subplots(figsize=(7, 4), dpi=120, layout="constrained")
    of_phase = lambda phase, name: [(row["turns"], row[name]) for row in rows if row["phase"] == phase and name in row]
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


def episode_frames(
    env: TextEnvironment, env_params: EnvParams, tokenizer: Tokenizer, episodes: Episodes, count: int
) -> list[list[Image.Image]]:
    """Of each of the first `count` episodes: one picture a turn with the answer under it, then one of the end."""

    def film(seed: jax.Array, actions: jax.Array) -> jax.Array:
        def turn(state, action):
            return env.transition(jax.random.key(0), state, action, env_params)[0], env.observe(state)["image"]

        last, images = jax.lax.scan(turn, env.init_from_number(seed, env_params), actions)
        return jnp.concatenate([images, env.observe(last)["image"][None]])

    seeds = episodes.seeds[:count]
    films = np.asarray(jax.jit(jax.vmap(film))(seeds.astype(np.uint32), episodes.actions[:count]))
    sheets = []
    for index, seed in enumerate(seeds):
        length = int(episodes.turns[index])
        kept = zip(episodes.answer_ids[index, :length], episodes.answer_valid[index, :length])
        answers = [tokenizer.decode(ids[valid].tolist()) or "(says nothing)" for ids, valid in kept]
        titles = [f"seed {seed}, turn {turn + 1}" for turn in range(length)]
        ending = f"won in {length}" if episodes.won[index] else "not won"
        captions = zip(films[index], [*titles, f"seed {seed}"], [*answers, ending])
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


def episode_gif(
    env: TextEnvironment, env_params: EnvParams, tokenizer: Tokenizer, episodes: Episodes, path: Path, columns: int = 4
) -> None:
    """The first episodes side by side; one that is over shows its end until all are."""
    count = min(columns, len(episodes.seeds))
    films = episode_frames(env, env_params, tokenizer, episodes, count)
    length = max(map(len, films))
    width, height = films[0][0].size
    sheets = []
    for time in range(length + 1):  # the last picture stands twice as long
        sheet = Image.new("RGB", (count * (width + 8) - 8, height), PAPER)
        for column, film in enumerate(films):
            sheet.paste(film[min(time, len(film) - 1)], (column * (width + 8), 0))
        sheets.append(sheet.quantize(128))
    sheets[0].save(path, save_all=True, append_images=sheets[1:], duration=900, loop=0, optimize=True)
