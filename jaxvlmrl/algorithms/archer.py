"""ArCHer: an utterance-level critic of two Q and two V, and a token-level policy gradient on what it says.

    Q_k -> r + gamma (1 - done) Vbar_k(s'),   V_k -> Qbar_k(s, a ~ pi)
    A = min(Q1, Q2)(s, a) - min(V1, V2)(s),   L = -mean of A sum over tokens of log pi

With a reward at the end only, one-step targets carry nothing until V has spread it back, a sweep a turn. Source: reference
sheet "rl4vlm_archer_others", section 2 (2402.19446).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Steps = Float[Array, " N"]


class Twins(NamedTuple):
    """Two estimates of the same numbers."""

    first: jax.Array
    second: jax.Array

    def least(self) -> jax.Array:
        return jnp.minimum(self.first, self.second)


def q_targets(reward: Steps, is_done: Bool[Array, " N"], next_target_value: Twins, gamma: float) -> Twins:
    """What the Q should say; `next_target_value` are the target networks' V of what follows."""
    goes_on = (~is_done).astype(reward.dtype)
    return Twins(*(reward + gamma * goes_on * value for value in next_target_value))


def mean_squares(found: Twins, target: Twins) -> Twins:
    """Each network's loss."""
    return Twins(*(jnp.mean(jnp.square(x - jax.lax.stop_gradient(y))) for x, y in zip(found, target, strict=True)))


def advantage(q_of_policy: Twins, value: Twins) -> Steps:
    """Of fresh utterances of the policy."""
    return q_of_policy.least() - value.least()


def actor_loss(log_prob: Float[Array, "N G"], mask: Bool[Array, "N G"], advantage: Steps) -> Float[Array, ""]:
    said = jnp.sum(jnp.where(mask, log_prob, 0.0), axis=-1)
    return -jnp.mean(jax.lax.stop_gradient(advantage) * said)


def polyak(target, online, tau: float):
    """Target parameters, a share `tau` nearer to the online ones."""
    return jax.tree.map(lambda old, new: tau * new + (1 - tau) * old, target, online)
