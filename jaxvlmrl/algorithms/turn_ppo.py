"""Turn-level PPO: the turn is the action. GAE over turns as in VL-DAC, and one ratio a turn.

    r = exp(sum over tokens of (new - old)), or its length-normalised form exp(mean over tokens)

The papers' exact ratio could not be read; the normalised one is the sane default beyond about ten tokens. Source: reference
sheet "rl4vlm_archer_others", section 4 (2512.17008 and kin).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvlmrl.algorithms import kl
from jaxvlmrl.algorithms.algorithm import PolicyLoss, Steps
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.algorithms.step_method import StepMethod
from jaxvlmrl.algorithms.surrogate import surrogate


@dataclass(unsafe_hash=True)
class TurnPPO(StepMethod):
    gae_lambda: float = 0.9
    is_length_normalised: bool = True

    def policy_loss(self, log_prob: Float[Array, "*n G"], steps: Steps) -> PolicyLoss:
        moved = jnp.where(steps.is_action_token, log_prob - steps.old_log_prob, 0.0)
        log_ratio = jnp.sum(moved, axis=-1)
        if self.is_length_normalised:
            log_ratio = masked_mean(moved, steps.is_action_token, axis=-1)
        terms, is_clipped = surrogate(log_ratio, steps.advantage, 1 - self.clip_eps, 1 + self.clip_eps)
        divergence = kl.ESTIMATORS[self.kl_estimator](log_prob, steps.ref_log_prob)
        clip_fraction = masked_mean(is_clipped.astype(jnp.float32), steps.is_step)
        return PolicyLoss(masked_mean(terms, steps.is_step), self.mean(divergence, steps), clip_fraction)
