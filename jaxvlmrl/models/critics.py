"""Critics: what a turn is worth. A network of its own on the picture, or a head on the policy's last prompt state.

Neither sends a gradient into the policy. Source: DESIGN 5; reference sheet "vl_dac", "Value head".
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, UInt8

from jaxvlmrl.models.layers import Linear, Params, apply


class _CNN(nn.Module):
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    hidden: int

    @nn.compact
    def __call__(self, images: UInt8[Array, "N h w 3"]) -> Float[Array, " N"]:
        x = images.astype(jnp.float32) / 255 - 0.5
        for width, stride in zip(self.widths, self.strides, strict=True):
            # Kernel and stride are equal, so a convolution is a matrix product on blocks.
            x = rearrange(x, "n (r p) (c q) k -> n r c (p q k)", p=stride, q=stride)
            x = nn.relu(Linear(width, use_bias=True, init_scale=2.0)(x))
        x = nn.relu(Linear(self.hidden, use_bias=True, init_scale=2.0)(rearrange(x, "n r c k -> n (r c k)")))
        return Linear(1, use_bias=True, init_scale=0.01)(x)[:, 0]


@dataclass(unsafe_hash=True)
class CNNCritic:
    """A convolutional network on one frame. The product of `strides` divides the picture's sides."""

    widths: tuple[int, ...] = (32, 64)
    strides: tuple[int, ...] = (4, 2)
    hidden: int = 128
    reads_hidden: bool = False

    def _network(self) -> _CNN:
        return _CNN(self.widths, self.strides, self.hidden)

    def init(self, key: jax.Array, height: int, width: int, model_width: int) -> Params:
        del model_width
        return self._network().init(key, jnp.zeros((1, height, width, 3), jnp.uint8))["params"]

    def value(self, params: Params, images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b"]:
        flat = images.reshape(-1, *images.shape[-3:])
        return apply(self._network(), params, flat).reshape(images.shape[:-3])


class _Head(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b"]:
        x = hidden
        for width in self.widths:
            x = nn.relu(Linear(width, use_bias=True)(x))
        return Linear(1, use_bias=True, init_scale=0.01)(x)[..., 0]


@dataclass(unsafe_hash=True)
class ValueHead:
    """VL-DAC's own: an MLP on the decoder's state at the prompt's last token, behind a stop-gradient.

    `stop_gradient=False` is RL4VLM's, for ablation.
    """

    widths: tuple[int, ...] = (256, 128)
    stop_gradient: bool = True
    reads_hidden: bool = True

    def init(self, key: jax.Array, height: int, width: int, model_width: int) -> Params:
        del height, width
        return _Head(self.widths).init(key, jnp.zeros((1, model_width)))["params"]

    def value(self, params: Params, hidden: Float[Array, "*b D"]) -> Float[Array, "*b"]:
        if self.stop_gradient:
            hidden = jax.lax.stop_gradient(hidden)
        return apply(_Head(self.widths), params, hidden.astype(jnp.float32))


Critic = CNNCritic | ValueHead
CRITICS: dict[str, type[Critic]] = {"cnn_critic": CNNCritic, "value_head": ValueHead}  # by their names in a config
