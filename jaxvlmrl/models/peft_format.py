"""LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

PEFT's A is (r, in) and B (out, r), ours are turned and stacked over layers. Source: the format's own files.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxvlmrl.models.decoder import LanguageModel
from jaxvlmrl.models.layers import Params
from jaxvlmrl.models.names import Tensor, tensors
from jaxvlmrl.models.paths import by_path, from_paths
from jaxvlmrl.models.weights import WeightsError, read_json

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def _adapted(model: LanguageModel, params: Params) -> list[Tensor]:
    """The kernels that carry an adapter, as tensors of the published model."""
    leaves = by_path(params)
    of_model = {path: leaf.shape for path, leaf in leaves.items() if "/lora_" not in path}
    return [t for t in tensors(model, of_model) if t.path.removesuffix("kernel") + "lora_a" in leaves]


def _of_layer(leaf: jax.Array, index: int | None) -> np.ndarray:
    return np.asarray(leaf if index is None else leaf[index], np.float32)


def export_adapters(model: LanguageModel, params: Params, folder: str | Path) -> None:
    """Writes the adapters among `params` so that `peft` loads them onto the published model."""
    folder, leaves = Path(folder), by_path(params)
    adapted = _adapted(model, params)
    if not adapted:
        raise WeightsError("the parameters hold no adapters")
    found, scales, rank = {}, set(), 0
    for tensor in adapted:
        names = ("lora_a", "lora_b", "lora_scale")
        a, b, scale = (_of_layer(leaves[tensor.path.removesuffix("kernel") + name], tensor.index) for name in names)
        module = PREFIX + tensor.name.removesuffix(".weight")
        found[f"{module}.lora_A.weight"], found[f"{module}.lora_B.weight"] = map(np.ascontiguousarray, (a.T, b.T))
        scales.add(float(scale))
        rank = a.shape[-1]
    if len(scales) > 1:
        raise WeightsError("the adapters have different scales, which PEFT's format cannot say")
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": scales.pop() * rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": [tensor.name.removesuffix(".weight") for tensor in adapted], "inference_mode": True,
        "base_model_name_or_path": None, "task_type": None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file(found, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def import_adapters(model: LanguageModel, params: Params, folder: str | Path) -> Params:
    """`params` with a PEFT folder's adapters in place of their own. Raises `WeightsError` where they do not fit."""
    folder, leaves = Path(folder), by_path(params)
    config = read_json(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise WeightsError(f"there is no {WEIGHTS} in {folder}")
    stored = load_file(folder / WEIGHTS)
    adapted = _adapted(model, params)
    names = {f"{PREFIX}{t.name.removesuffix('.weight')}.lora_{x}.weight" for t in adapted for x in "AB"}
    if names != stored.keys():
        odd = sorted(names ^ stored.keys())
        raise WeightsError(f"{folder} has adapters on other layers than the model, such as {odd[0]}")
    parts: dict[str, list[np.ndarray]] = {}
    for tensor in adapted:
        module = PREFIX + tensor.name.removesuffix(".weight")
        for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            path = tensor.path.removesuffix("kernel") + ours
            parts.setdefault(path, []).append(stored[f"{module}.{theirs}.weight"].T)
    for path, arrays in parts.items():
        whole = np.stack(arrays) if leaves[path].ndim == 3 else arrays[0]
        if whole.shape != leaves[path].shape:
            raise WeightsError(f"{path} is {leaves[path].shape} here and {whole.shape} in {folder}")
        leaves[path] = jnp.asarray(whole)
        if path.endswith("/lora_a"):
            scale = path.removesuffix("a") + "scale"
            leaves[scale] = jnp.full_like(leaves[scale], config["lora_alpha"] / config["r"])
    return from_paths(leaves)
