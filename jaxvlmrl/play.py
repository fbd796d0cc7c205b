"""Playing, and watching a policy play: `python -m jaxvlmrl.play [--checkpoint=DIR] [--port=8300]`.

A page on this machine alone: a person plays GridWalker by keys or typed commands; beside it the checkpoint plays the same
board, with its words, probabilities, value and attention. Without a checkpoint the person plays beside scripted players.
"""

import argparse
import os
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import NoReturn

BAD_INPUT = 2  # exit code, as `command_line` has it; importing that takes the seconds in which the page shall be there

try:
    from jaxvlmrl.playing.app import HERE, Loading, QuietServer, listen, make_app, make_server
except ModuleNotFoundError:
    if __name__ != "__main__":
        raise
    print("jaxvlmrl.play: it needs an extra: pip install 'jaxvlmrl[serve]'", file=sys.stderr)
    sys.exit(BAD_INPUT)


class Flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"jaxvlmrl.play: {message}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def read_flags(argv: list[str]) -> argparse.Namespace:
    flags = Flags("jaxvlmrl.play", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--checkpoint", type=Path, help="a run directory")
    flags.add_argument("--port", type=int, default=8300, help="0 for any that is free")
    given = flags.parse_args(argv[1:])
    if not 0 <= given.port < 1 << 16:
        flags.error(f"--port={given.port} is outside 0..65535")
    if given.checkpoint is not None and not (given.checkpoint / "config.json").is_file():
        flags.error(f"{given.checkpoint} is no run directory: it has no config.json")
    if given.checkpoint is not None and not any(saved.name.isdigit() for saved in given.checkpoint.glob("best/*")):
        flags.error(f"{given.checkpoint} has no checkpoint yet: nothing in it has been validated")
    return given


def keep_compiled() -> None:
    """What is compiled once stays: the picture for people takes half a minute the first time, and none later."""
    import jax

    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxvlmrl"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def load(checkpoint: Path | None, loading: Loading, server: QuietServer) -> None:
    """A person can play first, then the others; stops the server where a checkpoint cannot be read."""
    try:
        keep_compiled()
        from jaxvlmrl.playing import game

        game.person(game.FIRST)
        loading.board.set_result(game)
        from jaxvlmrl.playing.table import Table, load_model

        table = Table(None if checkpoint is None else load_model(checkpoint))
    except Exception as error:
        loading.table.set_exception(error)
        server.stop()
    else:
        loading.table.set_result(table)
        table.warm_up()


def main(argv: list[str]) -> int:
    given = read_flags(argv)
    try:
        listener = listen(given.port)
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"jaxvlmrl.play: port {given.port} cannot be had ({reason}); choose another --port", file=sys.stderr)
        return BAD_INPUT
    loading = Loading(given.checkpoint and given.checkpoint.resolve().name, Future(), Future())
    server = make_server(make_app(loading))
    threading.Thread(target=load, args=(given.checkpoint, loading, server), daemon=True).start()
    print(f"open http://{HERE}:{listener.getsockname()[1]} (ends with Ctrl-C)", flush=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return 0
    return failed(loading)


def failed(loading: Loading) -> int:
    """The exit code of a server that ended by itself."""
    error = loading.table.exception() if loading.table.done() else None
    if error is None:
        return 0
    if not isinstance(error, ValueError):  # a ConfigError is one, and its sentence is for people
        raise error
    print(f"jaxvlmrl.play: {error}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    code = main(sys.argv)
    sys.stdout.flush()
    os._exit(code)  # what is being compiled in the other thread would abort the interpreter's own way out
