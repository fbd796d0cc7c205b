"""A run's directory: its config, its metrics, its checkpoints; and how a run goes on where it stopped.

    config.json      the whole config; another config is refused
    metrics.jsonl    one row an update, the source of truth; TensorBoard events in tensorboard/ are drawn from it
    checkpoints/     everything a run needs to go on, by row; an unfinished save is never taken for one
    best/            the policy that did best on the validation seeds
    summary.json     written when the run is finished, with curve.png and episodes.gif

A row is one update of any phase. Rows after the restored checkpoint are cut, so a run that was killed and one that was
not have the same metrics. Source: DESIGN 7.
"""

import fcntl
import json
import math
import os
import platform
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
    wall_s: float = 0.0
    best_score: tuple[float, float] = (-1.0, 0.0)  # of the phase: win rate, minus mean turns
    best_update: int = 0
    made_on: str = ""


class Run:
    """An open run directory. Only one process may hold one."""

    def __init__(self, folder: Path, config: Config):
        """Opens or makes the directory. Raises `ConfigError` where it cannot be written to or is another config's."""
        self.folder = folder
        self._claim(config)
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._checkpoints = ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)
        self._metrics = (folder / "metrics.jsonl").open("a")
        self._tensorboard: SummaryWriter | None = None

    def _claim(self, config: Config) -> None:
        path = self.folder / "config.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if any(path.name != ".lock" for path in self.folder.iterdir()):
                    raise ConfigError(f"{self.folder} is no run of jaxvlmrl and not empty; choose another --workdir")
                write_json(path, to_json(config))
            self._lock = (self.folder / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
        data = self._checkpoints.restore(step, args=ocp.args.Composite(position=ocp.args.JsonRestore()))["position"]
        return Position(**data | {"best_score": tuple(data["best_score"])})

    def restore(self, like: Any) -> Any:
        """The newest checkpoint's arrays, in the shape of `like`; rows written after it are cut."""
        row = self._checkpoints.latest_step()
        assert row is not None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._checkpoints.restore(row, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract)))
        self.cut(row)
        return restored["arrays"]

    def save(self, position: Position, arrays: Any) -> None:
        """A checkpoint; the two newest are kept. The metrics up to it are on the disk first."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        position = position._replace(made_on=this_machine())
        data = ocp.args.Composite(position=ocp.args.JsonSave(position._asdict()), arrays=ocp.args.StandardSave(arrays))
        if position.row not in self._checkpoints.all_steps():
            self._checkpoints.save(position.row, args=data)

    def save_best(self, policy: Any) -> None:
        """The policy alone, in best/."""
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((self.folder / "best").absolute(), policy, force=True)

    # Metrics

    def cut(self, row: int) -> None:
        """Drops all rows from `row` on, half-written ones included."""
        self._metrics.close()
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines()
        kept = [line for line in lines[:row] if line.endswith("}")]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(path)
        self._metrics = path.open("a")

    def write(self, row: int, metrics: dict[str, float | int | str]) -> None:
        """One row, of plain numbers, to metrics.jsonl and TensorBoard."""
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=row, flush_secs=30)
        plain = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in metrics.items()}
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

    def finish(self, summary: dict[str, Any]) -> None:
        write_json(self.folder / "summary.json", summary)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._checkpoints.close()
        self._lock.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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
    """The best policy of a run directory, in the shape of `like`. Raises `ConfigError` where there is none that fits."""
    path = (folder / "best").absolute()
    if not path.is_dir():
        raise ConfigError(f"{folder} has no checkpoint yet: there is no folder best in it")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
    except (ValueError, KeyError, TypeError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"{path} is not a checkpoint of the model in {folder / 'config.json'}: {first}") from error


def write_json(path: Path, data: Any) -> None:
    """All of it or nothing, whenever the process dies."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=2) + "\n")
    temporary.replace(path)


def this_machine() -> str:
    """What has to be the same for a resumed run to be the same to the bit."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{device.device_kind} {cores} cores, {platform.machine()}, jax {jax.__version__}"
