"""Methods side by side on GridWalker: `python experiments/compare.py [--settings=weak,random] [--seeds=0,1,2]`.

The tiny model, everything but the method the same: world, conversation, optimiser, environment steps. "weak" starts from a
short imitation that all methods of a run seed share, and so do the "ablations" of VL-DAC; "random" from random weights with
canonical answers; "thinking" from an imitation of thoughts and commands, and "direct" from one as long of commands alone;
"long" and "long_small", games of 100 and 40 turns, from a short imitation too; "rates" has some methods of "weak" at three
learning rates. Rows and numbers: compare_settings.py.

Finished runs are only read. Writes experiments/results/compare_<setting>.json, .md (the table) and .png: rows of which three
seeds are finished, or all that were asked for, take the place of the record's own unless those have more seeds; its other
rows stay. --parallel runs go
on at once, a core each. On a GPU, `--together --nopins` makes one program of a row's seeds (experiments/together.py).
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags
from compare_settings import SETTINGS, UNNORMALISED, Method

from jaxvlmrl.algorithms import ALGORITHMS
from jaxvlmrl.command_line import read_config
from jaxvlmrl.config import ConfigError, differences
from jaxvlmrl.runs import read_config as config_in
from jaxvlmrl.runs import read_rows

ALL_METHODS = sorted({name.replace(",", "") for setting in SETTINGS.values() for name in setting.methods})
FEWEST_SEEDS = 3  # of a row, unless fewer are asked for
FEWEST_TURNS = 1024  # of an update: 256 episodes of four; whole runs are of so many updates or end at their steps
T_QUANTILES = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # two-sided 95%
IMMATERIAL = ("start_from:", "rl.microbatches:", "rl.envs_at_once:")  # to what a run learns

CHOSEN = flags.DEFINE_list("settings", ["weak"], ", ".join(SETTINGS))
ROWS = flags.DEFINE_list("methods", [], "rows of the tables, by name without commas; all without it")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "run seeds")
RUNS = flags.DEFINE_string("runs", "runs/compare", "where the runs live")
RESULTS = flags.DEFINE_string("results", str(Path(__file__).parent / "results"), "where the record and the figure go")
PARALLEL = flags.DEFINE_integer("parallel", 2, "runs at once, one core each", lower_bound=1)
PINS = flags.DEFINE_bool("pins", True, "whether each run has a core of its own; not on a GPU")
RUN = flags.DEFINE_bool("run", True, "off: only what is finished is read")
TOGETHER = flags.DEFINE_bool("together", False, "whether a row's seeds are one program")
OVERRIDES = flags.DEFINE_multi_string("override", [], "a config's field for all runs, rl.validate_every=25 say")

flags.register_validator(
    "settings", lambda names: set(names) <= set(SETTINGS), message=f"settings are {', '.join(SETTINGS)}"
)
flags.register_validator(
    "methods", lambda names: set(names or []) <= set(ALL_METHODS), message=f"methods are {', '.join(ALL_METHODS)}"
)
flags.register_validator(
    "seeds",
    lambda seeds: 0 < len(set(seeds)) == len(seeds) <= max(T_QUANTILES) and all(seed.isdecimal() for seed in seeds),
    message=f"seeds are different numbers, at most {max(T_QUANTILES)} of them",
)


READING = Lock()  # a config file is loaded under one name, whichever it is


class Job(NamedTuple):
    setting: str
    method: str
    seed: str

    @property
    def folder(self) -> Path:
        return Path(f"{prefix(self.setting, self.method)}-{self.seed}")

    @property
    def is_finished(self) -> bool:
        """And of the setting as it is now."""
        return is_finished(self.folder, (*arguments(self.setting, self.method), f"--config.seed={self.seed}"))


def is_finished(folder: Path, given: Sequence[str]) -> bool:
    """Whether a run of the config that is given has ended there."""
    if not (folder / "summary.json").exists():
        return False
    with READING:
        wanted, _ = read_config(["compare", *given], lambda _: None)
    try:
        found = config_in(folder)
    except ConfigError:  # of a version that knew other fields
        return False
    return all(line.startswith(IMMATERIAL) for line in differences(found, wanted))


def prefix(setting: str, method: str) -> Path:
    """Of a row's folders, before the seed."""
    name = method.lower().replace(" ", "_").replace(",", "").replace(".", "")
    return Path(RUNS.value) / f"{setting}-{name}"


def methods(setting: str) -> dict[str, Method]:
    wanted = set(ROWS.value or [])
    return {
        name: row for name, row in SETTINGS[setting].methods.items() if not wanted or name.replace(",", "") in wanted
    }


def finished(setting: str) -> dict[str, list[Job]]:
    """Of each row its finished runs; of those that have enough of them."""
    seeds = SEEDS.value or []
    jobs = {name: [Job(setting, name, seed) for seed in seeds] for name in methods(setting)}
    ended = {name: [job for job in row if job.is_finished] for name, row in jobs.items()}
    return {name: row for name, row in ended.items() if len(row) >= min(FEWEST_SEEDS, len(seeds))}


