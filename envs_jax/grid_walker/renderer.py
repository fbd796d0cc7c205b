"""GridWalker's picture of a scene, per pixel: the original's WebGL frame, or the parts of it that training needs.

`Quality` says what is drawn. `REFERENCE` has everything and reproduces how the recorded frames were rasterised (four
samples, edges snapped to sixteenths of a pixel, depth read at the mirrored sample); `TRAINING` is one sample a pixel.
Facts: reference sheet, "Renderer".
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from envs_jax.grid_walker import overlays
from envs_jax.grid_walker import scene as world
from envs_jax.grid_walker.scene import Scene
from envs_jax.grid_walker.shadow import Sun, lit_share, sun
from envs_jax.rendering import camera as cameras
from envs_jax.rendering import shading
from envs_jax.rendering.camera import Camera
from envs_jax.rendering.hits import FAR, Box, Ray, box_face, pack_hit, slabs, unpack_hit
from envs_jax.rendering.shading import Material, Surface, Terms
from envs_jax.rendering.vector import Vec, component, rsqrt, where


@dataclass(frozen=True)
class Quality:
    """What a frame shows. Defaults are the whole of the original."""

    antialias: bool = True  # four samples a pixel, rasterised as the original's
    specular: bool = True
    shadows: bool = True
    small_parts: bool = True  # caps on blocks, eyes, the board's side, the walls' thickness and their shading
    lines: bool = True  # grid lines


REFERENCE = Quality()
TRAINING = Quality(antialias=False, specular=False, shadows=False, small_parts=False)
QUALITIES = {"reference": REFERENCE, "training": TRAINING}


def render(scene: Scene, camera: Camera, height: int, width: int, quality: Quality = REFERENCE) -> jax.Array:
    """The frame of a scene, [height, width, 3] uint8."""
    light = sun(scene)
    ray_through = lambda x, y: cameras.rays(camera, height, width, world.FIELD_OF_VIEW, x, y)
    centre = Ray.of(camera.eye, ray_through(0.5, 0.5))
    pixel = cameras.pixel_size(height, world.FIELD_OF_VIEW)
    walls = wall_faces(scene, light, centre, quality) if quality.small_parts else None

    def sample(ray: Ray) -> jax.Array:
        record = nearest_hit(scene, ray, quality)
        picture = overlays.Picture(solid_levels(scene, light, record, ray, centre, quality), unpack_hit(record)[0])
        if quality.lines:
            picture = overlays.draw_lines(picture, scene, camera, ray, pixel)
        return shading.pack_levels(draw_transparent(picture, scene, light, camera, ray, walls, quality).levels)

    if not quality.antialias:
        return shading.to_image(sample(centre))

    def add_sample(packed: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        # Vertices were snapped to 1/16 pixel and a sample on a horizontal edge belongs to what is above: together the
        # same as looking 1/32 pixel higher. Depth was read at the sample's mirror image in x (found by fitting edges).
        is_first, (x, y) = xs
        colour = sample(Ray.of(camera.eye, ray_through(x, y - 1 / 32), ray_through(1 - x, y)))
        return jnp.where(is_first, colour, shading.average_levels(packed, colour)), None

    # The original's 8-bit resolve: two pairs of samples, then the pair of pairs.
    pairs = jnp.asarray(cameras.FOUR_SAMPLES, jnp.float32).reshape(2, 2, 2)
    nothing = jnp.zeros((height, width), jnp.int32)
    first, second = (jax.lax.scan(add_sample, nothing, (jnp.arange(2) == 0, pair))[0] for pair in pairs)
    return shading.to_image(shading.average_levels(first, second))


def nearest_hit(scene: Scene, ray: Ray, quality: Quality) -> jax.Array:
    """The packed record (depth, material, axis) of what each ray meets first."""
    record = board_hit(scene, ray, quality)

    def add(record: jax.Array, box: Box, material: int, is_there: jax.Array | bool = True, top: int | None = None):
        depth, axis = box_face(ray, box)
        code = material if top is None else jnp.where(axis == 1, top, material)
        return jnp.minimum(record, pack_hit(jnp.where(is_there, depth, FAR), code, axis))

    def add_block(record: jax.Array, position: jax.Array, is_block: jax.Array) -> jax.Array:
        if not quality.small_parts:
            return add(record, world.whole_block(position), world.BLOCK, is_block, top=world.CAP)
        record = add(record, world.block_base(position), world.BLOCK, is_block)
        return add(record, world.block_cap(position), world.CAP, is_block)

    for material, box in world.PLAYER_BOXES:
        if quality.small_parts or material != world.EYES:
            record = add(record, box, material)
    return world.fold_blocks(add_block, record, scene)


def board_hit(scene: Scene, ray: Ray, quality: Quality) -> jax.Array:
    """The record of the board: tiles of two colours and the gold one."""
    slab = world.board_slab(scene)
    depth, axis = box_face(ray, slab) if quality.small_parts else plane_face(ray, slab)
    entry = slabs(ray, slab)[1] if quality.antialias else depth
    cells = []  # (cell, first cell, last cell) on the two ground axes, in cells from the player's
    for low, high, eye, direction in ((scene.low[0], scene.high[0], ray.eye.x, ray.direction.x),
                                      (scene.low[1], scene.high[1], ray.eye.z, ray.direction.z)):  # fmt: skip
        first, last = (low + 1) * 0.5, (high - 1) * 0.5
        cells.append((jnp.clip(jnp.round((eye + entry * direction) * 0.5), first, last), first, last))
    (x, *ends_x), (z, *ends_z) = cells
    if quality.antialias:
        depth, axis, x = with_tile_side(ray, 0, depth, axis, x, ends_x)
        depth, axis, z = with_tile_side(ray, 2, depth, axis, z, ends_z)
    half_sum = (x + z + scene.parity) * 0.5
    is_odd = jnp.abs(half_sum - jnp.round(half_sum)) > 0.25
    is_gold = (jnp.abs(2 * x - scene.goal[0]) < 0.5) & (jnp.abs(2 * z - scene.goal[1]) < 0.5)
    return pack_hit(depth, jnp.where(is_gold, world.GOLD, jnp.where(is_odd, world.ODD, world.EVEN)), axis)


def plane_face(ray: Ray, slab: Box) -> tuple[jax.Array, jax.Array]:
    """(depth, axis) of the board's top alone."""
    depth = (slab.high.y - ray.eye.y) * ray.inverse.y
    x, z = ray.eye.x + depth * ray.direction.x, ray.eye.z + depth * ray.direction.z
    is_on = (depth > 0) & (x > slab.low.x) & (x < slab.high.x) & (z > slab.low.z) & (z < slab.high.z)
    return jnp.where(is_on, depth, FAR), jnp.ones_like(is_on, jnp.int32)


