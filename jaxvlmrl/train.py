"""Training: `python -m jaxvlmrl.train --config=configs/quickstart.py [--workdir=DIR] [--config.a.b=value]`.

A config becomes phases, a phase becomes one compiled update, and updates follow one another until all are made. The same
command again goes on where the last checkpoint stands; a finished run says its summary.
"""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from jaxvlmrl import command_line, held_out
from jaxvlmrl.adapters import joined
from jaxvlmrl.building import ORDER, Phase, make_phases, make_policy, start_params
from jaxvlmrl.config import Config
from jaxvlmrl.episodes import Evaluator, summarise
from jaxvlmrl.models.layers import Params
from jaxvlmrl.runs import Position, Run, this_machine
from jaxvlmrl.watchdog import Watchdog

Row = dict[str, Any]  # plain numbers and names, and what the watchdog said


class Progress(NamedTuple):
    """Between updates: all that a run is, but for its phase's own state."""

    position: Position
    best: Params  # what is trained of the policy that validation chose; the next phase starts from it
    before: Params  # the one this phase started from
    critic: Params | None = None  # of the best policy's moment, where there was one


class Stopped(Exception):
    """The run was told to stop, and has saved itself."""


class Stop:
    """Whether, and by which signal, the run has been told to stop."""

    signal: int | None = None


def train(config: Config, folder: Path, started: float) -> dict[str, Any]:
    """The whole run; returns its summary, which is also in summary.json. `started`: since when the clock runs."""
    policy = make_policy(config)
    phases = make_phases(config, policy)
    first, frozen = start_params(config, folder)
    with Run(folder, config) as run:
        if (summary := run.summary()) is not None:
            return summary
        if config.start_from and frozen:
            run.keep_frozen(frozen)
        evaluator = Evaluator(policy, config.env_params, config.evaluation.batch, frozen)
        position = run.last() or Position()
        run.cut(position.row)
        watchdog = Watchdog()
        for row in run.rows():  # what it has said and seen before
            watchdog.look(row)
        progress = Progress(position, first, first)
        with stopping_on_signals() as stop:
            loop = Loop(config, run, evaluator, watchdog, stop, started - position.wall_s)
            if config.start_from and not position.row:
                progress, _ = loop.validate(phases[0], progress, first)
            for index in range(position.phase, len(phases)):
                progress = loop.run_phase(index, phases[index], progress)
            seen = [loop.ask(phase, progress.best, "heldout") for phase in phases if phase.probe]
        return held_out.finish(config, run, evaluator, progress.best, progress.before, loop.wall_s, *seen)


