"""Suite-wide settings: strict ranks, checked shapes, quick compiling, a shared cache, the slow marker, who runs what."""

import os
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jaxtyping import install_import_hook
from xdist.scheduler import LoadScopeScheduling

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


class FilesWithFixturesWhole(LoadScopeScheduling):
    """Tests that share a file's fixture have one worker, which makes it once; all others go where there is time."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if shares_a_fixture(self.config.rootpath / file) else nodeid


@cache
def shares_a_fixture(file: Path) -> bool:
    return 'scope="module"' in file.read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return FilesWithFixturesWhole(config, log)
