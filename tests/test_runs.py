"""Runs: going on after any death exactly as if nothing had happened, one compilation, and refusals in one sentence."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxvlmrl import command_line, evaluate, report, runs, train
from jaxvlmrl.building import make_policy
from jaxvlmrl.config import Config, ConfigError, differences, from_json, to_json
from jaxvlmrl.runs import Run
from jaxvlmrl.watchdog import Watchdog

ROOT = Path(__file__).parent.parent
TINY = ["train", f"--config={ROOT}/configs/quickstart.py:tiny", "--config.checkpoint_every=1"]


def config_of(*overrides: str) -> Config:
    return command_line.read_config([*TINY, *overrides], train.define)[0]


def go(folder: Path, *overrides: str) -> dict:
    return train.train(config_of(*overrides), folder, time.time())


def arrays_of(folder: Path) -> list[np.ndarray]:
    """Everything in the newest checkpoint, the best policy and its critic."""
    import orbax.checkpoint as ocp

    newest = lambda name: max(int(path.name) for path in (folder / name).iterdir() if path.name.isdigit())
    paths = (
        folder / "checkpoints" / str(newest("checkpoints")) / "arrays",
        folder / "checkpoints" / str(newest("checkpoints")) / "critic",
        folder / "best" / str(newest("best")) / "default",
        folder / "critic" / str(newest("critic")) / "default",
    )
    assert newest("critic") == newest("best")
    with ocp.StandardCheckpointer() as checkpointer:
        trees = [checkpointer.restore(path.absolute()) for path in paths]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trees)]


def rows_of(folder: Path) -> list[dict]:
    drop = lambda row: {name: value for name, value in row.items() if not name.startswith("time/")}
    return [drop(row) for row in runs.read_rows(folder)]


def same_run(one: Path, other: Path) -> None:
    assert rows_of(one) == rows_of(other)
    for a, b in zip(arrays_of(one), arrays_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def traces() -> Counter[str]:
    """How often a phase's step was traced in the unbroken run."""
    return Counter()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, traces: Counter[str]) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    make_phases = train.make_phases

    def counted(config, policy):
        def wrap(phase):
            @functools.wraps(phase.step)  # the same name: the compilation cache knows the program
            def step(*args):
                traces[phase.name] += 1
                return phase.step(*args)

            return phase._replace(step=step)

        return [wrap(phase) for phase in make_phases(config, policy)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_phases", counted)
        go(folder)
    return folder


def test_run_leaves_what_it_promises(unbroken: Path):
    names = {path.name for path in unbroken.iterdir()}
    assert {"config.json", "metrics.jsonl", "summary.json", "curve.png", "episodes.gif", "best", "checkpoints"} <= names
    summary = json.loads((unbroken / "summary.json").read_text())
    for part in ("heldout", "before_rl"):
        assert {"episodes", "win_rate_greedy", "win_rate_sampled", "mean_turns", "ci95"} <= summary[part].keys()
    assert summary["wall_s"] > 0
    assert [row["row"] for row in rows_of(unbroken)] == [0, 1, 2, 3]
    rates = [row["rollout/success_rate"] for row in rows_of(unbroken) if row["phase"] == "rl"]
    assert rates[0] is None, "after 6 turns of at most 10 nobody can have lost"
    assert 0 <= rates[1] <= 1


def test_finished_run_only_says_its_summary(unbroken: Path):
    before = (unbroken / "metrics.jsonl").stat().st_mtime_ns
    assert go(unbroken) == json.loads((unbroken / "summary.json").read_text())
    assert (unbroken / "metrics.jsonl").stat().st_mtime_ns == before


class Died(BaseException):
    """A death that nothing in the program may catch."""


@pytest.mark.parametrize("row", [3, *(pytest.param(row, marks=pytest.mark.slow) for row in (0, 1))])
def test_resumed_run_is_the_unbroken_one(unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int):
    """Dies after a row is half written and before its checkpoint, in either phase and between them."""
    write = Run.write

    def dying(self: Run, at: int, metrics: dict) -> None:
        write(self, at, metrics)
        if at == row:
            self._metrics.write('{"row": 99, "half')
            raise Died

    monkeypatch.setattr(Run, "write", dying)
    with pytest.raises(Died):
        go(tmp_path / "run")
    monkeypatch.undo()
    go(tmp_path / "run")
    same_run(unbroken, tmp_path / "run")


def test_each_phase_is_traced_once(unbroken: Path, traces: Counter[str]):
    assert traces == {"imitation": 1, "rl": 1}, unbroken


@pytest.mark.slow
def test_kill_at_any_moment(unbroken: Path, tmp_path: Path):
    """`kill -9` from outside, at moments spread over a run, saves included; then the same command to its end."""
    command = [sys.executable, "-m", "jaxvlmrl.train", *TINY[1:], f"--workdir={tmp_path / 'run'}"]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")}
    run = tmp_path / "run"
    is_written = lambda rows: (
        lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") == rows
    )
    is_saving = lambda: any("tmp" in path.name for path in run.glob("*/*") if path.is_dir())
    for moment in (is_written(1), is_saving, is_written(3)):
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
        time.sleep(3)  # past the cut of the rows that the last death left
        while process.poll() is None and not moment():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    same_run(unbroken, tmp_path / "run")


def test_signal_saves_and_the_same_command_goes_on(unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = Run.write

    def told_to_stop(self: Run, at: int, metrics: dict) -> None:
        write(self, at, metrics)
        if at == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "write", told_to_stop)
    with pytest.raises(SystemExit) as stopped:
        go(tmp_path / "run")
    assert stopped.value.code == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert len(rows_of(tmp_path / "run")) == 1
    go(tmp_path / "run")
    same_run(unbroken, tmp_path / "run")


# Refusals

BAD_OVERRIDES = {
    "--config.rl.num_env=4": "the nearest is rl.num_envs",
    "--config.algorithm.clip_epz=4": "the nearest is algorithm.clip_eps",
    "--config.rl.optimiser.learning_rate=1": "the nearest is rl.optimizer.learning_rate",
    "--config.algorithm.unheard_of=1": "there are algorithm.clip_eps, ",
    "--config.algorithm=grpo": "name an algorithm or a critic after the colon",
    "--config.rl.num_envs=many": "invalid literal for int",
    "--config.rl.num_envs=0": "too small",
    "--config.rl.num_envs=7": "cannot be cut into",
    "--config.env_params.size=1": "outside 2..8",
    "--config.env_params.num_blocks=60": "60 blocks on a board of size 8",
    "--config.algorithm.form=newest": "'paper', 'released_code'",
    "--config.conversation.tokenizer=/nowhere": "no tokenizer.json",
    "--config.env.width=64": "the model looks at 32 x 32 pixels",
    "--config.model.text.vocab_size=100": "the tokenizer knows",
    "--config.conversation.max_answer_tokens=3": "takes 4 tokens",
    "--config.env_params.num_blocks=0 --config.env_params.size=3": "hold out every layout",
    "--config.evaluation.batch=0": "evaluation.batch",
    "--config.evaluation.test=(5,5)": "no range of seeds",
    "--config.model.text.num_kv_heads=3": "multiple of num_kv_heads",
    "--config.critic.strides=(5,)": "do not divide 32 x 32 pixels",
    "--config.env_params.max_camera_frames=21": "no range",
    "--config.start_from=nowhere": "nowhere",
    "--config=configs/quickstart.py:tinny": "no variant tinny",
    "--config=configs/quickstart.py:grpo,gigpo": "name one algorithm",
    "--config=configs/quickstart.py:value_head,grpo": "GRPO has no critic",
    "stray": "is no flag",
    "--config=configs/nowhere.py": "nowhere",
}


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_bad_config_is_one_clear_sentence(override: str, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        go(tmp_path / "run", *override.split())
    assert BAD_OVERRIDES[override] in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_class_of_the_config_file_is_refused(tmp_path: Path):
    """Nothing could read the run's config.json."""
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\n\nfrom configs import quickstart\nfrom envs_jax import GridWalker\n\n\n"
        "@dataclass(unsafe_hash=True)\nclass Mine(GridWalker):\n    pass\n\n\n"
        "def get_config(variant=''):\n    config = quickstart.get_config(variant)\n"
        "    config.env = Mine()\n    return config\n"
    )
    with pytest.raises(ConfigError, match="Mine is defined in the config file"):
        command_line.read_config(["train", f"--config={tmp_path}/own.py"], train.define)


def test_workdir_of_another_config_is_refused_and_untouched(unbroken: Path):
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ConfigError, match=r"algorithm.clip_eps: 0.2 -> 0.1"):
        go(unbroken, "--config.algorithm.clip_eps=0.1")
    after = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file() and path.name != ".lock"}
    assert before == after


