"""Records what transformers says of small random models: `python -m tests.record_models` writes tests/data/models.

Needs the extra `parity`. The weights are kept in the precision they are used in, so that they load to the bit.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

from jaxvlmrl.models import weights
from tests.models import OVERRIDES, conversation
from tests.test_models_parity import FAMILIES, random_model, their_inputs

DATA = Path(__file__).parent / "data" / "models"


def main() -> None:
    for family in FAMILIES:
        theirs = random_model(family, seed=1)
        theirs.save_pretrained(DATA / family)
        (DATA / family / "generation_config.json").unlink(missing_ok=True)
        model = weights.read_model(DATA / family, **OVERRIDES[family])
        ids, images = conversation(family, model.num_image_tokens)
        seen = []
        last = theirs.model.connector if family == "smolvlm" else theirs.model.visual.merger
        last.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.numpy().copy()))
        with torch.no_grad():
            inputs = their_inputs(family, model, ids, images)
            logits = theirs(**inputs).logits.numpy()
            theirs.generation_config.eos_token_id = None
            whole = theirs.generate(**inputs, max_new_tokens=64, do_sample=False)
        np.savez_compressed(
            DATA / family / "golden.npz",
            ids=ids,
            logits=logits,
            image_tokens=seen[0].reshape(3, model.num_image_tokens, -1),
            generated=whole[0, ids.shape[1] :].numpy(),
        )
    print(f"recorded with transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
