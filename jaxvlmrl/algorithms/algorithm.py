"""What an algorithm is to the training program: credit for what a rollout did, and the loss of a minibatch.

A rollout is T turns of B environments. `credit` sees it whole; `loss` sees minibatches of whole environments,
[b, T, ...], epoch after epoch. Everything the methods share is here, so a comparison changes nothing else: the entropy
bonus, the weights of the parts, value warm-up. Source: reference sheet "algorithms", Conventions.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvlmrl.algorithms import kl
from jaxvlmrl.algorithms.masking import masked_mean


class Experience(NamedTuple):
    """A whole rollout, [T, B] unless it says otherwise."""

    reward: jax.Array
    value: jax.Array  # [T + 1, B], of what was seen
    final_value: jax.Array  # of what was seen after a step that ended an episode; counts where truncated
    terminated: jax.Array  # bool
    truncated: jax.Array  # bool
    is_played: jax.Array  # bool; False after an environment's only episode, where those are whole
    group: jax.Array  # [B] int32, the same for environments that began alike
    anchor: jax.Array  # int32, the same for equal states of one group
    is_action_token: jax.Array  # [T, B, G] bool: sampled, the end token included
    old_log_prob: jax.Array  # [T, B, G]
    ref_log_prob: jax.Array  # [T, B, G], of the policy at the start of RL
    token_value: jax.Array | None = None  # [T, B, G], before each token, for methods that value tokens
    won: jax.Array | None = None  # bool: the step won its episode


class Credit(NamedTuple):
    """What a rollout's steps are worth. `advantage` is [T, B], or [T, B, G] where tokens of a turn differ."""

    advantage: jax.Array
    returns: jax.Array  # [T, B], the value target; [T, B, G] for methods that value tokens
    is_kept: jax.Array  # [T, B] bool: what the policy learns from


class Steps(NamedTuple):
    """What the loss needs of steps [*n] with up to G answer tokens each; group methods read the axes as [b, T]."""

    is_action_token: jax.Array  # [*n, G] bool, of steps that are kept
    old_log_prob: jax.Array  # [*n, G]
    ref_log_prob: jax.Array  # [*n, G]
    advantage: jax.Array  # [*n], or [*n, G]
    old_value: jax.Array  # [*n], at the rollout; [*n, G] for methods that value tokens
    returns: jax.Array  # [*n], the value target; or the same
    is_played: jax.Array  # [*n] bool: what the critic learns from; the policy learns from steps with action tokens
    is_thought: jax.Array | None = None  # [*n, G] bool; None: all tokens act

    @property
    def is_step(self) -> jax.Array:
        """[*n] bool: steps that count."""
        return jnp.any(self.is_action_token, axis=-1)

    @property
    def token_advantage(self) -> jax.Array:
        """[*n, G]."""
        advantage = self.advantage
        if advantage.ndim < self.is_action_token.ndim:
            advantage = advantage[..., None]
        return jnp.broadcast_to(advantage, self.is_action_token.shape)


class Loss(NamedTuple):
    """Scalars; `total` is what is minimised."""

    total: jax.Array
    policy: jax.Array
    kl: jax.Array  # mean of the estimator, without its coefficient
    value: jax.Array  # without its coefficient
    entropy: jax.Array
    clip_fraction: jax.Array  # share of tokens (or steps) whose clipped branch is the smaller one


class PolicyLoss(NamedTuple):
    """What an algorithm says of a minibatch: scalars."""

    policy: jax.Array
    kl: jax.Array
    clip_fraction: jax.Array


