"""Pictures as clients send them, data URIs, made what the policy looks at.

One way for everybody who asks one server: decoded by Pillow, turned as its EXIF says, laid on white where it is transparent,
and where the size is another one, resized by Pillow:

    middle     the middle of the policy's shape, by NEAREST: for the policies of this package. A world's camera keeps its
               vertical angle, so that a wider picture shows more at its sides, and training's frames have one ray a pixel
    smolvlm    the whole, squeezed, by LANCZOS by way of four times the size: SmolVLM's own processor without tiles
    qwen3_vl   the whole, squeezed, by BICUBIC

The original game's 256 x 151 frames at reference quality, greedy, first 100 test games of experiments/quickstart, which wins
97 with its own frames: 93 by "middle"; 86 with BOX, 84 BILINEAR, 81 LANCZOS in place of NEAREST; 50 squeezed whole by BOX.
"""

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from jaxvlmrl.models.processing import SmolVLMImages
from jaxvlmrl.models.smolvlm import ENLARGED
from jaxvlmrl.serving.conversations import Picture
from jaxvlmrl.serving.errors import RequestError

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/jpg": "JPEG", "image/webp": "WEBP"}
WAYS = ("middle", "smolvlm", "qwen3_vl")


@dataclass(frozen=True)
class Eyes:
    """The shape a policy looks at, and how large a picture may be."""

    height: int
    width: int
    way: str  # of WAYS
    max_bytes: int = 8 << 20  # of the file
    max_pixels: int = 1 << 24

    def see(self, url: str, param: str, spend: Callable[[int], None] = lambda pixels: None) -> Picture:
        """Raises `RequestError` for what is no picture in a data URI, and what `spend` raises of its pixels."""
        refuse = lambda message, code="invalid_image": RequestError(message, code=code, param=param)
        head, comma, data = url.partition(",")
        kind, *options = head.removeprefix("data:").lower().split(";")
        if not url.startswith("data:"):
            raise refuse("pictures are sent as data: URIs; this server fetches nothing", "invalid_image_url")
        if kind not in FORMATS or "base64" not in options or not comma:
            raise refuse(
                f"a picture is data:image/png;base64,... (or jpeg, webp), not {head[:60]!r}", "invalid_image_format"
            )
        if len(data) > self.max_bytes * 4 // 3 + 4:
            raise refuse(f"a picture's file has more than {self.max_bytes} bytes", "image_too_large")
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise refuse("a picture's base64 cannot be decoded") from error
        return Picture.of(self._decoded(content, FORMATS[kind], refuse, spend))

    def _decoded(self, content: bytes, expected: str, refuse, spend) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(content), formats=[expected]) as image:  # reads the header only
                width, height = image.size
                if width * height > self.max_pixels:
                    raise refuse(
                        f"a picture of {width} x {height} is above {self.max_pixels} pixels", "image_too_large"
                    )
                spend(width * height)
                image.load()
                return self.fitted(ImageOps.exif_transpose(image))
        except RequestError:
            raise
        except Image.DecompressionBombError as error:  # far above, Pillow itself looks no further than the header
            raise refuse(f"a picture is above {self.max_pixels} pixels", "image_too_large") from error
        except Exception as error:  # Pillow's decoders raise whatever they stumble over
            raise refuse(f"a picture is no {expected} that can be read") from error

    def fitted(self, image: Image.Image) -> np.ndarray:
        """[height, width, 3] uint8."""
        image = on_white(image)
        size = (self.width, self.height)
        if image.size == size:
            return np.asarray(image)
        if self.way == "middle":
            return np.asarray(ImageOps.fit(image, size, Image.Resampling.NEAREST))
        if self.way == "smolvlm":
            enlarged = SmolVLMImages(tile=self.height, longest=ENLARGED * self.height).enlarged(image)
            return np.asarray(enlarged.resize(size, Image.Resampling.LANCZOS))
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def on_white(image: Image.Image) -> Image.Image:
    """In three colours."""
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image).convert("RGB")
