"""Lights on materials as three.js r128 computes them (no colour management, no physically correct lights).

Diffuse is Lambert, specular is GGX with Smith visibility and Schlick's Fresnel term, times pi as in that release.
Facts: GridWalker's reference sheet, "Renderer".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs_jax.rendering.vector import Scalar, Vec, dot, hadamard, hex_colour, mix, reciprocal, rsqrt


class Material(NamedTuple):
    """A standard material, ready for shading; fields are per pixel or constant."""

    diffuse: Vec  # colour x (1 - metalness)
    emissive: Vec
    reflectance: Vec  # specular colour at normal incidence
    alpha2: Scalar  # roughness^4


def standard_material(colour: str, emissive: str, roughness: float, metalness: float, glow: float = 1.0) -> Material:
    """A material from its three.js parameters; `glow` is the emissive intensity."""
    base = hex_colour(colour)
    return Material(
        base * (1 - metalness),
        hex_colour(emissive) * glow,
        mix(Vec(0.04, 0.04, 0.04), base, metalness),
        max(roughness, 0.0525) ** 4,
    )


class Surface(NamedTuple):
    """A point to be lit: `normal` and `to_eye` are unit vectors."""

    position: Vec
    normal: Vec
    to_eye: Vec


class Terms(NamedTuple):
    """What lights of ONE colour do at a point: sums of scalars, so that lights add before colours multiply."""

    diffuse: jax.Array
    specular: jax.Array | None = None  # multiplies the reflectance; None without specular light
    rim: jax.Array | None = None  # multiplies 1 - reflectance

    def __add__(self, other: "Terms") -> "Terms":  # pyright: ignore[reportIncompatibleMethodOverride]
        return jax.tree.map(jnp.add, self, other)


def directional(surface: Surface, direction: Vec, strength: Scalar, alpha2: Scalar | None) -> Terms:
    """A light from the unit `direction`; `strength` is intensity x shadow. No specular terms if `alpha2` is None."""
    n_l = jnp.clip(dot(surface.normal, direction), 0.0, 1.0)
    if alpha2 is None:
        return Terms(strength * n_l)
    return _terms(surface, n_l, dot(surface.to_eye, direction), strength, alpha2)


def point(surface: Surface, position: Vec, cutoff: Scalar, strength: Scalar, alpha2: Scalar | None) -> Terms:
    """A point light with three.js's default decay of 1: intensity x (1 - distance / cutoff)."""
    offset = position - surface.position
    inverse = rsqrt(dot(offset, offset))
    n_o = jnp.maximum(dot(surface.normal, offset), 0.0)
    if alpha2 is None:  # (n.o / d) (1 - d / cutoff) = n.o (1 / d - 1 / cutoff)
        return Terms(strength * n_o * jnp.maximum(inverse - 1 / cutoff, 0.0))
    distance = dot(offset, offset) * inverse
    faded = strength * jnp.maximum(1 - distance * (1 / cutoff), 0.0)
    return _terms(surface, n_o * inverse, dot(surface.to_eye, offset) * inverse, faded, alpha2)


def _terms(surface: Surface, n_l: jax.Array, v_l: Scalar, strength: Scalar, alpha2: Scalar) -> Terms:
    n_v = jnp.clip(dot(surface.normal, surface.to_eye), 0.0, 1.0)
    # The half vector h is never formed: |l + v|^2 = 2 + 2 v.l, n.h = (n.l + n.v) / |l + v|, l.h = |l + v| / 2.
    sum_squared = jnp.maximum(2 + 2 * v_l, 1e-6)
    over_length = rsqrt(sum_squared)
    n_h = jnp.clip((n_l + n_v) * over_length, 0.0, 1.0)
    l_h = jnp.clip(0.5 * sum_squared * over_length, 0.0, 1.0)
    spread = n_h * n_h * (alpha2 - 1) + 1
    root = lambda c: (alpha2 + (1 - alpha2) * c * c) * rsqrt(alpha2 + (1 - alpha2) * c * c, steps=1)
    visibility = jnp.maximum(n_l * root(n_v) + n_v * root(n_l), 1e-6)
    gloss = strength * n_l * 0.5 * alpha2 * reciprocal(spread * spread * visibility, steps=1)
    miss = 1 - l_h  # Schlick's fifth power; three.js has a fit of it that differs by under 0.004
    fresnel = miss * miss * miss * miss * miss
    return Terms(strength * n_l, gloss, gloss * fresnel)


def reflected(terms: Terms, colour: Vec, material: Material) -> Vec:
    """The light of `colour` that leaves a surface of `material` towards the eye."""
    response = material.diffuse * terms.diffuse
    if terms.specular is not None and terms.rim is not None:
        away = Vec(1.0, 1.0, 1.0) - material.reflectance
        response = response + material.reflectance * terms.specular + away * terms.rim
    return hadamard(response, colour)


def smoothstep(low: Scalar, high: Scalar, x: Scalar) -> jax.Array:
    t = jnp.clip((x - low) * (1 / (high - low)), 0.0, 1.0)
    return t * t * (3 - 2 * t)


# Colours at rest are three 8-bit levels in one int32, red lowest.


def quantise(colour: Vec) -> Vec:
    """0..1, clamped, to whole levels 0..255 (still float)."""
    return colour.map(lambda c: jnp.floor(jnp.clip(c, 0.0, 1.0) * 255 + 0.5))


def pack_levels(levels: Vec) -> jax.Array:
    red, green, blue = levels.map(lambda c: c.astype(jnp.int32))
    return red | (green << 8) | (blue << 16)


def unpack_levels(packed: jax.Array) -> Vec:
    """Levels 0..255 as float."""
    return Vec(packed, packed >> 8, packed >> 16).map(lambda c: (c & 255).astype(jnp.float32))


def average_levels(a: jax.Array, b: jax.Array) -> jax.Array:
    """(a + b + 1) // 2 of each of the levels in two packed colours."""
    return (a | b) - (((a ^ b) >> 1) & 0x7F7F7F)


def to_image(packed: jax.Array) -> jax.Array:
    """[..., height, width] packed colours to [..., height, width, 3] uint8."""
    return jax.lax.bitcast_convert_type(packed, jnp.uint8)[..., :3]
