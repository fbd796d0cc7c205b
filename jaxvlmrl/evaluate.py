"""Evaluation: `python -m jaxvlmrl.evaluate --checkpoint=DIR [--seeds=0:20] [--turns=N] [--samples=8] [--json=FILE]`.

The published protocol of the board game is its default: seeds '0' to '19' at the checkpoint's own board. One table says
what chance, full knowledge and looking are worth, and what the checkpoint does, also with pictures that are not its own.
`--base=DIR` sets another checkpoint beside it, with as many samples: does training find what sampling would have found?
A second table splits the win rates by what tells the episodes apart.

`--policy=openai --base_url=https://HOST/v1 --model=NAME [--seeds=0:20] [--turns=50]` plays with a model behind an endpoint
in the checkpoint's place (`remote.py`); the key is the environment's OPENAI_API_KEY. docs/evaluating.md has the other flags.
"""

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from envs_jax.environment import Params as EnvParams
from envs_jax.environment import TextEnvironment
from envs_jax.players import RandomPlayer
from jaxvlmrl import acting, command_line, remote, remote_transcripts, runs
from jaxvlmrl.building import image_shape, make_policy
from jaxvlmrl.config import ConfigError
from jaxvlmrl.episodes import (
    Episodes,
    Evaluator,
    Game,
    games,
    pass_at_k,
    play_scripted,
    scripted_games,
    summarise,
)

OF_A_CHECKPOINT = ("checkpoint", "base", "samples")  # flags that say nothing of a remote model
LEFT_UNFINISHED = 1  # exit code


class Entry(NamedTuple):
    """A row of the table, and what it was made from."""

    name: str
    figures: dict[str, float]
    episodes: Episodes
    games: list[Game]


def evaluate(actor: acting.Actor, seeds: range, turns: int, samples: int, key: jax.Array) -> list[Entry]:
    """All rows: scripted players first, then the checkpoint."""
    env_params = dataclasses.replace(actor.config.env_params, max_turns=turns)
    config = dataclasses.replace(actor.config, env_params=env_params)
    policy = make_policy(config)  # is there room for so many turns?
    entry = lambda name, episodes: Entry(name, summarise(episodes), episodes, games(episodes, policy))
    rows = scripted(config.env, env_params, seeds, key)
    evaluator = Evaluator(policy, env_params, min(config.evaluation.batch, len(seeds)))
    play = lambda greedy, eyes="own", index=0: evaluator.play(
        actor.params, seeds, jax.random.fold_in(key, index), greedy, eyes
    )
    rows.append(entry("checkpoint, greedy", play(True)))
    drawn = [play(False, index=index) for index in range(samples)]
    if drawn:
        sampled = entry("checkpoint, sampled", drawn[0])
        wins = np.sum([episodes.won for episodes in drawn], axis=0)
        sampled.figures.update({f"pass@{k}": pass_at_k(wins, samples, k) for k in powers_of_two(samples)})
        rows.append(sampled)
    other_eyes = ("blank", "shuffled") if len(seeds) > 1 else ("blank",)
    rows += [entry(f"checkpoint, {eyes} images", play(True, eyes)) for eyes in other_eyes]
    return rows


def scripted(env: TextEnvironment, env_params: EnvParams, seeds: range, key: jax.Array) -> list[Entry]:
    """The rows that tell what a win rate is worth."""
    rows = []
    for name, player in ({"random": RandomPlayer()} | env.players()).items():
        episodes = play_scripted(player, env, env_params, seeds, key)
        rows.append(Entry(name, summarise(episodes), episodes, scripted_games(episodes, env)))
    return rows


def beside(actor: acting.Actor, base: acting.Actor) -> acting.Actor:
    """The other checkpoint, on the first one's board. Raises `ConfigError` where it does not look at the same pictures."""
    if image_shape(base.config) != image_shape(actor.config):
        raise ConfigError("--base looks at pictures of another size than --checkpoint")
    config = dataclasses.replace(base.config, env=actor.config.env, env_params=actor.config.env_params)
    return acting.Actor(config, make_policy(config), base.params)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 and so on, and the largest itself."""
    return sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)})


def split(rows: list[Entry], env: TextEnvironment, env_params: EnvParams) -> str:
    """Win rates by the environment's traits, as aligned text; classes without an episode are left out."""
    if not env.traits():
        return ""
    states = jax.vmap(lambda seed: env.init_from_number(seed, env_params))(rows[0].episodes.seeds)
    columns = []
    for trait in env.traits():
        kind = np.asarray(jax.vmap(trait.answer)(states))
        columns += [(f"{trait.name} {name}", kind == k) for k, name in enumerate(trait.answers) if (kind == k).any()]
    lines = [["", *(name for name, _ in columns)], ["episodes", *(str(int(which.sum())) for _, which in columns)]]
    lines += [[row.name, *(f"{row.episodes.won[which].mean():.0%}" for _, which in columns)] for row in rows]
    return aligned(lines)


def table(rows: list[Entry]) -> str:
    """The rows as aligned text."""
    heads = ["", "wins", "win rate", "95% interval", "within 5", "mean turns", "efficiency", "unparsable", "pass@k"]
    lines = [heads]
    for name, figures, *_ in rows:
        number = lambda value, form: "-" if value != value else format(value, form)
        passes = " ".join(f"{k.removeprefix('pass@')}:{v:.0%}" for k, v in figures.items() if k.startswith("pass@"))
        lines.append([
            name, f"{figures['wins']} of {figures['episodes']}", f"{figures['win_rate']:.1%}",
            f"{figures['ci95_low']:.1%} to {figures['ci95_high']:.1%}", str(figures["wins_within_5"]),
            number(figures["mean_turns"], ".2f"), number(figures["efficiency"], ".0f"),
            f"{figures['unparsable_share']:.1%}", passes,
        ])  # fmt: skip
    return aligned(lines)


