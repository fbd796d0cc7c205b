"""Published-style models without torch: recorded activations, weights in and out, adapters, bad folders."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxvlmrl import adapters
from jaxvlmrl.adapters import Tuning
from jaxvlmrl.models import weights
from jaxvlmrl.models.generation import generate, prompt
from jaxvlmrl.models.paths import by_path
from jaxvlmrl.models.qwen3_vl import Qwen3VL, qwen3_vl_2b
from jaxvlmrl.models.smolvlm import SmolVLM, smolvlm2_500m, smolvlm_256m
from jaxvlmrl.models.weights import WeightsError
from tests.models import IMAGE_ID, OVERRIDES, SPECIAL, conversation, logits_of

DATA = Path(__file__).parent / "data" / "models"
FAMILIES = ["smolvlm", "qwen3_vl"]


@pytest.fixture(scope="module", params=FAMILIES)
def recorded(request: pytest.FixtureRequest):
    """(family, folder, model, parameters, what transformers said of it)."""
    folder = DATA / request.param
    model = weights.read_model(folder, **OVERRIDES[request.param])
    return request.param, folder, model, weights.load(model, folder), np.load(folder / "golden.npz")


def test_recorded_logits(recorded):
    family, _, model, params, golden = recorded
    ids, images = conversation(family, model.num_image_tokens)
    np.testing.assert_array_equal(ids, golden["ids"])
    np.testing.assert_allclose(logits_of(model, params, ids, images), golden["logits"], atol=1e-4)


def test_logits_of_a_bfloat16_model_are_not_rounded_to_bfloat16(recorded):
    _, _, model, params, _ = recorded
    hidden = jax.random.normal(jax.random.key(0), (8, model.text.width), jnp.bfloat16)
    logits = model.logits(params, hidden)
    assert logits.dtype == jnp.float32
    assert (logits != logits.astype(jnp.bfloat16)).any()


def test_recorded_image_features(recorded):
    family, _, model, params, golden = recorded
    images = conversation(family, model.num_image_tokens)[1]
    with jax.default_matmul_precision("highest"):
        tokens = np.asarray(jax.jit(model.image_tokens)(params, jnp.asarray(images)))
    np.testing.assert_allclose(tokens[0, ..., : model.text.width], golden["image_tokens"], atol=1e-5)


def test_recorded_generation(recorded):
    family, _, model, params, golden = recorded
    ids, images = conversation(family, model.num_image_tokens)

    @jax.jit
    def run(params):
        start = prompt(model, params, jnp.asarray(ids), model.image_tokens(params, jnp.asarray(images)), IMAGE_ID)
        return generate(model, params, *start, num_tokens=64)

    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(np.asarray(run(params))[0], golden["generated"])


def test_published_sizes():
    for model, expected in (
        (smolvlm_256m(), 256_484_928),
        (smolvlm2_500m(), 507_482_304),
        (qwen3_vl_2b(), 2_127_532_032),
    ):
        shapes = weights.parameter_shapes(model)
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == expected


@pytest.mark.parametrize("model", [SmolVLM(), Qwen3VL()], ids=FAMILIES)
@pytest.mark.parametrize("shard_bytes", [1 << 40, 100_000])
def test_export_and_load_are_inverse(model, shard_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", shard_bytes)
    params = jax.jit(model.init)(jax.random.key(0))
    weights.export(model, params, tmp_path, SPECIAL["qwen3_vl"])
    assert len(list(tmp_path.glob("*.safetensors"))) > (1 if shard_bytes < 1e6 else 0)
    again = weights.read_model(tmp_path, **({"height": 32, "width_pixels": 32} if isinstance(model, Qwen3VL) else {}))
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, weights.load(again, tmp_path), params)
    half = weights.load(again, tmp_path, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}


def spoiled(folder: Path, tmp_path: Path, change) -> Path:
    shutil.copytree(folder, tmp_path / "spoiled")
    file = tmp_path / "spoiled" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return tmp_path / "spoiled"


def test_tensors_that_do_not_fit_are_all_named(recorded, tmp_path: Path):
    _, folder, model, _, _ = recorded
    name = next(name for name in load_file(folder / "model.safetensors") if "layers.1" in name and "q_proj" in name)

    def change(tensors):
        tensors["more.weight"] = np.zeros(3, np.float32)
        tensors[name] = np.zeros((2, 2), np.float32)
        tensors.pop(next(key for key in tensors if "embed_tokens" in key))

    with pytest.raises(WeightsError) as error:
        weights.load(model, spoiled(folder, tmp_path, change))
    for words in ("1 missing", "embed_tokens", "1 unknown (more.weight)", "1 of another shape", name, "(2, 2)"):
        assert words in str(error.value)


def test_bad_folders_are_one_sentence(recorded, tmp_path: Path):
    family, folder, model, _, _ = recorded
    with pytest.raises(WeightsError, match=r"no config\.json"):
        weights.load(model, tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        weights.load(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="cannot be read"):
        weights.load(model, tmp_path)
    wider = dataclasses.replace(model, text=dataclasses.replace(model.text, mlp_width=97))
    with pytest.raises(WeightsError, match=r"text\.mlp_width: 96 in the folder, 97 here"):
        weights.load(wider, folder)
    other = Qwen3VL() if family == "smolvlm" else SmolVLM()
    with pytest.raises(WeightsError, match="in the folder"):
        weights.load(other, folder)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mystery"}))
    with pytest.raises(WeightsError, match="mystery are not known"):
        weights.read_model(tmp_path)


# Adapters and freezing

LORA = Tuning(lora=(r"text_model/layers/(q|v)_proj", r"vision_model/layers/.*"), frozen=(".*",), rank=3, alpha=6.0)


def test_fresh_adapters_change_nothing(recorded):
    family, _, model, params, _ = recorded
    ids, images = conversation(family, model.num_image_tokens)
    adapted = adapters.add(params, LORA, jax.random.key(0))
    assert len(by_path(adapted)) > len(by_path(params))
    np.testing.assert_allclose(logits_of(model, adapted, ids, images), logits_of(model, params, ids, images), atol=2e-5)


def moved(params):
    """The same with adapters that do something."""
    leaves = by_path(params)
    noise = lambda path: 0.1 * jax.random.normal(jax.random.key(len(path)), leaves[path].shape)
    return adapters.from_paths({path: noise(path) if path.endswith("lora_b") else x for path, x in leaves.items()})


def test_merged_adapters_say_the_same(recorded):
    family, _, model, params, _ = recorded
    ids, images = conversation(family, model.num_image_tokens)
    adapted = moved(adapters.add(params, LORA, jax.random.key(0)))
    logits = logits_of(model, adapted, ids, images)
    assert np.abs(logits - logits_of(model, params, ids, images)).max() > 0.01
    merged = adapters.merged(adapted)
    assert by_path(merged).keys() == by_path(params).keys()
    np.testing.assert_allclose(logits_of(model, merged, ids, images), logits, atol=2e-5 * np.abs(logits).max())


def test_only_what_is_trained_is_split_off(recorded):
    _, _, _, params, _ = recorded
    adapted = adapters.add(params, LORA, jax.random.key(0))
    trained, frozen = adapters.split(adapted, LORA)
    assert {path.rpartition("/")[2] for path in by_path(trained)} == {"lora_a", "lora_b"}
    jax.tree.map(np.testing.assert_array_equal, adapters.joined(trained, frozen), adapted)
    tower = Tuning(frozen=("vision_model/.*",))
    trained, frozen = adapters.split(params, tower)
    assert all(path.startswith("vision_model/") for path in by_path(frozen))
    assert not any(path.startswith("vision_model/") for path in by_path(trained))


def test_dropout_drops_what_adapters_read(recorded):
    family, _, model, params, _ = recorded
    ids, images = conversation(family, model.num_image_tokens)
    adapted = moved(adapters.add(params, LORA, jax.random.key(0)))
    dropped = [adapters.with_dropout(adapted, 0.5, jax.random.key(seed)) for seed in (0, 0, 1)]
    first, again, other = (logits_of(model, each, ids, images) for each in dropped)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    nothing = logits_of(model, adapters.with_dropout(adapted, 0.0, jax.random.key(0)), ids, images)
    np.testing.assert_allclose(nothing, logits_of(model, adapted, ids, images), atol=1e-5)


def test_a_pattern_that_names_nothing_is_refused(recorded):
    with pytest.raises(ValueError, match="no linear layer"):
        adapters.add(recorded[3], Tuning(lora=("text_model/layers/z_proj",)), jax.random.key(0))
    with pytest.raises(ValueError, match="no parameter"):
        adapters.add(recorded[3], Tuning(frozen=("vision_modle/.*",)), jax.random.key(0))
    with pytest.raises(ValueError, match="which is none"):
        adapters.add(recorded[3], Tuning(lora=("(",)), jax.random.key(0))
    with pytest.raises(ValueError, match="nothing to train"):
        adapters.prepared(recorded[3], Tuning(frozen=(".*",)), "float32", jax.random.key(0))


def test_what_is_trained_is_kept_in_float32(recorded):
    prepared = adapters.prepared(recorded[3], LORA, "bfloat16", jax.random.key(0))
    trained, frozen = adapters.split(prepared, LORA)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained)} == {"float32"}
    kinds = {path.rpartition("/")[2]: leaf.dtype.name for path, leaf in by_path(frozen).items()}
    assert (kinds["kernel"], kinds["lora_scale"]) == ("bfloat16", "float32")
