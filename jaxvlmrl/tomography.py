"""What a policy looks at: `python -m jaxvlmrl.tomography --checkpoint=DIR [--seed=0] [--layer=1] [--to=look.gif]`.

Draws the attention of an answer's tokens over the picture, in all layers and heads or in one layer, turn by turn.
`--queries=all` sums over every token of the turn instead, as the original's tool does. `--sight=N` plays N games and says
how much of the attention lies on the goal where it is in the picture, beside chance, and how often the answer changes
when the goal is taken out of the picture.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib import colormaps
from PIL import Image

from envs_jax.environment import State
from jaxvlmrl import acting, command_line, pictures, rollout
from jaxvlmrl.config import ConfigError
from jaxvlmrl.conversation import Place, Ring
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy
from jaxvlmrl.sampler import attention, take_turn

SHADE = 0.55  # of the map over the frame
GLOW = 24  # levels by which what is sought may lighten what is around it


class Watched(NamedTuple):
    """N games of T turns, arrays [T, N, ...]; what comes after a game's end does not count."""

    is_played: jax.Array  # bool
    images: jax.Array  # [.., height, width, 3] uint8
    is_goal: jax.Array  # [.., height, width] bool: pixels that show what is sought
    on_image: jax.Array  # [.., layers, heads, I], of the queries, adding up to at most 1
    answer_ids: jax.Array  # [.., G]
    answer_valid: jax.Array
    action: jax.Array
    blind_action: jax.Array  # with the goal taken out of the picture
    won: jax.Array  # bool


def watch(actor: acting.Actor, seeds: np.ndarray, queries: str = "answer") -> Watched:
    """Plays greedily, one batch, and notes what was looked at."""
    policy, env_params = actor.policy, actor.config.env_params
    env = policy.env

    @jax.jit
    def play(params: Params, seeds: jax.Array) -> Watched:
        prefix, decoding = policy.prefix(params), policy.model.unstacked(params)
        state = jax.vmap(lambda seed: env.init_from_number(seed, env_params))(seeds)
        batch = len(seeds)

        def turn(carry: tuple[State, Place, Ring, jax.Array], index: jax.Array):
            state, place, ring, is_over = carry
            key = jax.random.key(0)
            images = rollout.images(env, state, lead=1)
            without = rollout.images(env, jax.vmap(env.without_goal)(state), lead=1)
            seen = [policy.model.image_tokens(params, each) for each in (images, without)]
            answer, turns, kv = take_turn(policy, decoding, ring, prefix, place, seen[0], key, greedy=True)
            blind, _, _ = take_turn(policy, decoding, ring, prefix, place, seen[1], key, greedy=True)
            weights = attention(policy, decoding, ring, prefix, place, turns, seen[0])
            action, blind_action = (policy.read(said.ids, said.valid) for said in (answer, blind))
            step = jax.vmap(env.transition, in_axes=(None, 0, 0, None))
            after, _, terminated, truncated, info = step(key, state, action, env_params)
            on_image = jnp.moveaxis(of_picture(policy, weights, turns.valid, queries), 0, 1)
            record = Watched(
                ~is_over, images, differs(images, without), on_image, answer.ids, answer.valid, action,
                blind_action, info["success"],
            )  # fmt: skip
            place = place.after(policy, turns, jnp.zeros(batch, bool))
            return (after, place, ring.write(index, kv, turns.valid), is_over | terminated | truncated), record

        start = (state, Place.start(policy, batch), Ring.empty(policy, batch), jnp.zeros(batch, bool))
        return jax.lax.scan(turn, start, jnp.arange(policy.chat.max_turns))[1]

    return jax.tree.map(np.asarray, play(actor.params, jnp.asarray(seeds, jnp.uint32)))


def differs(images: jax.Array, others: jax.Array) -> jax.Array:
    """[..., height, width] bool: pixels that are another colour."""
    return jnp.max(jnp.abs(images.astype(jnp.int32) - others.astype(jnp.int32)), axis=-1) > GLOW


def of_picture(policy: Policy, weights: jax.Array, valid: jax.Array, queries: str) -> jax.Array:
    """[layers, B, N, I]: the mean over queries of [layers, B, N, S, S] towards the picture's tokens.

    The queries are those from which an answer's tokens were drawn, or all of the turn's.
    """
    first, chat = policy.chat.num_observation_tokens - 1, policy.chat
    asks = valid
    if queries == "answer":
        slot = jnp.arange(valid.shape[-1])
        drawn = jnp.concatenate([valid[:, 1:], jnp.zeros_like(valid[:, :1])], axis=1)  # the next slot holds a token
        asks = drawn & (slot >= first)[None]
    counts = asks[None, :, None, :, None]
    towards = weights[..., chat.image_slot : chat.image_slot + chat.num_image_tokens]
    total = jnp.sum(jnp.where(jnp.broadcast_to(counts, towards.shape), towards, 0.0), axis=-2)
    return total / jnp.maximum(jnp.sum(asks, axis=-1), 1)[None, :, None, None]


def grid(policy: Policy) -> tuple[int, int]:
    """(rows, columns) of the picture's tokens."""
    height, width = policy.model.image_shape
    rows = round((policy.model.num_image_tokens * height / width) ** 0.5)
    return rows, policy.model.num_image_tokens // rows


