"""A report: `python -m jaxvlmrl.report RUN [RUN ...] [--to=report.html]`, one HTML file that needs nothing else.

Runs whose configs differ only in the seed are drawn as one curve, with the spread between them. Games are those of the
held-out evaluation: quick wins, losses and the strangest ones, played again from their recorded commands.
"""

import base64
import dataclasses
import html
import io
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from jaxvlmrl import command_line, pictures, runs
from jaxvlmrl.config import Config, ConfigError, differences
from jaxvlmrl.episodes import Game

matplotlib.use("Agg")

from matplotlib import pyplot as plt

CURVES = {  # metric: what the axis says
    "validation/win_rate": "games won, greedy, validation",
    "rollout/success_rate": "games won, sampled, training",
    "imitation/loss": "imitation loss",
    "policy/entropy": "entropy of answers (nats per token)",
    "loss/kl": "KL to the policy at the start of RL",
    "value/explained_variance": "explained variance of the critic",
    "rollout/turns_per_episode": "turns per game",
    "rollout/unparsable_share": "answers that cannot be read",
    "thought/true": "thoughts that are true, of those known",
    "time/turns_per_s": "turns per second",
}
GALLERY = 4  # games of a kind
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff }
body { margin: 0 auto; max-width: 72rem; padding: 1rem }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #c9d1dc; padding-bottom: .2rem }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e3e8ef; vertical-align: top }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }
figure { margin: 0 } svg, img { max-width: 100%; height: auto } code { background: #f2f4f8; padding: 0 .2rem }
"""


class Finished(NamedTuple):
    """What a report needs of a run."""

    name: str
    config: Config
    rows: list[dict[str, Any]]
    summary: dict[str, Any]  # empty while it is not finished
    games: list[Game]


def read(folder: Path) -> Finished:
    """Raises `ConfigError` for what is no run."""
    config = runs.read_config(folder)
    load = lambda name, otherwise: json.loads(path.read_text()) if (path := folder / name).exists() else otherwise
    games = [Game(**game) for game in load("games.json", [])]
    return Finished(folder.name, config, runs.read_rows(folder), load("summary.json", {}), games)


def groups(found: Sequence[Finished]) -> list[list[Finished]]:
    """Runs that differ only in their seed, and in the run they started from."""
    gathered: list[list[Finished]] = []
    for run in found:
        like = dataclasses.replace(run.config, seed=0, start_from="")
        for group in gathered:
            if dataclasses.replace(group[0].config, seed=0, start_from="") == like:
                group.append(run)
                break
        else:
            gathered.append([run])
    return gathered


# Curves


def curve(rows: Iterable[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(turns played, a metric) wherever it was measured."""
    points = [(row["turns"], row[name]) for row in rows if row.get(name) is not None]
    turns, values = np.array(points, float).reshape(-1, 2).T
    return turns, values


def figure(found: Sequence[Finished], name: str, label: str) -> str:
    """An SVG of one metric of all runs; nothing where none has it. Bands are the range over seeds."""
    fig, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    for index, group in enumerate(groups(found)):
        curves = [points for run in group if len((points := curve(run.rows, name))[0])]
        if not curves:
            continue
        turns = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 200)
        turns = curves[0][0] if len(curves) == 1 else turns
        values = np.array([np.interp(turns, *points) for points in curves])
        color = f"C{index % 10}"
        axis.plot(turns / 1e3, values.mean(axis=0), color=color, label=heading(group))
        axis.fill_between(turns / 1e3, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
    is_empty = not axis.lines
    axis.set(xlabel="thousand turns played", title=label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if len(found) > 1 and not is_empty:
        axis.legend(frameon=False, fontsize=7)
    text = io.StringIO()
    fig.savefig(text, format="svg")
    plt.close(fig)
    return "" if is_empty else f"<figure>{text.getvalue()[text.getvalue().index('<svg') :]}</figure>"


def heading(group: Sequence[Finished]) -> str:
    return group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more seeds"


# Tables


def results(found: Sequence[Finished]) -> str:
    """A row a run, and the mean of each group of seeds."""
    head = ["run", "seed", "before RL", "greedy", "95% interval", "sampled", "turns", "blank / shuffled", "seconds",
            "machine"]  # fmt: skip
    lines = []
    for group in groups(found):
        finished = [run for run in group if run.summary]
        lines += [result(run) for run in group]
        if len(finished) > 1:
            greedy = [run.summary["heldout"]["win_rate_greedy"] for run in finished]
            spread = f"standard deviation {statistics.stdev(greedy):.1%}"
            lines.append(["", f"mean of {len(finished)}", "", f"{statistics.mean(greedy):.1%}", spread])
    return table([head, *lines])


def result(run: Finished) -> list[str]:
    if not run.summary:
        return [run.name, str(run.config.seed), "not finished"]
    after, before = run.summary["heldout"], run.summary.get("before_rl")
    low, high = after["ci95"]
    turns = after["mean_turns"]
    blind = [f"{run.summary[f'win_rate_{eyes}_images']:.1%}" for eyes in ("blank", "shuffled")]
    return [
        run.name, str(run.config.seed), f"{before['win_rate_greedy']:.1%}" if before else "-",
        f"{after['win_rate_greedy']:.1%}", f"{low:.1%} to {high:.1%}", f"{after['win_rate_sampled']:.1%}",
        "-" if turns is None else f"{turns:.2f}", " / ".join(blind), f"{run.summary['wall_s']:.0f}",
        run.summary.get("machine", ""),
    ]  # fmt: skip


def changes(found: Sequence[Finished]) -> str:
    """How each run's config differs from the first one's."""
    lines = [[run.name, *[change]] for run in found[1:] for change in differences(found[0].config, run.config)]
    first = f"<p>Beside <code>{html.escape(found[0].name)}</code>:</p>"
    return first + table([["run", "field: there -> here"], *lines]) if lines else ""


def complaints(found: Sequence[Finished]) -> str:
    lines = [
        [run.name, f"{row['phase']} {row['update']}", sentence]
        for run in found for row in run.rows for sentence in row.get("watchdog", [])
    ]  # fmt: skip
    return (
        table([["run", "update", "what the watchdog said"], *lines]) if lines else "<p>The watchdog said nothing.</p>"
    )


def table(lines: Sequence[Sequence[str]]) -> str:
    """Of text; the first line is the head, and no line is longer."""
    assert all(len(line) <= len(lines[0]) for line in lines)
    lines = [[*line, *[""] * (len(lines[0]) - len(line))] for line in lines]
    cell = lambda kind, text: f"<{kind}>{html.escape(text)}</{kind}>"
    row = lambda kind, line: f"<tr>{''.join(cell(kind, text) for text in line)}</tr>"
    return f"<table>{row('th', lines[0])}{''.join(row('td', line) for line in lines[1:])}</table>"


# Games


def chosen(games: Sequence[Game]) -> dict[str, list[Game]]:
    """A few of each kind. Strange is who says the same again and again, who cannot be read, or who takes long to win."""
    wins = sorted((game for game in games if game.won), key=lambda game: game.turns)
    lost = [game for game in games if not game.won]
    repeats = lambda game: sum(a == b for a, b in zip(game.answers, game.answers[1:]))
    strangeness = lambda game: repeats(game) + 3 * game.actions.count(-1) + (game.turns if game.won else 0)
    strange = sorted(games, key=strangeness, reverse=True)
    return {"Quick wins": wins[:GALLERY], "Losses": lost[:GALLERY], "The strangest": strange[:GALLERY]}


def gallery(run: Finished) -> str:
    parts = []
    for kind, games in chosen(run.games).items():
        if games:
            film = io.BytesIO()
            pictures.episode_gif(run.config.env, run.config.env_params, games, film)
            data = base64.b64encode(film.getvalue()).decode()
            told = "; ".join(f"seed {game.seed}: {', '.join(game.answers)}" for game in games)
            image = f'<img alt="{html.escape(told)}" src="data:image/gif;base64,{data}">'
            parts.append(f"<h3>{html.escape(run.name)}: {kind.lower()}</h3><figure>{image}</figure>")
    return "".join(parts)


def page(found: Sequence[Finished]) -> str:
    """The whole document."""
    curves = "".join(figure(found, name, label) for name, label in CURVES.items())
    sections = {
        "Held-out games": results(found),
        "Curves": f'<div class="curves">{curves}</div>',
        "Differences": changes(found),
        "Watchdog": complaints(found),
        "Games": "".join(gallery(group[0]) for group in groups(found)),
    }
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections.items() if content)
    title = html.escape(", ".join(run.name for run in found))
    start = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
    view = '<meta name="viewport" content="width=device-width">'
    return f"{start}{view}<style>{STYLE}</style><body><h1>{title}</h1>{body}</body></html>\n"


def main(argv: list[str]) -> int:
    if "--help" in argv:
        print(__doc__)
        return 0
    targets = [argument.removeprefix("--to=") for argument in argv[1:] if argument.startswith("--to=")]
    folders = [argument for argument in argv[1:] if not argument.startswith("--")]
    unknown = [argument for argument in argv[1:] if argument.startswith("--") and not argument.startswith("--to=")]
    if unknown or not folders:
        raise ConfigError("say which runs to report: python -m jaxvlmrl.report RUN [RUN ...] [--to=report.html]")
    read_runs = [read(Path(folder)) for folder in folders]
    target = Path(targets[-1] if targets else Path(folders[0]) / "report.html")
    command_line.check_target("to", target)
    runs.write_text(target, page(read_runs))
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    command_line.guarded("jaxvlmrl.report", lambda: main(sys.argv))
