"""Frames per second of GridWalker, 8 x 8 with 3 blocks: `python experiments/bench_env.py [--seconds=1] [--json=FILE]`.

Dynamics alone, then each step with its picture, by quality, size and batch. On a CPU the programs are compiled with
512-bit vectors (`xla_cpu_prefer_vector_width`), which the renderer's one fused loop gains 1.7 times from; the default of
256 is measured beside it. The original, on two cores, renders 96 frames/s at 128 x 128 and makes 1.5 steps/s through its
harness (reference sheets "gridwalker").
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from envs_jax import GridWalker
from jaxvlmrl.runs import this_machine

ORIGINAL_FPS = 96.0  # at 128 x 128
SECONDS = flags.DEFINE_float("seconds", 1.0, "at least so long for a figure, best of three")
JSON = flags.DEFINE_string("json", None, "where to write the figures")
STEPS = 8  # of a scan, so that a program's start costs nothing


def rate(run: Callable[[Any], Any], argument: Any, frames: int) -> float:
    """Frames a second, best of three."""
    jax.block_until_ready(run(argument))
    best = 0.0
    for _ in range(3):
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < SECONDS.value / 3:
            jax.block_until_ready(run(argument))
            count += frames
        best = max(best, count / (time.perf_counter() - started))
    return best


def program(env: GridWalker, batch: int, is_drawn: bool, wide: bool) -> tuple[Callable[[Any], Any], Any]:
    """`STEPS` steps of `batch` environments, every picture made if `is_drawn`, and where they start."""
    params = jax.tree.map(jnp.asarray, env.default_params())
    begin = jax.jit(jax.vmap(env.init_from_number, in_axes=(0, None)))
    state = begin(jnp.arange(batch, dtype=jnp.uint32), params)
    actions = jnp.asarray(env.actions(), jnp.int32)

    def run(state: Any) -> Any:
        def step(state: Any, index: jax.Array) -> tuple[Any, Any]:
            action = actions[(jnp.arange(batch) + index) % len(actions)]
            keys = jax.random.split(jax.random.key(0), batch)
            state, reward, *_ = jax.vmap(env.transition, in_axes=(0, 0, 0, None))(keys, state, action, params)
            return state, jax.vmap(env.observe)(state)["image"] if is_drawn else reward

        return jax.lax.scan(step, state, jnp.arange(STEPS))

    options = {"xla_cpu_prefer_vector_width": 512} if wide and jax.default_backend() == "cpu" else None
    return jax.jit(run, compiler_options=options), state


def main(_: list[str]) -> None:
    rows = []

    def measure(label: str, env: GridWalker, batch: int, is_drawn: bool, wide: bool = False) -> None:
        run, state = program(env, batch, is_drawn, wide)
        found = rate(run, state, STEPS * batch)
        times = f"{found / ORIGINAL_FPS:8.1f}x" if is_drawn and env.height == 128 else ""
        vectors = "512" if wide else "default"
        rows.append({"what": label, "pixels": env.height, "batch": batch, "vectors": vectors, "per_second": found})
        print(f"{label:22s} {env.height:4d} px  batch {batch:5d}  {vectors:8s} {found:14,.0f} /s {times}", flush=True)

    print(this_machine())
    for batch in (64, 1024, 16384):
        measure("dynamics", GridWalker(), batch, is_drawn=False)
    for pixels in (32, 64, 128):
        for batch in (16, 256) if pixels > 32 else (16, 256, 1024):
            measure("training quality", GridWalker(height=pixels, width=pixels), batch, True)
            measure("training quality", GridWalker(height=pixels, width=pixels), batch, True, wide=True)
    for pixels in (32, 64, 128):
        for wide in (False, True):
            measure("reference quality", GridWalker(height=pixels, width=pixels, quality="reference"), 16, True, wide)
    if JSON.value:
        Path(JSON.value).write_text(json.dumps({"machine": this_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
