"""Our models against transformers', on small random weights; every parameter is random, which defaults would hide.

Needs the extra `parity`. tests/test_models.py holds what was recorded here, for where torch is missing.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxvlmrl import adapters
from jaxvlmrl.adapters import Tuning
from jaxvlmrl.models import peft_format, qwen3_vl, smolvlm, weights
from jaxvlmrl.models.attention import attend_causally
from jaxvlmrl.models.decoder import DecoderLayer
from jaxvlmrl.models.generation import generate, prompt
from jaxvlmrl.models.hf_config import to_hf
from jaxvlmrl.models.layers import apply, at_layer, rotary_angles
from jaxvlmrl.models.names import tensors
from jaxvlmrl.models.paths import by_path, from_paths
from jaxvlmrl.models.processing import QwenImages, SmolVLMImages
from jaxvlmrl.models.qwen3_vl import patches
from tests.models import IMAGE_ID, OVERRIDES, QWEN, SMOLVLM, SPECIAL, conversation, logits_of

torch = pytest.importorskip("torch", reason="torch is not installed; the extra parity has it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; the extra parity has it")

FAMILIES = ["smolvlm", "qwen3_vl"]
CLASSES = {
    "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration, SMOLVLM),
    "qwen3_vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration, QWEN),
}


def random_model(family: str, seed: int) -> Any:
    """A small model of transformers with every parameter random."""
    config_class, model_class, fields = CLASSES[family]
    torch.manual_seed(seed)
    theirs = model_class._from_config(config_class(**fields), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    theirs.tie_weights()
    return theirs


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(family, their model, its folder, our model, our parameters)."""
    family = request.param
    theirs = random_model(family, seed=0)
    folder = tmp_path_factory.mktemp(family)
    theirs.save_pretrained(folder)
    model = weights.read_model(folder, **OVERRIDES[family])
    return family, theirs, folder, model, weights.load(model, folder)


def their_inputs(family: str, model: Any, ids: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    pixels = (images.astype(np.float32) / 255 - 0.5) / 0.5
    inputs = {
        "input_ids": torch.tensor(ids, dtype=torch.long),
        "attention_mask": torch.ones(ids.shape, dtype=torch.long),
    }
    if family == "smolvlm":
        return inputs | {"pixel_values": torch.tensor(pixels.transpose(0, 1, 4, 2, 3))}
    flat = np.asarray(patches(model.vision, jnp.asarray(pixels[0])))
    grid = torch.tensor([[1, *model.vision.grid]] * len(images[0]))
    kinds = torch.tensor((ids == IMAGE_ID).astype(int))
    return inputs | {
        "pixel_values": torch.tensor(flat.reshape(-1, flat.shape[-1])), "image_grid_thw": grid, "mm_token_type_ids": kinds
    }  # fmt: skip


def test_logits_of_a_conversation_with_pictures(pair):
    family, theirs, _, model, params = pair
    ids, images = conversation(family, model.num_image_tokens)
    with torch.no_grad():
        expected = theirs(**their_inputs(family, model, ids, images)).logits.numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits_of(model, params, ids, images), expected, atol=1e-4)


def test_every_layer_by_itself(pair):
    """Each layer of the tower and of the decoder from their own input to their own output: within 1e-5."""
    family, theirs, _, model, params = pair
    ids, images = conversation(family, model.num_image_tokens)
    decoder = theirs.model.text_model if family == "smolvlm" else theirs.model.language_model
    tower = theirs.model.vision_model.encoder.layers if family == "smolvlm" else theirs.model.visual.blocks
    recorded = {"text_model": record(decoder.layers), "vision_model": record(tower)}
    with torch.no_grad():
        theirs(**their_inputs(family, model, ids, images))
    positions = prompt(model, params, jnp.asarray(ids), model.image_tokens(params, jnp.asarray(images)), IMAGE_ID)[1]
    text = model.text
    rotary = rotary_angles(positions, 2, text.head_dim, text.rope_theta, text.mrope_sections)
    run = {
        "text_model": lambda layer, x: apply(DecoderLayer(text), layer, x, rotary, None, attend_causally, lambda x: x)[
            0
        ],
        "vision_model": lambda layer, x: vision_layer(family, model, layer, x.reshape(3, -1, x.shape[-1])),
    }
    for part, pairs in recorded.items():
        assert pairs
        for index, (before, after) in enumerate(pairs):
            with jax.default_matmul_precision("highest"):
                ours = run[part](at_layer(params[part]["layers"], index), jnp.asarray(before))
            np.testing.assert_allclose(
                np.asarray(ours).reshape(after.shape), after, atol=1e-5, err_msg=f"{part} {index}"
            )


