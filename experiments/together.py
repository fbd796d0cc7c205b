"""Run seeds of one config as ONE program: `python experiments/together.py --config=configs/NAME.py [--seeds=0,1,2]`.

`vmap` over the seeds' states and keys: on a GPU a tiny model's update waits for its kernels to be launched, so three runs
cost little more than one. Each seed has a run directory, `--workdir` with its number at the end, as `jaxvlmrl.train` writes
it, but without checkpoints: a seed that was cut off begins anew, a finished one is left alone. Reinforcement learning alone;
from another run if need be (`--start_from=PATTERN`, {seed} in it). Figures equal those of single runs up to the rounding of
batched products.
"""

import dataclasses
import fcntl
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from jaxvlmrl import command_line, held_out
from jaxvlmrl.building import ORDER, Phase, first_params, make_phases, make_policy
from jaxvlmrl.config import Config, ConfigError, differences
from jaxvlmrl.episodes import Evaluator
from jaxvlmrl.models.layers import Params
from jaxvlmrl.runs import Position, Run
from jaxvlmrl.runs import read_config as config_in
from jaxvlmrl.train import Loop, Progress, Stop
from jaxvlmrl.watchdog import Watchdog

MARK = ".together"  # in folders of this script


def stacked(trees: Sequence[Params]) -> Params:
    """Leaves [S, ...] of S trees."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


@jax.jit
def one_of(tree: Params, index: jax.Array) -> Params:
    return jax.tree.map(lambda x: x[index], tree)


def train_together(configs: Sequence[Config], folders: Sequence[Path]) -> None:
    """All of RL for configs that differ in their seeds and starts alone; every folder ends with its summary.json."""
    started = time.time()
    policy = make_policy(configs[0])
    [phase] = make_phases(configs[0], policy)
    firsts = [first_params(config) for config in configs]
    keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(jax.random.key(c.seed), ORDER), 0) for c in configs])
    evaluator = Evaluator(policy, configs[0].env_params, configs[0].evaluation.batch)
    with ExitStack() as stack:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MARK).touch()
        runs = [stack.enter_context(Run(folder, config)) for folder, config in zip(folders, configs)]
        loops = [Loop(c, run, evaluator, Watchdog(), Stop(), started) for c, run in zip(configs, runs)]
        progress = [Progress(Position(), first, first) for first in firsts]
        if configs[0].start_from:
            progress = [loop.validate(phase, at, at.best)[0] for loop, at in zip(loops, progress)]
        progress = learn(phase, firsts, keys, loops, progress)
        for config, run, loop, at in zip(configs, runs, loops, progress):
            held_out.finish(config, run, evaluator, at.best, at.before, loop.wall_s)


def learn(
    phase: Phase, firsts: Sequence[Params], keys: jax.Array, loops: Sequence[Loop], progress: Sequence[Progress]
) -> list[Progress]:
    """The phase's updates until every seed has made its own; what a seed does afterwards is not written down."""
    state = jax.jit(jax.vmap(phase.init))(stacked(firsts), jax.vmap(lambda key: fold(key, phase.num_updates))(keys))
    step = jax.jit(jax.vmap(phase.step, in_axes=(0, None, 0, None)), donate_argnums=0)
    begun = time.time()
    step = step.lower(state, {}, keys, jnp.int32(0)).compile()
    print(f"compiled in {time.time() - begun:.0f} s", flush=True)
    progress = list(progress)
    for update in range(phase.num_updates):
        begun = time.time()
        state, metrics = step(state, {}, jax.vmap(lambda key, at=update: fold(key, at))(keys), jnp.int32(update))
        metrics, seconds = jax.device_get(metrics), time.time() - begun
        for index, (loop, at) in enumerate(zip(loops, progress)):
            if not phase.is_over(update, at.position.phase_turns):
                row = {name: float(values[index]) for name, values in metrics.items()}
                progress[index], _ = loop.note(phase, at, one_of(state, index), row, seconds)
        if all(phase.is_over(update + 1, at.position.phase_turns) for at in progress):
            break
    return progress


def fold(key: jax.Array, data: int) -> jax.Array:
    return jax.random.fold_in(key, data)


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_list("seeds", ["0", "1", "2"], "run seeds", flag_values=values)
    flags.DEFINE_string("workdir", None, "of every run, before its seed; runs/together/<config>", flag_values=values)
    flags.DEFINE_string("start_from", "", "a seed's run to start from; {seed} stands for it", flag_values=values)


def main(argv: list[str]) -> int:
    config, values = command_line.read_config(argv, define)
    if config.perception.num_updates or config.imitation.num_updates or not config.rl.num_updates:
        raise ConfigError("only reinforcement learning runs together: set the other phases' num_updates to 0")
    if not config.tuning.trains_all:
        raise ConfigError("runs together train all of a model: config.tuning freezes parts of it")
    given = values.flag_values_dict()
    if not all(seed.isdecimal() for seed in given["seeds"]):
        raise ConfigError(f"--seeds={','.join(given['seeds'])} are not numbers")
    seeds = [int(seed) for seed in given["seeds"]]
    starts = [given["start_from"].replace("{seed}", str(seed)) for seed in seeds]
    configs = [dataclasses.replace(config, seed=seed, start_from=start) for seed, start in zip(seeds, starts)]
    prefix = given["workdir"] or f"runs/together/{command_line.config_name(values)}"
    runs = [(config, Path(f"{prefix}-{config.seed}")) for config in configs]
    left = [(config, folder) for config, folder in runs if not (folder / "summary.json").exists()]
    for config, folder in runs:
        if (config, folder) in left:
            clear(folder)
        elif changed := differences(config_in(folder), config):
            raise ConfigError(
                f"{folder} holds a run of another config ({'; '.join(changed)}); choose another --workdir"
            )
    if left:
        train_together(*zip(*left))
    return 0


def clear(folder: Path) -> None:
    """Takes away what an earlier call left unfinished. Raises `ConfigError` for a folder of anybody else's."""
    if not folder.exists():
        return
    if not (folder / MARK).exists() or any(folder.glob("checkpoints/*")):
        raise ConfigError(f"{folder} is there, and not by this script: choose another --workdir")
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder} is in use by another process") from error
        shutil.rmtree(folder)


if __name__ == "__main__":
    command_line.guarded("experiments/together.py", lambda: main(sys.argv))
