"""GiGPO: an episode's outcome within its group, and each step's return within the steps that began in the same state.

    A = A_episode + omega A_step on every token of a step
    A_episode = R - mean over the group,   A_step = G_t - mean over steps of the group from the same state

Both may be z-scores instead. A step whose state nobody else met has A_step = 0. States are compared by the simulator's, not
by pictures. Source: reference sheet "critic_free" (2505.10978 and public forks of its code).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvlmrl.algorithms import groups
from jaxvlmrl.algorithms.algorithm import Credit, Experience, Steps
from jaxvlmrl.algorithms.group_method import GroupMethod, mean_of_means
from jaxvlmrl.algorithms.groups import Same
from jaxvlmrl.algorithms.returns import returns_to_go


@dataclass(unsafe_hash=True)
class GiGPO(GroupMethod):
    """`baseline`: the episodes' mean is over episodes as in the paper, or over steps, as coded: long ones weigh more."""

    kl_coef: float = 0.01
    gamma: float = 0.95
    omega: float = 1.0
    is_z_score: bool = False
    std_eps: float = 1e-6
    baseline: str = field(default="episode", metadata={"choices": ("episode", "step")})

    compares_states: ClassVar[bool] = True

    @property
    def fewest_alike(self) -> int:
        return 1  # an episode alone has its outcome

    def credit(self, experience: Experience) -> Credit:
        x = experience
        returns = returns_to_go(x.reward, x.is_played, self.gamma)
        of_episode = self.of_episodes(self.outcome(x), x.group, x.is_played)
        advantage = of_episode + self.omega * self.of_steps(returns, x.group, x.anchor, x.is_played)
        return Credit(jnp.where(x.is_played, advantage, 0.0), returns, x.is_played)

    def advantage(self, outcome: Float[Array, " N"], same: Same) -> Float[Array, " N"]:
        """Of episodes or of steps; one alone is compared with nothing."""
        scored = groups.z_scores(outcome, same, self.std_eps) if self.is_z_score else groups.centred(outcome, same)
        return jnp.where(groups.sizes(same) > 1, scored, outcome)

    def of_episodes(
        self, outcome: Float[Array, " B"], group: Int[Array, " B"], is_played: Bool[Array, "T B"]
    ) -> Float[Array, "T B"]:
        of_turns = lambda x: jnp.broadcast_to(x[None], is_played.shape)
        if self.baseline == "episode":
            return of_turns(self.advantage(outcome, groups.alike(group)))
        rows = self.advantage(of_turns(outcome).reshape(-1), together(is_played, of_turns(group)))
        return rows.reshape(is_played.shape)

    def of_steps(
        self,
        returns: Float[Array, "T B"],
        group: Int[Array, " B"],
        anchor: Int[Array, "T B"],
        is_played: Bool[Array, "T B"],
    ) -> Float[Array, "T B"]:
        same = together(is_played, jnp.broadcast_to(group[None], anchor.shape), anchor)
        flat = returns.reshape(-1)
        scored = groups.z_scores(flat, same, self.std_eps) if self.is_z_score else groups.centred(flat, same)
        return scored.reshape(returns.shape)

    def mean(self, terms: Float[Array, "b T G"], steps: Steps) -> Float[Array, ""]:
        return mean_of_means(terms, steps)


def together(is_played: jax.Array, *ids: jax.Array) -> Same:
    """[T B, T B]: played steps that agree in all ids [T, B]."""
    played = is_played.reshape(-1)
    same = played[:, None] & played[None, :]
    for part in ids:
        same &= groups.alike(part.reshape(-1))
    return same
