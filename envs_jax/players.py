"""What a scripted player is: memory in, action out, under `jit`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from envs_jax.environment import State, TextEnvironment

Memory = Any  # a pytree of arrays


@dataclass(unsafe_hash=True)
class Player(ABC):
    """One environment's player; `vmap` for a batch. Whether it looks at the whole state is said by each."""

    def start(self, env: TextEnvironment, state: State) -> Memory:
        """What it knows when an episode starts."""
        return ()

    @abstractmethod
    def act(self, env: TextEnvironment, key: jax.Array, state: State, memory: Memory) -> tuple[jax.Array, Memory]:
        """(action, memory) in a state."""


@dataclass(unsafe_hash=True)
class RandomPlayer(Player):
    """Uniform over the environment's actions."""

    def act(self, env: TextEnvironment, key: jax.Array, state: State, memory: Memory) -> tuple[jax.Array, Memory]:
        return jax.random.choice(key, jnp.asarray(env.actions(), jnp.int32)), memory
