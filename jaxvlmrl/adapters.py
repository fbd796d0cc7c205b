"""LoRA and freezing, from outside the networks: by parameter path, on any linear layer.

An adapter is leaves beside a kernel [..., in, out]: `lora_a` [..., in, r], `lora_b` [..., r, out], `lora_scale` [...], which
`Linear` adds where it finds them, in rollouts as in training. `split` takes a tree apart into what is trained and what is
not; only the former has gradients, optimiser state and checkpoints. Source: Hu et al. (2021); DESIGN 5.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvlmrl.models.layers import Params
from jaxvlmrl.models.paths import by_path, from_paths

LINEAR = ("lora_a", "lora_b", "lora_scale")


@dataclass(unsafe_hash=True)
class Tuning:
    """What of a model is trained. Patterns are regular expressions over whole paths, without the last part.

    `text_model/layers/(q|v)_proj` is all layers' queries and values; `(text_model|vision_model)/layers/.*` every layer.
    """

    frozen: tuple = ()  # what stays as it is; with LoRA, kernels that carry an adapter stay too
    lora: tuple = ()  # linear layers that get an adapter
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0  # of what adapters read, in imitation only

    @property
    def trains_all(self) -> bool:
        return not self.frozen and not self.lora


def _matches(patterns: tuple[str, ...], path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def add(params: Params, tuning: Tuning, key: jax.Array) -> Params:
    """The parameters with fresh adapters, which change nothing yet: B is zero.

    Raises ValueError for a pattern that names nothing, and where nothing would be trained.
    """
    leaves = by_path(params)
    linear = {path.removesuffix("/kernel"): leaf for path, leaf in leaves.items() if path.endswith("/kernel")}
    modules = {path.rpartition("/")[0] for path in leaves}
    check_patterns("lora", tuning.lora, linear)
    check_patterns("frozen", tuning.frozen, [*leaves, *modules])
    for index, (path, kernel) in enumerate(linear.items()):
        if _matches(tuning.lora, path):
            *stack, fan_in, fan_out = kernel.shape
            bound = fan_in**-0.5  # PEFT's: Kaiming's uniform with a = sqrt(5)
            a_key = jax.random.fold_in(key, index)
            leaves[f"{path}/lora_a"] = jax.random.uniform(
                a_key, (*stack, fan_in, tuning.rank), minval=-bound, maxval=bound
            )
            leaves[f"{path}/lora_b"] = jnp.zeros((*stack, tuning.rank, fan_out))
            leaves[f"{path}/lora_scale"] = jnp.full(stack, tuning.alpha / tuning.rank)
    return from_paths(leaves)


def is_trained(tuning: Tuning, path: str) -> bool:
    """Whether a leaf is: adapters are, their kernels are not, the rest is unless it is frozen."""
    module, _, leaf = path.rpartition("/")
    if leaf in LINEAR:
        return leaf != "lora_scale"
    if leaf == "kernel" and _matches(tuning.lora, module):
        return False
    return not (_matches(tuning.frozen, module) or _matches(tuning.frozen, path))


def check_patterns(field: str, patterns: tuple[str, ...], paths: Iterable[str]) -> None:
    """Raises ValueError for a pattern that matches no path."""
    paths = list(paths)
    for pattern in patterns:
        try:
            found = any(re.fullmatch(pattern, path) for path in paths)
        except re.error as error:
            raise ValueError(f"config.tuning.{field} has the pattern {pattern}, which is none: {error}") from error
        if not found:
            what = "linear layer" if field == "lora" else "parameter"
            raise ValueError(f"config.tuning.{field} names {pattern}, which is no {what}; there are {', '.join(paths)}")


def prepared(params: Params, tuning: Tuning, frozen_dtype: str, key: jax.Array) -> Params:
    """As a run keeps them: with adapters, what is trained in float32, what is not in `frozen_dtype`.

    Raises ValueError for patterns that name nothing, and where nothing would be trained.
    """
    leaves = by_path(add(params, tuning, key))
    trained = {path for path in leaves if is_trained(tuning, path)}
    if not trained:
        raise ValueError("config.tuning leaves nothing to train")
    fixed = lambda path: path in trained or path.endswith("/lora_scale")
    return from_paths({path: x.astype("float32" if fixed(path) else frozen_dtype) for path, x in leaves.items()})


def split(params: Params, tuning: Tuning) -> tuple[Params, Params]:
    """(what is trained, what is not), whose `joined` is the whole."""
    leaves = by_path(params)
    trained = {path: leaf for path, leaf in leaves.items() if is_trained(tuning, path)}
    return from_paths(trained), from_paths({path: leaf for path, leaf in leaves.items() if path not in trained})


def joined(trained: Params, frozen: Params) -> Params:
    """Two trees without a common leaf as one."""
    whole = dict(frozen)
    for name, part in trained.items():
        whole[name] = joined(part, whole[name]) if name in whole else part
    return whole


def merged(params: Params) -> Params:
    """Without adapters: what they add is in the kernels."""
    leaves = by_path(params)
    for path in [path for path in leaves if path.endswith("/lora_a")]:
        module = path.removesuffix("/lora_a")
        a, b, scale = (leaves.pop(f"{module}/{name}") for name in LINEAR)
        kernel = leaves[f"{module}/kernel"]
        more = jnp.einsum("...ir,...ro->...io", a, b, precision="highest") * scale[..., None, None]
        leaves[f"{module}/kernel"] = (kernel.astype(jnp.float32) + more).astype(kernel.dtype)
    return from_paths(leaves)


def with_dropout(params: Params, rate: float, key: jax.Array) -> Params:
    """The same with a key beside every adapter, by which `Linear` drops a share `rate` of what the adapter reads."""
    leaves = by_path(params)
    for index, path in enumerate([path for path in leaves if path.endswith("/lora_scale")]):
        stack = leaves[path].shape
        keys = jax.random.key_data(jax.random.split(jax.random.fold_in(key, index), stack))
        leaves[path.removesuffix("lora_scale") + "lora_key"] = keys
        leaves[path.removesuffix("lora_scale") + "lora_keep"] = jnp.full(stack, 1 - rate)
    return from_paths(leaves)