# Running


def call(program: list[str], *arguments: str, core: int | None = None) -> int:
    """A run's exit code; what it says is in a log beside its folder."""
    workdir = next(a.partition("=")[2] for a in arguments if a.startswith("--workdir="))
    log = Path(f"{workdir}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None and hasattr(os, "sched_setaffinity") else None
    cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(RUNS.value).resolve() / ".jax_cache")}  # for a row's other seeds
    command = [sys.executable, *program, *arguments]
    with log.open("a") as out:
        ended = subprocess.run(command, check=False, stdout=out, stderr=out, preexec_fn=pin, env=cache | os.environ)
    return ended.returncode


def start_folder(setting: str, seed: str) -> Path:
    start = SETTINGS[setting]
    return Path(RUNS.value) / f"start_{start.config}_{start.imitation}" / seed


def imitate(setting: str, seed: str) -> None:
    start, folder = SETTINGS[setting], start_folder(setting, seed)
    given = (
        f"--config=configs/{start.config}.py:{start.base}", f"--config.seed={seed}", "--config.rl.num_updates=0",
        f"--config.imitation.num_updates={start.imitation}",
    )  # fmt: skip
    if not is_finished(folder, given) and call(["-m", "jaxvlmrl.train"], f"--workdir={folder}", *given):
        sys.exit(f"the start of {setting}, seed {seed}, failed: see {folder}.log")


def arguments(setting_name: str, method: str) -> list[str]:
    """What all seeds of a row are called with."""
    setting = SETTINGS[setting_name]
    variant, overrides = setting.methods[method]
    given = [f"--config=configs/{setting.config}.py:{setting.base},{variant}"]
    if setting.is_free and ALGORITHMS[variant.partition(",")[0]].whole_episodes:
        given.append("--config.algorithm.entropy_coef=0.")
    if method in UNNORMALISED:
        given += setting.unnormalised
    given += ["--config.imitation.num_updates=0", f"--config.rl.num_updates={setting.steps // FEWEST_TURNS}"]
    given += [f"--config.rl.stop_after_turns={setting.steps}", "--config.rl.optimizer.final_share=1."]
    given += [*setting.overrides, *overrides]
    return given + [f"--config.{override}" for override in OVERRIDES.value or []]


def run(job: Job, cores: "Queue[int]") -> None:
    if job.is_finished:
        tell(job)
        return
    starts = [f"--config.start_from={start_folder(job.setting, job.seed)}"] if SETTINGS[job.setting].imitation else []
    given = [f"--workdir={job.folder}", *arguments(job.setting, job.method), f"--config.seed={job.seed}", *starts]
    core = cores.get()
    try:
        code = call(["-m", "jaxvlmrl.train"], *given, core=core if PINS.value else None)
    finally:
        cores.put(core)
    tell(job, code)


def run_together(setting: str, method: str) -> None:
    jobs = [Job(setting, method, seed) for seed in SEEDS.value or []]
    left = ",".join(job.seed for job in jobs if not job.is_finished)
    given = [f"--workdir={prefix(setting, method)}", f"--seeds={left}", *arguments(setting, method)]
    if SETTINGS[setting].imitation:
        given.append(f"--start_from={start_folder(setting, '{seed}')}")
    code = call([str(Path(__file__).with_name("together.py"))], *given) if left else 0
    for job in jobs:
        tell(job, code)


def tell(job: Job, code: int = 0) -> None:
    """A folder of another config is refused, and what it says is of that one."""
    is_good = not code and job.is_finished
    found = f"{read(job)['heldout']['win_rate_greedy']:.1%}" if is_good else "failed, see its log"
    print(f"{job.folder.name}: {found}", flush=True)


# Reading


def read(job: Job) -> dict[str, Any]:
    return json.loads((job.folder / "summary.json").read_text())