def with_tile_side(ray: Ray, axis: int, depth, hit_axis, cell, ends):
    """(depth, axis, cell) with the side of the next tile where it wins.

    Tiles are boxes; below the tile a sample sees, its ray goes on to the side of the tile beyond. Read at the mirrored
    sample, that side can be the nearer: edges between tiles sit half a pixel nearer to the eye's axis than they should.
    """
    step = jnp.where(ray.inverse[axis] > 0, 1.0, -1.0)
    side = 2 * cell + step
    side_depth = (side - ray.eye[axis]) * ray.depth_inverse[axis]
    meets = ray.eye.y + (side - ray.eye[axis]) * ray.inverse[axis] * ray.direction.y > -0.2
    beyond = cell + step
    wins = meets & (hit_axis == 1) & (depth < FAR) & (side_depth > 0) & (side_depth < depth)
    wins = wins & (beyond >= ends[0]) & (beyond <= ends[1])
    return jnp.where(wins, side_depth, depth), jnp.where(wins, axis, hit_axis), jnp.where(wins, beyond, cell)


def solid_levels(scene: Scene, light: Sun, record: jax.Array, ray: Ray, centre: Ray, quality: Quality) -> Vec:
    """Colours of the nearest hits, shaded where the ray through the pixel's centre meets the plane that was hit."""
    depth, code, axis = unpack_hit(record)
    facing = -jnp.sign(component(ray.direction, axis))
    if quality.antialias:
        plane = component(ray.eye, axis) + depth * component(ray.depth_direction, axis)
        at_centre = (plane - component(ray.eye, axis)) * component(centre.inverse, axis)
        shade_depth = jnp.clip(at_centre, 0.05, 1e4)
    else:
        shade_depth = jnp.minimum(depth, 1e4)
    surface = surface_at(centre, shade_depth, Vec(*(jnp.where(axis == k, facing, 0.0) for k in range(3))), quality)
    of = partial(world.material_of, code)
    rgb = lambda field: Vec(*(of(lambda m, k=k: field(m)[k]) for k in range(3)))
    reflectance = rgb(lambda m: m.reflectance) if quality.specular else Vec(0.0, 0.0, 0.0)
    alpha2 = of(lambda m: m.alpha2) if quality.specular else 0.0
    material = Material(rgb(lambda m: m.diffuse), rgb(lambda m: m.emissive), reflectance, alpha2)
    share = 1.0
    if quality.shadows:
        lit = lit_share(scene, light, surface.position)
        share = jnp.where(code <= world.LAST_SHADOWED, lit, 1.0)
    colour = overlays.fogged(scene, radiance(scene, light, surface, material, share, quality), shade_depth)
    return shading.quantise(where(depth < FAR, colour, world.BACKGROUND))


