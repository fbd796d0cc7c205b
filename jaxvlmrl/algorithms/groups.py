"""Statistics within groups of N numbers, given which belong together: `same` [N, N] bool.

Whether a group's numbers differ is decided by their largest and smallest, never by a deviation: the mean of equal numbers
may round to another one, and a z-score would make 0.1 of that. Sums of the same rewards in another order differ by
rounding: that is no difference. Source: reference sheet "algorithms", Tolerances.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Same = Bool[Array, "N N"]

ROUNDING = 1e-6  # of the larger one, or of 1


def alike(ids: Int[Array, " N"] | Float[Array, " N"]) -> Same:
    return ids[:, None] == ids[None, :]


def sums(x: Float[Array, " N"], same: Same) -> Float[Array, " N"]:
    return jnp.sum(jnp.where(same, x[None, :], 0.0), axis=1)


def sizes(same: Same) -> Float[Array, " N"]:
    return jnp.sum(same, axis=1).astype(jnp.float32)


def varies(x: Float[Array, " N"], same: Same) -> Bool[Array, " N"]:
    """Whether not all of the group are equal."""
    highest = jnp.max(jnp.where(same, x[None, :], -jnp.inf), axis=1)
    lowest = jnp.min(jnp.where(same, x[None, :], jnp.inf), axis=1)
    return highest - lowest > ROUNDING * jnp.maximum(1.0, jnp.maximum(jnp.abs(highest), jnp.abs(lowest)))


def centred(x: Float[Array, " N"], same: Same) -> Float[Array, " N"]:
    """Minus the group's mean; exactly 0 where all are equal."""
    return jnp.where(varies(x, same), x - sums(x, same) / sizes(same), 0.0)


def z_scores(x: Float[Array, " N"], same: Same, eps: float, ddof: int = 1) -> Float[Array, " N"]:
    """Centred, over the group's deviation plus eps; 0 where all are equal."""
    from_mean = centred(x, same)
    # Every row has its own group's mean: deviations are summed after subtracting it, in a second pass.
    spread = jnp.where(same, jnp.square(x[None, :] - (x - from_mean)[:, None]), 0.0)
    variance = jnp.sum(spread, axis=1) / jnp.maximum(sizes(same) - ddof, 1.0)
    return jnp.where(varies(x, same), from_mean / (jnp.sqrt(variance) + eps), 0.0)


def minus_others(x: Float[Array, " N"], same: Same) -> Float[Array, " N"]:
    """Minus the mean of the others of the group; 0 for one that is alone."""
    size = sizes(same)
    return centred(x, same) * size / jnp.maximum(size - 1.0, 1.0)
