"""Tokens per second of plain generation, ours against transformers' `generate`: `python experiments/bench_generate.py`.

SmolLM2-135M-Instruct (or --random weights of its sizes), float32, prompts of 128 tokens, 64 new ones, batches of 1 and 8,
the two in turn on the same cores, the best of --repeats. Beside them the bound that reading all weights once a token sets.
Needs torch and transformers (the extra `parity`) for the comparison; without them only our side is timed.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxvlmrl.gguf_reading import smollm2_path
from jaxvlmrl.models import gguf_file
from jaxvlmrl.models.decoder import LanguageModel, TextConfig
from jaxvlmrl.models.generation import generate, prompt
from jaxvlmrl.models.layers import Params

BATCHES = flags.DEFINE_list("batches", ["1", "8"], "prompts at a time")
LENGTH = flags.DEFINE_integer("length", 128, "tokens of a prompt", lower_bound=1)
NEW = flags.DEFINE_integer("new", 64, "tokens to generate", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "rounds", lower_bound=1)
RANDOM = flags.DEFINE_boolean("random", False, "random weights of the same sizes")
JSON = flags.DEFINE_string("json", None, "where to write the figures")
SMOLLM2 = TextConfig(
    vocab_size=49152, width=576, mlp_width=1536, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, rope_theta=1e5,
    tied_head=True,
)  # fmt: skip


def load() -> tuple[LanguageModel, Params]:
    if RANDOM.value:
        model = LanguageModel(SMOLLM2)
        return model, jax.jit(model.init)(jax.random.key(0))
    return gguf_file.load(smollm2_path())


def ours(model: LanguageModel, params: Params, ids: np.ndarray) -> Callable[[], np.ndarray]:
    run = jax.jit(lambda params, ids: generate(model, params, *prompt(model, params, ids), num_tokens=NEW.value))
    return lambda: np.asarray(run(params, jnp.asarray(ids)))


def theirs(model: LanguageModel, params: Params, ids: np.ndarray, folder: Path) -> Callable[[], np.ndarray] | None:
    """transformers' generate with the same weights, by way of an exported folder."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    from jaxvlmrl.models import weights

    if not (folder / "config.json").exists():
        weights.export(model, params, folder, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    network.generation_config.eos_token_id = None
    tokens = torch.tensor(ids, dtype=torch.long)

    def run() -> np.ndarray:
        with torch.no_grad():
            found = network.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW.value, do_sample=False
            )
        return found[:, ids.shape[1] :].numpy()

    return run


def bandwidth() -> float:
    """Bytes per second at which all cores together read memory, the best of a few sums over half a GiB."""
    data = jnp.ones((1 << 27,), jnp.float32)
    total = jax.jit(jnp.sum)
    return max(data.nbytes / seconds(lambda: total(data).block_until_ready())[0] for _ in range(5))


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


def main(_: list[str]) -> None:
    model, params = load()
    folder = Path(".cache") / "smollm2"
    rate, size = bandwidth(), sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(
        f"memory is read at {rate / 1e9:.1f} GB/s, the weights are {size / 1e6:.0f} MB: {rate / size:.1f} steps/s at most"
    )
    rows = []
    for batch in [int(text) for text in BATCHES.value or []]:
        ids = np.random.default_rng(0).integers(100, 40000, (batch, LENGTH.value)).astype(np.int32)
        runs = {"ours": ours(model, params, ids), "transformers": theirs(model, params, ids, folder)}
        runs = {name: run for name, run in runs.items() if run is not None}
        first = {name: run() for name, run in runs.items()}
        best = {name: float("inf") for name in runs}
        for _round in range(REPEATS.value):
            for name, run in runs.items():
                best[name] = min(best[name], seconds(run)[0])
        row = {"batch": batch, "bound_tokens_per_s": batch * rate / size}
        row |= {f"{name}_tokens_per_s": batch * NEW.value / best[name] for name in runs}
        if "transformers" in runs:
            row["ratio"] = row["ours_tokens_per_s"] / row["transformers_tokens_per_s"]
            row["tokens_equal"] = float(np.mean(first["ours"] == first["transformers"]))
        print(", ".join(f"{name} {value:.2f}" for name, value in row.items()))
        rows.append(row)
    if JSON.value:
        Path(JSON.value).write_text(json.dumps({"device": str(jax.devices()[0]), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