def test_other_folders_are_refused(tmp_path: Path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not empty"):
        go(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written to"):
        go(tmp_path / "letters.txt" / "run")
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_workdir_in_use_is_refused(tmp_path: Path):
    with Run(tmp_path / "run", config_of()), pytest.raises(ConfigError, match="in use"):
        Run(tmp_path / "run", config_of())


def test_missing_and_foreign_checkpoints_are_refused(unbroken: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        evaluate.main(["evaluate", f"--checkpoint={tmp_path}"])
    with Run(tmp_path / "run", config_of()), pytest.raises(ConfigError, match="no checkpoint yet"):
        evaluate.main(["evaluate", f"--checkpoint={tmp_path / 'run'}"])
    wider = config_of("--config.model.text.mlp_width=64")
    abstract = jax.eval_shape(make_policy(wider).model.init, jax.random.key(0))
    with pytest.raises(ConfigError, match="not a checkpoint of this config"):
        runs.read_policy(unbroken, abstract)
    with pytest.raises(ConfigError, match="first:end"):
        evaluate.read_seeds("20:0")


def test_command_exits_with_one_line_and_a_code():
    command = [sys.executable, "-m", "jaxvlmrl.train", "--config=configs/quickstart.py", "--config.seeed=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "jaxvlmrl.train: config has no field seeed; the nearest is seed"
    assert "Traceback" not in done.stderr


# Small parts


def test_config_survives_json():
    config = config_of()
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert again == config
    assert differences(config, again) == []


def test_config_json_makes_nothing_but_configs():
    with pytest.raises(ConfigError, match="no part of a config"):
        from_json({"type": "os:system", "command": "true"})


def test_watchdog_says_each_thing_once():
    watchdog = Watchdog()
    well = {"policy/entropy": 0.5, "rollout/reward_spread": 1.0, "command/left": 0.3, "command/right": 0.3}
    assert watchdog.look(well) == []
    ill = well | {"command/right": 0.0, "rollout/unparsable_share": 0.4, "policy/entropy": 0.0}
    assert len(watchdog.look(ill)) == 3
    assert watchdog.look(ill) == []
    assert watchdog.look(well) == []
    assert (
        len(
            watchdog.look(ill | {"rollout/reward_spread": 0.0, "ratio/max_log_ratio": 1.0, "loss/policy": float("nan")})
        )
        == 6
    )


def test_watchdog_knows_what_is_not_known_and_what_is_chance():
    watchdog = Watchdog()
    nobody_lost = {"rollout/success_rate": None, "rollout/episodes": 7, "rollout/unparsable_share": 0.0}
    assert watchdog.look(nobody_lost) == []
    assert watchdog.look({"policy/entropy": None})[0].startswith("not a number"), "as it was written down"
    few = nobody_lost | {"rollout/success_rate": 0.5, "rollout/episodes": 64}
    assert watchdog.look(few) == watchdog.look(few | {"rollout/success_rate": 0.1}) == []
    many = few | {"rollout/episodes": 10_000}
    assert watchdog.look(many) == []
    assert watchdog.look(many | {"rollout/success_rate": 0.1})[0].startswith("wins: they fell from 49% or more to 10%")


def test_a_half_written_row_is_no_row(unbroken: Path, tmp_path: Path):
    shutil.copy(unbroken / "config.json", tmp_path)
    assert report.read(tmp_path).rows == []
    whole = (unbroken / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole + whole[:40])
    assert report.read(tmp_path).rows == runs.read_rows(unbroken)


def test_report_is_one_page_with_everything_in_it(unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    page = tmp_path / "page.html"
    assert report.main(["report", str(unbroken), str(unbroken), f"--to={page}"]) == 0
    text = page.read_text()
    assert text.count("<svg") >= 5
    head, row = re.findall("<tr>.*?</tr>", text)[:2]
    assert head.count("<th>") == row.count("<td>") == row.count("</td>")
    assert json.loads((unbroken / "summary.json").read_text())["machine"] in row
    assert "data:image/gif;base64," in text
    assert "cannot be read" in text, "the watchdog's own words"
    assert not re.search(r'(src|href)="(?!data:|#)', text), "it needs nothing from elsewhere"
    games = json.loads((unbroken / "games.json").read_text())
    summary = json.loads((unbroken / "summary.json").read_text())
    assert sum(game["won"] for game in games) == round(summary["heldout"]["win_rate_greedy"] * len(games))
    with pytest.raises(ConfigError, match="say which runs"):
        report.main(["report"])
    with pytest.raises(ConfigError, match="is no run directory"):
        report.main(["report", str(tmp_path)])


def test_watchdog_sees_a_policy_collapse():
    watchdog = Watchdog()
    well = {"rollout/success_rate": 0.6, "rollout/unparsable_share": 0.02, "collapse/repeated_commands": 0.2}
    assert watchdog.look(well) == []
    stuck = watchdog.look(well | {"rollout/success_rate": 0.2, "collapse/repeated_commands": 0.97})
    assert [line.split(":")[0] for line in stuck] == ["commands", "wins"]
    assert "from 60% or more to 20%" in stuck[1]
    assert watchdog.look(well | {"collapse/repeated_tokens": 0.8})[0].startswith("tokens: 80%")
    mute = watchdog.look(well | {"rollout/success_rate": 0.1, "rollout/unparsable_share": 0.9})
    assert [line.split(":")[0] for line in mute] == ["answers"], "who cannot be read has another trouble"


@pytest.mark.slow
def test_evaluate_sets_two_checkpoints_side_by_side(unbroken: Path, capsys: pytest.CaptureFixture):
    """A checkpoint and itself: the same rows twice, split by distance and first view."""
    command = ["evaluate", f"--checkpoint={unbroken}", f"--base={unbroken}", "--seeds=0:6", "--turns=4", "--samples=4"]
    assert evaluate.main(command) == 0
    tables = [part.splitlines() for part in capsys.readouterr().out.split("\n\n")]
    figures = {name: cells for name, *cells in (re.split(r"\s{2,}", line) for line in tables[0])}
    assert figures["base, greedy"] == figures["checkpoint, greedy"]
    assert "4:" in figures["checkpoint, sampled"][-1]
    assert "at first gold in view" in tables[1][0]
    counts = re.split(r"\s{2,}", tables[1][1])[1:]
    assert sum(map(int, counts)) == 12, "each of six episodes in one class of each of two traits"


@pytest.mark.slow
def test_a_phase_may_end_with_its_turns(tmp_path: Path):
    """Eight games of six turns an update: 49 turns are reached with the second of nine updates; resuming adds none."""
    budget = ["--config.rl.num_updates=9", "--config.rl.stop_after_turns=49", "--config.imitation.num_updates=0"]
    summary = go(tmp_path, *budget)
    rows = runs.read_rows(tmp_path)
    assert [row["turns"] for row in rows] == [48, 96]
    assert "validation/win_rate" in rows[-1]
    (tmp_path / "summary.json").unlink()
    again = go(tmp_path, *budget)
    assert again["heldout"] == summary["heldout"]
    assert len(runs.read_rows(tmp_path)) == len(rows)
