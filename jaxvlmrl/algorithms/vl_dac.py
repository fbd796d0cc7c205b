"""VL-DAC: token-level PPO on one advantage per step, a step-level value behind a stop-gradient, KL, value warm-up.

    L = L_policy + beta L_KL + alpha L_value
    L_policy = -mean over steps of mean over the answer's tokens of min(r A, clip(r, 1 - eps, 1 + eps) A)
    L_value  = mean over steps of (V - R)^2 / 2,  R = A (before normalisation) + V at the rollout

`form="paper"` is that; `form="released_code"` is the authors' loss as it runs. Source: reference sheet "vl_dac".
"""

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms import kl
from jaxvlmrl.algorithms.gae import TIME_LIMITS, gae, normalise
from jaxvlmrl.algorithms.masking import masked_mean

RATIO_GUARD = 10.0  # the released code takes a whole step's clipped branch once one ratio exceeds this


class Steps(NamedTuple):
    """What the loss needs of N steps with up to L answer tokens each."""

    is_action_token: jax.Array  # [N, L] bool: sampled, the end token included
    old_log_prob: jax.Array  # [N, L]
    ref_log_prob: jax.Array  # [N, L], of the policy at the start of RL
    advantage: jax.Array  # [N], normalised
    old_value: jax.Array  # [N], at the rollout
    returns: jax.Array  # [N], the value target


class Loss(NamedTuple):
    """Scalars; `total` is what is minimised."""

    total: jax.Array
    policy: jax.Array
    kl: jax.Array  # mean of the estimator, without beta
    value: jax.Array  # paper: with the 1/2, without alpha; released_code: with alpha
    entropy: jax.Array
    clip_fraction: jax.Array  # share of tokens whose clipped branch is the smaller one


@dataclass(unsafe_hash=True)
class VLDAC:
    """Hyper-parameters and the loss. Where papers' table 6 has a number it is the default; the rest is said here."""

    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_eps: float = 0.2  # the paper does not state it; its code has 0.1
    value_coef: float = 0.15
    kl_coef: float = 0.05
    kl_estimator: str = field(default="k3", metadata={"choices": tuple(kl.ESTIMATORS)})
    entropy_coef: float = 0.0  # not in the paper
    final_entropy_coef: float | None = None  # reached linearly on the last update; None keeps it where it is
    warmup_updates: int = 2  # whole updates that train the value only
    time_limits: str = field(default="bootstrap_final_obs", metadata={"choices": TIME_LIMITS})
    form: str = field(default="paper", metadata={"choices": ("paper", "released_code")})

    def advantages(
        self,
        reward: Float[Array, "T B"],
        value: Float[Array, "T+1 B"],
        final_value: Float[Array, "T B"],
        terminated: Bool[Array, "T B"],
        truncated: Bool[Array, "T B"],
    ) -> tuple[Float[Array, "T B"], Float[Array, "T B"]]:
        """(normalised advantages, value targets) of a rollout of B environments."""
        of_one = partial(gae, gamma=self.gamma, lam=self.gae_lambda, time_limits=self.time_limits)
        advantage = jax.vmap(of_one, in_axes=1, out_axes=1)(reward, value, final_value, terminated, truncated)
        return normalise(advantage), advantage + value[:-1]

    def loss(
        self,
        log_prob: Float[Array, "N L"],
        entropy: Float[Array, "N L"],
        value: Float[Array, " N"],
        steps: Steps,
        is_warmup: Bool[Array, ""] | bool = False,
        progress: Float[Array, ""] | float = 0.0,
    ) -> Loss:
        """The objective of a minibatch, `progress` from 0 to 1 through RL. During warm-up the total is the value's part."""
        # Padding is cleared before anything is computed from it: a mask afterwards does not stop an infinite gradient.
        of_tokens = lambda x: jnp.where(steps.is_action_token, x, 0.0)
        log_prob, entropy = of_tokens(log_prob), of_tokens(entropy)
        policy_terms, is_clipped = self.policy_terms(log_prob, steps)
        kl_terms = kl.ESTIMATORS[self.kl_estimator](log_prob, of_tokens(steps.ref_log_prob))
        per_step = self._token_mean
        policy = jnp.mean(per_step(policy_terms, steps, masked=-steps.advantage[:, None]))
        divergence = jnp.mean(per_step(kl_terms, steps))
        mean_entropy = jnp.mean(per_step(entropy, steps))
        value_loss = jnp.mean(self.value_terms(value, steps))
        weight = 1.0 if self.form == "released_code" else self.value_coef  # the released terms hold it already
        final = self.entropy_coef if self.final_entropy_coef is None else self.final_entropy_coef
        entropy_coef = self.entropy_coef + (final - self.entropy_coef) * progress
        acting = policy + self.kl_coef * divergence - entropy_coef * mean_entropy
        total = weight * value_loss + jnp.where(is_warmup, 0.0, acting)
        clipped = masked_mean(is_clipped.astype(log_prob.dtype), steps.is_action_token)
        return Loss(total, policy, divergence, value_loss, mean_entropy, clipped)

    def policy_terms(self, log_prob: Float[Array, "N L"], steps: Steps) -> tuple[jax.Array, jax.Array]:
        """(-min(r A, clip(r) A), whether the clipped branch is the smaller) of every token.

        At an exact clip boundary the plain branch is taken: `minimum` would halve its gradient there.
        """
        ratio = jnp.exp(jnp.where(steps.is_action_token, log_prob - steps.old_log_prob, 0.0))
        advantage = jnp.broadcast_to(steps.advantage[:, None], ratio.shape)
        plain = ratio * advantage
        clipped = jnp.clip(ratio, 1 - self.clip_eps, 1 + self.clip_eps) * advantage
        is_clipped = clipped < plain
        if self.form == "released_code":
            is_clipped |= jnp.max(ratio, axis=-1, keepdims=True) > RATIO_GUARD
        return -jnp.where(is_clipped, clipped, plain), is_clipped

    def value_terms(self, value: Float[Array, " N"], steps: Steps) -> Float[Array, " N"]:
        error = jnp.square(value - steps.returns)
        if self.form == "paper":
            return 0.5 * error
        moved = steps.old_value + jnp.clip(value - steps.old_value, -self.clip_eps, self.clip_eps)
        clipped = jnp.square(moved - steps.returns)
        return self.value_coef * jnp.where(clipped > error, clipped, error)

    def _token_mean(
        self, terms: Float[Array, "N L"], steps: Steps, masked: jax.Array | float = 0.0
    ) -> Float[Array, " N"]:
        """Mean over a step's tokens. The released code divides by the padded width and lets padding count `masked`."""
        if self.form == "paper":
            return masked_mean(terms, steps.is_action_token, axis=-1)
        return jnp.mean(jnp.where(steps.is_action_token, terms, masked), axis=-1)
