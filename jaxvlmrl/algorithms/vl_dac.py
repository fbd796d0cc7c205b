"""VL-DAC: token-level PPO on one advantage per step, a step-level value behind a stop-gradient, KL, value warm-up.

    L = L_policy + beta L_KL + alpha L_value
    L_policy = -mean over steps of mean over the answer's tokens of min(r A, clip(r, 1 - eps, 1 + eps) A)
    L_value  = mean over steps of (V - R)^2 / 2,  R = A (before normalisation) + V at the rollout

`form="paper"` is that; `form="released_code"` is the authors' loss as it runs. Source: reference sheet "vl_dac".
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvlmrl.algorithms import kl
from jaxvlmrl.algorithms.algorithm import PolicyLoss, Steps
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.algorithms.step_method import StepMethod, clipped_value_error
from jaxvlmrl.algorithms.surrogate import surrogate

RATIO_GUARD = 10.0  # the released code takes a whole step's clipped branch once one ratio exceeds this


@dataclass(unsafe_hash=True)
class VLDAC(StepMethod):
    """Where the paper's table 6 has a number it is the default; the rest is said here."""

    clip_eps: float = 0.2  # the paper does not state it; its code has 0.1
    value_coef: float = 0.15
    kl_coef: float = 0.05
    warmup_updates: int = 2
    form: str = field(default="paper", metadata={"choices": ("paper", "released_code")})

    def policy_loss(self, log_prob: Float[Array, "*n G"], steps: Steps) -> PolicyLoss:
        terms, is_clipped = self.policy_terms(log_prob, steps)
        if self.form == "released_code":  # padding counts -A there, and nothing in the KL
            terms = jnp.where(steps.is_action_token, terms, -steps.token_advantage)
            policy = jnp.mean(terms)
        else:
            policy = self.mean(terms, steps)
        divergence = kl.ESTIMATORS[self.kl_estimator](log_prob, steps.ref_log_prob)
        clip_fraction = masked_mean(is_clipped.astype(log_prob.dtype), steps.is_action_token)
        return PolicyLoss(policy, self.mean(divergence, steps), clip_fraction)

    def policy_terms(self, log_prob: Float[Array, "*n G"], steps: Steps) -> tuple[jax.Array, jax.Array]:
        """(-min(r A, clip(r) A), whether the clipped branch is taken) of every token."""
        log_ratio = jnp.where(steps.is_action_token, log_prob - steps.old_log_prob, 0.0)
        low, high = 1 - self.clip_eps, 1 + self.clip_eps
        terms, is_clipped = surrogate(log_ratio, steps.token_advantage, low, high)
        if self.form == "released_code":
            ratio = jnp.exp(log_ratio)
            is_guarded = jnp.broadcast_to(jnp.max(ratio, axis=-1, keepdims=True) > RATIO_GUARD, ratio.shape)
            terms = jnp.where(is_guarded, -jnp.clip(ratio, low, high) * steps.token_advantage, terms)
            is_clipped |= is_guarded
        return terms, is_clipped

    def value_loss(self, value: Float[Array, "*n"], steps: Steps) -> Float[Array, ""]:
        if self.form == "paper":
            return super().value_loss(value, steps)
        return masked_mean(clipped_value_error(value, steps, self.clip_eps), self.is_valued(steps))

    def mean(self, terms: Float[Array, "*n G"], steps: Steps) -> Float[Array, ""]:
        """The released code divides by the padded width."""
        if self.form == "paper":
            return super().mean(terms, steps)
        return jnp.mean(jnp.where(steps.is_action_token, terms, 0.0))
