"""GTR: RL4VLM's objective, and cross-entropy on thoughts as a corrector would have had them.

    L = L_RL4VLM + sft_coef (-mean over thought tokens of log pi(corrected thought))

Only thoughts are cloned, never actions. The corrector here is a simulator's true state put into words; there is no buffer of
old corrections, since new ones cost nothing. Source: reference sheet "rl4vlm_archer_others", section 5 (2503.08525).
"""

from dataclasses import dataclass

from jaxvlmrl.algorithms.rl4vlm import RL4VLM


@dataclass(unsafe_hash=True)
class GTR(RL4VLM):
    """All of it but the objective is every algorithm's: `sft_coef` may be given to any."""

    sft_coef: float = 1.0  # the paper's own weighting is not known
