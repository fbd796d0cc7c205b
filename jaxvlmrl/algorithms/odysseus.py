"""Odysseus: PPO with a turn-level CNN critic, Monte-Carlo returns and only the advantages that are positive.

    A~ = R_t - V(o_t),   R_t = discounted reward to go, no bootstrap
    A  = max(A~, 0) / sigma{A~ : A~ > 0}
    L  = token mean of -min(r A, clip(r, 1 - 0.2, 1 + 0.28) A) + smooth L1((V - R) / value_scale)

`form="paper"` takes sigma over turns and leaves A unnormalised where sigma is 0; `form="code"` takes it over tokens, and
multiplies a lone positive advantage by 10^4 as the release does. Source: reference sheet "odysseus".
"""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvlmrl.algorithms import groups, kl
from jaxvlmrl.algorithms.algorithm import Algorithm, Credit, Experience, PolicyLoss, Steps
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.algorithms.returns import returns_to_go
from jaxvlmrl.algorithms.surrogate import bounded, surrogate

LEAST_WEIGHT = 1e-6


@dataclass(unsafe_hash=True)
class Odysseus(Algorithm):
    """The paper's method, and the critic-free ones of its study under the same loss (`estimator`)."""

    value_coef: float = 1.0
    warmup_updates: int = 5
    gamma: float = 0.95
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 10.0  # caps the loss of tokens of negative advantage; filtered, there are none
    value_scale: float = 1.0  # the release has 100, for rewards in the hundreds
    keeps_only_positive: bool = True
    last_turns_dropped: int = 0  # of longer episodes, after returns are computed; the release drops 5
    estimator: str = field(default="ppo", metadata={"choices": ("ppo", "grpo_outcome", "grpo_process", "reinforce_pp")})
    form: str = field(default="paper", metadata={"choices": ("paper", "code")})

    whole_episodes: ClassVar[bool] = True
    is_mean_over_rows: ClassVar[bool] = False

    @property
    def uses_critic(self) -> bool:
        return self.estimator == "ppo"

    def credit(self, experience: Experience) -> Credit:
        x = experience
        returns = returns_to_go(x.reward, x.is_played, self.gamma)
        tokens = jnp.sum(x.is_action_token, axis=-1)
        is_kept = x.is_played & ~self.is_dropped(x.is_played)
        counts = is_kept if self.uses_critic else x.is_played  # an outcome is of all turns
        advantage = self.advantage(x.reward, returns, x.value[:-1], counts, tokens)
        if self.keeps_only_positive:
            is_kept &= advantage > 0
        return Credit(jnp.where(is_kept, advantage, 0.0), returns, is_kept)

    def is_dropped(self, is_played: Bool[Array, "T B"]) -> Bool[Array, "T B"]:
        """The last turns of episodes that are longer than those."""
        length = jnp.sum(is_played, axis=0)[None]
        turn = jnp.arange(len(is_played))[:, None]
        drops = self.last_turns_dropped
        return (turn >= length - drops) & (length > drops) & bool(drops)

    def advantage(
        self,
        reward: Float[Array, "T B"],
        returns: Float[Array, "T B"],
        value: Float[Array, "T B"],
        is_played: Bool[Array, "T B"],
        tokens: Int[Array, "T B"],
    ) -> Float[Array, "T B"]:
        if self.estimator == "ppo":
            raw = jnp.where(is_played, returns - value, 0.0)
            if self.keeps_only_positive:
                return scaled(jnp.maximum(raw, 0.0), is_played & (raw > 0), tokens, self.form)
            return scaled(raw, is_played, tokens, self.form)
        found = {"grpo_outcome": outcome_scores, "grpo_process": process_scores, "reinforce_pp": turn_scores}
        advantage = found[self.estimator](returns if self.estimator == "reinforce_pp" else reward, is_played)
        return jnp.maximum(advantage, 0.0) if self.keeps_only_positive else advantage

    def mean(self, terms: Float[Array, "*n G"], steps: Steps) -> Float[Array, ""]:
        return masked_mean(terms, steps.is_action_token)

    def policy_loss(self, log_prob: Float[Array, "*n G"], steps: Steps) -> PolicyLoss:
        terms, is_clipped = self.policy_terms(log_prob, steps)
        divergence = kl.ESTIMATORS[self.kl_estimator](log_prob, steps.ref_log_prob)
        clip_fraction = masked_mean(is_clipped.astype(jnp.float32), steps.is_action_token)
        return PolicyLoss(self.mean(terms, steps), self.mean(divergence, steps), clip_fraction)

    def policy_terms(self, log_prob: Float[Array, "*n G"], steps: Steps) -> tuple[jax.Array, jax.Array]:
        log_ratio = bounded(jnp.where(steps.is_action_token, log_prob - steps.old_log_prob, 0.0))
        advantage = steps.token_advantage
        terms, is_clipped = surrogate(log_ratio, advantage, 1 - self.clip_low, 1 + self.clip_high)
        cap = jnp.abs(advantage) * self.dual_clip
        return jnp.where((advantage < 0) & (terms > cap), cap, terms), is_clipped

    def value_loss(self, value: Float[Array, "*n"], steps: Steps) -> Float[Array, ""]:
        error = masked_mean(smooth_l1((value - steps.returns) / self.value_scale), self.is_valued(steps))
        return error if self.uses_critic else jnp.float32(0.0)