def surface_at(ray: Ray, depth: jax.Array, normal: Vec, quality: Quality) -> Surface:
    position = ray.eye + ray.direction * depth
    to_eye = ray.eye - position
    norm = rsqrt(to_eye.x**2 + to_eye.y**2 + to_eye.z**2) if quality.specular else 0.0
    return Surface(position, normal, to_eye * norm)


def radiance(scene: Scene, light: Sun, surface: Surface, material: Material, share, quality: Quality) -> Vec:
    """Light that leaves a surface towards the eye; `share` of the directional light reaches it."""
    alpha2 = material.alpha2 if quality.specular else None
    at = partial(shading.point, surface, alpha2=alpha2)
    white = shading.directional(surface, light.towards, world.SUN * share, alpha2)
    overhead = world.ground_point(scene.centre, world.OVERHEAD_HEIGHT)
    white = white + at(overhead, world.OVERHEAD_CUTOFF * scene.half, 1.0)
    player = at(Vec(0.0, world.PLAYER_LIGHT_HEIGHT, 0.0), world.PLAYER_LIGHT_CUTOFF, 1.0)
    gold = at(world.ground_point(scene.goal, world.GOAL_LIGHT_HEIGHT), world.GOAL_LIGHT_CUTOFF, 1.0)

    def add_block(terms: Terms, position: jax.Array, is_block: jax.Array) -> Terms:
        lamp = world.ground_point(position, world.BLOCK_LIGHT_HEIGHT)
        return terms + at(lamp, world.BLOCK_LIGHT_CUTOFF, is_block.astype(jnp.float32))

    blocks = world.fold_blocks(add_block, jax.tree.map(jnp.zeros_like, player), scene)
    colour = material.emissive + material.diffuse * world.AMBIENT
    for terms, hue in ((white, world.OVERHEAD_COLOUR), (player, world.PLAYER_LIGHT_COLOUR),
                       (gold, world.GOAL_LIGHT_COLOUR), (blocks, world.BLOCK_LIGHT_COLOUR)):  # fmt: skip
        colour = colour + shading.reflected(terms, hue, material)
    return colour


def wall_faces(scene: Scene, light: Sun, centre: Ray, quality: Quality) -> jax.Array:
    """Packed colours [2, height, width] of the walls' broad faces where rays enter the board and where they leave."""
    matt = replace(quality, specular=False)  # a highlight on a wall never shows: it is a third of a nearly white face

    def shade(depth: jax.Array, is_x: jax.Array) -> jax.Array:
        depth = jnp.clip(depth, 0.05, 1e4)
        towards_eye = centre.direction.map(lambda d: -jnp.sign(d))
        normal = Vec(jnp.where(is_x, towards_eye.x, 0.0), 0.0, jnp.where(is_x, 0.0, towards_eye.z))
        lit = radiance(scene, light, surface_at(centre, depth, normal, matt), world.WALL, 1.0, matt)
        return shading.pack_levels(shading.quantise(overlays.fogged(scene, lit, depth)))

    return jnp.stack([shade(*crossing) for crossing in overlays.crossings(scene, centre, world.WALL_HALF_THICKNESS)])


def draw_transparent(picture, scene: Scene, light: Sun, camera: Camera, ray: Ray, faces, quality: Quality):
    """The decals, then the walls over them."""
    if faces is None:
        picture = overlays.draw_decals(picture, scene, camera, ray, lambda depth, order: jnp.zeros((), bool))
        return overlays.draw_thin_walls(picture, scene, light.towards, ray)
    stacked = overlays.walls_in_drawing_order(scene, camera)
    walls = [jax.tree.map(lambda x, k=k: x[k], stacked) for k in range(4)]
    hits = overlays.wall_hits(walls, ray)
    picture = overlays.draw_decals(picture, scene, camera, ray, overlays.hidden_by_walls(walls, hits))
    enter, leave = (shading.unpack_levels(face) for face in faces)
    return overlays.draw_thick_walls(picture, scene, walls, hits, (enter, leave))
