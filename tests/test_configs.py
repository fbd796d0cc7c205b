"""Every config builds, and its `:tiny` runs to its end with finite metrics."""

import importlib.util
import time
from pathlib import Path

import pytest

from jaxvlmrl import command_line, runs, train
from jaxvlmrl.building import make_policy
from jaxvlmrl.config import ConfigError
from jaxvlmrl.text.tokenizer import OWN

ROOT = Path(__file__).parent.parent
OF_WHAT_MAY_NOT_HAPPEN = (  # in a tiny run: that an episode ends, that a thought can be judged
    "/success_rate", "/turns_per_episode", "/mean_turns", "thought/true", "thought/imagined",
)  # fmt: skip
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_builds(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"python -m jaxvlmrl.train --config=configs/{name}.py" in (module.__doc__ or ""), "say the command"
    config = module.get_config()
    config.check()
    if config.conversation.tokenizer in OWN:
        make_policy(config)
    elif config.conversation.tokenizer == "weights":
        with pytest.raises(ConfigError, match=r"--config\.model\.weights=FOLDER"):
            make_policy(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "quickstart"])
def test_tiny_variant_runs(name: str, tmp_path: Path):
    """The quickstart's is what test_runs.py is about."""
    argv = ["train", f"--config={ROOT}/configs/{name}.py:tiny"]
    config, _ = command_line.read_config(argv, train.define)
    train.train(config, tmp_path / "run", time.time())
    for row in runs.read_rows(tmp_path / "run"):
        missing = [key for key, value in row.items() if value is None and not key.endswith(OF_WHAT_MAY_NOT_HAPPEN)]
        assert not missing, f"not finite: {missing}"