def smooth_l1(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * jnp.square(x), size - 0.5)


def scaled(x: jax.Array, counts: jax.Array, tokens: jax.Array, form: str) -> jax.Array:
    """Over the deviation of what counts: of turns (ddof 0, untouched where they are equal), or of their tokens (ddof 1)."""
    weight = jnp.where(counts, tokens.astype(jnp.float32) if form == "code" else 1.0, 0.0)
    total = jnp.maximum(jnp.sum(weight), 1.0)
    mean = jnp.sum(weight * x) / total
    squares = jnp.sum(weight * jnp.square(x - mean))
    if form == "code":
        return jnp.where(counts, x * jax.lax.rsqrt(squares / jnp.maximum(total - 1, 1.0) + 1e-8), 0.0)
    differs = jnp.max(jnp.where(counts, x, -jnp.inf)) > jnp.min(jnp.where(counts, x, jnp.inf))
    return jnp.where(counts, x / jnp.where(differs, jnp.sqrt(squares / total), 1.0), 0.0)


def outcome_scores(reward: Float[Array, "T B"], is_played: Bool[Array, "T B"]) -> Float[Array, "T B"]:
    """GRPO on outcomes, the whole batch one group."""
    outcome = jnp.sum(jnp.where(is_played, reward, 0.0), axis=0)
    everybody = jnp.ones((len(outcome), len(outcome)), bool)
    scores = groups.z_scores(outcome, everybody, LEAST_WEIGHT)
    return jnp.where(is_played, jnp.broadcast_to(scores[None], reward.shape), 0.0)


def process_scores(reward: Float[Array, "T B"], is_played: Bool[Array, "T B"]) -> Float[Array, "T B"]:
    """GRPO on the process: turns' rewards as z-scores over the batch, summed to the end."""
    return returns_to_go(z_scores_over(reward, is_played, 1, LEAST_WEIGHT), is_played, 1.0)


def turn_scores(returns: Float[Array, "T B"], is_played: Bool[Array, "T B"]) -> Float[Array, "T B"]:
    """REINFORCE++ by turns: returns to go, whitened."""
    return z_scores_over(returns, is_played, 0, 0.0)


def z_scores_over(x: jax.Array, counts: jax.Array, ddof: int, eps: float) -> jax.Array:
    number = jnp.sum(counts)
    mean = masked_mean(x, counts)
    squares = jnp.sum(jnp.where(counts, jnp.square(x - mean), 0.0))
    deviation = jnp.sqrt(squares / jnp.maximum(number - ddof, 1)) + eps
    differs = jnp.max(jnp.where(counts, x, -jnp.inf)) > jnp.min(jnp.where(counts, x, jnp.inf))
    return jnp.where(counts & differs, (x - mean) / jnp.where(differs, deviation, 1.0), 0.0)


def level_probabilities(
    turns: Float[Array, " B"], level: Int[Array, " B"], num_levels: int
) -> tuple[jax.Array, jax.Array]:
    """(mean turns [levels], probabilities [levels]) of an auto-curriculum: levels are drawn as 1 / mean turns.

    Roughly equal numbers of turns a level come of it. A level without an episode has the mean of the known weights.
    """
    is_of = level[None, :] == jnp.arange(num_levels)[:, None]
    episodes = jnp.sum(is_of, axis=1)
    mean_turns = jnp.sum(jnp.where(is_of, turns[None, :], 0.0), axis=1) / jnp.maximum(episodes, 1)
    weight = 1 / (mean_turns + LEAST_WEIGHT)
    known = masked_mean(weight, episodes > 0)
    weight = jnp.where(episodes > 0, weight, jnp.where(jnp.any(episodes > 0), known, 1.0))
    return mean_turns, weight / jnp.sum(weight)
