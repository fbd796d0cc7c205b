"""Small published-style models for several tests: configurations as transformers has them, and how to run ours on them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxvlmrl.models.attention import attend_causally
from jaxvlmrl.models.generation import prompt

IMAGE_ID = 60
SMOLVLM = {
    "image_token_id": IMAGE_ID, "scale_factor": 2, "tie_word_embeddings": False, "pad_token_id": 2,
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
        "patch_size": 8,
    },
    "text_config": {
        "model_type": "llama", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 1e5, "max_position_embeddings": 128, "pad_token_id": 2,
    },
}  # fmt: skip
QWEN = {
    "image_token_id": IMAGE_ID, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63,
    "tie_word_embeddings": True,
    "vision_config": {
        "depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "out_hidden_size": 48, "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1, 2],
    },
    "text_config": {
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "rms_norm_eps": 1e-6, "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True,
        },
    },
}  # fmt: skip
SIDES = {"smolvlm": (32, 32), "qwen3_vl": (16, 40)}  # (height, width) of a picture: not square where that can be
OVERRIDES = {"smolvlm": {}, "qwen3_vl": {"height": 16, "width_pixels": 40}}
SPECIAL = {
    "smolvlm": {"image_token_id": IMAGE_ID, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    "qwen3_vl": {
        "image_token_id": IMAGE_ID, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    },
}  # fmt: skip


def conversation(family: str, num_image_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids [1, L], pictures [1, 3, h, w, 3] uint8): three turns, each with a picture between words."""
    picture = [62, *[IMAGE_ID] * num_image_tokens, 63]
    ids = [1, 5, 6, *picture, 7, 8, 9, 2, *picture, 10, 11, 2, 12, *picture, 13, 14]
    images = np.random.default_rng(0).integers(0, 256, (1, 3, *SIDES[family], 3)).astype(np.uint8)
    return np.array([ids], np.int32), images


def logits_of(model, params, ids: np.ndarray, images: np.ndarray) -> np.ndarray:
    """[B, L, V] of a whole conversation in one pass."""

    @jax.jit
    def run(params):
        x, positions, _ = prompt(
            model, params, jnp.asarray(ids), model.image_tokens(params, jnp.asarray(images)), IMAGE_ID
        )
        hidden, _ = model.decode(params, x, positions, None, attend_causally)
        return model.logits(params, hidden)

    with jax.default_matmul_precision("highest"):
        return np.asarray(run(params))
