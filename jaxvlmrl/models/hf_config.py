"""config.json of Hugging Face folders and our dataclasses, in both directions.

Defaults are those of the classes that write these files: SmolVLM's leaves out what SigLIP's class has anyway.
Source: reference sheet "models", section 1.
"""

import dataclasses
from typing import Any

from jaxvlmrl.models import qwen3_vl, smolvlm
from jaxvlmrl.models.decoder import LanguageModel, TextConfig
from jaxvlmrl.models.qwen3_vl import Qwen3VL
from jaxvlmrl.models.smolvlm import SmolVLM

SMOLVLM_TYPES, QWEN_TYPES, LLAMA_TYPES = ("smolvlm", "idefics3"), ("qwen3_vl",), ("llama",)
# Our name: theirs and their class's default; ... where the file must say it.
TEXT = {
    "vocab_size": ("vocab_size", ...),
    "width": ("hidden_size", ...),
    "mlp_width": ("intermediate_size", ...),
    "num_layers": ("num_hidden_layers", ...),
    "num_heads": ("num_attention_heads", ...),
    "max_positions": ("max_position_embeddings", 8192),
    "eps": ("rms_norm_eps", 1e-5),
}
SIGLIP = {
    "image_size": ("image_size", 512),
    "patch_size": ("patch_size", 16),
    "width": ("hidden_size", 768),
    "mlp_width": ("intermediate_size", 3072),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "eps": ("layer_norm_eps", 1e-6),
}
QWEN_TOWER = {
    "patch_size": ("patch_size", 16),
    "frames": ("temporal_patch_size", 2),
    "merge": ("spatial_merge_size", 2),
    "width": ("hidden_size", ...),
    "mlp_width": ("intermediate_size", ...),
    "num_layers": ("depth", ...),
    "num_heads": ("num_heads", ...),
}


def _read(table: dict[str, tuple[str, Any]], data: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for ours, (theirs, default) in table.items():
        value = data.get(theirs, default)
        if value is ...:
            raise KeyError(theirs)
        found[ours] = value
    return found


def _write(table: dict[str, tuple[str, Any]], part: Any) -> dict[str, Any]:
    return {theirs: getattr(part, ours) for ours, (theirs, _) in table.items()}


def _decoder(data: dict[str, Any], tied: bool, **fields: Any) -> TextConfig:
    found = _read(TEXT, data)
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"rotary embedding of type {kind} is not known")
    return TextConfig(
        **found,
        num_kv_heads=data.get("num_key_value_heads", found["num_heads"]),
        head_dim=data.get("head_dim") or found["width"] // found["num_heads"],
        rope_theta=float(rope.get("rope_theta", data.get("rope_theta", 1e4))),
        tied_head=tied,
        mrope_sections=tuple(rope.get("mrope_section", ())),
        **fields,
    )


def model_of(data: dict[str, Any], **overrides: Any) -> LanguageModel:
    """The model a config.json describes, without its weights. Raises KeyError or ValueError for what is not known.

    For Qwen3-VL `height` and `width_pixels` of the pictures may be given among the overrides.
    """
    kind = data.get("model_type")
    if kind in SMOLVLM_TYPES:
        text, vision = data["text_config"], data.get("vision_config", {})
        tied = bool(data.get("tie_word_embeddings", False))
        parts = {"vision": smolvlm.VisionConfig(**_read(SIGLIP, vision)), "shuffle": data.get("scale_factor", 2)}
        return SmolVLM(**{"text": _decoder(text, tied), **parts} | overrides)
    if kind in QWEN_TYPES:
        text, vision = data["text_config"], data["vision_config"]
        tied = bool(data.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
        sides = {name: overrides.pop(name) for name in ("height", "width_pixels") if name in overrides}
        tower = qwen3_vl.VisionConfig(
            **_read(QWEN_TOWER, vision), **({"height": 256, "width_pixels": 256} | sides),
            position_side=round(vision["num_position_embeddings"] ** 0.5),
            taps=tuple(vision["deepstack_visual_indexes"]),
        )  # fmt: skip
        return Qwen3VL(**{"text": _decoder(text, tied, qk_norm=True), "vision": tower} | overrides)
    if kind in LLAMA_TYPES:
        return LanguageModel(_decoder(data, bool(data.get("tie_word_embeddings", False))), **overrides)
    raise ValueError(f"models of type {kind} are not known, only {', '.join(SMOLVLM_TYPES + QWEN_TYPES + LLAMA_TYPES)}")


def differing(model: LanguageModel, data: dict[str, Any]) -> list[str]:
    """`text.width: 576 in the folder, 96 here` for every size that is not the model's."""
    theirs = model_of(data)
    if type(theirs) is not type(model):
        return [f"{type(theirs).__name__} in the folder, {type(model).__name__} here"]
    found = []
    for part in ("text", "vision"):
        if not hasattr(model, part):
            continue
        ours, other = getattr(model, part), getattr(theirs, part)
        for item in dataclasses.fields(ours):
            if item.name not in ("max_positions", "height", "width_pixels"):  # a run may use less
                a, b = getattr(other, item.name), getattr(ours, item.name)
                found += [f"{part}.{item.name}: {a} in the folder, {b} here"] if a != b else []
    return found


def to_hf(model: LanguageModel, special_ids: dict[str, int], dtype: str = "float32") -> dict[str, Any]:
    """What transformers reads. `special_ids`: image_token_id, bos_token_id, eos_token_id, pad_token_id; Qwen's own too."""
    text = model.text
    of_text = {
        key: value for key, value in special_ids.items() if key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    decoder = _write(TEXT, text) | of_text | {
        "num_key_value_heads": text.num_kv_heads,
        "head_dim": text.head_dim,
        "hidden_act": "silu",
        "rope_theta": text.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta},
        "tie_word_embeddings": text.tied_head,
    }  # fmt: skip
    whole = special_ids | {"dtype": dtype, "tie_word_embeddings": text.tied_head}
    if isinstance(model, SmolVLM):
        tower = _write(SIGLIP, model.vision) | {"hidden_act": "gelu_pytorch_tanh", "model_type": "smolvlm_vision"}
        kind = {"architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm"}
        parts = {
            "scale_factor": model.shuffle,
            "text_config": decoder | {"model_type": "llama"},
            "vision_config": tower,
        }
        return kind | whole | parts
    if isinstance(model, Qwen3VL):
        vision = model.vision
        sections = {"mrope_section": list(text.mrope_sections), "mrope_interleaved": True}
        decoder["rope_parameters"] = {"rope_type": "default", "rope_theta": text.rope_theta} | sections
        tower = _write(QWEN_TOWER, vision) | {
            "model_type": "qwen3_vl",
            "hidden_act": "gelu_pytorch_tanh",
            "out_hidden_size": text.width,
            "num_position_embeddings": vision.position_side**2,
            "deepstack_visual_indexes": list(vision.taps),
        }
        kind = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"}
        return kind | whole | {"text_config": decoder | {"model_type": "qwen3_vl_text"}, "vision_config": tower}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | decoder | whole
