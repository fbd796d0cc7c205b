"""VAGEN's advantages over whole episodes of tokens: masked, bi-level and turn-wise GAE with a token-level value.

A row is an episode of L tokens; `mask` marks the model's own, `is_turn_end` the last of each turn, where that turn's reward
sits. The value at a turn's end plays the state's, so it knows the answer just given. Source: reference sheet
"rl4vlm_archer_others", section 3 (2510.16907 and its code).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms import kl
from jaxvlmrl.algorithms.algorithm import Algorithm, Credit, Experience, PolicyLoss, Steps
from jaxvlmrl.algorithms.masking import by_episode, by_turn, is_last, masked_mean
from jaxvlmrl.algorithms.step_method import clipped_value_error
from jaxvlmrl.algorithms.surrogate import surrogate

Row = Float[Array, " L"]
Mask = Bool[Array, " L"]


@dataclass(unsafe_hash=True)
class VAGEN(Algorithm):
    """PPO on tokens with a value of tokens, read before each. The paper's reward for a model of the world is not here."""

    warmup_updates: int = 2
    gamma: float = 0.95  # from turn to turn
    gamma_token: float = 1.0
    gae_lambda: float = 1.0
    clip_eps: float = 0.2
    value_clip_eps: float = 0.5
    advantages: str = field(default="bi_level", metadata={"choices": ("bi_level", "turn_wise", "masked")})

    whole_episodes: ClassVar[bool] = True
    is_mean_over_rows: ClassVar[bool] = False
    values_tokens: ClassVar[bool] = True

    def credit(self, experience: Experience) -> Credit:
        x = experience
        counts = x.is_action_token & x.is_played[..., None]
        is_end = is_last(counts)
        reward = jnp.where(is_end, x.reward[..., None], 0.0)
        assert x.token_value is not None
        rows = by_episode(reward), by_episode(x.token_value), by_episode(counts), by_episode(is_end)
        advantage, returns, statistics_of = self.of_rows(*rows)
        whitened = jnp.where(rows[2], whiten(advantage, statistics_of), 0.0)
        return Credit(by_turn(whitened, len(counts)), by_turn(returns, len(counts)), x.is_played)

    def of_rows(
        self,
        reward: Float[Array, "B L"],
        value: Float[Array, "B L"],
        mask: Bool[Array, "B L"],
        is_end: Bool[Array, "B L"],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(advantages, value targets, which count for the whitening), [B, L]."""
        turn, lam = self.gamma, self.gae_lambda
        if self.advantages == "bi_level":
            of_one = lambda r, v, m, e: bi_level_gae(r, v, m, e, turn, self.gamma_token, lam)
        elif self.advantages == "masked":
            of_one = lambda r, v, m, e: masked_gae(r, v, m, self.gamma_token, lam)
        else:
            of_one = lambda r, v, m, e: turn_wise_gae(r, v, m, e, turn, lam)
        advantage = jax.vmap(of_one)(reward, value, mask, is_end)
        return advantage, advantage + value, is_end if self.advantages == "turn_wise" else mask

    def policy_loss(self, log_prob: Float[Array, "*n G"], steps: Steps) -> PolicyLoss:
        log_ratio = jnp.where(steps.is_action_token, log_prob - steps.old_log_prob, 0.0)
        terms, is_clipped = surrogate(log_ratio, steps.token_advantage, 1 - self.clip_eps, 1 + self.clip_eps)
        divergence = kl.ESTIMATORS[self.kl_estimator](log_prob, steps.ref_log_prob)
        clip_fraction = masked_mean(is_clipped.astype(jnp.float32), steps.is_action_token)
        return PolicyLoss(self.mean(terms, steps), self.mean(divergence, steps), clip_fraction)

    def is_valued(self, steps: Steps) -> Bool[Array, "*n G"]:
        if self.advantages == "turn_wise":  # the other tokens' advantages are not their own
            return is_last(steps.is_action_token)
        return steps.is_action_token

    def value_loss(self, value: Float[Array, "*n G"], steps: Steps) -> Float[Array, ""]:
        return 0.5 * masked_mean(clipped_value_error(value, steps, self.value_clip_eps), self.is_valued(steps))

    def mean(self, terms: Float[Array, "*n G"], steps: Steps) -> Float[Array, ""]:
        return masked_mean(terms, steps.is_action_token)


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
