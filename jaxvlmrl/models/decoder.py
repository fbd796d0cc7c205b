"""The decoder of every model here: Llama's block, with Qwen3's additions as configuration.

It knows not how its tokens are laid out: the caller gives positions and an `attend` function, which may keep keys and values
per layer. Parameters of the layers are stacked for `lax.scan` where a program is trained, and taken apart by `unstacked`
where it decodes: a loop over tokens would otherwise copy every layer's weights out of the stack for each of them.
Source: reference sheet "models", sections 2.1 and 3.2.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, UInt8

from jaxvlmrl.models.layers import (
    Linear,
    Params,
    RMSNorm,
    apply,
    at_layer,
    between,
    rotary_angles,
    rotate,
    scan_layers,
    stack_init,
)

# (queries [*b Q N H], keys [*b L K H], values [*b L K H], what is kept for the layer) -> (out [*b Q N H], what to keep)
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
# [*b L ...] -> [*b Q ...], the tokens whose last hidden states are wanted
Pick = Callable[[jax.Array], jax.Array]


@dataclass(unsafe_hash=True)
class TextConfig:
    """Sizes of a decoder."""

    vocab_size: int = 320
    width: int = 96
    mlp_width: int = 256
    num_layers: int = 2
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 48
    rope_theta: float = 1e4
    max_positions: int = 8192
    eps: float = 1e-5
    tied_head: bool = False  # the output head is the embedding
    qk_norm: bool = False  # Qwen3's: queries and keys normalised by head
    mrope_sections: tuple = ()  # Qwen3-VL's: how many frequencies turn with time, height and width


def _all(x: jax.Array) -> jax.Array:
    return x


class DecoderLayer(nn.Module):
    """Llama block: grouped-query attention with rotary positions, SwiGLU."""

    config: TextConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "*b L D"], rotary: tuple[jax.Array, jax.Array], kept: Any, attend: Attend, pick: Pick
    ):
        c = self.config
        h = RMSNorm(c.eps, name="input_layernorm")(x)
        split = lambda y: rearrange(y, "... (n h) -> ... n h", h=c.head_dim)
        q = split(Linear(c.num_heads * c.head_dim, name="q_proj")(pick(h)))
        k = split(Linear(c.num_kv_heads * c.head_dim, name="k_proj")(h))
        v = split(Linear(c.num_kv_heads * c.head_dim, name="v_proj")(h))
        if c.qk_norm:
            q, k = RMSNorm(c.eps, name="q_norm")(q), RMSNorm(c.eps, name="k_norm")(k)
        out, kept = attend(rotate(q, *map(pick, rotary)), rotate(k, *rotary), v, kept)
        x = pick(x) + Linear(c.width, name="o_proj")(rearrange(out, "... n h -> ... (n h)"))
        h = RMSNorm(c.eps, name="post_attention_layernorm")(x)
        gate = jax.nn.silu(Linear(c.mlp_width, name="gate_proj")(h))
        return x + Linear(c.width, name="down_proj")(gate * Linear(c.mlp_width, name="up_proj")(h)), kept


@dataclass(unsafe_hash=True)
class LanguageModel:
    """A decoder as pure functions of its parameters; models that see are made of it."""

    text: TextConfig = field(default_factory=TextConfig)
    dtype: str = field(default="float32", metadata={"choices": ("float32", "bfloat16")})  # of activations
    # of parameters that are not trained; those that are stay in float32
    param_dtype: str = field(default="float32", metadata={"choices": ("float32", "bfloat16")})
    remat: bool = False  # layers are computed again in the backward pass, for memory
    # to start from: a Hugging Face folder, or "smollm2" or a .gguf file for the decoder; else random ones
    weights: str = ""

    def check(self) -> None:
        """Raises ValueError for sizes no network can be made of."""
        text = self.text
        if text.num_heads % text.num_kv_heads or text.head_dim % 2:
            raise ValueError("config.model.text.num_heads must be a multiple of num_kv_heads, and head_dim even")
        if text.mrope_sections and sum(text.mrope_sections) != text.head_dim // 2:
            raise ValueError("config.model.text.mrope_sections must add up to half of head_dim")

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32; stacked layers on axis 0."""
        return self.init_text(iter(jax.random.split(key, 4)))

    def init_text(self, keys: Iterator[jax.Array]) -> Params:
        """Fresh parameters of the decoder and its head, float32; layers stacked on axis 0."""
        text = self.text
        alone: Attend = lambda q, k, v, kept: (q, kept)
        half = (jnp.zeros((1, 1, text.head_dim // 2)),) * 2
        hidden = jnp.zeros((1, 1, text.width))
        embedding = nn.initializers.normal(0.02)
        params: Params = {
            "text_model": {
                "embed_tokens": embedding(next(keys), (text.vocab_size, text.width)),
                "layers": stack_init(DecoderLayer(text), next(keys), text.num_layers, hidden, half, None, alone, _all),
                "norm": RMSNorm(text.eps).init(next(keys), hidden)["params"],
            }
        }
        if not text.tied_head:
            params["lm_head"] = embedding(next(keys), (text.width, text.vocab_size))
        return params

    def unstacked(self, params: Params) -> Params:
        """The same parameters ready to decode with: every layer by itself, in the type of the activations."""
        cast = lambda part: jax.tree.map(lambda x: x.astype(self.dtype), part)
        text = cast(params["text_model"])
        layers = [at_layer(text["layers"], index) for index in range(self.text.num_layers)]
        head = {"lm_head": cast(params["lm_head"])} if "lm_head" in params else {}
        return params | {"text_model": text | {"layers": layers}} | head

    def embed(self, params: Params, ids: Int[Array, "*b L"]) -> Float[Array, "*b L D"]:
        return params["text_model"]["embed_tokens"][ids].astype(self.dtype)

    def decode(
        self,
        params: Params,
        x: Float[Array, "*b L E"],
        positions: Int[Array, "..."],
        kept: Sequence[Any] | None,
        attend: Attend,
        pick: Pick = _all,
    ) -> tuple[Float[Array, "*b Q D"], list[Any]]:
        """(hidden states after the final norm, what `attend` kept of each layer).

        x is D wide, or (1 + taps) D where pictures may be: what lies behind the first D is added after the first layers
        (DeepStack). `kept` is given to `attend` layer by layer. `pick` chooses the tokens whose final states are wanted: the
        last layer spends queries and its MLP on these only, which saves a quarter of a two-layer model.
        """
        c, text = self.text, params["text_model"]
        x, *deep = jnp.split(x, x.shape[-1] // c.width, axis=-1)
        rotary = rotary_angles(positions, x.ndim - 1, c.head_dim, c.rope_theta, c.mrope_sections)
        kept_now: list[Any] = list(kept) if kept is not None else [None] * c.num_layers
        run = lambda layer, x, kept, pick: apply(DecoderLayer(c), layer, x, rotary, kept, attend, pick)
        if self.remat:
            run = jax.checkpoint(run, static_argnums=3)
        layers, last = text["layers"], c.num_layers - 1
        at_once = last if isinstance(layers, list) else len(deep)  # the layers before this one are not scanned
        for index in range(at_once):
            x, kept_now[index] = run(at_layer(layers, index), x, kept_now[index], _all)
            x = x + deep[index] if index < len(deep) else x
        if at_once < last:
            middle = between(layers, at_once, last), jax.tree.map(stack, *kept_now[at_once:last])
            x, found = scan_layers(lambda x, xs: run(xs[0], x, xs[1], _all), x, middle)
            kept_now[at_once:last] = [at_layer(found, index) for index in range(last - at_once)]
        x, kept_now[last] = run(at_layer(layers, last), x, kept_now[last], pick)
        return apply(RMSNorm(c.eps), text["norm"], x), kept_now

    def logits(self, params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits over the whole vocabulary; in bfloat16 those between 16 and 32 would be eighths."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        tied = self.text.tied_head
        head = (params["text_model"]["embed_tokens"] if tied else params["lm_head"]).astype(hidden.dtype)
        product = "nd,vd->nv" if tied else "nd,dv->nv"
        logits = jnp.einsum(product, flat, head, preferred_element_type=jnp.float32)
        return logits.reshape(*hidden.shape[:-1], -1)


@dataclass(unsafe_hash=True)
class VisionLanguageModel(LanguageModel, ABC):
    """A decoder that sees: what the conversation asks of every model. A new family is a subclass in a file of its own."""

    resize: bool = False  # frames of another size, as the model's own image processor would; off: an error

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures the model looks at."""

    @property
    @abstractmethod
    def num_image_tokens(self) -> int:
        """I, of a picture."""

    @abstractmethod
    def image_positions(self) -> tuple[np.ndarray, int]:
        """(positions [I] or [I, 3] of a picture's tokens from where it begins, how far it moves the running position)."""

    @abstractmethod
    def image_tokens(self, params: Params, images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b I E"]:
        """What the decoder sees of pictures: I embeddings, with what DeepStack adds to later layers behind each."""


def stack(*parts: jax.Array) -> jax.Array:
    return jnp.stack(parts)
