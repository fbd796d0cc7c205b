"""The directional light's shadow: three.js's soft-filtered shadow map, looked up without drawing the map.

The map stores the depth of the casters' BACK faces at texel centres. Casters are boxes, so what a texel would hold is a
slab test along the light. Facts: reference sheet, "Shadow".
"""

from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs_jax.grid_walker import scene as world
from envs_jax.grid_walker.scene import Scene
from envs_jax.rendering.hits import Box
from envs_jax.rendering.vector import Vec, dot, nonzero

MAP_SIZE = 1024
MAP_MARGIN = 6.0  # the map's half extent is the board's half width and this
CASTERS = (world.BODY, world.HEAD)


class Sun(NamedTuple):
    """The directional light, as unit vectors in the player's frame."""

    towards: Vec
    across: Vec  # the shadow map's u
    along: Vec  # the shadow map's v


def sun(scene: Scene) -> Sun:
    """Light from (.6N, 18, .6N) towards the board's centre."""
    slant = 0.6 * scene.half
    norm = jax.lax.rsqrt(2 * slant**2 + 18.0**2)
    level = jnp.float32(2**-0.5)
    towards = Vec(slant * norm, 18.0 * norm, slant * norm)
    across = Vec(level, 0.0, -level)  # up x towards
    along = Vec(-towards.y * level, 2 * slant * norm * level, -towards.y * level)  # towards x across
    return Sun(*(world.from_world(scene, direction) for direction in (towards, across, along)))


def lit_share(scene: Scene, light: Sun, position: Vec) -> jax.Array:
    """Share of the directional light that reaches a position: 0, 1/4, ... 1.

    The original's filter weighs 4 x 4 texels, about the three by three around the position; four points of that square
    do nearly as well (99.41% against 99.42% of the pixels within 4 levels) and fit in one fused loop.
    """
    extent = 2 * (scene.half + MAP_MARGIN)
    shift = 0.75 * extent / MAP_SIZE
    lit = 0.0
    for u, v in product((-shift, shift), repeat=2):
        lit = lit + jnp.where(_is_blocked(scene, light, position + light.across * u + light.along * v), 0.0, 0.25)
    from_centre = position - world.ground_point(scene.centre, 0.0)
    off_map = jnp.maximum(jnp.abs(dot(from_centre, light.across)), jnp.abs(dot(from_centre, light.along))) > extent / 2
    return jnp.where(off_map, 1.0, lit)


def _is_blocked(scene: Scene, light: Sun, point: Vec) -> jax.Array:
    """Whether a back face of a caster lies between a point and the light: where a ray towards the light enters it."""
    reach = light.towards.map(lambda c: 1 / nonzero(c))

    def by(box: Box) -> jax.Array:
        ends = [(jnp.where(r > 0, lo, hi), jnp.where(r > 0, hi, lo)) for lo, hi, r in zip(box.low, box.high, reach)]
        enter = [(end[0] - p) * r for end, p, r in zip(ends, point, reach, strict=True)]
        leave = [(end[1] - p) * r for end, p, r in zip(ends, point, reach, strict=True)]
        first = jnp.maximum(jnp.maximum(enter[0], enter[1]), enter[2])
        last = jnp.minimum(jnp.minimum(leave[0], leave[1]), leave[2])
        return (first < last) & (first > 1e-4)

    start = jnp.zeros(jnp.broadcast_shapes(*(jnp.shape(c) for c in point)), bool)
    for material, box in world.PLAYER_BOXES:
        if material in CASTERS:
            start = start | by(box)
    return world.fold_blocks(lambda seen, at, real: seen | (real & by(world.block_base(at))), start, scene)
