"""PPO's clipped objective, of a token, a step or a trajectory alike."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MAX_LOG_RATIO = 20.0


def surrogate(
    log_ratio: Float[Array, "*s"], advantage: Float[Array, "*s"], low: float, high: float
) -> tuple[Float[Array, "*s"], Bool[Array, "*s"]]:
    """(-min(r A, clip(r, low, high) A), whether the clipped branch is the smaller one), r = exp(log_ratio).

    At an exact clip boundary the plain branch is taken: `minimum` would halve its gradient there.
    """
    ratio = jnp.exp(log_ratio)
    plain, clipped = ratio * advantage, jnp.clip(ratio, low, high) * advantage
    is_clipped = clipped < plain
    return -jnp.where(is_clipped, clipped, plain), is_clipped


def bounded(log_ratio: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """At most 20 either way, without a gradient beyond."""
    is_beyond = jnp.abs(log_ratio) > MAX_LOG_RATIO
    return jnp.where(is_beyond, jax.lax.stop_gradient(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)), log_ratio)
