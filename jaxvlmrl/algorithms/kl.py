"""Estimators of KL(new || ref) from tokens drawn by the new policy, with d = log ref - log new.

    k1 = -d        unbiased, may be negative
    k2 = d^2 / 2   its gradient is that of the KL
    k3 = e^d - d - 1   unbiased and never negative; its gradient 1 - e^d is not that of the KL

Source: reference sheet "algorithms", Conventions.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float


def k1(log_prob: Float[Array, "*s"], ref_log_prob: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return log_prob - ref_log_prob


def k2(log_prob: Float[Array, "*s"], ref_log_prob: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return 0.5 * jnp.square(log_prob - ref_log_prob)


def k3(log_prob: Float[Array, "*s"], ref_log_prob: Float[Array, "*s"]) -> Float[Array, "*s"]:
    d = ref_log_prob - log_prob
    return jnp.expm1(d) - d


ESTIMATORS: dict[str, Callable[..., Float[Array, "*s"]]] = {"k1": k1, "k2": k2, "k3": k3}
