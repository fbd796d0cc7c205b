"""Methods side by side on GridWalker: `python experiments/compare.py [--methods=...] [--starts=weak,random] [--seeds=0,1]`.

The tiny model, everything but the method the same: world, conversation, optimiser, entropy bonus, environment steps. "weak"
starts from a short imitation that all methods of a run seed share, "random" from random weights. Finished runs are only
read. Writes experiments/results/compare.json, compare.png and a table. --parallel runs go on at once, a core each.
"""

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

METHODS = {  # by the name in the table: (the config's variant, overrides)
    "VL-DAC": ("vl_dac", []),
    "RL4VLM": ("rl4vlm", []),
    "turn PPO": ("turn_ppo", []),
    "Odysseus": ("odysseus", []),
    "GRPO": ("grpo", []),
    "Dr. GRPO": ("dr_grpo", []),
    "DAPO": ("dapo", []),
    "RLOO": ("rloo", []),
    "LOOP": ("loop", []),
    "REINFORCE++": ("reinforce_pp", []),
    "GiGPO": ("gigpo", []),
    "VL-DAC, no warm-up": ("vl_dac", ["--config.algorithm.warmup_updates=0"]),
    "VL-DAC, no KL": ("vl_dac", ["--config.algorithm.kl_coef=0."]),
    "VL-DAC, shared backbone": ("vl_dac,value_head", []),
    "VL-DAC, shared, no stop-gradient": ("vl_dac,value_head", ["--config.critic.stop_gradient=False"]),
}
START_STEPS = {"weak": 150_000, "random": 500_000}
WHOLE_EPISODES = ("odysseus", "grpo", "dr_grpo", "dapo", "rloo", "loop", "reinforce_pp", "gigpo")
TURNS_PER_EPISODE = 5.3  # what an episode of these runs takes on average, to give all methods about the same steps
ENVIRONMENTS, SEGMENT = 256, 16
IMITATION = 60  # updates of the weak start
RESULTS = Path(__file__).parent / "results"

CHOSEN = flags.DEFINE_list("methods", list(METHODS), "rows of the table")
STARTS = flags.DEFINE_list("starts", ["weak"], "weak, random")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "run seeds")
RUNS = flags.DEFINE_string("runs", "runs/compare", "where the runs live")
PARALLEL = flags.DEFINE_integer("parallel", 2, "runs at once, one core each", lower_bound=1)


class Job(NamedTuple):
    method: str
    start: str
    seed: str

    @property
    def folder(self) -> Path:
        name = self.method.lower().replace(" ", "_").replace(",", "").replace(".", "")
        return Path(RUNS.value) / f"{self.start}-{name}-{self.seed}"


def start_folder(seed: str) -> Path:
    return Path(RUNS.value) / f"start-{seed}"


def train(folder: Path, *arguments: str, core: int | None = None) -> None:
    command = [sys.executable, "-m", "jaxvlmrl.train", f"--workdir={folder}", *arguments]
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None and hasattr(os, "sched_setaffinity") else None
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=pin)


def imitate(seed: str) -> None:
    train(
        start_folder(seed), "--config=configs/quickstart.py", f"--config.seed={seed}", "--config.rl.num_updates=0",
        f"--config.imitation.num_updates={IMITATION}",
    )  # fmt: skip


def run(job: Job, cores: "Queue[int]") -> None:
    variant, overrides = METHODS[job.method]
    per_update = ENVIRONMENTS * (TURNS_PER_EPISODE if variant in WHOLE_EPISODES else SEGMENT)
    updates = round(START_STEPS[job.start] / per_update)
    recipe = "quickstart" if job.start == "weak" else "gridwalker_from_scratch"
    arguments = [f"--config=configs/{recipe}.py:{variant}", f"--config.seed={job.seed}", *overrides]
    arguments += [f"--config.rl.num_updates={updates}", "--config.imitation.num_updates=0"]
    if job.start == "weak":
        arguments.append(f"--config.start_from={start_folder(job.seed)}")
    core = cores.get()
    try:
        train(job.folder, *arguments, core=core)
    finally:
        cores.put(core)
    print(f"{job.folder.name}: {read(job)['heldout']['win_rate_greedy']:.1%}", flush=True)


