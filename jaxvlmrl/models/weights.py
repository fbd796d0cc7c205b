"""Weights in and out: Hugging Face folders of safetensors, without torch, one parameter on the host at a time.

    model = read_model("SmolVLM-256M-Instruct")
    params = load(model, "SmolVLM-256M-Instruct")
    export(model, params, "mine")                 # transformers loads it

Everything that does not fit is named in one `WeightsError` before anything is allocated.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxvlmrl.models.decoder import LanguageModel
from jaxvlmrl.models.hf_config import differing, model_of, to_hf
from jaxvlmrl.models.layers import Params
from jaxvlmrl.models.names import Tensor, tensors
from jaxvlmrl.models.paths import by_path, from_paths

SHARD_BYTES = 4 << 30  # of an exported file, about
NAMED = 6  # tensors in a complaint before it says "and so many more"
IGNORED = ("rotary_emb.inv_freq",)  # what some checkpoints store and nobody needs

Shardings = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]  # (path, shape) -> where a parameter lives


class WeightsError(ValueError):
    """A folder's weights cannot be used; the message is one sentence that says why."""


def on_one_device(path: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
    del path, shape
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def read_model(folder: str | Path, **overrides: Any) -> LanguageModel:
    """The model a folder's config.json describes. Raises `WeightsError`."""
    return _in_words(lambda: model_of(read_json(Path(folder) / "config.json"), **overrides), folder)


def check_sizes(model: LanguageModel, folder: str | Path) -> None:
    """Raises `WeightsError` where a folder's config.json is of another model."""
    found = _in_words(lambda: differing(model, read_json(Path(folder) / "config.json")), folder)
    if found:
        raise WeightsError(f"{folder} holds another model: " + _some(found))


def _in_words(read: Callable[[], Any], folder: str | Path) -> Any:
    try:
        return read()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"the JSON in {folder} cannot be used: {error!r}") from error


def read_json(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"there is no {path.name} in {path.parent}")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"{path} is damaged: {error}") from error


@dataclass(frozen=True)
class Shards:
    """The open safetensors files of a folder, by tensor name."""

    of_tensor: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = _in_words(lambda: sorted(set(read_json(index)["weight_map"].values())), folder)
        elif (folder / "model.safetensors").is_file():
            names = ["model.safetensors"]
        else:
            raise WeightsError(f"there is no model.safetensors in {folder}")
        try:
            files = [safe_open(folder / name, framework="numpy") for name in names]
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"the weights in {folder} cannot be read: {error}") from error
        return cls({name: file for file in files for name in file.keys()})  # noqa: SIM118 (no dictionary)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.of_tensor[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        return self.of_tensor[name].get_tensor(name)


def parameter_shapes(model: LanguageModel) -> dict[str, tuple[int, ...]]:
    """Our shapes by path, without allocating."""
    return {path: leaf.shape for path, leaf in by_path(jax.eval_shape(model.init, jax.random.key(0))).items()}


def load(
    model: LanguageModel, folder: str | Path, dtype: str = "float32", shardings: Shardings = on_one_device
) -> Params:
    """A folder's weights as our parameters of type `dtype`, each straight to where `shardings` wants it."""
    folder = Path(folder)
    check_sizes(model, folder)
    shards, shapes = Shards.open(folder), parameter_shapes(model)
    wanted = tensors(model, shapes)
    check(wanted, shards, is_tied=model.text.tied_head, where=str(folder))
    parts: dict[str, list[Tensor]] = {}
    for tensor in wanted:
        parts.setdefault(tensor.path, []).append(tensor)
    return from_paths({path: _place(path, shapes[path], parts[path], shards, dtype, shardings) for path in shapes})


def check(wanted: list[Tensor], shards: Shards, is_tied: bool, where: str) -> None:
    """Raises `WeightsError` that names what is missing, what nobody asked for and what has another shape."""
    names = {tensor.name for tensor in wanted}
    allowed = {"lm_head.weight"} if is_tied else set()
    extra = [name for name in shards.of_tensor if name not in names | allowed and not name.endswith(IGNORED)]
    missing = [tensor.name for tensor in wanted if tensor.name not in shards.of_tensor]
    misshapen = [
        f"{tensor.name} {shards.shape(tensor.name)} instead of {tensor.shape}"
        for tensor in wanted
        if tensor.name in shards.of_tensor and shards.shape(tensor.name) != tensor.shape
    ]
    kinds = {"missing": missing, "unknown": sorted(extra), "of another shape": misshapen}
    complaints = [f"{len(found)} {kind} ({_some(found)})" for kind, found in kinds.items() if found]
    if complaints:
        raise WeightsError(f"the tensors in {where} do not fit the model: " + "; ".join(complaints))


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _place(
    path: str, shape: tuple[int, ...], parts: list[Tensor], shards: Shards, dtype: str, shardings: Shardings
) -> jax.Array:
    """One parameter; of each device's share only the layers in it are read."""
    is_stacked = parts[0].index is not None
    read = lambda tensor: tensor.to_ours(shards.read(tensor.name))

    def share(index: Any) -> np.ndarray:
        if not is_stacked:
            return read(parts[0])[index].astype(dtype)
        layers = range(len(parts))[index[0]]
        first = read(parts[layers[0]])[index[1:]]
        whole = np.empty((len(layers), *first.shape), jax.numpy.dtype(dtype))
        whole[0] = first
        for place, layer in enumerate(layers[1:], start=1):
            whole[place] = read(parts[layer])[index[1:]]
        return whole

    return jax.make_array_from_callback(shape, shardings(path, shape), share)


def export(model: LanguageModel, params: Params, folder: str | Path, special_ids: dict[str, int]) -> None:
    """Writes config.json and safetensors that transformers loads.

    `special_ids` are the tokenizer's: image_token_id, bos_token_id, eos_token_id, pad_token_id.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = by_path(params)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    groups, size = [[]], 0
    for tensor in tensors(model, shapes):
        size += int(np.prod(tensor.shape)) * leaves[tensor.path].dtype.itemsize
        if size > SHARD_BYTES and groups[-1]:
            groups, size = [*groups, []], 0
        groups[-1].append(tensor)
    names = [f"model-{index:05d}-of-{len(groups):05d}.safetensors" for index in range(1, len(groups) + 1)]
    names = names if len(groups) > 1 else ["model.safetensors"]
    for name, group in zip(names, groups, strict=True):
        save_file(
            {t.name: t.to_theirs(_layer(leaves[t.path], t.index)) for t in group}, folder / name, {"format": "pt"}
        )
    if len(groups) > 1:
        weight_map = {tensor.name: name for name, group in zip(names, groups, strict=True) for tensor in group}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    dtype = str(leaves["text_model/embed_tokens"].dtype)
    (folder / "config.json").write_text(json.dumps(to_hf(model, special_ids, dtype), indent=2) + "\n")


def _layer(leaf: jax.Array, index: int | None) -> np.ndarray:
    return np.asarray(leaf if index is None else leaf[index])
