"""Environments as pure JAX functions: 3D worlds that are stepped and rendered inside `jit` and `vmap`."""

from envs_jax.environment import UNPARSABLE, Environment, TextEnvironment
from envs_jax.grid_walker import GridWalker

__all__ = ["UNPARSABLE", "Environment", "GridWalker", "TextEnvironment"]
