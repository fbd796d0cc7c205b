"""What came after each step of an episode."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def returns_to_go(reward: Float[Array, "T B"], is_played: Bool[Array, "T B"], gamma: float) -> Float[Array, "T B"]:
    """Discounted sums of the rewards from each turn to the end of its column's one episode; no bootstrap."""

    def backward(later: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = now + gamma * later
        return total, total

    rewards = jnp.where(is_played, reward, 0.0)
    return jax.lax.scan(backward, jnp.zeros_like(reward[0]), rewards, reverse=True)[1]
