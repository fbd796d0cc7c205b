"""Runs of compare.py along the way: `python experiments/compare_along.py --setting=random --upto=230000 [--runs=DIR]`.

For runs that were cut off before their end (a lent machine, a full disk): validation win rates of 256 games, interpolated at
`--upto` environment steps, and the area up to there; and what is noted of each run's last update. Rows of which a seed has
not come so far are left out. Writes experiments/results/compare_<setting>_along.json, with the curves in it, .md and .png.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import compare
import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags
from compare_settings import SETTINGS

from jaxvlmrl.runs import read_rows

SETTING = flags.DEFINE_enum("setting", "random", list(SETTINGS), "of compare.py")
NOTED = ("turns", "command/left", "command/right", "policy/entropy", "policy/clip_fraction")  # of a run's last update
UPTO = flags.DEFINE_integer("upto", 230_000, "environment steps", lower_bound=1)
MACHINE = flags.DEFINE_string("machine", "", "what the runs were made on, for the record")


def record(name: str, seeds: list[str]) -> dict[str, Any]:
    """A row's figures, one of each seed."""
    jobs = [compare.Job(SETTING.value, name, seed) for seed in seeds]
    curves = [curve(job) for job in jobs]
    last = [read_rows(job.folder)[-1] for job in jobs]
    along = np.linspace(0, UPTO.value, 1001)
    at = lambda points, steps: np.interp(steps, *points)
    return {
        "method": name, "steps": UPTO.value, "machine": MACHINE.value,
        "validation": [float(at(each, UPTO.value)) for each in curves],
        "area": [float(np.mean(at(each, along))) for each in curves],
        "curves": [[[int(x), float(y)] for x, y in zip(*each)] for each in curves],
        "last_update": [{name: round(row[name], 4) for name in NOTED} for row in last],
    }  # fmt: skip


def curve(job: compare.Job) -> tuple[np.ndarray, np.ndarray]:
    """From step 0 on: what the imitation wins that a run starts from; a policy of random weights wins nothing."""
    steps, rates = compare.curve(job)
    start = compare.start_folder(job.setting, job.seed) / "summary.json"
    before = json.loads(start.read_text())["heldout"]["win_rate_greedy"] if start.exists() else 0.0
    return np.append(0, steps), np.append(before, rates)


def has_come_far(name: str, seeds: list[str]) -> bool:
    measured = [compare.curve(compare.Job(SETTING.value, name, seed))[0] for seed in seeds]
    return all(len(steps) and steps[-1] >= UPTO.value for steps in measured)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [["method", f"validation win rate at {UPTO.value // 1000}k steps", "of each seed", "area under the curve"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        shares = " ".join(f"{x:.1%}" for x in row["validation"])
        lines.append([row["method"], compare.interval(row["validation"]), shares, compare.interval(row["area"])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(8, 5))
    for index, row in enumerate(rows):
        for number, points in enumerate(row["curves"]):
            steps, rates = np.asarray(points).T
            axis.plot(steps / 1e3, rates, color=f"C{index}", alpha=0.8, label=None if number else row["method"])
    axis.axvline(UPTO.value / 1e3, color="grey", linewidth=0.8)
    axis.set(title=f"{SETTING.value} start, a line a run seed", xlabel="environment steps (thousands)")
    axis.set_ylabel("validation win rate")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(_: list[str]) -> None:
    seeds = list(compare.SEEDS.value or [])
    rows = [record(name, seeds) for name in compare.methods(SETTING.value) if has_come_far(name, seeds)]
    if not rows:
        sys.exit(f"no row of {compare.RUNS.value} has come to {UPTO.value} steps: nothing is written")
    rows.sort(key=lambda row: -statistics.mean(row["area"]))
    path = lambda ending: Path(str(compare.RESULTS.value)) / f"compare_{SETTING.value}_along.{ending}"
    path("json").write_text(json.dumps(rows) + "\n")
    path("md").write_text(table(rows) + "\n")
    draw(rows, path("png"))
    print(table(rows))


if __name__ == "__main__":
    app.run(main)
