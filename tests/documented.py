"""The commands of README.md and docs/*.md: where they stand, and which flags their programs really have."""

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from absl import flags

ROOT = Path(__file__).parent.parent
STARTS = ("python ", "python3 ", "pip ", "bash ", ".venv/bin/", ".ci/")
PLACEHOLDERS = {
    "configs/NAME.py": "configs/quickstart.py",
    "--config=...": "--config=configs/quickstart.py",
    "--config.a.b=value": "--config.algorithm.clip_eps=0.1",
    "--memory=GIB": "--memory=8",
}


class Command(NamedTuple):
    """As it is written, with one space between words."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """Those of a shell, options in brackets taken, placeholders of configs filled in; `python` where it is a venv's."""
        text = re.sub(r"\s*\[(\w+ \.\.\.)\]", "", self.text)
        for placeholder, value in PLACEHOLDERS.items():
            text = text.replace(placeholder, value)
        words = shlex.split(re.sub(r"[\[\]]", "", text))
        words[0] = re.sub(r"^(\.venv/bin/)?python3?$", "python", words[0])
        return words

    @property
    def program(self) -> str:
        """`jaxvlmrl.train`, `experiments/seeds.py`, `pytest`, or the first word of another command."""
        first, *rest = self.words
        if first != "python":
            return first
        return rest[1] if rest[0] == "-m" else rest[0]

    @property
    def arguments(self) -> list[str]:
        return self.words[3 if self.words[1] == "-m" else 2 :] if self.words[0] == "python" else self.words[1:]

    @property
    def flags(self) -> list[str]:
        """As they are written, without dashes and value; `no` before that of a switch stays."""
        return [match[1] for word in self.arguments if (match := re.match(r"--([^=]+)", word))]


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[Command]:
    """All of them, each once a page."""
    found = {
        Command(page.relative_to(ROOT).as_posix(), text) for page in pages() for text in commands_in(page.read_text())
    }
    return sorted(found)


def commands_in(text: str) -> list[str]:
    """Of fenced blocks that are not Python's, a line or a part between `&&` each; and of spans of code in the prose."""
    fence = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", flags=re.MULTILINE | re.DOTALL)
    lines = []
    for language, block in fence.findall(text):
        if language in ("", "bash", "sh", "shell", "console"):
            lines += block.replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`]+)`", re.sub(r"``.*?``", "", fence.sub("", text)))
    parts = [
        " ".join(part.split()).removeprefix("$ ") for line in lines for part in re.split(r"&&|\|(?=\s*tee)|#", line)
    ]
    return [part for part in parts if part.startswith(STARTS)]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def source_of(program: str) -> Path:
    """The file of a module or a script. Raises AssertionError where there is none."""
    if program.endswith((".py", ".sh")) or "/" in program:
        path = ROOT / program
    else:
        spec = importlib.util.find_spec(program)
        assert spec is not None, f"there is no module {program}"
        path = Path(spec.origin or "")
        path = path.with_name("__main__.py") if path.name == "__init__.py" else path
    assert path.is_file(), f"there is no {path}"
    return path


def flags_of(program: str) -> set[str]:
    """What `define` declares, and what the source declares with absl or argparse, or looks for as "--name"."""
    text = source_of(program).read_text()
    found = {"help"} | ({"config"} if "read_config" in text else set())
    define = None if program.endswith(".py") else getattr(importlib.import_module(program), "define", None)
    if define is not None:
        define(values := flags.FlagValues())
        found |= set(values) | {f"no{name}" for name in values if values[name].boolean}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            names = [word.value for word in node.args[:1] if isinstance(word, ast.Constant)]
            if node.func.attr.startswith("DEFINE_") or node.func.attr == "add_argument":
                found |= {str(name).removeprefix("--") for name in names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {match[1] for match in [re.fullmatch(r"--([a-z_]+)=?", node.value)] if match}
    return found
