"""Suite-wide settings: strict ranks, checked shapes, quick compiling, a shared compilation cache, and the slow marker."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jaxtyping import install_import_hook

from tests.compiling import QUICK

os.environ.setdefault("XLA_FLAGS", " ".join(QUICK))  # an empty one, `XLA_FLAGS= pytest ...`, compiles as users do
CACHE = Path(__file__).parent.parent / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Shapes in the public signatures are checked at every call; users pay nothing.
install_import_hook(["jaxvlmrl.algorithms", "jaxvlmrl.models", "jaxvlmrl.text"], "beartype.beartype")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
