"""What stands where in GridWalker's world, seen from the player: sizes, colours and lights of the original scene.

Everything is in the PLAYER'S frame (right, up, ahead) with the player's cell at the origin: turns are of 90 degrees, so
boxes stay axis-aligned, and the rays of the settled camera are the same in every frame.
Facts: reference sheet "Scene (world units)".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs_jax.rendering.camera import Camera, look_at
from envs_jax.rendering.hits import Box
from envs_jax.rendering.shading import Material, standard_material
from envs_jax.rendering.vector import Scalar, Vec, hex_colour

FIELD_OF_VIEW = 60.0
EYE = (0.0, 3.5, -5.0)  # settled, in the player's frame
TARGET = (0.0, 1.2, 0.0)
NEAR = 0.1

EVEN, ODD, GOLD, BLOCK, CAP, BODY, HEAD, EYES = range(8)
MATERIALS = (
    standard_material("#ffffff", "#000000", 0.8, 0.2),
    standard_material("#000000", "#000000", 0.9, 0.1),
    standard_material("#ffd700", "#886600", 0.3, 0.6),
    standard_material("#ff3311", "#550000", 0.5, 0.4),
    standard_material("#ff3311", "#550000", 0.4, 0.0),
    standard_material("#00e5ff", "#004466", 0.4, 0.6),
    standard_material("#00ccff", "#003355", 0.3, 0.7),
    standard_material("#ffffff", "#00ffff", 1.0, 0.0, glow=3.0),
)
LAST_SHADOWED = BLOCK  # materials up to this one receive shadows
WALL = standard_material("#ffffff", "#222222", 0.3, 0.0)
WALL_OPACITY, WALL_HEIGHT, WALL_HALF_THICKNESS = 0.35, 2.2, 0.06
RING_COLOUR, RING_OPACITY, RING_HEIGHT, RING_RADII = hex_colour("#ffd700"), 0.65, 0.05, (0.72, 1.0)
INDICATOR_COLOUR, INDICATOR_OPACITY, INDICATOR_HEIGHT, INDICATOR_HALF = hex_colour("#00e5ff"), 0.12, 0.03, 0.85
LINE_HEIGHT = 0.02
BACKGROUND = hex_colour("#050508")

AMBIENT, SUN = 0.6, 0.8
OVERHEAD_HEIGHT, OVERHEAD_COLOUR, OVERHEAD_CUTOFF = 14.0, Vec(1.0, 1.0, 1.0), 5.0  # cut-off in board sizes
PLAYER_LIGHT_HEIGHT, PLAYER_LIGHT_COLOUR, PLAYER_LIGHT_CUTOFF = 1.5, hex_colour("#00e5ff"), 6.0
GOAL_LIGHT_HEIGHT, GOAL_LIGHT_COLOUR, GOAL_LIGHT_CUTOFF = 1.2, hex_colour("#ffd700") * 2.5, 10.0
BLOCK_LIGHT_HEIGHT, BLOCK_LIGHT_COLOUR, BLOCK_LIGHT_CUTOFF = 1.4, hex_colour("#ff3300") * 0.9, 7.0

PLAYER_BOXES = (
    (BODY, Box(Vec(-0.3, 0.0, -0.2), Vec(0.3, 1.0, 0.2))),
    (HEAD, Box(Vec(-0.225, 0.995, -0.225), Vec(0.225, 1.445, 0.225))),
    (EYES, Box(Vec(-0.14, 1.2, 0.205), Vec(0.14, 1.28, 0.255))),
)


class Scene(NamedTuple):
    """One pose on one board. Ground positions are [2] float32 (right, ahead), two units to a cell."""

    half: jax.Array  # half the board's width, which is its size in cells
    goal: jax.Array  # [2]
    blocks: jax.Array  # [max_blocks, 2]
    is_block: jax.Array  # [max_blocks] bool
    low: jax.Array  # [2] edges of the board
    high: jax.Array  # [2]
    centre: jax.Array  # [2]
    parity: jax.Array  # 0 or 1: colour of the player's tile
    right: jax.Array  # [2] the player's right in the world's (east, south)
    ahead: jax.Array  # [2]


def view_scene(size: jax.Array, goal: jax.Array, blocks: jax.Array, cell: jax.Array, facing: jax.Array) -> Scene:
    """The scene around a player on `cell` [2] who looks `facing` (0 north, 1 east, 2 south, 3 west)."""
    ahead = jnp.stack([jnp.where(facing == 1, 1.0, jnp.where(facing == 3, -1.0, 0.0)),
                       jnp.where(facing == 2, 1.0, jnp.where(facing == 0, -1.0, 0.0))])  # fmt: skip
    right = jnp.stack([-ahead[1], ahead[0]])

    def seen(offset: jax.Array) -> jax.Array:
        return jnp.stack([offset @ right, offset @ ahead], -1)

    half = size.astype(jnp.float32)
    here = 2.0 * cell - half + 1
    corners = seen(jnp.stack([-half - here, half - here]))
    return Scene(
        half=half,
        goal=seen(2.0 * (goal - cell)),
        blocks=seen(2.0 * (blocks - cell[None])),
        is_block=blocks[:, 0] >= 0,
        low=jnp.min(corners, axis=0),
        high=jnp.max(corners, axis=0),
        centre=seen(-here),
        parity=(cell[0] + cell[1]) % 2,
        right=right,
        ahead=ahead,
    )


def from_world(scene: Scene, direction: Vec) -> Vec:
    """A direction in the world's (east, up, south) as the player's (right, up, ahead)."""
    along = lambda axis: direction.x * axis[0] + direction.z * axis[1]
    return Vec(along(scene.right), direction.y, along(scene.ahead))


def settled_camera() -> Camera:
    return look_at(Vec(*EYE), Vec(*TARGET))


def ground_point(position: jax.Array, height: float) -> Vec:
    return Vec(position[0], height, position[1])


def column(position: jax.Array, half_width: float, low: float, high: float) -> Box:
    """A square box over a ground position."""
    x, z = position[0], position[1]
    return Box(Vec(x - half_width, low, z - half_width), Vec(x + half_width, high, z + half_width))


def block_base(position: jax.Array) -> Box:
    return column(position, 0.9, 0.0, 1.7)


def block_cap(position: jax.Array) -> Box:
    return column(position, 0.92, 1.645, 1.795)


def whole_block(position: jax.Array) -> Box:
    """Base and cap as one box."""
    return column(position, 0.91, 0.0, 1.795)


def board_slab(scene: Scene) -> Box:
    return Box(Vec(scene.low[0], -0.2, scene.low[1]), Vec(scene.high[0], 0.0, scene.high[1]))


def fold_blocks(body: Callable[[Any, jax.Array, jax.Array], Any], start: Any, scene: Scene) -> Any:
    """start -> body(..., position [2], is_block) over the blocks.

    A few blocks are unrolled, so that they fuse into the pixel loop; many are a loop, so that they compile.
    """
    count = scene.blocks.shape[0]
    step = lambda carry, block: (body(carry, *block), None)
    return jax.lax.scan(step, start, (scene.blocks, scene.is_block), unroll=max(count, 1) if count <= 4 else 1)[0]


def material_of(code: jax.Array, field: Callable[[Material], Scalar]) -> jax.Array:
    """One number of the material of each pixel, by a chain of selects (a table lookup would not vectorise)."""
    numbers = [field(material) for material in MATERIALS]
    commonest = max(numbers, key=numbers.count)
    chosen = jnp.full_like(code, commonest, jnp.float32)
    for index, number in enumerate(numbers):
        if number != commonest:
            chosen = jnp.where(code == index, jnp.float32(number), chosen)
    return chosen