class Loop(NamedTuple):
    """What does not change while a run goes on."""

    config: Config
    run: Run
    evaluator: Evaluator
    watchdog: Watchdog
    stop: Stop
    clock_zero: float

    def wall_s(self) -> float:
        """Seconds spent on the run, those before it was resumed included."""
        return time.time() - self.clock_zero

    def run_phase(self, index: int, phase: Phase, progress: Progress) -> Progress:
        """All updates of a phase that are still to be made."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.seed), ORDER), index)
        state, progress = self.enter(index, phase, progress, key)
        compile_started = time.time()
        frozen = self.evaluator.frozen
        step = phase.compile(state, frozen)
        say(f"{phase.name}: train_step compiled once, in {time.time() - compile_started:.1f} s")
        first, total = progress.position.update, phase.num_updates
        at_start = self.ask(phase, progress.best, "at_start") if phase.probe and first == 0 else {}
        with tqdm(total=total, initial=first, desc=phase.name, disable=None, dynamic_ncols=True) as bar:
            for update in range(first, total):
                if phase.is_over(update, progress.position.phase_turns):
                    break
                update_started = time.time()
                state, metrics = step(state, frozen, jax.random.fold_in(key, update), jnp.int32(update))
                row = plain(metrics) | (at_start if update == 0 else {})
                progress, row = self.note(phase, progress, state, row, time.time() - update_started)
                tell(bar, phase, progress.position, row)
                is_last = phase.is_over(update + 1, progress.position.phase_turns)
                self.save_if_due(progress, state, is_last)
                if is_last:
                    break
        return progress

    def enter(self, index: int, phase: Phase, progress: Progress, key: jax.Array) -> tuple[Any, Progress]:
        """A phase's state: its first one, or the checkpoint's if that is of this phase."""
        position = progress.position
        state = jax.jit(phase.init)(progress.best, jax.random.fold_in(key, phase.num_updates))
        if position.phase == index and position.row:
            arrays, critic = self.run.restore((state, progress.best, progress.before), self.critic_of(state))
            state, best, before = arrays
            say(f"goes on with {phase.name} after update {position.update} of {phase.num_updates}")
            if position.made_on != this_machine():
                say(f"the checkpoint is of another machine ({position.made_on}): the run goes on, bits may differ")
            if position.best_row or self.config.start_from:
                self.run.save_best(position, best, critic)
            return state, Progress(position, best, before, critic)
        at_start = position._replace(phase=index, update=0, phase_turns=0)
        return state, Progress(at_start, progress.best, progress.best, progress.critic)

    def note(self, phase: Phase, progress: Progress, state: Any, row: Row, seconds: float) -> tuple[Progress, Row]:
        """The progress after one more update, which is written down, and validated if it is its turn."""
        at = progress.position
        turns = int(row.pop("rollout/turns", phase.turns_per_update))
        at = at._replace(
            update=at.update + 1, row=at.row + 1, turns=at.turns + turns, phase_turns=at.phase_turns + turns
        )
        row = {"phase": phase.name, "update": at.update, "turns": at.turns} | row
        row["time/turns_per_s"] = turns / seconds
        if "rollout/tokens" in row:
            row["time/tokens_per_s"] = float(row["rollout/tokens"]) / seconds
        progress = progress._replace(position=at)
        if at.update % phase.validate_every == 0 or phase.is_over(at.update, at.phase_turns):
            measure = self.probe if phase.probe else self.validate
            progress, found = measure(phase, progress, state.policy, self.critic_of(state))
            row |= found
        row["time/wall_s"] = self.wall_s()
        row["time/share_train_step"] = seconds / max(row["time/wall_s"] - at.wall_s, seconds)
        if complaints := self.watchdog.look(row):
            row["watchdog"] = complaints
        self.run.write(at.row - 1, row)
        return progress._replace(position=progress.position._replace(wall_s=self.wall_s())), row

    def validate(
        self, phase: Phase, progress: Progress, policy: Params, critic: Params | None = None
    ) -> tuple[Progress, Row]:
        """Greedy play on the validation seeds; the best policy so far is kept.

        Where the phase says so, the newest one is, unless it is clearly worse: the best of many measurements of a few
        hundred games is the luckiest rather than the best.
        """
        seeds = range(*self.config.evaluation.validation)
        found = summarise(self.evaluator.play(policy, seeds, jax.random.key(0), greedy=True))
        names = ("win_rate", "mean_turns", "unparsable_share") if found["wins"] else ("win_rate", "unparsable_share")
        score = (found["win_rate"], -found["mean_turns"] if found["wins"] else 0.0)
        best = progress.position.best_score
        if score > best or (phase.keeps_newest and not is_clearly_worse(score[0], best[0], found["episodes"])):
            kept, kept_critic = jax.tree.map(jnp.copy, (policy, critic))
            position = progress.position._replace(best_score=max(score, best), best_row=progress.position.row)
            progress = Progress(position, kept, progress.before, kept_critic)
            self.run.save_best(position, kept, kept_critic)
        return progress, {f"validation/{name}": found[name] for name in names}

    def probe(
        self, phase: Phase, progress: Progress, policy: Params, critic: Params | None = None
    ) -> tuple[Progress, Row]:
        """What a phase measures in place of games, on the validation seeds; it is the newest policy that is kept."""
        kept = jax.tree.map(jnp.copy, policy)
        position = progress.position._replace(
            best_row=progress.position.row, best_score=(-1.0, 0.0)
        )  # it has not played
        self.run.save_best(position, kept)
        return Progress(position, kept, progress.before), self.ask(phase, policy, "validation")

    def ask(self, phase: Phase, policy: Params, when: str) -> Row:
        """The figures of a phase's probe."""
        assert phase.probe is not None
        return {f"{when}/{name}": x for name, x in plain(phase.probe(joined(policy, self.evaluator.frozen))).items()}

    def critic_of(self, state: Any) -> Params | None:
        """What judges in reinforcement learning; methods that ask no critic train none."""
        return getattr(state, "critic", None) if self.config.algorithm.uses_critic else None

    def save_if_due(self, progress: Progress, state: Any, is_last: bool) -> None:
        is_stopped = self.stop.signal is not None
        if is_last or is_stopped or progress.position.update % self.config.checkpoint_every == 0:
            self.run.save(progress.position, (state, progress.best, progress.before), progress.critic)
        if is_stopped:
            raise Stopped


