"""Methods side by side on GridWalker: `python experiments/compare.py [--settings=weak,random] [--seeds=0,1,2]`.

The tiny model, everything but the method the same: world, conversation, optimiser, environment steps. "weak" starts from a
short imitation that all methods of a run seed share, and so do the "ablations" of VL-DAC; "random" from random weights with
canonical answers; "thinking" from an imitation of thoughts and commands, and "direct" from one as long of commands alone;
"long" and "long_small", games of 100 and 40 turns, from a short imitation too.

- A method keeps what its paper gives it: KL to where it began (VL-DAC 0.05, GRPO 0.04, most others none), clip and warm-up.
- The policy's learning rate is constant, since runs that end with their steps cannot know how many updates that will be;
  the critic's falls, to three quarters in 500,000 steps.
- The entropy bonus is the config's, but none for methods of whole episodes where answers are free: their papers have none,
  and without normalised advantages it outweighs them (LOOP, seed 0: 50% with, 65% without). From random weights those whose
  advantages are in units of reward have a fifth of it, as one game in twenty is won at first: a deviation of 0.22.

Finished runs are only read. Writes experiments/results/compare_<setting>.json, .md (the table) and .png of the rows of which
three seeds are finished; --parallel runs go on at once, a core each. On a GPU, `--together --nopins` makes one program of a
row's seeds (experiments/together.py).
"""

import functools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags

from jaxvlmrl.algorithms import ALGORITHMS
from jaxvlmrl.command_line import read_config
from jaxvlmrl.config import differences
from jaxvlmrl.runs import read_config as config_in
from jaxvlmrl.runs import read_rows


class Method(NamedTuple):
    """A row: the config's variant, and what else is given."""

    variant: str
    overrides: tuple[str, ...] = ()


class Setting(NamedTuple):
    """Where all methods begin, and how many turns they have."""

    config: str
    steps: int
    methods: dict[str, Method]
    imitation: int = 0  # updates of the start that a run seed's methods share
    base: str = ""  # the config's own variant
    is_free: bool = False  # answers are anything the model likes
    unnormalised: tuple[str, ...] = ()  # given to methods whose advantages are in units of reward
    overrides: tuple[str, ...] = ()  # given to all


METHODS = {
    "VL-DAC": Method("vl_dac"),
    "RL4VLM": Method("rl4vlm"),
    "turn PPO": Method("turn_ppo"),
    "Odysseus": Method("odysseus"),
    "GRPO": Method("grpo"),
    "Dr. GRPO": Method("dr_grpo"),
    "DAPO": Method("dapo"),
    "RLOO": Method("rloo"),
    "LOOP": Method("loop"),
    "REINFORCE++": Method("reinforce_pp"),
    "GiGPO": Method("gigpo"),
}
UNNORMALISED = ("Dr. GRPO", "RLOO", "LOOP")
FIFTH_OF_BONUS = ("--config.algorithm.entropy_coef=0.02", "--config.algorithm.final_entropy_coef=0.001")
NO_KL = Method("vl_dac", ("--config.algorithm.kl_coef=0.",))
ABLATIONS = {
    "VL-DAC": METHODS["VL-DAC"],
    "VL-DAC, no warm-up": Method("vl_dac", ("--config.algorithm.warmup_updates=0",)),
    "VL-DAC, no KL": NO_KL,
    "VL-DAC, shared backbone": Method("vl_dac,value_head"),
    "VL-DAC, shared, no stop-gradient": Method("vl_dac,value_head", ("--config.critic.stop_gradient=False",)),
}
THOUGHTS = {"VL-DAC": METHODS["VL-DAC"]} | {
    f"RL4VLM, lambda {name}": Method("rl4vlm", (f"--config.algorithm.thought_coef={weight}", *kl))
    for name, weight, kl in (
        ("0.2", 0.2, ()), ("0.35", 0.35, ()), ("0.5", 0.5, ()), ("1.0", 1.0, ()),
        ("0.5, with KL", 0.5, ("--config.algorithm.kl_coef=0.05",)),
    )
}  # fmt: skip
BY_SEGMENTS = (  # an update is of 1,024 turns instead of 2,300
    "--config.algorithm.gae_lambda=0.9",
    "--config.algorithm.value_coef=1.",
    "--config.rl.num_turns=16",
    "--config.rl.minibatches=2",
    "--config.rl.validate_every=35",
)
ESTIMATES = {
    "VL-DAC": Method("vl_dac", BY_SEGMENTS),
    "VL-DAC, no KL": Method("vl_dac", (*BY_SEGMENTS, *NO_KL.overrides)),
    "Odysseus": METHODS["Odysseus"],
    "Odysseus, all advantages": Method("odysseus", ("--config.algorithm.keeps_only_positive=False",)),
} | {
    f"{name}, the same loss": Method(
        "odysseus",
        (f"--config.algorithm.estimator={estimator}", "--config.algorithm.keeps_only_positive=False"),
    )
    for name, estimator in (
        ("GRPO", "grpo_outcome"),
        ("GRPO by turns", "grpo_process"),
        ("REINFORCE++", "reinforce_pp"),
    )
}
LONG = (  # 64 games an update, some 550 turns an optimiser step; at 1e-3, with a bonus of 0.01, whole games taught nothing
    "--config.rl.num_envs=64",
    "--config.rl.minibatches=4",
    "--config.rl.num_updates=6000",
    "--config.rl.validate_every=15",
    "--config.rl.optimizer.learning_rate=3e-4",
    "--config.algorithm.entropy_coef=0.002",
    "--config.algorithm.final_entropy_coef=0.002",
)
SETTINGS = {
    "weak": Setting("quickstart", 150_000, METHODS, imitation=80, is_free=True),
    "ablations": Setting("quickstart", 150_000, ABLATIONS, imitation=80, is_free=True),
    "random": Setting(
        "gridwalker_from_scratch", 500_000, METHODS | {"VL-DAC, no KL": NO_KL}, unnormalised=FIFTH_OF_BONUS
    ),
    "long_small": Setting("gridwalker_long", 300_000, ESTIMATES, imitation=50, base="small", overrides=LONG),
    "long": Setting("gridwalker_long", 2_000_000, ESTIMATES, imitation=100, overrides=LONG),
    "thinking": Setting("gridwalker_thinking", 150_000, THOUGHTS, imitation=300, is_free=True),
    "direct": Setting("quickstart", 150_000, {"VL-DAC": METHODS["VL-DAC"]}, imitation=300, is_free=True),
}
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
    lambda seeds: len(seeds) <= max(T_QUANTILES) and all(seed.isdecimal() for seed in seeds),
    message=f"seeds are numbers, at most {max(T_QUANTILES)} of them",
)


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


