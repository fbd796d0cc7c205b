"""Every algorithm wins the games whose optimum is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax.probe import PROBES, Probe
from jaxvlmrl.algorithms import ALGORITHMS
from jaxvlmrl.building import make_actor_critic, make_env, make_policy
from jaxvlmrl.config import Config, Conversation, RLPhase
from jaxvlmrl.models.critics import CNNCritic
from jaxvlmrl.models.decoder import TextConfig
from jaxvlmrl.models.smolvlm import SmolVLM, VisionConfig
from jaxvlmrl.optimizer import Optimizer

UPDATES, ENVIRONMENTS = 30, 64
# With large ones Odysseus settles on one answer in one run of six, and wins half of the games with it.
SMALL_STEPS = (PROBES["stop"], "odysseus")


def config_of(probe: Probe, algorithm: str) -> Config:
    """The smallest model that can see, say and remember."""
    model = SmolVLM(
        text=TextConfig(width=32, mlp_width=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16),
        vision=VisionConfig(image_size=16, patch_size=8, width=16, mlp_width=32, num_heads=2),
    )
    optimizer = Optimizer(learning_rate=3e-3, warmup_updates=1)
    config = Config(
        env=probe, env_params=probe.default_params(), model=model, critic=CNNCritic(widths=(8,), strides=(8,), hidden=16),
        conversation=Conversation(constrained=True, window=3),
        rl=RLPhase(num_updates=UPDATES, num_envs=ENVIRONMENTS, num_turns=5, minibatches=2, microbatches=1, epochs=2,
                   optimizer=optimizer, critic_optimizer=optimizer),
    )  # fmt: skip
    config = config.with_algorithm(algorithm)
    config.algorithm = dataclasses.replace(config.algorithm, warmup_updates=1, kl_coef=0.0, entropy_coef=0.01)
    if not config.algorithm.has_ratio:  # a rollout is one optimiser step then, not two epochs of two
        config.rl = dataclasses.replace(config.rl, num_updates=4 * UPDATES)
    if (probe, algorithm) == SMALL_STEPS:
        small = dataclasses.replace(optimizer, learning_rate=1e-3)
        config.rl = dataclasses.replace(config.rl, num_updates=3 * UPDATES, optimizer=small)
    return config


def win_rates(probe: Probe, algorithm: str, **fields: object) -> np.ndarray:
    """[updates], of sampled answers; `fields` are the algorithm's."""
    config = config_of(probe, algorithm)
    config.algorithm = dataclasses.replace(config.algorithm, **fields)
    return train_rates(config)


def train_rates(config: Config) -> np.ndarray:
    """[updates], of a config's phase of reinforcement learning."""
    config.check()
    learner_of = make_actor_critic(config, make_policy(config), make_env(config))
    env_params = config.env_params

    @jax.jit
    def train(key: jax.Array) -> jax.Array:
        params = config.model.init(key)
        learner = learner_of.init(params, env_params, jax.random.fold_in(key, 1))
        one = lambda learner, index: learner_of.step(
            learner, {}, env_params, jax.random.fold_in(jax.random.fold_in(key, 2), index), index
        )
        return jax.lax.scan(one, learner, jnp.arange(config.rl.num_updates))[1]["rollout/success_rate"]

    return np.asarray(train(jax.random.key(0)))


FAST = (("see", "rl4vlm"), ("wait", "vl_dac"), ("remember", "grpo"))
# A player that gives one answer always wins half the games, and Odysseus keeps nothing that says it loses the others.
STUCK = ("combine", "odysseus")


def marks(probe: str, algorithm: str) -> list:
    fails = pytest.mark.xfail(strict=True, reason="advantages that are negative are left out")
    slow = [] if (probe, algorithm) in FAST else [pytest.mark.slow]
    return [*slow, fails] if (probe, algorithm) == STUCK else slow


ALL = [(probe, algorithm) for probe in PROBES for algorithm in ALGORITHMS if algorithm != "gtr"]  # RL4VLM and thoughts


@pytest.mark.parametrize(("probe", "algorithm"), [pytest.param(*pair, marks=marks(*pair)) for pair in ALL])
def test_the_optimum_is_found(probe: str, algorithm: str):
    rates = win_rates(PROBES[probe], algorithm)
    assert rates[0] < 0.8, "it is not won by chance"
    assert rates[-5:].mean() > 0.95


@pytest.mark.slow
def test_odysseus_finds_it_with_all_advantages():
    assert win_rates(PROBES["combine"], "odysseus", keeps_only_positive=False)[-5:].mean() > 0.95
