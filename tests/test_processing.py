"""Pictures as the published processors prepare them. Sizes are those the reference sheet saw; pixels are Pillow's."""

import jax
import numpy as np
import pytest
from PIL import Image

from jaxvlmrl.models.processing import QwenImages, SmolVLMImages, resize

RNG = np.random.default_rng(0)


def picture(width: int, height: int) -> Image.Image:
    rough = RNG.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3)).astype(np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("size", "tiles"), [((640, 480), 13), ((512, 512), 17), ((300, 1000), 9), ((1920, 1080), 13)])
def test_smolvlm_tiles(size: tuple[int, int], tiles: int):
    found = SmolVLMImages()(picture(*size))
    assert found.tiles.shape == (tiles, 512, 512, 3)
    assert found.text.count("<image>") == 64 * tiles
    assert found.text.endswith(
        "\n\n<fake_token_around_image><global-img>" + "<image>" * 64 + "<fake_token_around_image>"
    )
    whole = SmolVLMImages(is_split=False)(picture(*size))
    assert whole.tiles.shape == (1, 512, 512, 3)
    assert "row" not in whole.text


@pytest.mark.parametrize(
    ("size", "grid"),
    [((640, 480), (30, 40)), ((1920, 1080), (68, 120)), ((100, 60), (14, 22)), ((300, 1000), (62, 18))],
)
def test_qwen_sizes(size: tuple[int, int], grid: tuple[int, int]):
    found = QwenImages()(picture(*size))
    assert found.tiles.shape[1:3] == (grid[0] * 16, grid[1] * 16)
    assert found.text.count("<|image_pad|>") == grid[0] * grid[1] // 4


def test_qwen_refuses_ribbons():
    with pytest.raises(ValueError, match="too long"):
        QwenImages().size(10, 3000)


@pytest.mark.parametrize(("side", "kernel"), [(256, "lanczos"), (48, "lanczos"), (160, "bicubic"), (64, "bicubic")])
def test_the_device_resizes_as_pillow_does(side: int, kernel: str):
    frames = RNG.integers(0, 256, (2, 64, 96, 3)).astype(np.uint8)
    method = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}[kernel]
    found = np.asarray(jax.jit(lambda x: resize(x, side, side, kernel))(jax.numpy.asarray(frames)))
    expected = np.stack([np.asarray(Image.fromarray(frame).resize((side, side), method)) for frame in frames])
    gap = np.abs(found - expected)
    assert (gap <= 1).mean() > 0.999
    assert (gap == 0).mean() > 0.99
