"""Algorithms as pure functions of arrays: log-probs, values, rewards and masks in, advantages and losses out.

A training algorithm is a file with a subclass of `Algorithm`, and a line in this table, by which a config names it.
"""

from jaxvlmrl.algorithms.algorithm import Algorithm
from jaxvlmrl.algorithms.dapo import DAPO
from jaxvlmrl.algorithms.digirl import DigiRL
from jaxvlmrl.algorithms.dr_grpo import DrGRPO, GridWalkerGRPO
from jaxvlmrl.algorithms.gigpo import GiGPO
from jaxvlmrl.algorithms.grpo import GRPO
from jaxvlmrl.algorithms.gtr import GTR
from jaxvlmrl.algorithms.loop import LOOP
from jaxvlmrl.algorithms.odysseus import Odysseus
from jaxvlmrl.algorithms.reinforce_pp import ReinforcePP
from jaxvlmrl.algorithms.rl4vlm import RL4VLM
from jaxvlmrl.algorithms.rloo import RLOO
from jaxvlmrl.algorithms.turn_ppo import TurnPPO
from jaxvlmrl.algorithms.vagen import VAGEN
from jaxvlmrl.algorithms.vl_dac import VLDAC

ALGORITHMS: dict[str, type[Algorithm]] = {
    "vl_dac": VLDAC,
    "rl4vlm": RL4VLM,
    "turn_ppo": TurnPPO,
    "odysseus": Odysseus,
    "grpo": GRPO,
    "dr_grpo": DrGRPO,
    "gridwalker_grpo": GridWalkerGRPO,
    "dapo": DAPO,
    "rloo": RLOO,
    "loop": LOOP,
    "reinforce_pp": ReinforcePP,
    "gigpo": GiGPO,
    "digirl": DigiRL,
    "gtr": GTR,
    "vagen": VAGEN,
}
