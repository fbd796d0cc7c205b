"""What methods with a critic share: one advantage a step by generalised advantage estimation, normalised over a rollout."""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvlmrl.algorithms.algorithm import Algorithm, Credit, Experience, Steps
from jaxvlmrl.algorithms.gae import TIME_LIMITS, gae, normalise
from jaxvlmrl.algorithms.masking import masked_mean


@dataclass(unsafe_hash=True)
class StepMethod(Algorithm):
    """Episodes go on from one update into the next."""

    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_eps: float = 0.2
    std_eps: float = 1e-8  # beside the deviation that advantages are divided by
    time_limits: str = field(default="bootstrap_final_obs", metadata={"choices": TIME_LIMITS})

    def credit(self, experience: Experience) -> Credit:
        of_one = partial(gae, gamma=self.gamma, lam=self.gae_lambda, time_limits=self.time_limits)
        x = experience
        columns = (x.reward, x.value, x.final_value, x.terminated, x.truncated)
        advantage = jax.vmap(of_one, in_axes=1, out_axes=1)(*columns)
        return Credit(normalise(advantage, self.std_eps), advantage + x.value[:-1], x.is_played)

    def value_loss(self, value: Float[Array, "*n"], steps: Steps) -> Float[Array, ""]:
        return masked_mean(0.5 * jnp.square(value - steps.returns), self.is_valued(steps))


def clipped_value_error(value: jax.Array, steps: Steps, clip_eps: float) -> jax.Array:
    """The larger of the squared errors of the value and of one that moved no further than `clip_eps` since the rollout."""
    error = jnp.square(value - steps.returns)
    moved = steps.old_value + jnp.clip(value - steps.old_value, -clip_eps, clip_eps)
    clipped = jnp.square(moved - steps.returns)
    return jnp.where(clipped > error, clipped, error)
