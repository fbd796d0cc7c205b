"""GRPO: the group's z-score of the outcome, the mean over episodes of token means, k3 in the loss.

    A = (R - mean) / (std + eps)
    L = mean over episodes of mean over tokens of [ -min(r A, clip(r) A) + beta k3 ]

Source: reference sheet "critic_free"; DeepSeekMath (2402.03300).
"""

from dataclasses import dataclass

from jaxtyping import Array, Float

from jaxvlmrl.algorithms import groups
from jaxvlmrl.algorithms.algorithm import Steps
from jaxvlmrl.algorithms.group_method import GroupMethod, mean_of_means
from jaxvlmrl.algorithms.groups import Same


@dataclass(unsafe_hash=True)
class GRPO(GroupMethod):
    kl_coef: float = 0.04
    std_eps: float = 1e-4

    def advantage(self, outcome: Float[Array, " B"], same: Same) -> Float[Array, " B"]:
        return groups.z_scores(outcome, same, self.std_eps)

    def mean(self, terms: Float[Array, "b T G"], steps: Steps) -> Float[Array, ""]:
        return mean_of_means(terms, steps)