def curve(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """(environment steps, validation win rate) of a run, wherever it was measured."""
    points = [
        (row["turns"], row["validation/win_rate"]) for row in read_rows(job.folder) if "validation/win_rate" in row
    ]
    steps, rates = np.array(points, float).reshape(-1, 2).T
    return steps, rates


def area(job: Job) -> float:
    """Mean validation win rate from the start of RL to the setting's steps; before the first validation from the start's."""
    steps, rates = curve(job)
    end = SETTINGS[job.setting].steps
    along = np.linspace(0, end, 1001)
    before = read(job)["before_rl"]["win_rate_greedy"]
    return float(np.mean(np.interp(along, np.append(0, steps), np.append(before, rates))))


def record(jobs: list[Job]) -> dict[str, Any]:
    """A row's figures, one of each seed."""
    summaries = [read(job) for job in jobs]
    heldout = lambda figure: [summary["heldout"][figure] for summary in summaries]
    figures = {
        "setting": jobs[0].setting, "method": jobs[0].method, "seeds": [job.seed for job in jobs],
        "before": [summary["before_rl"]["win_rate_greedy"] for summary in summaries],
        "greedy": heldout("win_rate_greedy"), "sampled": heldout("win_rate_sampled"), "area": [area(job) for job in jobs],
        "turns": heldout("mean_turns"), "steps": [int(curve(job)[0][-1]) for job in jobs],
        "wall_s": [summary["wall_s"] for summary in summaries], "machine": [summary["machine"] for summary in summaries],
        "curves": [[[int(steps), round(float(rate), 4)] for steps, rate in zip(*curve(job))] for job in jobs],
    }  # fmt: skip
    extra = [key for key in summaries[0]["heldout"] if key.startswith("thoughts_") or key == "tokens_per_turn"]
    return figures | {key: heldout(key) for key in extra}


def interval(values: list[float]) -> str:
    """Mean and 95% interval of the mean, by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1%}"
    return f"{mean:.1%} ± {T_QUANTILES.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5:.1%}"


def average(values: list[float | None], form: str) -> str:
    """Of those that there are."""
    found = [value for value in values if value is not None]
    return form.format(statistics.mean(found)) if found else "-"


def table(records: list[dict[str, Any]]) -> str:
    thinks = "thoughts_true" in records[0]
    head = ["method", "before", "win rate, greedy", "of each seed", "sampled", "area under the curve", "turns", "steps",
            "wall clock"]  # fmt: skip
    head += ["tokens a turn", "thoughts known", "true", "imagined"] if thinks else []
    lines = [head, ["---"] * len(head)]
    for row in records:
        lines.append([
            row["method"], interval(row["before"]), interval(row["greedy"]), " ".join(f"{x:.1%}" for x in row["greedy"]),
            interval(row["sampled"]), interval(row["area"]), average(row["turns"], "{:.2f}"),
            f"{statistics.mean(row['steps']) / 1e3:.0f}k", f"{statistics.mean(row['wall_s']):.0f} s",
        ])  # fmt: skip
        if thinks:
            shares = [average(row[f"thoughts_{name}"], "{:.1%}") for name in ("known", "true", "imagined")]
            lines[-1] += [average(row["tokens_per_turn"], "{:.1f}"), *shares]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(setting: str, records: list[dict[str, Any]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(8, 5))
    for index, row in enumerate(records):
        curves = [np.array(points, float).T for points in row["curves"]]
        grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 50)
        rates = np.array([np.interp(grid, *each) for each in curves])
        color, line = f"C{index % 10}", ("-", "--")[index // 10 % 2]
        axis.plot(grid / 1e3, rates.mean(axis=0), label=row["method"], color=color, linestyle=line)
        axis.fill_between(grid / 1e3, rates.min(axis=0), rates.max(axis=0), alpha=0.08, color=color)
    axis.set(title=f"{setting} start", xlabel="environment steps (thousands)", ylabel="validation win rate")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def merged(setting: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A record's rows and new ones, in the setting's order; of two of one method that of more seeds, else the new one."""
    rows = {row["method"]: row for row in old}
    for row in new:
        if len(row["greedy"]) >= len(rows.get(row["method"], row)["greedy"]):
            rows[row["method"]] = row
    return [rows[name] for name in SETTINGS[setting].methods if name in rows]


def write(setting: str) -> bool:
    """compare_<setting>.json, .md and .png, with the runs that are finished; whether there are any."""
    found = [record(jobs) for jobs in finished(setting).values()]
    if not found:
        print(f"{setting}: no row is finished")
        return False
    path = lambda ending: Path(str(RESULTS.value)) / f"compare_{setting}.{ending}"
    Path(str(RESULTS.value)).mkdir(parents=True, exist_ok=True)
    rows = merged(setting, json.loads(path("json").read_text()) if path("json").exists() else [], found)
    path("json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    path("md").write_text(table(rows) + "\n")
    if all("curves" in row for row in rows):
        draw(setting, rows, path("png"))
    else:
        print(f"{path('png')} stays as it is: rows of an older record have no curves")
    print(f"\n{setting} start\n\n{table(rows)}")
    return True


def run_all(settings: list[str], seeds: list[str]) -> None:
    with ThreadPoolExecutor(PARALLEL.value) as pool:
        begun = [(setting, seed) for setting in settings if SETTINGS[setting].imitation for seed in seeds]
        starts = {start_folder(*start): start for start in begun}  # settings may share them
        list(pool.map(lambda start: imitate(*start), starts.values()))
        if TOGETHER.value:
            rows = [(setting, name) for setting in settings for name in methods(setting)]
            list(pool.map(lambda row: run_together(*row), rows))
        else:
            cores: Queue[int] = Queue()
            for core in range(PARALLEL.value):
                cores.put(core)
            jobs = [Job(setting, name, seed) for setting in settings for seed in seeds for name in methods(setting)]
            list(pool.map(lambda job: run(job, cores), jobs))


def main(_: list[str]) -> None:
    settings = list(CHOSEN.value or [])
    if RUN.value:
        run_all(settings, list(SEEDS.value or []))
    written = [write(setting) for setting in settings]
    if not any(written):
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
