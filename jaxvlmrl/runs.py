"""A run's directory: its config, its metrics, its checkpoints; and how a run goes on where it stopped.

    config.json      the whole config; another config is refused
    metrics.jsonl    one row an update, the source of truth; TensorBoard events in tensorboard/ are drawn from it
    checkpoints/     everything a run needs to go on, by row; an unfinished save is never taken for one
    best/            the policy that the validation seeds chose
    critic/          the critic of that moment, where it was in reinforcement learning; under the same row as best/
    frozen/          parameters that are not trained, where they came from another run (`config.start_from`)
    summary.json     written when the run is finished, with curve.png and episodes.gif

A row is one update of any phase. Rows after the restored checkpoint are cut, so a run that was killed and one that was
not have the same metrics. Source: DESIGN 7.
"""

import fcntl
import json
import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from tensorboardX import SummaryWriter

from jaxvlmrl.config import Config, ConfigError, differences, from_json, to_json


class Position(NamedTuple):
    """How far a run has come; plain numbers, kept as JSON."""

    phase: int = 0
    update: int = 0  # of the phase, the next to be made
    row: int = 0  # of metrics.jsonl, the next to be written
    turns: int = 0  # environment steps so far
    phase_turns: int = 0  # those of the phase
    wall_s: float = 0.0
    best_score: tuple[float, float] = (-1.0, 0.0)  # of the run so far: win rate, minus mean turns
    best_row: int = 0  # rows written when the policy in best/ was validated
    made_on: str = ""


class Run:
    """An open run directory. Only one process may hold one."""

    def __init__(self, folder: Path, config: Config):
        """Opens or makes the directory. Raises `ConfigError` where it cannot be written to or is another config's."""
        self.folder = folder
        self._claim(config)
        self._checkpoints = open_checkpoints(folder / "checkpoints", keep=2)
        self._best = open_checkpoints(folder / "best", keep=1)
        self._critic = open_checkpoints(folder / "critic", keep=1)
        self._metrics = (folder / "metrics.jsonl").open("a")
        self._tensorboard: SummaryWriter | None = None

    def _claim(self, config: Config) -> None:
        path = self.folder / "config.json"
        try:
            if (
                self.folder.is_dir()
                and not path.exists()
                and any(not p.name.startswith(".") for p in self.folder.iterdir())
            ):
                raise ConfigError(f"{self.folder} is no run of jaxvlmrl and not empty; choose another --workdir")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists():
                write_json(path, to_json(config))
        except BlockingIOError as error:
            raise ConfigError(f"{self.folder} is in use by another process") from error
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be written to: {error.strerror}") from error
        changed = differences(read_config(self.folder), config)
        if changed:
            raise ConfigError(f"{self.folder} holds a run of another config ({'; '.join(changed)}); choose a --workdir")

    # Checkpoints

    def last(self) -> Position | None:
        """Where the newest checkpoint stands."""
        step = self._checkpoints.latest_step()
        if step is None:
            return None
        with readable(self.folder / "checkpoints"):
            args = ocp.args.Composite(position=ocp.args.JsonRestore())
            data = self._checkpoints.restore(step, args=args)["position"]
            return Position(**data | {"best_score": tuple(data["best_score"])})

    def restore(self, like: Any, critic_like: Any | None = None) -> tuple[Any, Any | None]:
        """The newest checkpoint's arrays, in the shape of `like`, and the best policy's critic where there is one in it."""
        row = self._checkpoints.latest_step()
        assert row is not None
        shapes = {"arrays": like}
        if critic_like is not None and (self.folder / "checkpoints" / str(row) / "critic").exists():
            shapes["critic"] = critic_like
        restored = {name: ocp.args.StandardRestore(wanted_here(shape)) for name, shape in shapes.items()}
        with readable(self.folder / "checkpoints"):
            found = self._checkpoints.restore(row, args=ocp.args.Composite(**restored))
            return found["arrays"], found["critic"] if "critic" in shapes else None

    def save(self, position: Position, arrays: Any, critic: Any | None = None) -> None:
        """A checkpoint; the two newest are kept. The metrics up to it are on the disk first."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        position = position._replace(made_on=this_machine())
        parts = {"arrays": arrays} if critic is None else {"arrays": arrays, "critic": critic}
        saved = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
        data = ocp.args.Composite(position=ocp.args.JsonSave(position._asdict()), **saved)
        if position.row not in self._checkpoints.all_steps():
            self._checkpoints.save(position.row, args=data)

    def save_best(self, position: Position, policy: Any, critic: Any | None = None) -> None:
        """The policy alone, in best/, and its critic in critic/, in place of every other that is there.

        The critic first: whoever finds a policy finds the critic of its row or none (`read_critic`).
        """
        for kept, what in ((self._critic, critic), (self._best, policy)):
            for row in kept.all_steps():
                if row > position.best_row or what is None:  # of rows that were cut, or of another policy
                    kept.delete(row)
            if what is not None and position.best_row not in kept.all_steps():
                kept.save(position.best_row, args=ocp.args.StandardSave(what))

    def keep_frozen(self, frozen: Any) -> None:
        """What is never trained, once: the run it came from may change or go away."""
        if not (self.folder / "frozen").exists():
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save((self.folder / "frozen").absolute(), frozen)

    # Metrics

    def cut(self, row: int) -> None:
        """Drops all rows from `row` on, half-written ones included."""
        self._metrics.close()
        path = self.folder / "metrics.jsonl"
        write_text(path, "".join(line + "\n" for line in whole_lines(path) if json.loads(line)["row"] < row))
        self._metrics = path.open("a")

    def write(self, row: int, metrics: dict[str, Any]) -> None:
        """One row to metrics.jsonl, its numbers to TensorBoard."""
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=row, flush_secs=30)
        plain = without_nan(metrics)
        self._metrics.write(json.dumps({"row": row} | plain) + "\n")
        self._metrics.flush()
        for name, value in plain.items():
            if isinstance(value, int | float):
                self._tensorboard.add_scalar(name, value, row)

    def rows(self) -> list[dict[str, Any]]:
        self._metrics.flush()
        return read_rows(self.folder)

    # The end

    def summary(self) -> dict[str, Any] | None:
        """Of a finished run."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, summary: dict[str, Any]) -> dict[str, Any]:
        """The summary as it is written down, last of all."""
        write_json(self.folder / "summary.json", summary)
        return without_nan(summary)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._checkpoints.close()
        self._best.close()
        self._critic.close()
        self._lock.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none where there is no such file yet."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in whole_lines(path)] if path.exists() else []


