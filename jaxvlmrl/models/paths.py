"""Parameters by path: `text_model/layers/q_proj/kernel` names a leaf of nested dictionaries."""

from typing import Any

import jax

from jaxvlmrl.models.layers import Params


def by_path(params: Params) -> dict[str, Any]:
    """Leaves by path, in the order of the tree."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(str(key.key) for key in keys): leaf for keys, leaf in flat}


def from_paths(leaves: dict[str, Any]) -> Params:
    """The nested dictionaries that `by_path` was given."""
    root: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return root
