"""Means over what counts."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_mean(
    x: Float[Array, "*s"], mask: Float[Array, "*s"] | Bool[Array, "*s"], axis: int | None = None
) -> Float[Array, "..."]:
    """Mean of x where the mask is True; 0 where nothing is. What is masked may be anything, NaN too."""
    kept = jnp.where(mask, x, 0.0)
    return jnp.sum(kept, axis=axis) / jnp.maximum(jnp.sum(mask, axis=axis), 1)