def whole_lines(path: Path) -> list[str]:
    """Without what was half-written when a process died."""
    return [line for line in path.read_text().splitlines() if line.endswith("}")]


def read_config(folder: Path) -> Config:
    """The config of a run directory. Raises `ConfigError` if it is none."""
    path = folder / "config.json"
    try:
        config = from_json(json.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(f"{folder} is no run directory: it has no config.json") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{path} holds no config")
    return config


def read_policy(folder: Path, like: Any) -> Any:
    """A run directory's best policy, in the shape of `like`. Raises `ConfigError` where there is none that fits."""
    row = newest_row(folder / "best")
    if row is None:
        raise ConfigError(f"{folder} has no checkpoint yet: nothing in it has been validated")
    return read_arrays(folder / "best", row, like)


def read_critic(folder: Path, like: Any) -> Any | None:
    """The critic of a run's best policy, in the shape of `like`; None where the run has kept none."""
    row = newest_row(folder / "critic")
    return None if row is None or row != newest_row(folder / "best") else read_arrays(folder / "critic", row, like)


def newest_row(path: Path) -> int | None:
    """Of what is saved in a folder by rows."""
    return max((int(saved.name) for saved in path.glob("*") if saved.name.isdigit()), default=None)


def read_arrays(path: Path, row: int, like: Any) -> Any:
    with readable(path), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((path / str(row) / "default").absolute(), wanted_here(like))


def read_frozen(folder: Path, like: Any) -> Any | None:
    """What a run keeps of the parameters it does not train, in the shape of `like`; None where it keeps nothing."""
    path = folder / "frozen"
    if not path.exists():
        return None
    with readable(path), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), wanted_here(like))


def wanted_here(like: Any) -> Any:
    """Shapes and types of arrays on this machine's device, wherever they were saved: a GPU's checkpoint opens on a CPU."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)


def open_checkpoints(path: Path, keep: int) -> ocp.CheckpointManager:
    """Saves are made whole or not at all, and are there when `save` returns."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    return ocp.CheckpointManager(path.absolute(), options=options)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what Orbax says of a damaged or foreign checkpoint into a `ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # Orbax raises whatever its storage does
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{path} is damaged, or not a checkpoint of this config: {first}") from error


def write_json(path: Path, data: Any) -> None:
    """All of it or nothing, whenever the process dies; what is not a number becomes null."""
    write_text(path, json.dumps(without_nan(data), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    temporary.replace(path)


def without_nan(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: without_nan(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and math.isnan(data) else data


def this_machine() -> str:
    """What has to be the same for a resumed run to be the same to the bit."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{device.device_kind} {cores} cores, {platform.machine()}, jax {jax.__version__}"
