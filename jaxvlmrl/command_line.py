"""What the commands share: flags, and errors in one sentence with an exit code that is not 0."""

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxvlmrl.config import Config, ConfigError, flatten

BAD_INPUT = 2  # exit code
OF_A_CONFIG_FILE = "config_config"  # the module that ml_collections makes of what --config names


def parse(argv: Sequence[str], define: Callable[[flags.FlagValues], None]) -> flags.FlagValues:
    """The flags that `define` declares, read from argv. Raises `ConfigError` for what cannot be read."""
    values = flags.FlagValues()
    define(values)
    try:
        rest = values(list(argv))
    except flags.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        sentence = f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") else lines[0]
        raise ConfigError(sentence.rpartition("ConfigError: ")[2]) from error  # a config may have said it itself
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]} is no flag; flags are written --name=value")
    return values


def helped(argv: Sequence[str], text: str | None, define: Callable[[flags.FlagValues], None]) -> bool:
    """Whether help was asked for, which is then given: a command's own text and its flags with their defaults."""
    if "--help" not in argv:
        return False
    values = flags.FlagValues()
    define(values)
    print((text or "").strip())
    for name in values:
        default = "" if values[name].default is None else values[name].default
        print(f"  --{name}={default}  {values[name].help}")
    return True


def check_target(flag: str, path: Path) -> None:
    """Raises `ConfigError`, before any work, where no file can be written."""
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--{flag}={path} is in a folder that does not exist")
    if path.is_dir():
        raise ConfigError(f"--{flag}={path} is a folder: name a file")


def define_config(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """--config=configs/NAME.py[:variant] and an override for each of its fields."""
    help_text = "configs/NAME.py[:variant]; override fields with --config.a.b=value"
    config_flags.DEFINE_config_file("config", None, help_text, flag_values=values, sys_argv=list(argv))


def read_config(argv: Sequence[str], define: Callable[[flags.FlagValues], None]) -> tuple[Config, flags.FlagValues]:
    """(the config with its overrides, checked; all flags)."""

    def define_all(values: flags.FlagValues) -> None:
        define_config(values, argv)
        define(values)

    try:
        values = parse(argv, define_all)
    except KeyError as error:
        raise ConfigError(_first_unknown_field(argv)) from error
    except ConfigError as error:
        if "as instance of" not in str(error):  # config_flags of a value for a whole part
            raise
        raise ConfigError("a part of the config cannot be given as one value: give its fields, or name an algorithm or a "
                          "critic after the colon, --config=configs/quickstart.py:grpo") from error  # fmt: skip
    except OSError as error:
        raise ConfigError(_not_loaded(argv, error)) from error
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"an override of the config cannot be read: {str(error).splitlines()[0]}") from error
    if values["config"].value is None:
        raise ConfigError("say which config to run: --config=configs/quickstart.py")
    try:
        config = values["config"].value
        config.check()
        check_names(config, OF_A_CONFIG_FILE)
    except OSError as error:
        raise ConfigError(_not_loaded(argv, error)) from error
    return config, values


def _not_loaded(argv: Sequence[str], error: OSError) -> str:
    path = Path(_config_path(argv).partition(":")[0])
    if not path.is_file():
        return f"there is no config {path}"
    reason = str(error.__cause__ or error).strip().splitlines()
    return f"the config {_config_path(argv)} cannot be loaded: {reason[0] if reason else 'no reason given'}"


def _config_path(argv: Sequence[str]) -> str:
    """What the last --config=PATH or --config PATH names."""
    return re.findall(r"(?:^|\x00)--?config[=\x00]([^\x00]+)", "\x00".join(argv))[-1]


def _first_unknown_field(argv: Sequence[str]) -> str:
    path = _config_path(argv)
    values = flags.FlagValues()
    define_config(values, [argv[0], f"--config={path}"])
    config = values([argv[0], f"--config={path}"]) and values["config"].value
    for argument in argv:
        found = re.match(r"--(?:no)?config\.([\w.]+)", argument)
        if found and not _has(config, found[1]):
            return unknown_field(config, found[1])
    return "a field of the config does not exist"


def _has(part: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(part, name):
            return False
        part = getattr(part, name)
    return True


def config_name(values: flags.FlagValues) -> str:
    """Of --config; what `name_of` makes of it."""
    return name_of(str(config_flags.get_config_filename(values["config"])))


def name_of(config: str) -> str:
    """`quickstart` or `quickstart-grpo-tiny`, of configs/quickstart.py[:grpo,tiny]."""
    path, _, variant = config.partition(":")
    return "-".join([Path(path).stem, *filter(None, variant.split(","))])


def check_names(part: Any, home: str) -> None:
    """Raises `ConfigError` for a class of the module `home`, a config file's: config.json could not name it."""
    if type(part).__module__ == home:
        raise ConfigError(f"{type(part).__name__} is defined in the config file, which no other command can import: "
                          "put it into a module, say envs_jax or jaxvlmrl.algorithms")  # fmt: skip
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        for each in value if isinstance(value, tuple | list) else (value,):
            if dataclasses.is_dataclass(each):
                check_names(each, home)


def unknown_field(config: Any, path: str) -> str:
    """One sentence about a dotted path that is not in a config, with the nearest that is, or what there is beside it."""
    known, _ = zip(*flatten(config).items())
    known = sorted({".".join(name.split(".")[: i + 1]) for name in known for i in range(name.count(".") + 1)})
    last = [name for name in known if name.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]]
    if near := difflib.get_close_matches(path, last or known, n=1, cutoff=0.0 if last else 0.75):
        return f"config has no field {path}; the nearest is {near[0]}"
    parent = path
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    beside = [name for name in known if name.rpartition(".")[0] == parent]
    return f"config has no field {path}; there are {', '.join(beside)}"


def guarded(command: str, run: Callable[[], int]) -> None:
    """Runs a command; bad input is one sentence on stderr and exit code 2."""
    try:
        sys.exit(run())
    except ConfigError as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
