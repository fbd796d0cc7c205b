"""Text to action and back, on the host: the game's command grammar and the harness's answer parser.

An action is one int32: `LEFT`, `RIGHT`, `FORWARD + n` for "forward n" (n >= 0), or `UNPARSABLE`.
The same answer parser on the device is `answer_parser.py`; the two are property-tested against each other.
"""

import re

from envs_jax.grid_walker.layout import JS_SPACE

UNPARSABLE, LEFT, RIGHT, FORWARD = -1, 0, 1, 2
MAX_COUNT = 10_000  # a larger n means the same: the game caps it at twice the board's size

_SPACES = re.compile(f"[{re.escape(JS_SPACE)}]+")
_LEADING_INTEGER = re.compile(r"[+-]?[0-9]+")
_BACKTICKS = re.compile(r"`([^`]+)`")
_FORWARD = re.compile(r"\bforward\s+(\d+)\b")


def parse_command(text: str) -> int:
    """What the game makes of a typed command, as an action.

    First word `left`, `right` or `forward`; n is the leading integer of the second word. Whatever the game refuses
    ("forward 0" too) is `UNPARSABLE`.
    """
    words = [word for word in _SPACES.split(text.strip(JS_SPACE).lower()) if word]
    if words[:1] == ["left"]:
        return LEFT
    if words[:1] == ["right"]:
        return RIGHT
    if words[:1] == ["forward"] and len(words) > 1:
        number = _LEADING_INTEGER.match(words[1])
        count = _saturated(number.group()) if number else 0
        return FORWARD + count if count >= 1 else UNPARSABLE
    return UNPARSABLE


def parse_answer(text: str) -> int:
    """What the harness reads in a model's answer, as an action.

    Lower-cased; first inside the first non-empty pair of backticks, then in the whole text; "left" wins over "right",
    which wins over the first "forward <digits>". "forward 0" is read, and refused later by the game.
    """
    text = text.lower()
    quoted = _BACKTICKS.search(text)
    for candidate in ([quoted.group(1)] if quoted else []) + [text]:
        if re.search(r"\bleft\b", candidate):
            return LEFT
        if re.search(r"\bright\b", candidate):
            return RIGHT
        if number := _FORWARD.search(candidate):
            return FORWARD + _saturated(number.group(1))
    return UNPARSABLE


def command_text(action: int) -> str:
    """The command of an action: "left", "right", "forward 3"."""
    if action < 0:
        raise ValueError(f"action {action} is no command")
    return ("left", "right")[action] if action < FORWARD else f"forward {action - FORWARD}"


def answer_text(action: int) -> str:
    """The answer the harness asks for: the command in backticks."""
    return f"`{command_text(action)}`"


def _saturated(digits: str) -> int:
    """int(digits) within +-MAX_COUNT; any length, any script's decimal digits."""
    sign = -1 if digits[0] == "-" else 1
    significant = "".join(str(int(d)) for d in digits.lstrip("+-")).lstrip("0")
    return sign * min(int(significant[:6] or "0"), MAX_COUNT)