def on_tokens(policy: Policy, is_goal: np.ndarray) -> np.ndarray:
    """[..., I] bool: tokens whose part of the picture [..., height, width] shows the goal."""
    rows, columns = grid(policy)
    *lead, height, width = is_goal.shape
    blocks = is_goal.reshape(*lead, rows, height // rows, columns, width // columns)
    return blocks.any(axis=(-3, -1)).reshape(*lead, rows * columns)


def sight(policy: Policy, watched: Watched, layer: int | None) -> dict[str, float]:
    """Over turns that show the goal: its share of the attention on the picture, chance, and how often it mattered."""
    goal = on_tokens(policy, np.asarray(watched.is_goal))
    shows = watched.is_played & goal.any(axis=-1)
    weights = of_layer(watched, layer)
    share = (weights * goal).sum(axis=-1) / np.maximum(weights.sum(axis=-1), 1e-9)
    mean = lambda x, counts: float(x[counts].mean()) if counts.any() else float("nan")
    changed = watched.action != watched.blind_action
    return {
        "turns": int(watched.is_played.sum()),
        "turns that show the goal": int(shows.sum()),
        "attention on its tokens": mean(share, shows),
        "chance": mean(goal.mean(axis=-1), shows),
        "another answer without it": mean(changed, shows),
        "another answer where nothing was taken out": mean(
            changed, watched.is_played & ~watched.is_goal.any(axis=(-2, -1))
        ),
    }


def of_layer(watched: Watched, layer: int | None) -> np.ndarray:
    """[T, N, I]: the mean over heads of one layer (counted from 0), or over all layers too."""
    chosen = watched.on_image if layer is None else watched.on_image[:, :, layer : layer + 1]
    return np.asarray(chosen).mean(axis=(2, 3))


def film(actor: acting.Actor, watched: Watched, seed: int, layer: int | None) -> list[Image.Image]:
    """A picture a turn of the first game: the frame, and the frame under the map of what was looked at."""
    policy, sheets = actor.policy, []
    weights = of_layer(watched, layer)[:, 0]
    for turn in range(int(watched.is_played[:, 0].sum())):
        image = np.asarray(watched.images[turn, 0])
        heat = weights[turn].reshape(grid(policy))
        heat = (heat - heat.min()) / max(float(np.ptp(heat)), 1e-9)
        scale = (image.shape[0] // heat.shape[0], image.shape[1] // heat.shape[1])
        colours = colormaps["inferno"](np.kron(heat, np.ones(scale)))[..., :3] * 255
        mixed = ((1 - SHADE) * image + SHADE * colours).astype(np.uint8)
        said = policy.chat.tokenizer.decode(watched.answer_ids[turn, 0][watched.answer_valid[turn, 0]].tolist())
        titles = (f"seed {seed}, turn {turn + 1}", f"{weights[turn].sum():.0%} of the attention is on the picture")
        pair = [pictures.captioned(part, *words) for part, words in zip((image, mixed), zip(titles, (said, "")))]
        sheet = Image.new("RGB", (sum(part.width for part in pair) + 8, pair[0].height), pictures.PAPER)
        sheet.paste(pair[0], (0, 0))
        sheet.paste(pair[1], (pair[0].width + 8, 0))
        sheets.append(sheet)
    return sheets


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("checkpoint", None, "a run directory", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the game that is drawn", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("layer", None, "only this one, counted from 0; all without it", flag_values=values)
    flags.DEFINE_enum("queries", "answer", ["answer", "all"], "whose attention", flag_values=values)
    flags.DEFINE_integer("sight", 0, "games of the sight test; 0 leaves it out", lower_bound=0, flag_values=values)
    flags.DEFINE_string("to", "look.gif", "a .gif, or a .png of the first turn", flag_values=values)


def main(argv: list[str]) -> int:
    if command_line.helped(argv, __doc__, define):
        return 0
    given: dict[str, Any] = command_line.parse(argv, define).flag_values_dict()
    if given["checkpoint"] is None:
        raise ConfigError("say whose eyes to look through: --checkpoint=runs/quickstart-0")
    target = Path(given["to"])
    if target.suffix not in (".gif", ".png") or not target.absolute().parent.is_dir():
        raise ConfigError(f"--to={target} is no .gif or .png in a folder that exists")
    actor = acting.load_policy(given["checkpoint"])
    layers, layer = actor.config.model.text.num_layers, given["layer"]
    if layer is not None and not 0 <= layer < layers:
        raise ConfigError(f"--layer={layer} is outside 0..{layers - 1}")
    watched = watch(actor, np.array([given["seed"]]), given["queries"])
    sheets = film(actor, watched, given["seed"], layer)
    options = {"save_all": True, "append_images": sheets[1:], "duration": 1200, "loop": 0}
    sheets[0].save(target, **(options if target.suffix == ".gif" else {}))
    print(f"wrote {target}")
    if given["sight"]:
        found = sight(actor.policy, watch(actor, np.arange(given["sight"]), given["queries"]), layer)
        for name, value in found.items():
            print(f"{name}: {value}" if isinstance(value, int) else f"{name}: {value:.1%}")
    return 0


if __name__ == "__main__":
    command_line.guarded("jaxvlmrl.tomography", lambda: main(sys.argv))
