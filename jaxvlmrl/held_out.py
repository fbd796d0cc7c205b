"""The end of a run: what its policies do on seeds that nothing before has looked at, in figures and pictures."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxvlmrl import pictures
from jaxvlmrl.config import Config
from jaxvlmrl.episodes import Episodes, Evaluator, games, summarise
from jaxvlmrl.models.layers import Params
from jaxvlmrl.runs import Run, this_machine, write_json

SAMPLING_SEED = 1
SHOWN = 4  # games in episodes.gif


def finish(
    config: Config, run: Run, evaluator: Evaluator, best: Params, before: Params, wall_s: Callable[[], float],
    perceived: Mapping[str, float] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Plays, draws and writes summary.json, last of all. `wall_s` tells the run's clock, and is asked at the very end.

    `perceived`: how many questions about pictures the best policy answers rightly, where it was taught to.
    """
    test = range(*config.evaluation.test)
    key = jax.random.key(SAMPLING_SEED)
    play = lambda params: tuple(evaluator.play(params, test, key, greedy) for greedy in (True, False))
    played = play(best)
    summary: dict[str, Any] = {"config": run.folder.name, "heldout": measure(*played)}
    if config.rl.num_updates:
        summary["before_rl"] = measure(*play(before))
        lost, was_lost = (1 - summary[name]["win_rate_greedy"] for name in ("heldout", "before_rl"))
        summary["losses_removed"] = 1 - lost / was_lost if was_lost else None
    for eyes in ("blank", "shuffled"):
        seen = summarise(evaluator.play(best, test, key, greedy=True, eyes=eyes))
        summary[f"win_rate_{eyes}_images"] = seen["win_rate"]
    if perceived:
        before, after = right_answers(run.rows()[0], "at_start"), right_answers(perceived, "heldout")
        summary["perception"] = {"before": before, "after": after}
    published = evaluator.play(best, range(*config.evaluation.published), key, greedy=True)
    summary["published_seeds"] = {"episodes": len(published.won), "wins": int(published.won.sum())}
    policy = evaluator.policy
    pictures.learning_curve(run.rows(), run.folder / "curve.png")
    shown = games(published, policy)[:SHOWN]
    pictures.episode_gif(policy.env, config.env_params, shown, run.folder / "episodes.gif")
    write_json(run.folder / "games.json", [game._asdict() for game in games(played[0], policy)])
    summary |= {"wall_s": round(wall_s(), 1), "machine": this_machine()}
    return run.finish(summary)


def right_answers(row: Mapping[str, float], when: str) -> dict[str, float]:
    """By question, of a row of metrics."""
    return {name.rpartition("/")[2]: x for name, x in row.items() if name.startswith(f"{when}/perception/")}


def measure(with_greedy: Episodes, with_sampled: Episodes) -> dict[str, Any]:
    """A policy's figures on the test seeds, of greedy answers unless they say otherwise."""
    greedy, sampled = summarise(with_greedy), summarise(with_sampled)
    return {
        "episodes": greedy["episodes"],
        "win_rate_greedy": greedy["win_rate"],
        "win_rate_sampled": sampled["win_rate"],
        "mean_turns": greedy["mean_turns"],
        "ci95": [greedy["ci95_low"], greedy["ci95_high"]],
        "wins_within_5": greedy["wins_within_5"],
        "unparsable_share": greedy["unparsable_share"],
        "tokens_per_turn": greedy["tokens_per_turn"],
    } | {name: x for name, x in greedy.items() if name.startswith("thoughts_")}


def in_words(summary: dict[str, Any]) -> str:
    """A finished run in a few lines."""
    after = summary["heldout"]
    low, high = after["ci95"]
    lines = [
        f"finished in {summary['wall_s']:.0f} s. On {after['episodes']} held-out games: "
        f"{after['win_rate_greedy']:.1%} won (95% interval {low:.1%} to {high:.1%}), "
        f"{after['win_rate_sampled']:.1%} with sampled answers."
    ]
    if after["mean_turns"] is not None:
        lines.append(f"Games that were won took {after['mean_turns']:.2f} turns on average.")
    if "before_rl" in summary:
        lines.append(f"Before reinforcement learning: {summary['before_rl']['win_rate_greedy']:.1%} won.")
    blind = (
        f"{summary['win_rate_blank_images']:.1%} with blank, {summary['win_rate_shuffled_images']:.1%} with shuffled"
    )
    lines.append(f"The same player with other eyes: {blind} images.")
    return "\n".join(lines)