def read(job: Job) -> dict[str, Any]:
    return json.loads((job.folder / "summary.json").read_text())


def curve(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """(environment steps, validation win rate) of a run."""
    rows = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    found = [(row["turns"], row["validation/win_rate"]) for row in rows if "validation/win_rate" in row]
    steps, rates = zip(*found, strict=True)
    return np.asarray(steps), np.asarray(rates)


def area(job: Job) -> float:
    """Mean validation win rate along the run, by environment steps, from the first validation on."""
    steps, rates = curve(job)
    return float(np.trapezoid(rates, steps) / (steps[-1] - steps[0])) if len(steps) > 1 else float(rates[0])


def interval(values: list[float]) -> str:
    """Mean and 95% interval of the mean, by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1%}"
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    return f"{mean:.1%} ± {quantile * statistics.stdev(values) / len(values) ** 0.5:.1%}"


def table(start: str) -> tuple[str, list[dict[str, Any]]]:
    lines = [
        ["method", "before", "win rate, greedy", "sampled", "area under the curve", "seeds", "steps", "wall clock"]
    ]
    lines.append(["---"] * len(lines[0]))
    records = []
    for method in CHOSEN.value or []:
        jobs = [Job(method, start, seed) for seed in SEEDS.value or []]
        summaries = [read(job) for job in jobs]
        greedy, sampled = (
            [s["heldout"][f"win_rate_{kind}"] for s in summaries] for kind in ("greedy", "sampled")
        )  # fmt: skip
        areas, steps = [area(job) for job in jobs], [int(curve(job)[0][-1]) for job in jobs]
        before, wall = [s["before_rl"]["win_rate_greedy"] for s in summaries], [s["wall_s"] for s in summaries]
        lines.append([
            method, interval(before), interval(greedy), interval(sampled), interval(areas),
            " ".join(f"{x:.1%}" for x in greedy), f"{statistics.mean(steps) / 1e3:.0f}k", f"{statistics.mean(wall):.0f} s",
        ])  # fmt: skip
        records.append(
            {"method": method, "start": start, "before": before, "greedy": greedy, "sampled": sampled, "area": areas}
            | {"steps": steps, "wall_s": wall}
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines), records


def draw(starts: list[str]) -> None:
    figure, axes = plt.subplots(1, len(starts), figsize=(7 * len(starts), 4.5), squeeze=False)
    for axis, start in zip(axes[0], starts, strict=True):
        for method in CHOSEN.value or []:
            curves = [curve(Job(method, start, seed)) for seed in SEEDS.value or []]
            grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 50)
            axis.plot(grid / 1e3, np.mean([np.interp(grid, *each) for each in curves], axis=0), label=method)
        axis.set(title=f"{start} start", xlabel="environment steps (thousands)", ylabel="validation win rate")
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(RESULTS / "compare.png", dpi=110)


def main(_: list[str]) -> None:
    seeds, starts = list(SEEDS.value or []), list(STARTS.value or [])
    if "weak" in starts:
        for seed in seeds:
            imitate(seed)
    cores: Queue[int] = Queue()
    for core in range(PARALLEL.value):
        cores.put(core)
    jobs = [Job(method, start, seed) for start in starts for seed in seeds for method in CHOSEN.value or []]
    with ThreadPoolExecutor(PARALLEL.value) as pool:
        list(pool.map(lambda job: run(job, cores), jobs))
    RESULTS.mkdir(exist_ok=True)
    records = []
    for start in starts:
        text, found = table(start)
        records += found
        print(f"\n{start} start\n\n{text}")
    (RESULTS / "compare.json").write_text(json.dumps(records, indent=1) + "\n")
    draw(starts)


if __name__ == "__main__":
    app.run(main)
