"""SmolVLM (Idefics3): a SigLIP tower, a pixel-shuffle connector and a Llama decoder.

One architecture for all sizes; `SmolVLM()` is the tiny one that is trained from scratch. The decoder knows not how its
tokens are laid out: the caller gives positions and an `attend` function, which may keep keys and values per layer.
Source: reference sheet "models", section 2.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, UInt8

from jaxvlmrl.models.layers import (
    ByLayer,
    LayerNorm,
    Linear,
    Params,
    RMSNorm,
    apply,
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
class VisionConfig:
    """The tower. An image is square and has (image_size / patch_size)^2 patches."""

    image_size: int = 32
    patch_size: int = 8
    width: int = 64
    mlp_width: int = 128
    num_layers: int = 1
    num_heads: int = 4
    eps: float = 1e-6


@dataclass(unsafe_hash=True)
class TextConfig:
    """The decoder."""

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


def _all(x: jax.Array) -> jax.Array:
    return x


class VisionLayer(nn.Module):
    """Pre-norm transformer block with full attention."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b P D"]) -> Float[Array, "*b P D"]:
        c = self.config
        h = LayerNorm(c.eps, name="layer_norm1")(x)
        heads = lambda name: rearrange(
            Linear(c.width, use_bias=True, name=name)(h), "... p (n h) -> ... n p h", n=c.num_heads
        )
        q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
        scores = jnp.einsum("...nph,...nsh->...nps", q, k) * (c.width // c.num_heads) ** -0.5
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(x.dtype)
        out = rearrange(jnp.einsum("...nps,...nsh->...nph", weights, v), "... n p h -> ... p (n h)")
        x = x + Linear(c.width, use_bias=True, name="out_proj")(out)
        h = LayerNorm(c.eps, name="layer_norm2")(x)
        h = jax.nn.gelu(Linear(c.mlp_width, use_bias=True, name="fc1")(h), approximate=True)
        return x + Linear(c.width, use_bias=True, name="fc2")(h)


class VisionEmbeddings(nn.Module):
    """Patches and their learned positions, before the layers."""

    config: VisionConfig

    @nn.compact
    def __call__(self, patches: Float[Array, "*b P F"]) -> Float[Array, "*b P D"]:
        c = self.config
        x = Linear(c.width, use_bias=True, name="patch_embedding")(patches)
        init = nn.initializers.normal(0.02)
        positions = self.param("position_embedding", init, (patches.shape[-2], c.width))
        return x + jnp.broadcast_to(positions.astype(x.dtype), x.shape)


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
        k = rotate(split(Linear(c.num_kv_heads * c.head_dim, name="k_proj")(h)), *rotary)
        v = split(Linear(c.num_kv_heads * c.head_dim, name="v_proj")(h))
        out, kept = attend(rotate(q, *map(pick, rotary)), k, v, kept)
        x = pick(x) + Linear(c.width, name="o_proj")(rearrange(out, "... n h -> ... (n h)"))
        h = RMSNorm(c.eps, name="post_attention_layernorm")(x)
        gate = jax.nn.silu(Linear(c.mlp_width, name="gate_proj")(h))
        return x + Linear(c.width, name="down_proj")(gate * Linear(c.mlp_width, name="up_proj")(h)), kept


@dataclass(unsafe_hash=True)
class SmolVLM:
    """The whole model as pure functions of its parameters."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    shuffle: int = 2  # shuffle x shuffle patches make one image token
    dtype: str = "float32"  # of activations

    @property
    def num_image_tokens(self) -> int:
        return (self.vision.image_size // self.vision.patch_size // self.shuffle) ** 2

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32; stacked layers on axis 0."""
        keys = iter(jax.random.split(key, 8))
        vision, text = self.vision, self.text
        num_patches = (vision.image_size // vision.patch_size) ** 2
        patches = jnp.zeros((1, num_patches, 3 * vision.patch_size**2))
        grown = jnp.zeros((1, self.num_image_tokens, vision.width * self.shuffle**2))
        alone: Attend = lambda q, k, v, kept: (q, kept)
        layer_args = (jnp.zeros((1, 1, text.width)), (jnp.zeros((1, 1, text.head_dim // 2)),) * 2, None, alone, _all)
        embedding = nn.initializers.normal(0.02)
        return {
            "vision_model": {
                "embeddings": VisionEmbeddings(vision).init(next(keys), patches)["params"],
                "layers": stack_init(
                    VisionLayer(vision), next(keys), vision.num_layers, jnp.zeros((1, 1, vision.width))
                ),
                "post_layernorm": LayerNorm(vision.eps).init(next(keys), jnp.zeros((1, vision.width)))["params"],
            },
            "connector": Linear(text.width).init(next(keys), grown)["params"],
            "text_model": {
                "embed_tokens": embedding(next(keys), (text.vocab_size, text.width)),
                "layers": stack_init(DecoderLayer(text), next(keys), text.num_layers, *layer_args),
                "norm": RMSNorm(text.eps).init(next(keys), layer_args[0])["params"],
            },
            "lm_head": embedding(next(keys), (text.width, text.vocab_size)),
        }

    def image_tokens(self, params: Params, images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b I D"]:
        """What the decoder sees of images of the tower's own size."""
        c, vision = self.vision, params["vision_model"]
        pixels = (images.astype(self.dtype) / 255 - 0.5) / 0.5
        patches = rearrange(pixels, "... (r p) (c q) k -> ... (r c) (k p q)", p=c.patch_size, q=c.patch_size)
        x = apply(VisionEmbeddings(c), vision["embeddings"], patches)
        step = lambda x, layer: (apply(VisionLayer(c), layer, x), None)
        x, _ = scan_layers(step, x, vision["layers"])
        x = apply(LayerNorm(c.eps), vision["post_layernorm"], x)
        side = c.image_size // c.patch_size
        grown = rearrange(
            x, "... (r s c t) d -> ... (r c) (s t d)", r=side // self.shuffle, s=self.shuffle, t=self.shuffle
        )
        return apply(Linear(self.text.width), params["connector"], grown)

    def embed(self, params: Params, ids: Int[Array, "*b L"]) -> Float[Array, "*b L D"]:
        return params["text_model"]["embed_tokens"].astype(self.dtype)[ids]

    def decode(
        self,
        params: Params,
        x: Float[Array, "*b L D"],
        positions: Int[Array, "*b L"],
        kept: ByLayer,
        attend: Attend,
        pick: Pick | None = None,
    ) -> tuple[Float[Array, "*b Q D"], ByLayer]:
        """(hidden states after the final norm, what `attend` kept of each layer).

        `kept` is given to `attend` layer by layer. `pick` chooses the tokens whose final states are wanted: the last layer
        spends queries and its MLP on these only, which saves a quarter of a two-layer model.
        """
        c, text = self.text, params["text_model"]
        rotary = rotary_angles(positions, c.head_dim, c.rope_theta)
        layers = ByLayer.of(text["layers"])
        run = lambda layer, x, kept, pick: apply(DecoderLayer(c), layer, x, rotary, kept, attend, pick)
        x, first = scan_layers(lambda x, xs: run(xs[0], x, xs[1], _all), x, (layers.first, kept.first))
        x, last = run(layers.last, x, kept.last, pick or _all)
        return apply(RMSNorm(c.eps), text["norm"], x), ByLayer(first, last)

    def logits(self, params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits over the whole vocabulary."""
        flat = hidden.reshape(-1, hidden.shape[-1]) @ params["lm_head"].astype(hidden.dtype)
        return flat.astype(jnp.float32).reshape(*hidden.shape[:-1], -1)
