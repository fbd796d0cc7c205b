"""Qwen3-VL (dense): a tower with rotary positions, mergers, DeepStack, and Qwen3's decoder with interleaved M-RoPE.

Pictures have one size, so that everything about their grid is known when a program is traced. What the tower sees early
(DeepStack) travels behind each image token, `(1 + taps) D` numbers wide, to the decoder's first layers.
Source: reference sheet "models", section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Float, UInt8

from jaxvlmrl.models.decoder import TextConfig, VisionLanguageModel
from jaxvlmrl.models.layers import (
    LayerNorm,
    Linear,
    Params,
    apply,
    at_layer,
    attend_to_all,
    between,
    rotate,
    scan_layers,
    stack_init,
)
from jaxvlmrl.models.processing import resize

ROTARY_THETA = 1e4  # of the tower


@dataclass(unsafe_hash=True)
class VisionConfig:
    """The tower, and the size of the pictures it looks at."""

    height: int = 32  # of a picture in pixels, a multiple of patch_size * merge
    width_pixels: int = 32
    patch_size: int = 8
    frames: int = 2  # a still picture fills this many slots in time
    merge: int = 2  # merge x merge patches make one image token
    width: int = 64
    mlp_width: int = 128
    num_layers: int = 3
    num_heads: int = 4
    position_side: int = 8  # the learned table has position_side^2 rows
    taps: tuple = (0,)  # layers whose output DeepStack takes, counted from 0
    eps: float = 1e-6

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.height // self.patch_size, self.width_pixels // self.patch_size


class VisionLayer(nn.Module):
    """Pre-norm transformer block; queries and keys are turned by row and column."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b P D"], cos: Float[Array, "P half"], sin: Float[Array, "P half"]):
        c = self.config
        qkv = Linear(3 * c.width, use_bias=True, name="qkv")(LayerNorm(c.eps, name="norm1")(x))
        q, k, v = rearrange(qkv, "... p (s n h) -> s ... p n h", s=3, n=c.num_heads)
        shape = (*x.shape[:-1], cos.shape[-1])
        turned = (jnp.broadcast_to(cos, shape), jnp.broadcast_to(sin, shape))
        q, k, v = (jnp.swapaxes(y, -2, -3) for y in (rotate(q, *turned), rotate(k, *turned), v))
        out = rearrange(attend_to_all(q, k, v), "... n p h -> ... p (n h)")
        x = x + Linear(c.width, use_bias=True, name="proj")(out)
        h = Linear(c.mlp_width, use_bias=True, name="linear_fc1")(LayerNorm(c.eps, name="norm2")(x))
        return x + Linear(c.width, use_bias=True, name="linear_fc2")(jax.nn.gelu(h, approximate=True))


class _Merger(nn.Module):
    """Patches of a block to one image token. The main merger normalises patches, DeepStack's whole blocks."""

    config: VisionConfig
    width: int
    is_deep: bool

    @nn.compact
    def __call__(self, x: Float[Array, "*b P D"]) -> Float[Array, "*b I E"]:
        c = self.config
        grouped = lambda x: rearrange(x, "... (i m) d -> ... i (m d)", m=c.merge**2)
        norm = LayerNorm(c.eps, name="norm")
        x = norm(grouped(x)) if self.is_deep else grouped(norm(x))
        x = jax.nn.gelu(Linear(x.shape[-1], use_bias=True, name="linear_fc1")(x), approximate=False)
        return Linear(self.width, use_bias=True, name="linear_fc2")(x)


