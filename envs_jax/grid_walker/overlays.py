"""What is drawn over GridWalker's solid things: grid lines, the goal's ring, the player's square, the glassy walls.

Each function takes the picture so far, `(levels, depth)`, and returns it with its part blended in.
Facts: reference sheet, "Draw order" and "Lines".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.grid_walker import scene as world
from envs_jax.grid_walker.scene import Scene
from envs_jax.rendering.camera import Camera
from envs_jax.rendering.hits import FAR, Box, Ray, box_face
from envs_jax.rendering.shading import quantise, smoothstep
from envs_jax.rendering.vector import Scalar, Vec, dot, mix, where

# The ring is 36 straight segments; a circle of the same area needs no angles and differs by under 0.002 cells.
SEGMENTS_AREA = float(np.sqrt(np.sin(2 * np.pi / 36) * 36 / (2 * np.pi)))


class Picture(NamedTuple):
    """Colours as 8-bit levels (float) and the depth that later things are tested against."""

    levels: Vec
    depth: jax.Array


Crossing = tuple[jax.Array, jax.Array]  # depth, and whether the wall is one that looks along x


class Wall(NamedTuple):
    """One of the four walls as a box; `axis` is the one its faces look along."""

    box: Box
    axis: jax.Array
    order: jax.Array  # 1 / depth of its origin: smaller is drawn earlier, behind the eye first
    is_entered: jax.Array  # the eye is outside it, so its outer face is seen


def fogged(scene: Scene, colour: Vec, depth: Scalar) -> Vec:
    """Fog is mixed in before colours are clamped, so that bright things resist it."""
    return mix(colour, world.BACKGROUND, smoothstep(1.6 * scene.half, 5.0 * scene.half, depth))


def blend(under: Vec, over: Vec, opacity: float) -> Vec:
    """8-bit blending of levels; a half goes down, as it did in the recorded frames."""
    return mix(under, over, opacity).map(lambda level: jnp.ceil(level - 0.5))


def draw_lines(picture: Picture, scene: Scene, camera: Camera, ray: Ray, pixel: float) -> Picture:
    """Black lines one pixel wide between the cells.

    A line is a rectangle on the screen with the depth of the line itself. The recorded frames lack every line with an
    end behind the eye (their rasteriser drops it), so these are left out here as well.
    """
    eye, toward = camera.eye, ray.direction
    plane_depth = (world.LINE_HEIGHT - eye.y) * ray.inverse.y
    for across, along, edge in ((0, 2, 0), (2, 0, 1)):
        low = scene.low[edge]
        start, end = scene.low[1 - edge], scene.high[1 - edge]
        nearest = jnp.round((eye[across] + plane_depth * toward[across] - low) / 2)
        at = low + 2 * jnp.clip(nearest, 0, scene.half)
        # The line's equation on the screen is linear in the ray: zero where the ray meets it, its gradient constant.
        miss = lambda d, at=at, across=across: (eye[across] - at) * d.y + (world.LINE_HEIGHT - eye.y) * d[across]
        gradient2 = miss(camera.right) ** 2 + miss(camera.up) ** 2
        position = eye[along] + plane_depth * toward[along]

        def depth_at(where_along: Scalar, at=at, across=across) -> jax.Array:
            parts = (at, world.LINE_HEIGHT, where_along)
            point = Vec(*parts) if across == 0 else Vec(parts[2], parts[1], parts[0])
            return dot(point - camera.eye, camera.ahead)

        depth = depth_at(position)
        is_drawn = (depth_at(start) > world.NEAR) & (depth_at(end) > world.NEAR)
        is_on_board = (position >= start) & (position <= end) & (plane_depth > 0)
        is_line = is_drawn & is_on_board & (miss(toward) ** 2 <= 0.25 * pixel**2 * gradient2) & (depth <= picture.depth)
        black = quantise(fogged(scene, Vec(0.0, 0.0, 0.0), depth))
        picture = Picture(where(is_line, black, picture.levels), jnp.where(is_line, depth, picture.depth))
    return picture


def draw_decals(
    picture: Picture, scene: Scene, camera: Camera, ray: Ray, is_hidden: Callable[[jax.Array, jax.Array], jax.Array]
) -> Picture:
    """The square under the player, then the ring on the goal; `is_hidden(depth, order)` asks about walls in front."""

    def on_plane(height: float) -> tuple[jax.Array, Scalar, Scalar]:
        depth = (height - camera.eye.y) * ray.inverse.y
        return depth, camera.eye.x + depth * ray.direction.x, camera.eye.z + depth * ray.direction.z

    def draw(levels: Vec, depth: jax.Array, covers: jax.Array, origin: Vec, colour: Vec, opacity: float) -> Vec:
        order = 1 / dot(origin - camera.eye, camera.ahead)
        covers = covers & (depth > 0) & (depth <= picture.depth) & ~is_hidden(depth, order)
        return where(covers, blend(levels, quantise(fogged(scene, colour, depth)), opacity), levels)

    depth, x, z = on_plane(world.INDICATOR_HEIGHT)
    covers = (jnp.abs(x) < world.INDICATOR_HALF) & (jnp.abs(z) < world.INDICATOR_HALF)
    origin = Vec(0.0, world.INDICATOR_HEIGHT, 0.0)
    levels = draw(picture.levels, depth, covers, origin, world.INDICATOR_COLOUR, world.INDICATOR_OPACITY)

    depth, x, z = on_plane(world.RING_HEIGHT)
    radius2 = (x - scene.goal[0]) ** 2 + (z - scene.goal[1]) ** 2
    inner, outer = (radius * SEGMENTS_AREA for radius in world.RING_RADII)
    covers = (radius2 > inner**2) & (radius2 < outer**2)
    origin = world.ground_point(scene.goal, world.RING_HEIGHT)
    levels = draw(levels, depth, covers, origin, world.RING_COLOUR, world.RING_OPACITY)
    return Picture(levels, picture.depth)


def walls_in_drawing_order(scene: Scene, camera: Camera) -> Wall:
    """The four walls, fields stacked [4]: farthest first, one behind the eye before all others."""
    thick, reach = world.WALL_HALF_THICKNESS, scene.half + 2 * world.WALL_HALF_THICKNESS
    eye = jnp.stack([camera.eye.x, camera.eye.z])
    low, high, middle, entered = [], [], [], []
    for axis, edge, side in ((0, scene.low, -1), (0, scene.high, 1), (1, scene.low, -1), (1, scene.high, 1)):
        is_axis = jnp.arange(2) == axis
        low.append(jnp.where(is_axis, edge - thick, scene.centre - reach))
        high.append(jnp.where(is_axis, edge + thick, scene.centre + reach))
        middle.append(jnp.where(is_axis, edge, scene.centre))
        entered.append((eye[axis] - edge[axis]) * side > 0)
    depths = jnp.stack([dot(world.ground_point(m, world.WALL_HEIGHT / 2) - camera.eye, camera.ahead) for m in middle])
    order = jnp.argsort(1 / depths)
    low, high = jnp.stack(low)[order], jnp.stack(high)[order]
    corner = lambda ground, height: Vec(ground[:, 0], jnp.full(4, height), ground[:, 1])
    box = Box(corner(low, 0.0), corner(high, world.WALL_HEIGHT))
    return Wall(box, jnp.asarray([0, 0, 2, 2])[order], 1 / depths[order], jnp.stack(entered)[order])


def draw_thick_walls(
    picture: Picture, scene: Scene, walls: list[Wall], hits: list[tuple[jax.Array, jax.Array]], faces: tuple[Vec, Vec]
) -> Picture:
    """The walls over everything, in drawing order; each writes depth and so hides what it stands before.

    `hits` are (depth, axis) of each wall; `faces` the levels of the broad face by which a pixel's ray enters the board
    and of the one by which it leaves. Rims are bright enough to be white.
    """
    for wall, (depth, axis) in zip(walls, hits, strict=True):
        is_seen = (depth <= picture.depth) & (depth < FAR)
        rim = quantise(fogged(scene, Vec(1.5, 1.5, 1.5), depth))
        over = where(axis == wall.axis, where(wall.is_entered, *faces), rim)
        levels = where(is_seen, blend(picture.levels, over, world.WALL_OPACITY), picture.levels)
        picture = Picture(levels, jnp.where(is_seen, depth, picture.depth))
    return picture


def hidden_by_walls(walls: list[Wall], hits: list[tuple[jax.Array, jax.Array]]):
    """`is_hidden` for `draw_decals`: a wall drawn earlier that stands in front."""

    def is_hidden(depth: jax.Array, order: jax.Array) -> jax.Array:
        hidden = jnp.zeros((), bool)
        for wall, (wall_depth, _) in zip(walls, hits, strict=True):
            hidden = hidden | ((wall.order < order) & (wall_depth < depth))
        return hidden

    return is_hidden


def draw_thin_walls(picture: Picture, scene: Scene, light: Vec, ray: Ray) -> Picture:
    """Walls for training, without thickness: where a ray enters the board, else where it leaves. `light` is the sun."""
    (enter, enter_is_x), (leave, leave_is_x) = crossings(scene, ray, thickness=0.0)

    def is_wall(depth: jax.Array) -> jax.Array:
        height = ray.eye.y + depth * ray.direction.y
        return (enter < leave) & (depth > 0) & (depth < picture.depth) & (height > 0) & (height < world.WALL_HEIGHT)

    enters, leaves = is_wall(enter), is_wall(leave)
    depth = jnp.where(enters, enter, leave)
    towards_eye = ray.direction.map(lambda d: -jnp.sign(d))
    is_x = jnp.where(enters, enter_is_x, leave_is_x)
    sunlit = jnp.maximum(jnp.where(is_x, towards_eye.x * light.x, towards_eye.z * light.z), 0.0)
    overhead = jnp.where(enters, 0.0, 0.3)  # the lamp above the board, about; it never reaches an outer face
    grey = world.WALL.emissive.x + world.AMBIENT + world.SUN * sunlit + overhead
    levels = blend(picture.levels, quantise(fogged(scene, Vec(grey, grey, grey), depth)), world.WALL_OPACITY)
    return Picture(where(enters | leaves, levels, picture.levels), picture.depth)


def crossings(scene: Scene, ray: Ray, thickness: float) -> tuple[Crossing, Crossing]:
    """Where a ray enters the board by a wall's outer face, and where it leaves by an inner one."""
    outer, inner = [], []
    for axis, eye, inverse in ((0, ray.eye.x, ray.inverse.x), (1, ray.eye.z, ray.inverse.z)):
        low, high = scene.low[axis], scene.high[axis]
        ends = lambda margin, eye=eye, inverse=inverse, low=low, high=high: (
            (low - margin - eye) * inverse,
            (high + margin - eye) * inverse,
        )
        outer.append(jnp.minimum(*ends(thickness)))
        inner.append(jnp.maximum(*ends(-thickness)))
    enter, leave = jnp.maximum(*outer), jnp.minimum(*inner)
    return (enter, outer[0] >= enter), (leave, inner[0] <= leave)


def wall_hits(walls: list[Wall], ray: Ray) -> list[tuple[jax.Array, jax.Array]]:
    return [box_face(ray, wall.box) for wall in walls]
