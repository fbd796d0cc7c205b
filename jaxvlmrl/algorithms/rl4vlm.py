"""RL4VLM: PPO on one ratio a step, in which a thought's log-probs weigh `thought_coef`.

    log pi = lambda sum over thought tokens + sum over action tokens,   r = exp(log pi new - log pi old)
    L = -mean over steps of min(r A, clip(r) A) + value_coef (clipped value error) / 2

No KL. The original's value head sends its gradient into the model: `critic = ValueHead(stop_gradient=False)`. Source:
reference sheet "rl4vlm_archer_others", section 1 (2405.10292 and its code).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvlmrl.algorithms import kl
from jaxvlmrl.algorithms.algorithm import PolicyLoss, Steps
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.algorithms.step_method import StepMethod, clipped_value_error
from jaxvlmrl.algorithms.surrogate import surrogate

RATIO_GUARD = 10.0  # beyond it a step's clipped branch is taken, whichever is the smaller


@dataclass(unsafe_hash=True)
class RL4VLM(StepMethod):
    """With answers that are not thought about, `thought_coef` says nothing."""

    gamma: float = 0.9
    clip_eps: float = 0.1
    std_eps: float = 1e-5
    value_coef: float = 0.5
    thought_coef: float = 0.5  # lambda

    def step_log_prob(self, log_prob: Float[Array, "*n G"], steps: Steps) -> Float[Array, "*n"]:
        weight = jnp.where(steps.is_thought, self.thought_coef, 1.0) if steps.is_thought is not None else 1.0
        return jnp.sum(jnp.where(steps.is_action_token, weight * log_prob, 0.0), axis=-1)

    def policy_loss(self, log_prob: Float[Array, "*n G"], steps: Steps) -> PolicyLoss:
        log_ratio = self.step_log_prob(log_prob, steps) - self.step_log_prob(steps.old_log_prob, steps)
        low, high = 1 - self.clip_eps, 1 + self.clip_eps
        terms, is_clipped = surrogate(log_ratio, steps.advantage, low, high)
        ratio = jnp.exp(log_ratio)
        is_guarded = ratio > RATIO_GUARD
        terms = jnp.where(is_guarded, -jnp.clip(ratio, low, high) * steps.advantage, terms)
        divergence = kl.ESTIMATORS[self.kl_estimator](log_prob, steps.ref_log_prob)
        clip_fraction = masked_mean((is_clipped | is_guarded).astype(jnp.float32), steps.is_step)
        return PolicyLoss(masked_mean(terms, steps.is_step), self.mean(divergence, steps), clip_fraction)

    def value_loss(self, value: Float[Array, "*n"], steps: Steps) -> Float[Array, ""]:
        return 0.5 * masked_mean(clipped_value_error(value, steps, self.clip_eps), self.is_valued(steps))
