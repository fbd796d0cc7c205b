"""The same config with several run seeds: `python experiments/seeds.py --config=configs/quickstart.py [--seeds=0,1,2]`.

Trains one after another, each in a process of its own with a cold compilation cache, in runs/<config>-<seed>; a run that
is finished is only read. Writes experiments/results/<config>.json and prints a table for the README.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from jaxvlmrl.command_line import name_of

CONFIG = flags.DEFINE_string("config", "configs/quickstart.py", "what to train")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "run seeds")
RUNS = flags.DEFINE_string("runs", "runs", "where the runs live")
RESULTS = flags.DEFINE_string("results", str(Path(__file__).parent / "results"), "where the record goes")


def train(name: str, seed: int) -> dict[str, Any]:
    folder = Path(RUNS.value) / f"{name}-{seed}"
    command = [sys.executable, "-m", "jaxvlmrl.train", f"--config={CONFIG.value}", f"--config.seed={seed}"]
    subprocess.run([*command, f"--workdir={folder}"], check=True)
    return json.loads((folder / "summary.json").read_text()) | {"seed": seed}


def commit() -> str:
    """Of the working tree, which a finished run that is only read may be older than; -dirty where it was changed."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def table(summaries: list[dict[str, Any]]) -> str:
    heads = ["run seed", "before RL", "greedy", "95% interval", "sampled", "mean turns", "losses removed"]
    heads += ["seeds 0-19", "blank / shuffled images", "wall clock"]
    lines = [heads, ["---"] * len(heads)]
    for s in summaries:
        after, before = s["heldout"], s.get("before_rl")
        low, high = after["ci95"]
        lines.append([
            str(s["seed"]), f"{before['win_rate_greedy']:.1%}" if before else "-", f"{after['win_rate_greedy']:.1%}",
            f"{low:.1%} to {high:.1%}", f"{after['win_rate_sampled']:.1%}",
            "-" if after["mean_turns"] is None else f"{after['mean_turns']:.2f}",
            f"{s['losses_removed']:.0%}" if s.get("losses_removed") is not None else "-",
            f"{s['published_seeds']['wins']} of {s['published_seeds']['episodes']}",
            f"{s['win_rate_blank_images']:.1%} / {s['win_rate_shuffled_images']:.1%}", f"{s['wall_s']:.0f} s",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(_: list[str]) -> None:
    name = name_of(CONFIG.value)
    summaries = [train(name, int(seed)) for seed in SEEDS.value]
    rates = [s["heldout"]["win_rate_greedy"] for s in summaries]
    found = {
        "command": " ".join(sys.argv),
        "config": CONFIG.value,
        "commit": commit(),
        "mean_win_rate_greedy": statistics.mean(rates),
    }
    results = Path(RESULTS.value)
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(found | {"runs": summaries}, indent=1) + "\n")
    print(table(summaries))
    print(f"mean of {len(rates)} run seeds: {statistics.mean(rates):.1%}")


if __name__ == "__main__":
    app.run(main)
