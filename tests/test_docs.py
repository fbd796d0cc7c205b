"""What the documentation shows works, and every complaint of the watchdog is explained."""

import re
from pathlib import Path

import numpy as np
import pytest

from jaxvlmrl.watchdog import Watchdog

ROOT = Path(__file__).parent.parent


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)


def test_extending_is_followed_to_the_letter():
    """An environment and an algorithm of the page's own, and games won with them."""
    from tests.test_probes import train_rates

    page: dict = {"__name__": "page"}
    for block in blocks("docs/extending.md"):
        exec(compile(block, "docs/extending.md", "exec"), page)
    rates = train_rates(page["config"])
    assert rates[0] < 0.8
    assert np.mean(rates[-5:]) > 0.95


@pytest.mark.slow
def test_readme_snippets_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for block in blocks("README.md"):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_every_complaint_has_a_heading():
    """All that the watchdog can say, by the words before the first colon."""
    watchdog = Watchdog()
    well = {"rollout/success_rate": 0.6, "rollout/unparsable_share": 0.0, "command/left": 0.3, "policy/entropy": 0.5}
    assert watchdog.look(well) == []
    worse = {"rollout/success_rate": 0.1, "command/left": 0.0, "policy/entropy": 0.0, "loss/policy": float("nan")}
    worst = {"rollout/reward_spread": 0.0, "ratio/max_gap": 1.0, "collapse/repeated_commands": 1.0}
    said = watchdog.look(well | worse | worst | {"collapse/repeated_tokens": 1.0})
    said += Watchdog().look(
        well | {"rollout/unparsable_share": 1.0, "validation/perception/x": 0.5, "validation/commonest_answer/x": 0.5}
    )
    headings = set(re.findall(r"^## (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE))
    explained = {heading for heading in headings for line in said if re.match(rf"{heading}\b", line)}
    assert len(said) == 10
    assert explained == headings - {"Others"}, said
