"""A pinhole camera without roll, its rays, and the sample pattern of four-fold antialiasing.

Coordinates are (right, up, ahead) of whatever frame the scene is in, y pointing up.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from envs_jax.rendering.vector import Scalar, Vec, dot

# Positions of the four samples in a pixel, (x, y) with y down: the standard pattern in GL's y-up window.
FOUR_SAMPLES = np.array([[0.375, 0.875], [0.875, 0.625], [0.125, 0.375], [0.625, 0.125]])


class Camera(NamedTuple):
    """Where the eye is and its orthonormal view directions; components are scalars."""

    eye: Vec
    right: Vec
    up: Vec
    ahead: Vec


def look_at(eye: Vec, target: Vec) -> Camera:
    """The camera at `eye` that looks at `target`, up being up."""
    ahead = target - eye
    ahead = ahead * (1 / jnp.sqrt(dot(ahead, ahead)))
    level = jnp.sqrt(ahead.x**2 + ahead.z**2)
    right = Vec(ahead.z / level, 0.0, -ahead.x / level)
    up = Vec(-ahead.x * ahead.y / level, level, -ahead.z * ahead.y / level)
    return Camera(eye, right, up, ahead)


def pixel_size(height: int, field_of_view: float) -> float:
    """Side of a pixel on the image plane at distance 1; `field_of_view` is vertical, in degrees."""
    return float(2 * np.tan(np.radians(field_of_view) / 2) / height)


def rays(camera: Camera, height: int, width: int, field_of_view: float, x: Scalar, y: Scalar) -> Vec:
    """Directions of the rays through (x, y) in each pixel, y down, (.5, .5) its centre; components [height, width].

    A direction advances the view-space depth by 1, so a ray's parameter IS the depth.
    """
    size = pixel_size(height, field_of_view)
    u = (jnp.arange(width, dtype=jnp.float32)[None, :] + (x - width / 2)) * size
    v = (height / 2 - y - jnp.arange(height, dtype=jnp.float32)[:, None]) * size
    return Vec(*(a + u * r + v * p for a, r, p in zip(camera.ahead, camera.right, camera.up, strict=True)))


def project(camera: Camera, point: Vec) -> tuple[Scalar, Scalar, Scalar]:
    """(across, up, depth) of a point: image-plane coordinates at distance 1 and view-space depth."""
    offset = point - camera.eye
    depth = dot(offset, camera.ahead)
    return dot(offset, camera.right) / depth, dot(offset, camera.up) / depth, depth
