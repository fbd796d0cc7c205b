"""Transcripts of games played by a remote model: a folder for one setup, a JSON Lines file for each episode.

A line is an answered turn, or what went wrong with one that was given up; `outgrown` marks one for which the conversation
was too long, which ends the episode. A line is on the disk when `write` returns; a
half-written one is dropped. What the figures say of requests is read from the lines alone, so a resumed evaluation has
them all.
"""

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from envs_jax.grid_walker.grid_walker import PROMPT
from jaxvlmrl.config import ConfigError, differences
from jaxvlmrl.episodes import ENDED, Episodes, Game
from jaxvlmrl.runs import write_json

Line = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What decides how an episode goes."""

    base_url: str
    model: str
    size: int = 8
    blocks: int = 3
    turns: int = 50
    camera: str = "settled"
    prompt: str = PROMPT
    keep_turns: int = 0  # turns in sight, the current one included; 0 is all of them
    max_tokens: int = 2000  # of a reply; 0 sends none
    temperature: float | None = None  # None leaves it to the endpoint
    extra: dict[str, Any] = field(default_factory=dict)  # other fields of a request


class Transcripts:
    """A folder that is held by one process."""

    def __init__(self, folder: Path, setup: Setup, running: dict[str, Any]):
        """`running` is kept for the record. Raises `ConfigError` where the folder is another setup's, or in use."""
        self.folder, self.setup = folder, setup
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._claim(folder / "config.json", running)
        except BlockingIOError as error:
            raise ConfigError(f"{folder} is in use by another process") from error
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written to: {error.strerror}") from error

    def _claim(self, path: Path, running: dict[str, Any]) -> None:
        setup = asdict(self.setup)
        if path.exists():
            changed = differences(_setup_in(path), setup)
            if changed:
                told = "; ".join(changed)
                raise ConfigError(f"{self.folder} holds games of another setting ({told}); choose other --transcripts")
        elif any(not found.name.startswith(".") for found in self.folder.iterdir()):
            raise ConfigError(f"{self.folder} holds no transcripts and is not empty; choose other --transcripts")
        write_json(path, {"setup": setup, "running": running})

    def close(self) -> None:
        self._lock.close()

    def read(self, seed: int) -> list[Line]:
        """The lines of an episode."""
        path = self.path(seed)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise ConfigError(f"{path} is damaged: {error}") from error

    def write(self, seed: int, line: Line) -> None:
        with self.path(seed).open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def path(self, seed: int) -> Path:
        return self.folder / f"{seed}.jsonl"


def _setup_in(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())["setup"]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} is not of transcripts, or damaged; choose other --transcripts") from error


def turns_of(lines: Sequence[Line]) -> list[Line]:
    """Those of answered turns."""
    return [line for line in lines if "answer" in line]


def is_outgrown(lines: Sequence[Line]) -> bool:
    """Whether the conversation became too long for the endpoint."""
    return any(line.get("outgrown") for line in lines)


def is_over(lines: Sequence[Line], limit: int) -> bool:
    turns = turns_of(lines)
    return len(turns) >= limit or (len(turns) > 0 and turns[-1]["won"]) or is_outgrown(lines)


# What is said of them


def as_episodes(transcripts: dict[int, list[Line]], limit: int) -> Episodes:
    """Finished episodes by seed; what their answers consist of is the endpoint's affair."""
    played = {seed: turns_of(lines) for seed, lines in transcripts.items()}
    actions = np.full((len(played), limit), ENDED)
    for row, turns in zip(actions, played.values()):
        row[: len(turns)] = [turn["action"] for turn in turns]
    of_last = lambda name: np.array([turns[-1][name] for turns in played.values()])
    won, efficiency, nothing = of_last("won"), of_last("efficiency"), np.zeros((*actions.shape, 0))
    counts = np.array([len(turns) for turns in played.values()])
    return Episodes(np.array(list(played)), won, counts, efficiency, actions, nothing, nothing.astype(bool))


def as_games(transcripts: dict[int, list[Line]]) -> list[Game]:
    """The same in words."""

    def game(seed: int, turns: list[Line]) -> Game:
        of_all = lambda name: [turn[name] for turn in turns]
        return Game(seed, turns[-1]["won"], len(turns), of_all("action"), of_all("answer"))

    return [game(seed, turns_of(lines)) for seed, lines in transcripts.items()]


def usage(transcripts: dict[int, list[Line]], price_in: float | None, price_out: float | None) -> dict[str, float]:
    """Requests, tokens, cost and times. Prices are of a million tokens; NaN is what nobody knows."""
    lines = [line for found in transcripts.values() for line in found]
    turns, failures = turns_of(lines), sum(len(line["failures"]) for line in lines)
    known = [turn for turn in turns if turn["prompt_tokens"] is not None and turn["completion_tokens"] is not None]
    tokens = [sum(turn[f"{kind}_tokens"] for turn in known) for kind in ("prompt", "completion")]
    is_known = len(known) == len(turns) and price_in is not None and price_out is not None
    latency = np.percentile([turn["latency_s"] for turn in turns], [50, 95])
    return {
        "requests": len(turns) + failures,
        "retries": failures - (len(lines) - len(turns)),  # the last failure of one that was given up led to none
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "turns_without_usage": len(turns) - len(known),
        "episodes_outgrown": sum(map(is_outgrown, transcripts.values())),
        "cost": (tokens[0] * (price_in or 0.0) + tokens[1] * (price_out or 0.0)) / 1e6 if is_known else float("nan"),
        "latency_p50_s": float(latency[0]),
        "latency_p95_s": float(latency[1]),
        "wall_s": covered([(turn["started"], turn["ended"]) for turn in turns]),
    }


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of a union of spans of time: how long at least one turn was under way."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
