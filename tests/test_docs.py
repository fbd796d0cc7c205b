"""What the documentation shows works, and every complaint of the watchdog is explained."""

import importlib
import re
import time
from pathlib import Path

import numpy as np
import pytest

from jaxvlmrl import command_line
from jaxvlmrl.watchdog import Watchdog
from tests import documented
from tests.documented import ROOT, Command
from tests.endpoint import serving


def blocks(name: str) -> list[str]:
    return documented.python_blocks((ROOT / name).read_text())


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
    worst = {"rollout/reward_spread": 0.0, "ratio/max_log_ratio": 1.0, "collapse/repeated_commands": 1.0}
    said = watchdog.look(well | worse | worst | {"collapse/repeated_tokens": 1.0})
    said += Watchdog().look(
        well | {"rollout/unparsable_share": 1.0, "validation/perception/x": 0.5, "validation/commonest_answer/x": 0.5}
    )
    headings = set(re.findall(r"^## (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE))
    explained = {heading for heading in headings for line in said if re.match(rf"{heading}\b", line)}
    assert len(said) == 10
    assert explained == headings - {"Others"}, said


# Commands

SCRIPT = (ROOT / "experiments" / "readme_commands.sh").read_text()
SMALLER = {  # what the slow test adds to a command; the last of two equal flags counts
    "jaxvlmrl.train": ["--workdir={tmp}/run"],
    "jaxvlmrl.evaluate": ["--seeds=0:2", "--turns=2", "--json={tmp}/games.json"],
    "jaxvlmrl.report": ["--to={tmp}/report.html"],
    "jaxvlmrl.plan": ["--nocompile"],
    "jaxvlmrl.export": ["--to={tmp}/exported"],
    "jaxvlmrl.tomography": ["--to={tmp}/look.png"],
}
OTHERWISE = {  # prefix of a command: why neither a test nor the script runs it
    "python3 -m venv": "an installation: .ci/run makes one from the README's second block",
    ".venv/bin/pip install": "the same",
    "pip install": "of something that is not needed to use the package",
    "python -m jaxvlmrl.train --config=configs/smolvlm_256m_gridwalker_vl_dac.py": "needs published weights, and a GPU",
    "python -m jaxvlmrl.train --config=configs/qwen3_vl_2b_gridwalker_vl_dac.py": "needs published weights, and a GPU",
    "python -m jaxvlmrl.plan --config=configs/smolvlm_256m_gridwalker_vl_dac.py": "needs published weights",
    "bash experiments/readme_commands.sh": "is what runs the others",
    "bash experiments/gpu_compare.sh": "needs a GPU",
    "python experiments/compare.py --settings=weak --methods": "the script runs a row of it",
    "python experiments/compare.py --settings=ablations": "the script runs a row of another setting",
    "python experiments/compare.py --settings=direct": "the same",
    "python experiments/compare.py --settings=long_small": "the same",
    "python experiments/compare.py --settings=random": "the same",
    "python experiments/compare.py --settings=rates": "the same",
    "python experiments/compare.py --settings=thinking": "the same",
    "python -m jaxvlmrl.train --config=configs/smollm2_135m_gridwalker.py": "takes an hour, and SmolLM2's wheel",
}


def by_text() -> dict[str, Command]:
    return {command.text: command for command in documented.commands()}


def is_run_here(command: Command) -> bool:
    return command.program in SMALLER and not any(command.text.startswith(prefix) for prefix in OTHERWISE)


def has_a_place(command: Command) -> bool:
    """Run by a test, by the script, or listed with the reason why not."""
    if is_run_here(command) or any(command.text.startswith(prefix) for prefix in OTHERWISE):
        return True
    if command.program == "pytest":
        return True  # by the suite itself; its files are looked for below
    if command.program.startswith("jaxvlmrl."):  # a server, say, that no command line ends
        started = f'"-m", "{command.program}"'
        return any(started in path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    return re.search(rf"^ *run {re.escape(command.text)}( -- .*)?$", SCRIPT, flags=re.MULTILINE) is not None


def test_every_command_has_a_place():
    found = by_text()
    assert len(found) > 20, "the collection works"
    homeless = {command.page: text for text, command in found.items() if not has_a_place(command)}
    assert not has_a_place(Command("a page", "python -m jaxvlmrl.playing")), "a name that begins alike is another"
    assert not homeless, f"name them in experiments/readme_commands.sh, or in one of the tables above: {homeless}"
    unused = [prefix for prefix in OTHERWISE if not any(text.startswith(prefix) for text in found)]
    assert not unused, f"no longer documented: {unused}"


@pytest.mark.parametrize("text", by_text())
def test_every_flag_and_file_of_a_command_exists(text: str):
    """Configs are read with their overrides, so a field that is gone fails too."""
    command = by_text()[text]
    if command.program == "pytest":
        assert all((ROOT / word).is_file() for word in command.arguments if word.startswith("tests/"))
    elif command.program.startswith("jaxvlmrl.") or command.program.endswith((".py", ".sh")):
        plain = [flag for flag in command.flags if not flag.startswith("config.")]
        assert set(plain) <= documented.flags_of(command.program), command.page
        if config := [word for word in command.arguments if word.startswith("--config")]:
            command_line.read_config(["x", *config], lambda values: None)


def test_the_script_names_no_command_that_is_not_documented():
    named = re.findall(r"^ *run (python .*?)(?: --( .*)?)?$", SCRIPT, flags=re.MULTILINE)
    assert named
    assert {text for text, _ in named} <= set(by_text())
    for text, smaller in named:
        given = Command("the script", f"{text} {smaller}")
        assert set(given.flags) <= documented.flags_of(given.program)


def test_every_python_block_is_executed_by_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    with_blocks = [path for path in documented.pages() if documented.python_blocks(path.read_text())]
    assert all(f'blocks("{path.relative_to(ROOT).as_posix()}")' in tests for path in with_blocks)


def in_small(command: Command, tmp: Path, url: str) -> list[str]:
    """The arguments of a command made small: the config's `:tiny`, the policy that ships with the repository.

    A remote model is asked at `url`, whatever stands in the command.
    """
    words = [re.sub(r"runs/[\w-]+|^RUN$|(?<==)DIR$", "experiments/quickstart", word) for word in command.arguments]
    words = [re.sub(r"(?<==)(FILE|FOLDER)$", f"{tmp}/new", word) for word in words]
    words = [re.sub(r"^--base_url=.*", f"--base_url={url}", word) for word in words]
    if command.program == "jaxvlmrl.train":
        tiny = lambda config: config if config.endswith("tiny") else f"{config}{',' if ':' in config else ':'}tiny"
        words = [tiny(word) if word.startswith("--config=") else word for word in words]
    if command.program == "jaxvlmrl.evaluate":
        words.append(f"--transcripts={tmp}/games" if "--policy=openai" in words else "--samples=1")
    if command.program == "jaxvlmrl.export":  # that policy has no adapters; tests/test_export_and_plan.py exports some
        words.remove("--adapters")
    return [*words, *(word.format(tmp=tmp) for word in SMALLER[command.program])]


def is_of_a_config(command: Command) -> bool:
    """Training and nothing else: tests/test_configs.py and test_every_algorithm.py run the `:tiny` of every config."""
    return command.program == "jaxvlmrl.train" and all(flag.startswith("config") for flag in command.flags)


@pytest.mark.slow
@pytest.mark.parametrize("text", [t for t, c in by_text().items() if is_run_here(c) and not is_of_a_config(c)])
def test_commands_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = by_text()[text]
    monkeypatch.chdir(ROOT)
    main = importlib.import_module(command.program).main
    started = [time.time()] if command.program == "jaxvlmrl.train" else []
    with serving(lambda messages: "`left`") as server:
        code = main([command.program, *in_small(command, tmp_path, server.url)], *started)
    assert bool(server.requests) == ("--policy=openai" in command.arguments)
    assert code == 0 or (code == 1 and command.program == "jaxvlmrl.plan"), "1: it does not fit"
