"""What several tests are about: a tiny policy in GridWalker, as configs make it, in batches that compile in seconds."""

import dataclasses

import jax
import numpy as np

from envs_jax import GridWalker
from envs_jax.grid_walker import Params
from jaxvlmrl import building
from jaxvlmrl.config import Config, Conversation, Model, RLPhase
from jaxvlmrl.models.critics import Critic
from jaxvlmrl.models.smolvlm import SmolVLM
from jaxvlmrl.update import ActorCritic

BATCH = 4


def make_config(
    window: int = 4, constrained: bool = True, max_turns: int = 5, num_turns: int = 6, model: Model | None = None,
    tokens_at_once: int = 0,
) -> Config:  # fmt: skip
    return Config(
        env=GridWalker(),
        env_params=Params(max_turns=max_turns),
        model=model or SmolVLM(),
        conversation=Conversation(window=window, constrained=constrained, tokens_at_once=tokens_at_once),
        rl=RLPhase(num_updates=4, num_envs=BATCH, num_turns=num_turns, minibatches=2, microbatches=1, epochs=1),
    )


def make_actor_critic(config: Config, critic: Critic | None = None) -> tuple[ActorCritic, Params]:
    """(the update, parameters of its environments)."""
    config = dataclasses.replace(config, critic=critic or config.critic)
    actor_critic = building.make_actor_critic(config, building.make_policy(config), building.make_env(config))
    return actor_critic, config.env_params


def sharpened(params: dict, factor: float = 20.0) -> dict:
    """Parameters of a model that is sure of what it says: rounding errors show."""
    if "lm_head" in params:
        return params | {"lm_head": params["lm_head"] * factor}
    text = params["text_model"]  # a tied head: what is embedded is normalised by the first layer anyway
    return params | {"text_model": text | {"embed_tokens": text["embed_tokens"] * factor}}


def fresh(config: Config) -> dict:
    return jax.jit(config.model.init)(jax.random.key(3))


def with_algorithm(config: Config, **fields: object) -> Config:
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, **fields))


def largest(tree: object) -> float:
    return max((float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(tree)), default=0.0)