def is_clearly_worse(rate: float, best: float, episodes: float) -> bool:
    """Whether a win rate is more than two standard errors below another one of as many episodes."""
    return best - rate > 2 * math.sqrt((rate * (1 - rate) + best * (1 - best)) / episodes)


def plain(metrics: dict[str, jax.Array]) -> Row:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def tell(bar: tqdm, phase: Phase, at: Position, row: Row) -> None:
    """The figures people want: on the bar always, as a line when they were validated; and what is wrong, in words."""
    shares = {name.removeprefix("command/"): x for name, x in row.items() if name.startswith("command/")}
    figures = [f"{row['time/turns_per_s']:.0f} turns/s, {row['time/share_train_step']:.0%} of the time"]
    if "rollout/success_rate" in row:
        wins = "-" if math.isnan(row["rollout/success_rate"]) else f"{row['rollout/success_rate']:.0%}"
        figures = [f"wins {wins}", *figures, f"{row['time/tokens_per_s']:.0f} tokens/s"]
    else:
        figures = [f"loss {row[f'{phase.name}/loss']:.3f}", *figures]
    if shares:
        figures.append(" ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    bar.set_postfix_str(", ".join(figures), refresh=False)
    bar.update()
    right = {name.rpartition("/")[2]: x for name, x in row.items() if name.startswith("validation/perception/")}
    if right:
        say(f"{phase.name} {at.update}/{phase.num_updates}, {at.wall_s:.0f} s: right answers "
            + ", ".join(f"{name} {share:.1%}" for name, share in right.items()))  # fmt: skip
    if "validation/win_rate" in row:
        wins = f"validation {row['validation/win_rate']:.1%}"
        if "validation/mean_turns" in row:
            wins += f" in {row['validation/mean_turns']:.2f} turns"
        turns = f"{at.turns / 1e3:.0f}k" if at.turns >= 10_000 else str(at.turns)
        heading = f"{phase.name} {at.update}/{phase.num_updates}, {turns} turns, {at.wall_s:.0f} s"
        say(f"{heading}: {wins}; {', '.join(figures)}")
    for sentence in row.get("watchdog", []):
        say(f"watchdog: update {at.update}: {sentence}")


def say(line: str) -> None:
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """The first SIGINT or SIGTERM stops after the update under way; a second one does not wait."""
    stop, old = Stop(), {}

    def note(number: int, _: object) -> None:
        stop.signal = number
        say("stopping: saves after this update; the same command goes on from there")
        signal.signal(number, old[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        old[number] = signal.signal(number, note)
    try:
        yield stop
    except Stopped:
        sys.exit(128 + (stop.signal or 0))
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "runs/<config>-<seed>", flag_values=values)


def main(argv: list[str], started: float) -> int:
    if command_line.helped(argv, __doc__, define):
        return 0
    config, values = command_line.read_config(argv, define)
    default = f"runs/{command_line.config_name(values)}-{config.seed}"
    folder = Path(values["workdir"].value or default)
    summary = train(config, folder, started)
    say(held_out.in_words(summary))
    return 0


if __name__ == "__main__":
    process_started = time.time()
    command_line.guarded("jaxvlmrl.train", lambda: main(sys.argv, process_started))
