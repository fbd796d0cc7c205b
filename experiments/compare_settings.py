"""What compare.py compares: methods, and the settings in which each has its row.

- A method keeps what its paper gives it: KL to where it began (VL-DAC 0.05, GRPO 0.04, most others none), clip and warm-up.
- The policy's learning rate is constant, since runs that end with their steps cannot know how many updates that will be;
  the critic's falls, to three quarters in 500,000 steps.
- The entropy bonus is the config's, but none for methods of whole episodes where answers are free: their papers have none,
  and without normalised advantages it outweighs them (LOOP, seed 0: 50% with, 65% without). From random weights those whose
  advantages are in units of reward have a fifth of it, as one game in twenty is won at first: a deviation of 0.22.
"""

from typing import NamedTuple


class Method(NamedTuple):
    """A row: the config's variant, and what else is given."""

    variant: str
    overrides: tuple[str, ...] = ()


class Setting(NamedTuple):
    """Where all methods begin, and how many turns they have."""

    config: str
    steps: int
    methods: dict[str, Method]
    imitation: int = 0  # updates of the start that a run seed's methods share
    base: str = ""  # the config's own variant
    is_free: bool = False  # answers are anything the model likes
    unnormalised: tuple[str, ...] = ()  # given to methods whose advantages are in units of reward
    overrides: tuple[str, ...] = ()  # given to all


METHODS = {
    "VL-DAC": Method("vl_dac"),
    "RL4VLM": Method("rl4vlm"),
    "turn PPO": Method("turn_ppo"),
    "Odysseus": Method("odysseus"),
    "GRPO": Method("grpo"),
    "Dr. GRPO": Method("dr_grpo"),
    "DAPO": Method("dapo"),
    "RLOO": Method("rloo"),
    "LOOP": Method("loop"),
    "REINFORCE++": Method("reinforce_pp"),
    "GiGPO": Method("gigpo"),
}
UNNORMALISED = ("Dr. GRPO", "RLOO", "LOOP")
FIFTH_OF_BONUS = ("--config.algorithm.entropy_coef=0.02", "--config.algorithm.final_entropy_coef=0.001")
NO_KL = Method("vl_dac", ("--config.algorithm.kl_coef=0.",))


def one_ratio(tokens: int, *bonus: float) -> Method:
    """VL-DAC in all but its loss: the ratio is of a whole answer, not of a token.

    A step's part is then the sum over an answer's tokens where VL-DAC has their mean, so that KL and the entropy bonus,
    which stay means, are as many times as large to weigh the same: five tokens a command, fifteen with a thought.
    """
    coefficients = {
        "kl_coef": 0.05 * tokens,
        "entropy_coef": bonus[0] * tokens,
        "final_entropy_coef": bonus[-1] * tokens,
    }
    given = {"is_length_normalised": False, "value_coef": 0.15, "warmup_updates": 2, **coefficients}
    return Method("turn_ppo", tuple(f"--config.algorithm.{name}={value}" for name, value in given.items()))


ABLATIONS = {
    "VL-DAC": METHODS["VL-DAC"],
    "VL-DAC, no warm-up": Method("vl_dac", ("--config.algorithm.warmup_updates=0",)),
    "VL-DAC, no KL": NO_KL,
    "VL-DAC, one ratio an answer": one_ratio(5, 0.002),
    "VL-DAC, shared backbone": Method("vl_dac,value_head"),
    "VL-DAC, shared, no stop-gradient": Method("vl_dac,value_head", ("--config.critic.stop_gradient=False",)),
}
THOUGHTS = {"VL-DAC": METHODS["VL-DAC"], "VL-DAC, one ratio an answer": one_ratio(15, 0.002)} | {
    f"RL4VLM, lambda {name}": Method("rl4vlm", (f"--config.algorithm.thought_coef={weight}", *kl))
    for name, weight, kl in (
        ("0.2", 0.2, ()), ("0.35", 0.35, ()), ("0.5", 0.5, ()), ("1.0", 1.0, ()),
        ("0.5, with KL", 0.5, ("--config.algorithm.kl_coef=0.75",)),  # VL-DAC's on a command's tokens: see one_ratio
    )
}  # fmt: skip
RATES = {
    f"{name}, {rate}": Method(METHODS[name].variant, (f"--config.rl.optimizer.learning_rate={rate}",))
    for name in ("VL-DAC", "GRPO", "RLOO")
    for rate in ("3e-4", "1e-3", "3e-3")
}
BY_SEGMENTS = (  # an update is of 1,024 turns instead of 2,300
    "--config.algorithm.gae_lambda=0.9",
    "--config.algorithm.value_coef=1.",
    "--config.rl.num_turns=16",
    "--config.rl.minibatches=2",
    "--config.rl.validate_every=35",
)
ESTIMATES = {
    "VL-DAC": Method("vl_dac", BY_SEGMENTS),
    "VL-DAC, no KL": Method("vl_dac", (*BY_SEGMENTS, *NO_KL.overrides)),
    "Odysseus": METHODS["Odysseus"],
    "Odysseus, all advantages": Method("odysseus", ("--config.algorithm.keeps_only_positive=False",)),
} | {
    f"{name}, the same loss": Method(
        "odysseus",
        (f"--config.algorithm.estimator={estimator}", "--config.algorithm.keeps_only_positive=False"),
    )
    for name, estimator in (
        ("GRPO", "grpo_outcome"),
        ("GRPO by turns", "grpo_process"),
        ("REINFORCE++", "reinforce_pp"),
    )
}
LONG = (  # 64 games an update, some 550 turns an optimiser step; at 1e-3, with a bonus of 0.01, whole games taught nothing
    "--config.rl.num_envs=64",
    "--config.rl.minibatches=4",
    "--config.rl.num_updates=6000",
    "--config.rl.validate_every=15",
    "--config.rl.optimizer.learning_rate=3e-4",
    "--config.algorithm.entropy_coef=0.002",
    "--config.algorithm.final_entropy_coef=0.002",
)
SETTINGS = {
    "weak": Setting("quickstart", 150_000, METHODS, imitation=80, is_free=True),
    "ablations": Setting("quickstart", 150_000, ABLATIONS, imitation=80, is_free=True),
    "rates": Setting("quickstart", 150_000, RATES, imitation=80, is_free=True),
    "random": Setting(
        "gridwalker_from_scratch",
        500_000,
        METHODS | {"VL-DAC, no KL": NO_KL, "VL-DAC, one ratio an answer": one_ratio(5, 0.1, 0.005)},
        unnormalised=FIFTH_OF_BONUS,
    ),
    "long_small": Setting("gridwalker_long", 300_000, ESTIMATES, imitation=50, base="small", overrides=LONG),
    "long": Setting("gridwalker_long", 2_000_000, ESTIMATES, imitation=100, overrides=LONG),
    "thinking": Setting("gridwalker_thinking", 150_000, THOUGHTS, imitation=300, is_free=True),
    "direct": Setting("quickstart", 150_000, {"VL-DAC": METHODS["VL-DAC"]}, imitation=300, is_free=True),
}