@dataclass(unsafe_hash=True)
class Algorithm(ABC):
    """Base of all algorithms: the hyper-parameters they share, and how the parts of a loss come together."""

    kl_coef: float = 0.0  # 0 leaves out the pass of the reference policy
    kl_estimator: str = field(default="k3", metadata={"choices": tuple(kl.ESTIMATORS)})
    entropy_coef: float = 0.0
    final_entropy_coef: float | None = None  # where it falls to, linearly, by the end; None keeps it where it is
    value_coef: float = 0.5
    sft_coef: float = 0.0  # of thoughts as a corrector has them; 0 leaves them out
    warmup_updates: int = 0  # whole updates that train the value only, where there is a critic

    whole_episodes: ClassVar[bool] = False  # every update begins with fresh ones and learns from one an environment

    has_ratio: ClassVar[bool] = True  # without one a rollout is learned from once
    is_mean_over_rows: ClassVar[bool] = True  # its loss of a minibatch
    compares_states: ClassVar[bool] = False  # wants an environment's `anchor`
    values_tokens: ClassVar[bool] = False  # the critic reads the policy's state before every token of an answer

    @property
    def uses_critic(self) -> bool:
        return True

    @property
    def can_be_cut(self) -> bool:
        """Whether a minibatch's loss is the mean of its parts' losses. Cloning is a mean over the tokens that are cloned."""
        return self.is_mean_over_rows and not self.sft_coef

    @property
    def critic_warmup(self) -> int:
        """Updates in which only the value learns."""
        return self.warmup_updates if self.uses_critic else 0

    @property
    def kl_in_loss(self) -> bool:
        """Or in the reward."""
        return True

    @property
    def environments_alike(self) -> int:
        """How many environments begin each episode in the same state."""
        return 1

    @property
    def fewest_alike(self) -> int:
        """With fewer of them there is nothing to compare, hence nothing to learn."""
        return 1

    @abstractmethod
    def credit(self, experience: Experience) -> Credit: ...

    @abstractmethod
    def policy_loss(self, log_prob: Float[Array, "*n G"], steps: Steps) -> PolicyLoss:
        """`log_prob` is 0 where there is no token."""

    def is_valued(self, steps: Steps) -> Bool[Array, "..."]:
        """What the critic learns from, in the shape of its values."""
        return steps.is_action_token if self.values_tokens else steps.is_played

    def value_loss(self, value: Float[Array, "..."], steps: Steps) -> Float[Array, ""]:
        """Without its coefficient; `value` is [*n], or [*n, G]."""
        del value, steps
        return jnp.float32(0.0)

    def cloning_loss(self, log_prob: Float[Array, "*n L"], is_thought: Bool[Array, "*n L"]) -> Float[Array, ""]:
        """Of corrected thoughts, one mean over all their tokens; without its coefficient."""
        return -masked_mean(log_prob, jnp.asarray(is_thought))

    def mean(self, terms: Float[Array, "*n G"], steps: Steps) -> Float[Array, ""]:
        """Of a term of tokens, as this algorithm's normaliser has it: over steps of the mean over a step's tokens."""
        return masked_mean(masked_mean(terms, steps.is_action_token, axis=-1), steps.is_step)

    def loss(
        self,
        log_prob: Float[Array, "*n G"],
        entropy: Float[Array, "*n G"],
        value: Float[Array, "..."],
        steps: Steps,
        is_warmup: Bool[Array, ""] | bool = False,
        progress: Float[Array, ""] | float = 0.0,
    ) -> Loss:
        """The objective of a minibatch, `progress` from 0 to 1 through RL. During warm-up the total is the value's part."""
        # Padding is cleared before anything is computed from it: a mask afterwards does not stop an infinite gradient.
        of_tokens = lambda x: jnp.where(steps.is_action_token, x, 0.0)
        steps = steps._replace(old_log_prob=of_tokens(steps.old_log_prob), ref_log_prob=of_tokens(steps.ref_log_prob))
        policy, divergence, clip_fraction = self.policy_loss(of_tokens(log_prob), steps)
        mean_entropy = self.mean(of_tokens(entropy), steps)
        value_loss = self.value_loss(value, steps)
        final = self.entropy_coef if self.final_entropy_coef is None else self.final_entropy_coef
        entropy_coef = self.entropy_coef + (final - self.entropy_coef) * progress
        kl_coef = self.kl_coef if self.kl_in_loss else 0.0
        acting = policy + kl_coef * divergence - entropy_coef * mean_entropy
        total = self.value_coef * value_loss + jnp.where(is_warmup, 0.0, acting)
        return Loss(total, policy, divergence, value_loss, mean_entropy, clip_fraction)