@functools.cache
def is_finished(folder: Path, given: tuple[str, ...]) -> bool:
    """Whether a run of the config that is given has ended there."""
    if not (folder / "summary.json").exists():
        return False
    wanted, _ = read_config(["compare", *given], lambda _: None)
    return all(line.startswith(IMMATERIAL) for line in differences(config_in(folder), wanted))


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
    starts = [f"--config.start_from={start_folder(job.setting, job.seed)}"] if SETTINGS[job.setting].imitation else []
    given = [f"--workdir={job.folder}", *arguments(job.setting, job.method), f"--config.seed={job.seed}", *starts]
    core = cores.get()
    try:
        code = call(["-m", "jaxvlmrl.train"], *given, core=core if PINS.value else None)
    finally:
        cores.put(core)
    is_finished.cache_clear()
    tell(job, code)


def run_together(setting: str, method: str) -> None:
    given = [
        f"--workdir={prefix(setting, method)}",
        f"--seeds={','.join(SEEDS.value or [])}",
        *arguments(setting, method),
    ]
    if SETTINGS[setting].imitation:
        given.append(f"--start_from={start_folder(setting, '{seed}')}")
    code = call([str(Path(__file__).with_name("together.py"))], *given)
    is_finished.cache_clear()
    for seed in SEEDS.value or []:
        tell(Job(setting, method, seed), code)


def tell(job: Job, code: int) -> None:
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


def draw(setting: str, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(8, 5))
    for index, (name, jobs) in enumerate(finished(setting).items()):
        curves = [curve(job) for job in jobs]
        grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 50)
        rates = np.array([np.interp(grid, *each) for each in curves])
        color, line = f"C{index % 10}", ("-", "--")[index // 10 % 2]
        axis.plot(grid / 1e3, rates.mean(axis=0), label=name, color=color, linestyle=line)
        axis.fill_between(grid / 1e3, rates.min(axis=0), rates.max(axis=0), alpha=0.08, color=color)
    axis.set(title=f"{setting} start", xlabel="environment steps (thousands)", ylabel="validation win rate")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def write(setting: str) -> bool:
    """compare_<setting>.json, .md and .png, from finished runs; whether there are any."""
    rows = [record(jobs) for jobs in finished(setting).values()]
    if not rows:
        print(f"{setting}: no row is finished")
        return False
    path = lambda ending: Path(str(RESULTS.value)) / f"compare_{setting}.{ending}"
    Path(str(RESULTS.value)).mkdir(parents=True, exist_ok=True)
    path("json").write_text(json.dumps(rows, indent=1) + "\n")
    path("md").write_text(table(rows) + "\n")
    draw(setting, path("png"))
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
