"""DigiRL: imitation of the steps that a step advantage lets through.

    keep = 1{min(nv1, nv2) - min(v1, v2) - margin + r + R_mc > 0},   L = -mean over all steps of keep sum of log pi

A step of a won episode passes unless the chance of success falls by nearly all it is worth; one of a lost episode passes if
that chance rises by more than the margin. Source: reference sheet "rl4vlm_archer_others", section 6 (2406.11896's code).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms import kl
from jaxvlmrl.algorithms.algorithm import Algorithm, Credit, Experience, PolicyLoss, Steps
from jaxvlmrl.algorithms.archer import Twins
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.algorithms.returns import returns_to_go

MARGIN = 0.05


@dataclass(unsafe_hash=True)
class DigiRL(Algorithm):
    """One critic stands for both twins; it tells the chance to win, by squared error in place of two logits.

    Rewards are wins here, whatever turns cost. Not here: the choice of episodes by how surprising their success is.
    """

    gamma: float = 0.95
    warmup_updates: int = 5
    margin: float = MARGIN

    whole_episodes: ClassVar[bool] = True
    has_ratio: ClassVar[bool] = False
    is_mean_over_rows: ClassVar[bool] = False

    def credit(self, experience: Experience) -> Credit:
        x = experience
        assert x.won is not None
        reward = x.won.astype(jnp.float32)
        mc_return = returns_to_go(reward, x.is_played, self.gamma)
        follows = jnp.where(x.terminated, 0.0, jnp.where(x.truncated, x.final_value, x.value[1:]))
        twice = lambda value: Twins(value, value)
        keeps = is_kept(twice(x.value[:-1]), twice(follows), reward, mc_return, self.margin) & x.is_played
        return Credit(keeps.astype(jnp.float32), (mc_return > 0).astype(jnp.float32), keeps)

    def policy_loss(self, log_prob: Float[Array, "*n G"], steps: Steps) -> PolicyLoss:
        said = jnp.sum(jnp.where(steps.is_action_token, log_prob, 0.0), axis=-1)
        policy = -jnp.sum(said) / jnp.maximum(jnp.sum(steps.is_played), 1)
        divergence = kl.ESTIMATORS[self.kl_estimator](log_prob, steps.ref_log_prob)
        return PolicyLoss(policy, self.mean(divergence, steps), jnp.float32(0.0))

    def value_loss(self, value: Float[Array, "*n"], steps: Steps) -> Float[Array, ""]:
        return masked_mean(0.5 * jnp.square(value - steps.returns), self.is_valued(steps))


def is_kept(
    value: Twins,
    next_value: Twins,
    reward: Float[Array, "*n"],
    mc_return: Float[Array, "*n"],
    margin: float = MARGIN,
) -> Bool[Array, "*n"]:
    return next_value.least() - value.least() - margin + reward + mc_return > 0


def loss(log_prob: Float[Array, "N G"], mask: Bool[Array, "N G"], is_kept: Bool[Array, " N"]) -> Float[Array, ""]:
    """Over all steps, also those that are not kept."""
    said = jnp.sum(jnp.where(mask, log_prob, 0.0), axis=-1)
    return -jnp.mean(jnp.where(jax.lax.stop_gradient(is_kept), said, 0.0))
