"""What leaves a run: a folder for transformers, adapters for PEFT; and what a run would need, without running it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import quickstart
from jaxvlmrl import acting, adapters, building, export, plan, train
from jaxvlmrl.adapters import Tuning
from jaxvlmrl.config import ConfigError
from jaxvlmrl.models import peft_format, weights
from jaxvlmrl.models.smolvlm import SmolVLM
from jaxvlmrl.models.weights import WeightsError
from jaxvlmrl.text.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "experiments" / "quickstart"


def test_the_shipped_policy_leaves_as_it_is(tmp_path: Path):
    assert export.main(["export", f"--checkpoint={SHIPPED}", f"--to={tmp_path / 'out'}"]) == 0
    actor = acting.load_policy(SHIPPED)
    model = weights.read_model(tmp_path / "out")
    assert model == actor.policy.model
    jax.tree.map(np.testing.assert_array_equal, weights.load(model, tmp_path / "out"), actor.params)
    words = Tokenizer(str(tmp_path / "out"))
    assert words.encode("`forward 3`") == actor.policy.chat.tokenizer.encode("`forward 3`")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["image_token_id"] == actor.policy.chat.image_id


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        export.main(["export", f"--checkpoint={SHIPPED}", f"--to={tmp_path}"])
    with pytest.raises(ConfigError, match="hold no adapters"):
        export.main(["export", f"--checkpoint={SHIPPED}", f"--to={tmp_path / 'new'}", "--adapters"])


def test_adapters_come_back(tmp_path: Path):
    tuning = Tuning(lora=("text_model/layers/.*_proj", "connector"), rank=2)
    model = SmolVLM()
    base = jax.jit(model.init)(jax.random.key(0))
    params = adapters.add(base, tuning, jax.random.key(1))
    peft_format.export_adapters(model, params, tmp_path)
    back = peft_format.import_adapters(model, adapters.add(base, tuning, jax.random.key(2)), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    other = adapters.add(base, Tuning(lora=("connector",), rank=2), jax.random.key(1))
    with pytest.raises(WeightsError, match="on other layers"):
        peft_format.import_adapters(model, other, tmp_path)


def test_plan_says_what_to_change(capsys: pytest.CaptureFixture[str]):
    argv = ["plan", f"--config={ROOT}/configs/quickstart.py:tiny", "--nocompile"]
    assert plan.main(argv) == 0
    said = capsys.readouterr().out
    assert "SmolVLM: 336,224 parameters" in said
    assert "imitation:" in said
    assert "rl:" in said
    assert plan.main([*argv, "--memory=0.0001"]) == 1
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_keeps_what_it_took_from_another(tmp_path: Path):
    """The parent of a run with frozen parts may go away: the child is still whole, and goes on."""
    parent, child = quickstart.get_config("tiny"), quickstart.get_config("tiny")
    parent.rl.num_updates = child.rl.num_updates = 0
    train.train(parent, tmp_path / "parent", started=0.0)
    child.start_from, child.seed = str(tmp_path / "parent"), 1
    child.tuning = Tuning(frozen=("vision_model/.*",))
    train.train(child, tmp_path / "child", started=0.0)
    taken = building.whole_params(tmp_path / "parent")["vision_model"]
    (tmp_path / "parent").rename(tmp_path / "gone")
    whole = building.whole_params(tmp_path / "child")
    jax.tree.map(np.testing.assert_array_equal, whole["vision_model"], taken)
    (tmp_path / "child" / "summary.json").unlink()
    train.train(child, tmp_path / "child", started=0.0)