def record(layers: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and outputs of layers, filled when the model runs."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    first = lambda x: (x[0] if isinstance(x, tuple) else x).numpy()

    def note(_: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        found.append((first(args[0] if args else kwargs["hidden_states"]).copy(), first(out).copy()))

    for layer in layers:
        layer.register_forward_hook(note, with_kwargs=True)
    return found


def vision_layer(family: str, model: Any, layer: Any, x: jax.Array) -> jax.Array:
    if family == "smolvlm":
        return apply(smolvlm.VisionLayer(model.vision), layer, x)
    return apply(qwen3_vl.VisionLayer(model.vision), layer, x, *qwen3_vl.vision_rotary(model.vision))


def test_greedy_generation(pair):
    """64 tokens, one by one with cached keys and values, are transformers' own."""
    family, theirs, _, model, params = pair
    ids, images = conversation(family, model.num_image_tokens)
    with torch.no_grad():
        inputs = their_inputs(family, model, ids, images)
        theirs.generation_config.eos_token_id = None
        whole = theirs.generate(**inputs, max_new_tokens=64, do_sample=False)
    expected = whole[0, ids.shape[1] :].numpy()

    @jax.jit
    def run(params):
        start = prompt(model, params, jnp.asarray(ids), model.image_tokens(params, jnp.asarray(images)), IMAGE_ID)
        return generate(model, params, *start, num_tokens=64)

    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(np.asarray(run(params))[0], expected)


def test_transformers_loads_what_is_exported(pair, tmp_path: Path):
    family, theirs, _, model, params = pair
    ids, images = conversation(family, model.num_image_tokens)
    weights.export(model, params, tmp_path, SPECIAL[family])
    again = CLASSES[family][1].from_pretrained(tmp_path, attn_implementation="eager").eval()
    inputs = their_inputs(family, model, ids, images)
    with torch.no_grad():
        np.testing.assert_array_equal(again(**inputs).logits.numpy(), theirs(**inputs).logits.numpy())


def test_peft_loads_exported_adapters_and_back(pair, tmp_path: Path):
    peft = pytest.importorskip("peft", reason="peft is not installed; the extra parity has it")
    family, _, folder, model, params = pair
    tuning = Tuning(
        lora=("text_model/layers/.*_proj", "vision_model/layers/.*", "connector|vision_model/merger/.*"), rank=4
    )
    adapted = adapters.add(params, tuning, jax.random.key(0))
    leaves = by_path(adapted)
    for index, path in enumerate(path for path in leaves if path.endswith("lora_b")):
        leaves[path] = 0.02 * jax.random.normal(jax.random.fold_in(jax.random.key(1), index), leaves[path].shape)
    adapted = from_paths(leaves)
    peft_format.export_adapters(model, adapted, tmp_path)
    ids, images = conversation(family, model.num_image_tokens)
    base = CLASSES[family][1].from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        expected = theirs(**their_inputs(family, model, ids, images)).logits.numpy()
    ours = logits_of(model, adapted, ids, images)
    assert np.abs(ours - logits_of(model, params, ids, images)).max() > 0.01
    np.testing.assert_allclose(ours, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    theirs.save_pretrained(tmp_path / "again")
    back = peft_format.import_adapters(model, adapters.add(params, tuning, jax.random.key(2)), tmp_path / "again")
    np.testing.assert_array_equal(logits_of(model, back, ids, images), ours)


def test_names_and_shapes_of_the_published_sizes():
    """One to one with transformers' models, built without memory."""
    from transformers import Qwen3VLConfig, SmolVLMConfig

    cases = [
        (smolvlm.smolvlm_256m(), SmolVLMConfig, CLASSES["smolvlm"][1]),
        (smolvlm.smolvlm2_500m(), SmolVLMConfig, CLASSES["smolvlm"][1]),
        (qwen3_vl.qwen3_vl_2b(), Qwen3VLConfig, CLASSES["qwen3_vl"][1]),
    ]
    for model, config_class, model_class in cases:
        with torch.device("meta"):
            theirs = model_class(config_class(**to_hf(model, {"image_token_id": 1})))
        expected = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
        if model.text.tied_head:
            expected.pop("lm_head.weight")
        ours = {tensor.name: tensor.shape for tensor in tensors(model, weights.parameter_shapes(model))}
        assert ours == expected


def test_processors_are_transformers():
    """Ids and pixels of several sizes, split and whole."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    sizes = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
    smolvlm_images = SmolVLMImageProcessorPil(**sizes, **half, return_row_col_info=True)
    area = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    qwen_images = Qwen2VLImageProcessorPil(patch_size=16, size=area, **half)
    words = ("<fake_token_around_image>", "<image>", "<global-img>")
    for index, (width, height) in enumerate([(640, 480), (300, 700), (100, 60), (77, 131)]):
        noise = np.random.default_rng(index).integers(0, 256, (height, width, 3)).astype(np.uint8)
        for split in (True, False):
            theirs = smolvlm_images(Image.fromarray(noise), do_image_splitting=split, return_tensors="np")
            ours = SmolVLMImages(is_split=split)(noise)
            np.testing.assert_allclose(ours.tiles, theirs["pixel_values"][0].transpose(0, 2, 3, 1), atol=1e-6)
            rows, columns = int(theirs["rows"][0][0]), int(theirs["cols"][0][0])
            assert ours.text == get_image_prompt_string(rows, columns, 64, *words)
        theirs = qwen_images(Image.fromarray(noise), return_tensors="np")
        ours = QwenImages()(noise)
        of_size = qwen3_vl.VisionConfig(*ours.tiles.shape[1:3], patch_size=16)
        np.testing.assert_allclose(patches(of_size, jnp.asarray(ours.tiles[0])), theirs["pixel_values"], atol=1e-6)
        assert ours.text.count("<|image_pad|>") == theirs["image_grid_thw"].prod() // 4
