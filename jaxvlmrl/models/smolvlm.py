"""SmolVLM (Idefics3): a SigLIP tower, a pixel-shuffle connector and a Llama decoder.

One architecture for all sizes: `SmolVLM()` is the tiny one that is trained from scratch, `smolvlm_256m()` and
`smolvlm2_500m()` have the sizes of the published checkpoints. Source: reference sheet "models", section 2.
"""

from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, UInt8

from jaxvlmrl.models.decoder import TextConfig, VisionLanguageModel
from jaxvlmrl.models.layers import LayerNorm, Linear, Params, apply, attend_to_all, scan_layers, stack_init
from jaxvlmrl.models.processing import resize

ENLARGED = 4  # the processor makes the longer side so many tiles first


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
        out = attend_to_all(heads("q_proj"), heads("k_proj"), heads("v_proj"))
        x = x + Linear(c.width, use_bias=True, name="out_proj")(rearrange(out, "... n p h -> ... p (n h)"))
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


@dataclass(unsafe_hash=True)
class SmolVLM(VisionLanguageModel):
    """The whole model as pure functions of its parameters."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    shuffle: int = 2  # shuffle x shuffle patches make one image token

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures the model looks at."""
        return self.vision.image_size, self.vision.image_size

    @property
    def num_image_tokens(self) -> int:
        return (self.vision.image_size // self.vision.patch_size // self.shuffle) ** 2

    def image_positions(self) -> tuple[np.ndarray, int]:
        """(positions [I] of a picture's tokens from where it begins, how far it moves the running position)."""
        return np.arange(self.num_image_tokens, dtype=np.int32), self.num_image_tokens

    def check(self) -> None:
        """Raises ValueError for sizes no network can be made of."""
        super().check()
        c = self.vision
        if c.width % c.num_heads:
            raise ValueError(f"config.model.vision.width = {c.width} cannot be cut into {c.num_heads} heads")
        if c.image_size % (c.patch_size * self.shuffle):
            raise ValueError(f"{c.image_size} pixels are no whole number of shuffled patches of {c.patch_size}")

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32; stacked layers on axis 0."""
        keys = iter(jax.random.split(key, 8))
        c = self.vision
        patches = jnp.zeros((1, (c.image_size // c.patch_size) ** 2, 3 * c.patch_size**2))
        grown = jnp.zeros((1, self.num_image_tokens, c.width * self.shuffle**2))
        hidden = jnp.zeros((1, 1, c.width))
        return {
            "vision_model": {
                "embeddings": VisionEmbeddings(c).init(next(keys), patches)["params"],
                "layers": stack_init(VisionLayer(c), next(keys), c.num_layers, hidden),
                "post_layernorm": LayerNorm(c.eps).init(next(keys), hidden)["params"],
            },
            "connector": Linear(self.text.width).init(next(keys), grown)["params"],
        } | self.init_text(keys)

    def image_tokens(self, params: Params, images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b I D"]:
        """What the decoder sees of images."""
        if images.shape[-3:-1] != self.image_shape:
            images = self.resized(images)
        return self.image_tokens_of_pixels(params, (images.astype(jnp.float32) / 255 - 0.5) / 0.5)

    def resized(self, images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h2 w2 3"]:
        """To the tower's size by way of four times that, as SmolVLM's processor does without splitting."""
        height, width = images.shape[-3:-1]
        longest = ENLARGED * self.vision.image_size
        other = int(longest * min(height, width) / max(height, width))
        other += other % 2
        large = (other, longest) if width >= height else (longest, other)
        large_images = resize(images, *large).astype(jnp.uint8)
        return resize(large_images, *self.image_shape)

    def image_tokens_of_pixels(self, params: Params, pixels: Float[Array, "*b h w 3"]) -> Float[Array, "*b I D"]:
        """The same of pixels from -1 to 1, as an image processor makes them."""
        c, vision = self.vision, params["vision_model"]
        patches = rearrange(
            pixels.astype(self.dtype), "... (r p) (c q) k -> ... (r c) (k p q)", p=c.patch_size, q=c.patch_size
        )
        x = apply(VisionEmbeddings(c), vision["embeddings"], patches)
        step = lambda x, layer: (apply(VisionLayer(c), layer, x), None)
        x, _ = scan_layers(jax.checkpoint(step) if self.remat else step, x, vision["layers"])
        x = apply(LayerNorm(c.eps), vision["post_layernorm"], x)
        side = c.image_size // c.patch_size
        grown = rearrange(
            x, "... (r s c t) d -> ... (r c) (s t d)", r=side // self.shuffle, s=self.shuffle, t=self.shuffle
        )
        return apply(Linear(self.text.width), params["connector"], grown)


def smolvlm_256m(**overrides: Any) -> SmolVLM:
    """SmolVLM-256M's sizes: 256,484,928 parameters."""
    text = TextConfig(
        vocab_size=49280,
        width=576,
        mlp_width=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rope_theta=1e5,
    )
    return SmolVLM(**{"text": text, "vision": _tower(), "shuffle": 4} | overrides)


def smolvlm2_500m(**overrides: Any) -> SmolVLM:
    """SmolVLM2-500M's sizes: 507,482,304 parameters."""
    text = TextConfig(
        vocab_size=49280, width=960, mlp_width=2560, num_layers=32, num_heads=15, num_kv_heads=5, head_dim=64,
        rope_theta=1e5,
    )  # fmt: skip
    return SmolVLM(**{"text": text, "vision": _tower(), "shuffle": 4} | overrides)


def _tower() -> VisionConfig:
    return VisionConfig(image_size=512, patch_size=16, width=768, mlp_width=3072, num_layers=12, num_heads=12)
