"""Means over what counts, and tokens as rows of episodes."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


def masked_mean(
    x: Float[Array, "*s"], mask: Float[Array, "*s"] | Bool[Array, "*s"], axis: int | None = None
) -> Float[Array, "..."]:
    """Mean of x where the mask is True; 0 where nothing is. What is masked may be anything, NaN too."""
    kept = jnp.where(mask, x, 0.0)
    return jnp.sum(kept, axis=axis) / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def mean_if_any(x: Shaped[Array, "*s"], mask: Bool[Array, "*s"]) -> Float[Array, ""]:
    """The same for a figure that people read: NaN where nothing counts, as it is not known."""
    return jnp.where(jnp.any(mask), masked_mean(x.astype(jnp.float32), mask), jnp.nan)


def is_last(mask: Bool[Array, "*n L"]) -> Bool[Array, "*n L"]:
    """The last True of each row."""
    return mask & (jnp.cumsum(mask[..., ::-1], axis=-1)[..., ::-1] == 1)


def by_episode(x: Shaped[Array, "T B G"]) -> Shaped[Array, "B L"]:
    """Each column's tokens in one row, L = T G."""
    return jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)


def by_turn(x: Shaped[Array, "B L"], num_turns: int) -> Shaped[Array, "T B G"]:
    """What `by_episode` was given."""
    return jnp.swapaxes(x.reshape(len(x), num_turns, -1), 0, 1)
