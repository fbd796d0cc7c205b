"""Pictures as a published model's own processor prepares them: on the host for any picture, on the device for frames.

On the host Pillow resizes, as transformers' Pillow processors do, so pixels are equal. On the device `resize` is Pillow's
rule (horizontally, rounded to bytes, then vertically) as two matrix products. Source: reference sheet "models", sections
2.3, 2.4, 3.4.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

LARGEST_SIDE = 4096  # of anything SmolVLM's processor makes
MAX_ASPECT = 200  # of a picture Qwen's processor takes


class Prepared(NamedTuple):
    """What a processor makes of one picture."""

    tiles: np.ndarray  # [tiles, height, width, 3] float32 from -1 to 1
    text: str  # the image tokens and what stands around them


def normalised(picture: np.ndarray) -> np.ndarray:
    """uint8 to float32 from -1 to 1."""
    return (picture.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def as_rgb(picture: Image.Image | np.ndarray) -> Image.Image:
    """A picture, or an array [height, width, 3] uint8, in three colours."""
    return (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).convert("RGB")


@dataclass(frozen=True)
class SmolVLMImages:
    """SmolVLM's image processor: longest side to `longest`, then tiles of `tile` and the whole, or one tile alone."""

    tile: int = 512
    longest: int = 2048
    num_tokens: int = 64  # of a tile
    is_split: bool = True
    around: str = "<fake_token_around_image>"
    whole: str = "<global-img>"
    token: str = "<image>"

    def __call__(self, picture: Image.Image | np.ndarray) -> Prepared:
        image = self.enlarged(as_rgb(picture))
        if not self.is_split:
            return Prepared(normalised(np.asarray(self._tile_of(image)))[None], self.words(0, 0))
        image = image.resize(self.split_size(*image.size), Image.Resampling.LANCZOS)
        rows, columns = image.height // self.tile, image.width // self.tile
        if rows * columns == 1:
            return Prepared(normalised(np.asarray(image))[None], self.words(0, 0))
        pixels, t = np.asarray(image), self.tile
        tiles = [pixels[r * t : r * t + t, c * t : c * t + t] for r in range(rows) for c in range(columns)]
        return Prepared(normalised(np.stack([*tiles, np.asarray(self._tile_of(image))])), self.words(rows, columns))

    def enlarged(self, image: Image.Image) -> Image.Image:
        """With the longer side exactly `longest`, the other one even: small pictures are enlarged too."""
        width, height = image.size
        longest, aspect = min(self.longest, LARGEST_SIDE), width / height
        other = int(longest / aspect) if width >= height else int(longest * aspect)
        other = max(other + other % 2, 1)
        return image.resize((longest, other) if width >= height else (other, longest), Image.Resampling.LANCZOS)

    def split_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in whole tiles; the longer side first and the other from it."""
        whole, aspect = lambda x: math.ceil(x / self.tile) * self.tile, width / height
        if width >= height:
            width = whole(width)
            return width, whole(int(width / aspect))
        height = whole(height)
        return whole(int(height * aspect)), height

    def _tile_of(self, image: Image.Image) -> Image.Image:
        return image.resize((self.tile, self.tile), Image.Resampling.LANCZOS)

    def words(self, rows: int, columns: int) -> str:
        """The image tokens of a picture cut into rows x columns, or of one that is not cut."""
        tile, lines = self.token * self.num_tokens, ""
        for row in range(1, rows + 1):
            lines += "".join(f"{self.around}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)) + "\n"
        return (lines + "\n" if rows else "") + f"{self.around}{self.whole}{tile}{self.around}"


@dataclass(frozen=True)
class QwenImages:
    """Qwen3-VL's image processor: sides to multiples of `multiple`, areas within bounds."""

    multiple: int = 32  # patch size x merge
    smallest: int = 65_536  # pixels
    largest: int = 16_777_216
    before: str = "<|vision_start|>"
    token: str = "<|image_pad|>"
    after: str = "<|vision_end|>"

    def __call__(self, picture: Image.Image | np.ndarray) -> Prepared:
        image = as_rgb(picture)
        height, width = self.size(image.height, image.width)
        pixels = normalised(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)))
        count = height * width // self.multiple**2
        return Prepared(pixels[None], self.before + self.token * count + self.after)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing. Raises ValueError for a picture more than 200 times as long as wide."""
        if max(height, width) / min(height, width) > MAX_ASPECT:
            raise ValueError(f"a picture of {width} x {height} pixels is too long: at most {MAX_ASPECT} to 1")
        sides = [round(side / self.multiple) * self.multiple for side in (height, width)]
        if math.prod(sides) > self.largest:
            factor = math.sqrt(height * width / self.largest)
            fit = lambda side: max(self.multiple, math.floor(side / factor / self.multiple) * self.multiple)
            return fit(height), fit(width)
        if math.prod(sides) < self.smallest:
            factor = math.sqrt(self.smallest / (height * width))
            fit = lambda side: math.ceil(side * factor / self.multiple) * self.multiple
            return fit(height), fit(width)
        return sides[0], sides[1]


# On the device


def resize(
    images: UInt8[Array, "*b h w 3"], height: int, width: int, kernel: str = "lanczos"
) -> Float[Array, "*b height width 3"]:
    """Pillow's resizing of bytes, for `jit`: whole numbers from 0 to 255, as float32. `kernel`: lanczos or bicubic."""
    to_bytes = lambda x: jnp.clip(jnp.floor(x + 0.5), 0, 255)
    x = images.astype(jnp.float32)
    if width != images.shape[-2]:
        x = to_bytes(
            jnp.einsum("wc,...rck->...rwk", resampling(images.shape[-2], width, kernel), x, precision="highest")
        )
    if height != images.shape[-3]:
        x = to_bytes(
            jnp.einsum("hr,...rwk->...hwk", resampling(images.shape[-3], height, kernel), x, precision="highest")
        )
    return x


@cache
def resampling(old: int, new: int, kernel: str) -> np.ndarray:
    """[new, old] float32 weights of Pillow's resampling along one axis."""
    reach, weigh = {"lanczos": (3.0, _lanczos), "bicubic": (2.0, _bicubic)}[kernel]
    scale = old / new
    stretch = max(scale, 1.0)
    support = reach * stretch
    weights = np.zeros((new, old))
    for index in range(new):
        centre = (index + 0.5) * scale
        first, end = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), old)
        of_pixels = weigh((np.arange(first, end) - centre + 0.5) / stretch)
        weights[index, first:end] = of_pixels / of_pixels.sum()
    return weights.astype(np.float32)


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def _bicubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))
