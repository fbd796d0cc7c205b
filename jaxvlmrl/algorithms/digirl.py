"""DigiRL: imitation of the steps that a step advantage lets through.

    keep = 1{min(nv1, nv2) - min(v1, v2) - margin + r + R_mc > 0},   L = -mean over all steps of keep sum of log pi

A step of a won episode passes unless the chance of success falls by nearly all it is worth; one of a lost episode passes if
that chance rises by more than the margin. Source: reference sheet "rl4vlm_archer_others", section 6 (2406.11896's code).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms.archer import Twins

Steps = Float[Array, " N"]


def is_kept(
    value: Twins, next_value: Twins, reward: Steps, mc_return: Steps, margin: float = 0.05
) -> Bool[Array, " N"]:
    return next_value.least() - value.least() - margin + reward + mc_return > 0


def loss(log_prob: Float[Array, "N G"], mask: Bool[Array, "N G"], is_kept: Bool[Array, " N"]) -> Float[Array, ""]:
    """Over all steps, also those that are not kept."""
    said = jnp.sum(jnp.where(mask, log_prob, 0.0), axis=-1)
    return -jnp.mean(jnp.where(jax.lax.stop_gradient(is_kept), said, 0.0))
