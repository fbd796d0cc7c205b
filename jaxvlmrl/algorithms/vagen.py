"""VAGEN's advantages over whole episodes of tokens: masked, bi-level and turn-wise GAE with a token-level value.

A row is an episode of L tokens; `mask` marks the model's own, `is_turn_end` the last of each turn, where that turn's reward
sits. The value at a turn's end plays the state's, so it knows the answer just given. Source: reference sheet
"rl4vlm_archer_others", section 3 (2510.16907 and its code).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms.masking import masked_mean

Row = Float[Array, " L"]
Mask = Bool[Array, " L"]


def masked_gae(reward: Row, value: Row, mask: Mask, gamma: float, lam: float) -> Row:
    """Token GAE that jumps over what the model did not say; 0 there. After the last token nothing follows."""

    def backward(carry: tuple[jax.Array, jax.Array], token: tuple[jax.Array, jax.Array, jax.Array]):
        next_value, advantage = carry
        reward_t, value_t, counts = token
        found = reward_t + gamma * next_value - value_t + gamma * lam * advantage
        carry = jnp.where(counts, value_t, next_value), jnp.where(counts, found, advantage)
        return carry, jnp.where(counts, found, 0.0)

    start = jnp.zeros((), reward.dtype), jnp.zeros((), reward.dtype)
    return jax.lax.scan(backward, start, (reward, value, mask), reverse=True)[1]


def turn_gae(reward: Row, value: Row, is_turn_end: Mask, gamma_turn: float, lam: float) -> Row:
    """GAE from turn end to turn end; 0 at all other tokens."""
    return masked_gae(reward, value, is_turn_end, gamma_turn, lam)


def bi_level_gae(
    reward: Row, value: Row, mask: Mask, is_turn_end: Mask, gamma_turn: float, gamma_token: float, lam: float
) -> Row:
    """GAE within each turn, whose last token is worth the turn's own advantage."""
    of_turn = turn_gae(reward, value, is_turn_end, gamma_turn, lam)

    def backward(carry: tuple[jax.Array, jax.Array], token: tuple[jax.Array, ...]):
        next_value, advantage = carry
        reward_t, value_t, counts, is_end, turn_advantage = token
        within = reward_t + gamma_token * next_value - value_t + gamma_token * lam * advantage
        found = jnp.where(is_end, turn_advantage, within)
        carry = jnp.where(counts, value_t, next_value), jnp.where(counts, found, advantage)
        return carry, jnp.where(counts, found, 0.0)

    start = jnp.zeros((), reward.dtype), jnp.zeros((), reward.dtype)
    return jax.lax.scan(backward, start, (reward, value, mask, is_turn_end, of_turn), reverse=True)[1]


def turn_wise_gae(reward: Row, value: Row, mask: Mask, is_turn_end: Mask, gamma_turn: float, lam: float) -> Row:
    """Each turn's advantage on all its tokens."""
    of_turn = turn_gae(reward, value, is_turn_end, gamma_turn, lam)

    def backward(carry: jax.Array, token: tuple[jax.Array, jax.Array]):
        carry = jnp.where(token[1], token[0], carry)
        return carry, carry

    spread = jax.lax.scan(backward, jnp.zeros((), reward.dtype), (of_turn, is_turn_end), reverse=True)[1]
    return jnp.where(mask, spread, 0.0)


def whiten(advantage: Float[Array, "*s"], statistics_of: Bool[Array, "*s"]) -> Float[Array, "*s"]:
    """(A - mean) rsqrt(var + 1e-8), ddof 1, of what counts in all rows together."""
    mean = masked_mean(advantage, statistics_of)
    squares = jnp.sum(jnp.where(statistics_of, jnp.square(advantage - mean), 0.0))
    variance = squares / jnp.maximum(jnp.sum(statistics_of) - 1, 1)
    return (advantage - mean) * jax.lax.rsqrt(variance + 1e-8)
