"""GridWalker-v1 and what belongs to it."""

from envs_jax.grid_walker.grid_walker import GridWalker, Params
from envs_jax.grid_walker.rules import State

__all__ = ["GridWalker", "Params", "State"]
