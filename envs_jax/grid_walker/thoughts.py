"""What can be thought before a command in GridWalker: where the gold is seen, and what is done about it.

The categories are those of the harness's reasoned demonstrations (hidden or seen, by side and by command), the wordings our
own. A thought says what is in the picture, so whether it is true can be checked. Source: reference sheet "harness", Expert
data 2.
"""

from itertools import product
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.environment import Thoughts
from envs_jax.grid_walker import commands
from envs_jax.grid_walker.questions import HIDDEN, SIDES, gold_side
from envs_jax.grid_walker.rules import State

if TYPE_CHECKING:
    from envs_jax.grid_walker.grid_walker import GridWalker

KINDS = ("left", "right", "forward")  # of commands
SEEN = {HIDDEN: "no gold in sight", "ahead": "gold ahead", "behind": "gold behind", "left": "gold on the left",
        "right": "gold on the right"}  # fmt: skip
SEARCHES = {"left": ("look left", "turn left to see more"), "right": ("look right", "turn right to see more"),
            "forward": ("walk on", "go on to see more")}  # fmt: skip
PLANS = {"left": ("turn left", "turn left to face it"), "right": ("turn right", "turn right to face it"),
         "forward": ("walk on", "go on towards it")}  # fmt: skip
WORDINGS = 2


def thoughts(env: "GridWalker") -> Thoughts:
    """All of them, by what is seen, kind of command and wording."""
    texts = [
        f"{said}, {(SEARCHES if side == HIDDEN else PLANS)[kind][wording]}"
        for (side, said), kind, wording in product(SEEN.items(), KINDS, range(WORDINGS))
    ]
    sides = np.repeat([SIDES.index(side) for side in SEEN], len(KINDS) * WORDINGS)

    def apt(key: jax.Array, state: State, action: jax.Array) -> jax.Array:
        is_turn = (action == commands.LEFT) | (action == commands.RIGHT)
        kind = jnp.where(is_turn, action, KINDS.index("forward"))
        side = jnp.argmax(jnp.asarray([SIDES.index(side) for side in SEEN]) == gold_side(env, state))
        return (side * len(KINDS) + kind) * WORDINGS + jax.random.randint(key, (), 0, WORDINGS)

    return Thoughts(
        tuple(texts), apt,
        is_true=lambda state: jnp.asarray(sides) == gold_side(env, state),
        imagines=lambda state: (jnp.asarray(sides) > 0) & (gold_side(env, state) == 0),
    )  # fmt: skip
