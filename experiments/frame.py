"""One frame of GridWalker in both qualities, and as the tiny model sees it: `python experiments/frame.py [--seed=20]`.

Writes docs/frame.png: reference quality, training quality, and training quality at 32 x 32 pixels enlarged.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from PIL import Image

from envs_jax import GridWalker

SEED = flags.DEFINE_integer("seed", 20, "which layout")
PATH = flags.DEFINE_string("out", "docs/frame.png", "where to")
SIDE, GAP = 384, 12


def frame(env: GridWalker) -> Image.Image:
    state = env.init_from_number(jnp.uint32(SEED.value), env.default_params())
    image = jax.jit(lambda state: env.observe(state)["image"])(state)
    return Image.fromarray(np.asarray(image)).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def main(_: list[str]) -> None:
    views = [
        GridWalker(height=SIDE, width=SIDE, quality="reference"),
        GridWalker(height=SIDE, width=SIDE),
        GridWalker(height=32, width=32),
    ]
    sheet = Image.new("RGB", (len(views) * (SIDE + GAP) - GAP, SIDE), "white")
    for index, env in enumerate(views):
        sheet.paste(frame(env), (index * (SIDE + GAP), 0))
    Path(PATH.value).parent.mkdir(exist_ok=True)
    sheet.save(PATH.value, optimize=True)


if __name__ == "__main__":
    app.run(main)
