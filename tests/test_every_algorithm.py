"""Every algorithm trains the tiny model through the same program."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlmrl import command_line, train
from jaxvlmrl.algorithms import ALGORITHMS
from jaxvlmrl.building import first_params, make_phases, make_policy
from jaxvlmrl.config import ConfigError

ROOT = Path(__file__).parent.parent


def config_of(variant: str, *overrides: str, recipe: str = "quickstart"):
    argv = ["train", f"--config={ROOT}/configs/{recipe}.py:{variant}", *overrides]
    return command_line.read_config(argv, train.define)[0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS if name != "vl_dac"]
)
def test_two_updates(name: str):
    recipe = "gridwalker_thinking" if name == "gtr" else "quickstart"
    config = config_of(f"{name},tiny", "--config.imitation.num_updates=0", recipe=recipe)
    [phase] = make_phases(config, make_policy(config))
    state = jax.jit(phase.init)(first_params(config), jax.random.key(0))
    step = jax.jit(phase.step)
    for index in range(2):
        state, metrics = step(state, {}, jax.random.key(index + 1), jnp.int32(index))
        metrics = {key: float(value) for key, value in metrics.items()}
        learned = {key: x for key, x in metrics.items() if key.startswith(("loss/", "policy/", "ratio/"))}
        assert all(np.isfinite(x) for x in learned.values()), learned
        assert metrics["ratio/max_gap"] < 1e-4


def test_a_name_in_the_variant_is_enough():
    """The task's numbers are carried over, the method's are its own."""
    config = config_of("grpo")
    assert type(config.algorithm).__name__ == "GRPO"
    assert config.algorithm.entropy_coef == config_of("").algorithm.entropy_coef
    assert config.algorithm.kl_coef == 0.04
    assert config.rl.num_turns == 10
    assert config_of("rloo").rl.epochs == 1
    with pytest.raises(ConfigError, match="there are tiny, vl_dac"):
        config_of("ppo")
    with pytest.raises(ConfigError, match="groups of 7"):
        config_of("grpo", "--config.algorithm.group_size=7")
    for name, override in (("rloo", "group_size=1"), ("reinforce_pp", "has_group_baseline=True")):
        with pytest.raises(ConfigError, match="group_size must be at least 2"):
            config_of(name, f"--config.algorithm.{override}")
    with pytest.raises(ConfigError, match="whole episodes"):
        config_of("grpo", "--config.rl.num_turns=4")
