"""Data flows one way: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "envs_jax": ["jaxvlmrl", "optax", "orbax", "transformers"],
    "jaxvlmrl/models": ["envs_jax", "jaxvlmrl.text", "jaxvlmrl.algorithms", "jaxvlmrl.policy", "jaxvlmrl.config"],
    "jaxvlmrl/text": ["jaxvlmrl.models", "jaxvlmrl.algorithms", "jaxvlmrl.policy", "jaxvlmrl.config"],
    "jaxvlmrl/algorithms": ["envs_jax", "jaxvlmrl.models", "jaxvlmrl.text", "jaxvlmrl.policy", "jaxvlmrl.config"],
    "jaxvlmrl": ["torch", "flax.nnx", "jaxvlmrl.train.", "configs", "tests"],
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_one_way(folder: str):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        wrong = [
            n for n in imports(path) for bad in FORBIDDEN[folder] if n == bad or n.startswith(bad.rstrip(".") + ".")
        ]
        if path.name != "train_tokenizer.py":  # a script that also writes the environment's words down
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"