def aligned(lines: list[list[str]]) -> str:
    """Columns of equal width, all but the first to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    of_line = lambda line: "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
    return "\n".join(map(of_line, lines))


def thoughts(rows: list[Entry]) -> str:
    """A line for each row that thinks."""
    return "\n".join(
        f"{name}: {figures['tokens_per_turn']:.1f} tokens a turn, a whole thought in {figures['thoughts_whole']:.1%} "
        f"of them, {figures['thoughts_known']:.1%} can be judged; of those {figures['thoughts_true']:.1%} are true, "
        f"{figures['thoughts_imagined']:.1%} see gold that is not in the picture"
        for name, figures, *_ in rows if "thoughts_true" in figures
    )  # fmt: skip


def as_json(rows: list[Entry]) -> list[dict[str, Any]]:
    """The table with every episode: its seed, its outcome, and what was answered in each turn."""

    return [
        {"player": name} | figures | {"games": [game._asdict() for game in games]} for name, figures, _, games in rows
    ]


def define(values: flags.FlagValues) -> None:
    players = ["checkpoint", "openai"]
    flags.DEFINE_enum("policy", "checkpoint", players, "openai: a model behind an endpoint", flag_values=values)
    flags.DEFINE_string("checkpoint", None, "a run directory", flag_values=values)
    flags.DEFINE_string("base", None, "another one to set beside it", flag_values=values)
    flags.DEFINE_string("seeds", "0:20", "first:end, the end not included", flag_values=values)
    flags.DEFINE_integer(
        "turns",
        None,
        "of an episode at most: as it was trained, or 50 for a remote model",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer("samples", 8, "episodes a seed with sampled answers", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("key", 0, "of all that is random", flag_values=values)
    flags.DEFINE_string("json", None, "where to write every episode", flag_values=values)
    remote.define(values)


def read_seeds(text: str) -> range:
    first, _, end = text.partition(":")
    if not (first.isdigit() and end.isdigit() and int(first) < int(end) <= 1 << 32):
        raise ConfigError(f"--seeds={text} is not first:end with first below end")
    return range(int(first), int(end))


def main(argv: list[str]) -> int:
    if command_line.helped(argv, __doc__, define):
        return 0
    values = command_line.parse(argv, define)
    given: dict[str, Any] = values.flag_values_dict()
    seeds = read_seeds(given["seeds"])
    if given["json"]:
        command_line.check_target("json", Path(given["json"]))
    is_remote = given["policy"] == "openai"
    refuse(values, OF_A_CHECKPOINT if is_remote else remote.flag_names(), given["policy"])
    try:
        rows = (evaluate_remote if is_remote else evaluate_checkpoint)(given, seeds)
    except remote.Unfinished as reason:
        print(f"jaxvlmrl.evaluate: {reason}", file=sys.stderr)
        return LEFT_UNFINISHED
    if given["json"]:
        runs.write_json(Path(given["json"]), as_json(rows))
    return 0


def refuse(values: flags.FlagValues, names: Iterable[str], policy: str) -> None:
    """Raises `ConfigError` where a flag is given that the policy makes no use of."""
    for name in names:
        if values[name].present:
            raise ConfigError(f"--{name} says nothing of --policy={policy}")


def evaluate_checkpoint(given: dict[str, Any], seeds: range) -> list[Entry]:
    """Plays, prints the tables, returns the rows."""
    if given["checkpoint"] is None:
        raise ConfigError("say which run to evaluate: --checkpoint=runs/quickstart-0")
    actor, key = acting.load_policy(given["checkpoint"]), jax.random.key(given["key"])
    turns = given["turns"] or int(actor.config.env_params.max_turns)
    base = beside(actor, acting.load_policy(given["base"])) if given["base"] else None  # before anything is played
    rows = evaluate(actor, seeds, turns, given["samples"], key)
    if base is not None:
        named = lambda row: row._replace(name=row.name.replace("checkpoint", "base"))
        found = evaluate(base, seeds, turns, given["samples"], key)
        rows += [named(row) for row in found if row.name.startswith("checkpoint")]
    show(rows, actor.config.env, actor.config.env_params, seeds, turns)
    return rows


def evaluate_remote(given: dict[str, Any], seeds: range) -> list[Entry]:
    """The same of a model behind an endpoint, and what its requests came to."""
    setup = remote.setup_from(given, given["turns"] or 50)
    board = remote.Board(setup)
    transcripts = remote.play(board, setup, remote.running_from(given), remote.folder_from(given), seeds)
    episodes = remote_transcripts.as_episodes(transcripts, setup.turns)
    used = remote_transcripts.usage(transcripts, given["price_in"], given["price_out"])
    figures = summarise(episodes) | used
    figures["tokens_per_turn"] = used["completion_tokens"] / episodes.turns.sum()
    rows = scripted(board.env, board.params, seeds, jax.random.key(given["key"]))
    rows.append(Entry(setup.model, figures, episodes, remote_transcripts.as_games(transcripts)))
    show(rows, board.env, board.params, seeds, setup.turns)
    print(f"\n{remote.in_words(used)}")
    return rows


def show(rows: list[Entry], env: TextEnvironment, env_params: EnvParams, seeds: range, turns: int) -> None:
    print(f"{env.name}, seeds {seeds.start} to {seeds.stop - 1}, at most {turns} turns")
    print("\n\n".join(filter(None, (table(rows), split(rows, env, env_params), thoughts(rows)))))


if __name__ == "__main__":
    command_line.guarded("jaxvlmrl.evaluate", lambda: main(sys.argv))
