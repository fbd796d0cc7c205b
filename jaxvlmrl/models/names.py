"""How published checkpoints name what our parameters are: a table for every architecture.

Their linear weights are (out, in), ours (in, out); convolutions become linear maps of flat patches; their layers are
numbered, ours stacked on axis 0. Source: reference sheet "models", sections 2.2 and 3.3.
"""

from dataclasses import dataclass

import numpy as np

from jaxvlmrl.models.decoder import LanguageModel
from jaxvlmrl.models.qwen3_vl import Qwen3VL
from jaxvlmrl.models.smolvlm import SmolVLM

LLAMA_LAYER = {
    "input_layernorm/weight": "input_layernorm.weight",
    "q_proj/kernel": "self_attn.q_proj.weight",
    "k_proj/kernel": "self_attn.k_proj.weight",
    "v_proj/kernel": "self_attn.v_proj.weight",
    "o_proj/kernel": "self_attn.o_proj.weight",
    "post_attention_layernorm/weight": "post_attention_layernorm.weight",
    "gate_proj/kernel": "mlp.gate_proj.weight",
    "up_proj/kernel": "mlp.up_proj.weight",
    "down_proj/kernel": "mlp.down_proj.weight",
}
QWEN_LAYER = LLAMA_LAYER | {"q_norm/weight": "self_attn.q_norm.weight", "k_norm/weight": "self_attn.k_norm.weight"}


def _affine(ours: str, theirs: str, weight: str = "kernel") -> dict[str, str]:
    """Both parameters of a layer with a bias."""
    return {f"{ours}/{weight}": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


SIGLIP_LAYER = (
    _affine("layer_norm1", "layer_norm1", "weight")
    | _affine("layer_norm2", "layer_norm2", "weight")
    | {key: name for p in "qkv" for key, name in _affine(f"{p}_proj", f"self_attn.{p}_proj").items()}
    | _affine("out_proj", "self_attn.out_proj")
    | _affine("fc1", "mlp.fc1")
    | _affine("fc2", "mlp.fc2")
)
QWEN_VISION_LAYER = (
    _affine("norm1", "norm1", "weight")
    | _affine("norm2", "norm2", "weight")
    | _affine("qkv", "attn.qkv")
    | _affine("proj", "attn.proj")
    | _affine("linear_fc1", "mlp.linear_fc1")
    | _affine("linear_fc2", "mlp.linear_fc2")
)
QWEN_MERGER = (
    _affine("norm", "norm", "weight") | _affine("linear_fc1", "linear_fc1") | _affine("linear_fc2", "linear_fc2")
)


def _under(ours: str, theirs: str, table: dict[str, str]) -> dict[str, str]:
    return {f"{ours}/{key}": f"{theirs}.{name}" for key, name in table.items()}


def table(model: LanguageModel) -> dict[str, str]:
    """Their name by our path; `{}` in a name stands for the index on our axis 0."""
    if isinstance(model, SmolVLM):
        seen = (
            _affine("vision_model/embeddings/patch_embedding", "model.vision_model.embeddings.patch_embedding")
            | {"vision_model/embeddings/position_embedding": "model.vision_model.embeddings.position_embedding.weight"}
            | _under("vision_model/layers", "model.vision_model.encoder.layers.{}", SIGLIP_LAYER)
            | _affine("vision_model/post_layernorm", "model.vision_model.post_layernorm", "weight")
            | {"connector/kernel": "model.connector.modality_projection.proj.weight"}
        )
        decoder = "model.text_model"
    elif isinstance(model, Qwen3VL):
        seen = (
            _affine("vision_model/patch_embed", "model.visual.patch_embed.proj")
            | {"vision_model/pos_embed": "model.visual.pos_embed.weight"}
            | _under("vision_model/layers", "model.visual.blocks.{}", QWEN_VISION_LAYER)
            | _under("vision_model/merger", "model.visual.merger", QWEN_MERGER)
        )
        if model.vision.taps:
            seen |= _under("vision_model/deep_mergers", "model.visual.deepstack_merger_list.{}", QWEN_MERGER)
        decoder = "model.language_model"
    else:
        seen, decoder = {}, "model"
    return seen | of_decoder(model, decoder)


def of_decoder(model: LanguageModel, root: str) -> dict[str, str]:
    layer = QWEN_LAYER if model.text.qk_norm else LLAMA_LAYER
    found = {"text_model/embed_tokens": f"{root}.embed_tokens.weight", "text_model/norm/weight": f"{root}.norm.weight"}
    found |= _under("text_model/layers", f"{root}.layers.{{}}", layer)
    return found if model.text.tied_head else found | {"lm_head": "lm_head.weight"}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a published checkpoint and the place it fills."""

    name: str
    shape: tuple[int, ...]  # theirs
    path: str  # ours
    index: int | None  # on our axis 0

    @property
    def is_turned(self) -> bool:
        return self.path.endswith("/kernel") or self.path == "lm_head"

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(len(array), -1).T if self.is_turned else array

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.T if self.is_turned else array).reshape(self.shape)


def tensors(model: LanguageModel, shapes: dict[str, tuple[int, ...]]) -> list[Tensor]:
    """Every tensor of a model, given our shapes by path."""
    found = []
    for path, name in table(model).items():
        for index in range(shapes[path][0]) if "{}" in name else (None,):
            shape = shapes[path][1:] if index is not None else shapes[path]
            tensor = Tensor(name.format(index), shape, path, index)
            if tensor.is_turned:
                shape = _convolution(model, path) or shape[:0:-1] + shape[:1]
            found.append(Tensor(tensor.name, shape, path, index))
    return found


def _convolution(model: LanguageModel, path: str) -> tuple[int, ...]:
    """The shape of a convolution's weight; () for what is none."""
    if isinstance(model, SmolVLM) and "patch_embedding" in path:
        side = model.vision.patch_size
        return model.vision.width, 3, side, side
    if isinstance(model, Qwen3VL) and "patch_embed" in path:
        vision = model.vision
        return vision.width, 3, vision.frames, vision.patch_size, vision.patch_size
    return ()
