"""A trained policy for others: `python -m jaxvlmrl.export --checkpoint=RUN --to=FOLDER [--adapters]`.

Writes a folder that transformers loads: config.json, model.safetensors, the tokenizer. With --adapters only what LoRA
trained, in PEFT's format.
"""

import json
import shutil
import sys
from pathlib import Path

from absl import flags

from jaxvlmrl import acting, adapters, command_line
from jaxvlmrl.acting import Actor
from jaxvlmrl.config import ConfigError
from jaxvlmrl.models import peft_format, weights
from jaxvlmrl.models.paths import by_path
from jaxvlmrl.models.weights import WeightsError

PASSED_ON = ("preprocessor_config.json", "processor_config.json", "chat_template.jinja", "generation_config.json")


def export(actor: Actor, folder: Path) -> None:
    """The whole policy, adapters merged. Raises `WeightsError`."""
    chat = actor.policy.chat
    start = chat.prefix_ids[0]
    special = {
        "image_token_id": chat.image_id, "bos_token_id": start, "eos_token_id": chat.end_id, "pad_token_id": chat.end_id
    }  # fmt: skip
    weights.export(actor.policy.model, adapters.merged(actor.params), folder, special)
    chat.tokenizer.save(folder / "tokenizer.json")
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": chat.template.end_of_answer}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(words | {"pad_token": words["eos_token"]}, indent=2) + "\n"
    )
    source = Path(actor.config.model.weights)
    for name in PASSED_ON:
        if actor.config.model.weights and (source / name).is_file():
            shutil.copy(source / name, folder)


def check_adapters(actor: Actor) -> None:
    """Raises `ConfigError` where a policy is more than the published model with adapters."""
    trained = by_path(adapters.split(actor.params, actor.config.tuning)[0])
    others = [path for path in trained if not path.endswith(("/lora_a", "/lora_b"))]
    if actor.config.tuning.lora and others:
        raise ConfigError(f"{others[0]} was trained too: adapters alone are not the policy, export the whole of it")
    if actor.config.start_from:
        raise ConfigError("the run started from another run: its adapters do not sit on the published model")


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("checkpoint", None, "a run directory", flag_values=values)
    flags.DEFINE_string("to", None, "a folder that is not there yet, or empty", flag_values=values)
    flags.DEFINE_boolean("adapters", False, "only the adapters, for PEFT", flag_values=values)


def main(argv: list[str]) -> int:
    if command_line.helped(argv, __doc__, define):
        return 0
    given = command_line.parse(argv, define).flag_values_dict()
    if given["checkpoint"] is None or given["to"] is None:
        raise ConfigError("say what to export, and where: --checkpoint=RUN --to=FOLDER")
    folder = Path(given["to"])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty: nothing is overwritten")
    actor = acting.load_policy(given["checkpoint"])
    try:
        if given["adapters"]:
            check_adapters(actor)
            peft_format.export_adapters(actor.policy.model, actor.params, folder)
        else:
            export(actor, folder)
    except WeightsError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {error.strerror}") from error
    print(f"wrote {folder}")
    return 0


if __name__ == "__main__":
    command_line.guarded("jaxvlmrl.export", lambda: main(sys.argv))