@dataclass(unsafe_hash=True)
class Qwen3VL(VisionLanguageModel):
    """The whole model as pure functions of its parameters."""

    text: TextConfig = field(
        default_factory=lambda: TextConfig(
            num_layers=3, rope_theta=5e6, eps=1e-6, tied_head=True, qk_norm=True, mrope_sections=(8, 8, 8)
        )
    )
    vision: VisionConfig = field(default_factory=VisionConfig)

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures the model looks at."""
        return self.vision.height, self.vision.width_pixels

    @property
    def num_image_tokens(self) -> int:
        rows, columns = self.vision.grid
        return rows * columns // self.vision.merge**2

    def image_positions(self) -> tuple[np.ndarray, int]:
        """(positions [I, 3] of a picture's tokens from where it begins, how far it moves the running position)."""
        rows, columns = (side // self.vision.merge for side in self.vision.grid)
        row, column = np.divmod(np.arange(rows * columns, dtype=np.int32), columns)
        return np.stack([np.zeros_like(row), row, column], axis=-1), max(rows, columns)

    def check(self) -> None:
        """Raises ValueError for sizes no network can be made of."""
        super().check()
        c = self.vision
        if c.width % (4 * c.num_heads):
            raise ValueError(f"config.model.vision.width = {c.width} must be a multiple of 4 x {c.num_heads} heads")
        if c.height % (c.patch_size * c.merge) or c.width_pixels % (c.patch_size * c.merge):
            raise ValueError(f"pictures must have sides that are multiples of {c.patch_size * c.merge} pixels")
        if list(c.taps) != sorted(set(c.taps)) or any(not 0 <= tap < c.num_layers for tap in c.taps):
            raise ValueError(f"config.model.vision.taps = {c.taps} are no rising layers of {c.num_layers}")
        if len(c.taps) >= self.text.num_layers:
            raise ValueError(f"{len(c.taps)} taps need a decoder of more than {self.text.num_layers} layers")

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32; stacked layers on axis 0."""
        keys = iter(jax.random.split(key, 8))
        c = self.vision
        patches = jnp.zeros((1, c.merge**2, c.width))
        turn = jnp.zeros((c.merge**2, c.width // c.num_heads // 2))
        merger = partial(_Merger, c, self.text.width)
        visual = {
            "patch_embed": Linear(c.width, use_bias=True).init(next(keys), patches_of_nothing(c))["params"],
            "pos_embed": nn.initializers.normal(0.02)(next(keys), (c.position_side**2, c.width)),
            "layers": stack_init(VisionLayer(c), next(keys), c.num_layers, patches, turn, turn),
            "merger": merger(is_deep=False).init(next(keys), patches)["params"],
        }
        deep_key = next(keys)
        if c.taps:
            visual["deep_mergers"] = stack_init(merger(is_deep=True), deep_key, len(c.taps), patches)
        return {"vision_model": visual} | self.init_text(iter(jax.random.split(next(keys), 4)))

    def image_tokens(self, params: Params, images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b I E"]:
        """What the decoder sees of pictures: image tokens with DeepStack's additions behind them."""
        if images.shape[-3:-1] != self.image_shape:
            images = resize(images, *self.image_shape, kernel="bicubic")
        return self.image_tokens_of_pixels(params, (images.astype(jnp.float32) / 255 - 0.5) / 0.5)

    def image_tokens_of_pixels(self, params: Params, pixels: Float[Array, "*b h w 3"]) -> Float[Array, "*b I E"]:
        """The same of pixels from -1 to 1, as an image processor makes them."""
        c, visual = self.vision, params["vision_model"]
        x = apply(Linear(c.width, use_bias=True), visual["patch_embed"], patches(c, pixels).astype(self.dtype))
        x = x + jnp.broadcast_to(learned_positions(c, visual["pos_embed"]).astype(x.dtype), x.shape)
        turn = vision_rotary(c)
        step = lambda x, layer: (apply(VisionLayer(c), layer, x, *turn), None)
        step = jax.checkpoint(step) if self.remat else step
        merge = partial(_Merger, c, self.text.width)
        deep, start = [], 0
        for index, tap in enumerate((*c.taps, c.num_layers - 1)):
            x, _ = scan_layers(step, x, between(visual["layers"], start, tap + 1))
            if index < len(c.taps):
                deep.append(apply(merge(is_deep=True), at_layer(visual["deep_mergers"], index), x))
            start = tap + 1
        return jnp.concatenate([apply(merge(is_deep=False), visual["merger"], x), *deep], axis=-1)

    def embed(self, params: Params, ids: jax.Array) -> Float[Array, "*b L E"]:
        x = super().embed(params, ids)
        return jnp.pad(x, [(0, 0)] * ids.ndim + [(0, len(self.vision.taps) * self.text.width)])


def by_block(config: VisionConfig) -> Callable[[np.ndarray], np.ndarray]:
    """Reorders [rows, columns, ...] of patches to [P, ...]: block by block, so that a token's patches are neighbours."""
    rows, columns = (side // config.merge for side in config.grid)
    m = config.merge
    return lambda x: rearrange(x, "(r m) (c n) ... -> (r c m n) ...", r=rows, c=columns, m=m, n=m)


def patches(config: VisionConfig, pixels: Float[Array, "*b h w 3"]) -> Float[Array, "*b P F"]:
    """Flat patches, (channel, time, row, column) within one, by merge block; a still picture in every time slot."""
    p, m = config.patch_size, config.merge
    flat = rearrange(pixels, "... (r m p) (c n q) k -> ... (r c m n) k (p q)", p=p, q=p, m=m, n=m)
    return repeat(flat, "... k s -> ... (k t s)", t=config.frames)


def patches_of_nothing(config: VisionConfig) -> jax.Array:
    return jnp.zeros((1, 3 * config.frames * config.patch_size**2))


def learned_positions(config: VisionConfig, table: Float[Array, "rows D"]) -> Float[Array, "P D"]:
    """The position table, sampled bilinearly at the patches of a picture with its corners on the table's."""
    side, order = config.position_side, by_block(config)
    taps = []
    for count in config.grid:
        at = np.arange(count, dtype=np.float32) * np.float32(side - 1) / np.float32(max(count - 1, 1))
        low = np.floor(at).astype(np.int32)
        taps.append([(low, 1 - (at - low)), (np.minimum(low + 1, side - 1), at - low)])
    total = jnp.zeros((config.grid[0] * config.grid[1], table.shape[-1]), jnp.float32)
    for row, row_weight in taps[0]:
        for column, column_weight in taps[1]:
            index = order(row[:, None] * side + column[None, :])
            weight = order(row_weight[:, None] * column_weight[None, :]).astype(np.float32)
            rows = table[index].astype(jnp.float32)
            total = total + rows * jnp.broadcast_to(weight[:, None], rows.shape)
    return total


def vision_rotary(config: VisionConfig) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) [P, head_dim / 2] float32: the first half of the frequencies turns with the row, the second the column."""
    half = config.width // config.num_heads // 2
    frequencies = (ROTARY_THETA ** (-np.arange(0, half, 2, dtype=np.float32) / half)).astype(np.float32)
    rows, columns = np.indices(config.grid, dtype=np.float32)
    place = by_block(config)(np.stack([rows, columns], axis=-1))
    angles = (place[:, :, None] * frequencies).reshape(len(place), half)
    return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))


def qwen3_vl_2b(height: int = 256, width: int = 256, **overrides: Any) -> Qwen3VL:
    """Qwen3-VL-2B's sizes, for pictures of height x width pixels: 2,127,532,032 parameters."""
    text = TextConfig(
        vocab_size=151936, width=2048, mlp_width=6144, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128,
        rope_theta=5e6, max_positions=262144, eps=1e-6, tied_head=True, qk_norm=True, mrope_sections=(24, 20, 20),
    )  # fmt: skip
    tower = VisionConfig(
        height, width, patch_size=16, width=1024, mlp_width=4096, num_layers=24, num_heads=16, position_side=48,
        taps=(5, 11, 17),
    )  # fmt: skip
    return Qwen3VL(**{"text": text, "vision": tower} | overrides)
