"""The page on which a person plays and watches the model: its server over loopback, and itself in a real browser."""

import dataclasses
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image, ImageSequence

pytest.importorskip("starlette", reason="the page's server needs the extra: serve")
pytest.importorskip("uvicorn", reason="the page's server needs the extra: serve")

from envs_jax.grid_walker.commands import parse_command
from jaxvlmrl import acting, building, runs
from jaxvlmrl.episodes import play_scripted
from jaxvlmrl.playing import game, table
from jaxvlmrl.playing.app import HERE, Loading, listen, make_app, make_server
from jaxvlmrl.playing.bad_request import BadRequest
from jaxvlmrl.playing.game import OWN, Start
from jaxvlmrl.playing.model import Model, load_model

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "experiments" / "quickstart"
FIRST = {"seed": "0", "size": 8, "blocks": 3}
SHORTEST = ("forward 3", "right", "forward 1")  # of seed 0: 4 cells in 3 commands


@pytest.fixture(scope="module")
def seat() -> Model:
    return load_model(SHIPPED)


@pytest.fixture(scope="module")
def page(seat: Model) -> Iterator[str]:
    """The address of a running page; its pictures are plain, which compile ten times as fast."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(game, "REFERENCE_UP_TO", 0)
        loading = Loading("quickstart", Future(), Future())
        loading.board.set_result(game)
        loading.table.set_result(table.Table(seat))
        server, listener = make_server(make_app(loading)), listen(0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://{HERE}:{listener.getsockname()[1]}"
        server.stop()
        thread.join(10)
        assert not thread.is_alive(), "told to stop, it stops"


def ask(page: str, name: str, data: Any, **headers: str) -> tuple[int, Any]:
    """(status, answer)"""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    request = urllib.request.Request(f"{page}/api/{name}", body, {"content-type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=500) as response:
            read = response.read()
            return response.status, read if name == "gif" else json.loads(read)
    except urllib.error.HTTPError as error:
        read = error.read()
        return error.code, json.loads(read) if read.startswith(b"{") else read.decode()


# The server


def test_a_person_wins_a_seed(page: str):
    status, view = ask(page, "person", FIRST | {"done": list(SHORTEST[:2]), "command": "  FORWARD 1st "})
    assert status == 200
    assert view["done"] == list(SHORTEST)
    assert view["score"] == {"won": True, "turns": 3, "cells": 4, "efficiency": 100}
    assert view["outcome"] == "walked 1 cell and stopped on the gold"
    status, after = ask(page, "person", FIRST | {"done": list(SHORTEST), "command": "left"})
    assert (status, after) == (200, {"refused": "the game is won; it takes no more commands"})
    assert ask(page, "person", FIRST | {"done": [*SHORTEST, "left"]})[0] == 400


@pytest.mark.parametrize("typed", ["jump", "forward 0", "forward", "", "forward ²", 7, "x" * 101, "\ud800"])
def test_what_the_game_refuses_is_said(page: str, typed: Any):
    status, answer = ask(page, "person", FIRST | {"done": ["left"], "command": typed})
    assert status == 200
    assert list(answer) == ["refused"]
    assert "\n" not in answer["refused"]


def test_what_stops_a_walk_is_said(page: str):
    """Seed 0: three cells ahead are free, and the border is four cells away."""
    walk = lambda *done: ask(page, "person", FIRST | {"done": list(done)})[1]["outcome"]
    assert walk("forward 9") == "walked 4 cells, then the wall was in the way"
    said = {walk("left", "left", f"forward {count}") for count in range(1, 8)}
    assert any("was in the way" in outcome for outcome in said)
    assert walk("left") == "turned left"


BAD = {
    "no object": ("person", [], "JSON object"),
    "seed": ("person", FIRST | {"done": [], "seed": 7}, "a seed is a text"),
    "long seed": ("person", FIRST | {"done": [], "seed": "x" * 201}, "at most 200"),
    "size": ("person", FIRST | {"done": [], "size": 33}, "2 to 32 cells"),
    "true": ("person", FIRST | {"done": [], "size": True}, "2 to 32 cells"),
    "blocks": ("person", FIRST | {"done": [], "blocks": 17}, "0 to 16 blocks"),
    "no list": ("person", FIRST, "at most 500 turns"),
    "long list": ("person", FIRST | {"done": ["left"] * 501}, "at most 500 turns"),
    "word": ("person", FIRST | {"done": ["jump"]}, "does not know “jump”"),
    "half a pair": ("person", FIRST | {"done": ["\ud800"]}, "does not know “\\ud800”"),
    "own": ("person", FIRST | {"done": [OWN]}, "commands only"),
    "larger": ("model", FIRST | {"done": [], "size": 9}, "boards up to 8 x 8"),
    "longer": ("model", FIRST | {"done": ["left"] * 51}, "room for 50 turns"),
    "after": ("model", FIRST | {"done": [*SHORTEST, OWN]}, "is won"),
    "no JSON": ("scores", b"{", "is no JSON"),
    "too deep": ("scores", b"[" * 60_000, "is no JSON"),
    "too long": ("scores", b" " * 70_000, "at most 65536 bytes"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_is_refused_in_a_sentence(page: str, what: str):
    name, data, words = BAD[what]
    status, answer = ask(page, name, data)
    assert status == 400
    assert words in answer["error"]
    assert "\n" not in answer["error"]


def test_bytes_are_counted_where_no_length_is_given(page: str):
    """Chunked, as urllib sends what it cannot measure."""
    for body, words in (([b"{"] * 9, "is no JSON"), ([b" " * 10_000] * 7, "at most 65536 bytes")):
        request = urllib.request.Request(f"{page}/api/scores", iter(body), {"content-type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=60)
        assert refusal.value.code == 400
        assert words in json.loads(refusal.value.read())["error"]


def test_other_sites_are_kept_out(page: str):
    assert ask(page, "scores", FIRST, **{"content-type": "text/plain"})[0] == 400
    assert ask(page, "scores", FIRST, host="elsewhere.example")[0] == 400
    with urllib.request.urlopen(page) as response:
        policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_everybody_plays_the_same_board(page: str):
    rows = {row.pop("player"): row for row in ask(page, "scores", FIRST | {"seed": "3"})[1]}
    env = table.player_env(Start("3", 8, 3))
    params = dataclasses.replace(env.default_params(), max_turns=table.TURNS)
    played = play_scripted(env.players()["explorer"], env, params, [3], jax.random.key(0))
    row = (bool(played.won[0]), int(played.turns[0]), int(played.efficiency[0]))
    assert row == (rows["explorer"]["won"], rows["explorer"]["turns"], rows["explorer"]["efficiency"])
    path = rows["expert, shortest path"]
    assert (path["cells"], path["turns"]) == (3, 5), "as the original's facts have it"
    assert rows["model, greedy"]["won"]
    assert "model, greedy" not in {row["player"] for row in ask(page, "scores", FIRST | {"size": 12})[1]}


def test_a_game_to_share(page: str):
    """A picture a turn, one of the end, which stands twice."""
    for done in (SHORTEST, [OWN, "right"]):
        film = Image.open(io.BytesIO(ask(page, "gif", FIRST | {"done": list(done)})[1]))
        assert film.format == "GIF"
        assert len(list(ImageSequence.Iterator(film))) in (len(done) + 1, len(done) + 2)


# The model


def test_it_says_what_it_would_say_anywhere(page: str, seat: Model):
    """Step by step the words, and their probability, of `Actor.act`."""
    actor = acting.load_policy(SHIPPED)
    start, conversation = Start("7", 8, 3), actor.start()
    done = seat.to_the_end(start)
    assert len(done) > 4
    for turn in range(len(done)):
        step = seat.step(start, done[:turn])
        answer, conversation = actor.act(step.image, conversation)
        view = ask(page, "model", {**start._asdict(), "done": list(done[:turn])})[1]["said"]
        assert view["text"] == answer.text
        said = np.prod([token["probability"] for token in view["tokens"]])
        assert said == pytest.approx(np.exp(answer.log_prob), rel=1e-4)
        of_command = {each["command"]: each["probability"] for each in view["actions"]}
        assert of_command[view["command"]] == pytest.approx(said, rel=1e-4)
        assert 0.9 < sum(of_command.values()) < 1.0001
        assert all(token["rivals"][0]["probability"] >= token["probability"] - 1e-6 for token in view["tokens"])
        assert 0 < np.sum(view["attention"][0]) < 1


def test_its_own_words_given_to_it_change_nothing(seat: Model):
    """A conversation with forced answers is the one the sampler had."""
    start = Start("7", 8, 3)
    own = (OWN,) * 3
    told = tuple(command for command in seat.played(start, own) if command)
    assert len(told) == len(own)
    one, other = (seat.step(start, done) for done in (own, told))
    np.testing.assert_array_equal(one.image, other.image)
    assert one.said is not None
    assert other.said is not None
    np.testing.assert_array_equal(one.said.ids, other.said.ids)
    np.testing.assert_allclose(one.said.log_probs, other.said.log_probs, atol=1e-4)
    for a, b in zip(jax.tree.leaves(one.after), jax.tree.leaves(other.after), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert seat.step(start, ("left",)).said is not None, "and anybody else's can be given"


def test_where_only_commands_can_be_said_they_add_up(seat: Model):
    config = dataclasses.replace(
        seat.config, conversation=dataclasses.replace(seat.config.conversation, constrained=True)
    )
    strict = Model("strict", config, building.make_policy(config), seat.params, None)
    said = strict.step(Start("1", 8, 3), ()).said
    assert said is not None
    assert jax.nn.logsumexp(jnp.asarray(said.of_actions)) == pytest.approx(0.0, abs=1e-4)


def test_a_run_that_kept_its_critic_shows_values(tmp_path: Path):
    """Of the best policy's row; a critic of another moment is none."""
    run = tmp_path / "run"
    shutil.copytree(SHIPPED, run, ignore=shutil.ignore_patterns("critic"))
    assert load_model(run).critic is None
    config = runs.read_config(run)
    critic = config.critic.init(jax.random.key(1), 32, 32, config.model.text.width)
    with runs.open_checkpoints(run / "critic", keep=1) as kept:
        kept.save(390, args=ocp.args.StandardSave(critic))
    step = load_model(run).step(Start("0", 8, 3), (OWN,))
    assert step.value == pytest.approx(float(config.critic.value(critic, jnp.asarray(step.image))), abs=1e-5)
    (run / "critic" / "390").rename(run / "critic" / "389")
    assert runs.read_critic(run, critic) is None


# The command


def play(*flags: str) -> list[str]:
    return [sys.executable, "-m", "jaxvlmrl.play", *flags]


def test_command_refuses_in_a_sentence(tmp_path: Path):
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    shutil.copy(SHIPPED / "config.json", unfinished)
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flags, words in (
            ([f"--port={port}"], f"port {port} cannot be had"),
            ([f"--checkpoint={tmp_path}"], "is no run directory"),
            ([f"--checkpoint={unfinished}"], "has no checkpoint yet"),
            (["--port=70000"], "outside 0..65535"),
            (["--prot=1"], "--prot=1"),
        ):
            done = subprocess.run(play(*flags), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 2
            assert done.stderr.startswith("jaxvlmrl.play: ")
            assert words in done.stderr
            assert len(done.stderr.splitlines()) == 1


def test_command_says_which_extra_is_missing():
    without = "import runpy, sys; sys.modules['uvicorn'] = None; runpy.run_module('jaxvlmrl.play', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", without], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "jaxvlmrl.play: it needs an extra: pip install 'jaxvlmrl[serve]'\n"


def test_command_shows_the_page_at_once_and_ends_when_told():
    """Long before anything is loaded."""
    process = subprocess.Popen(play("--port=0"), cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert process.stdout
    page = process.stdout.readline().split()[1]
    assert b"<title>GridWalker" in urllib.request.urlopen(page, timeout=30).read()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


@pytest.mark.slow
def test_command_is_quick_and_quiet(tmp_path: Path):
    """The second start finds what the first compiled. Seconds of a core, so that what else runs does not count."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    for start in ("cold", "warm"):
        began = time.time()
        process = subprocess.Popen(
            play(f"--checkpoint={SHIPPED}", "--port=0"), cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE
        )
        try:
            assert process.stdout
            page = process.stdout.readline().split()[1]
            assert b"<title>" in urllib.request.urlopen(page, timeout=3).read()
            shown = time.time() - began
            assert ask(page, "person", game.FIRST)[0] == 200
            drawn = time.time() - began
            spent = cpu_seconds(process.pid)
            print(f"{start}: page after {shown:.1f} s, frame after {drawn:.1f} s, {spent:.1f} s of a core")
            assert ask(page, "scores", game.FIRST)[0] == 200
            if start == "warm":
                assert spent < 10, "of one core until the first frame, and the page is there long before"
                time.sleep(1)
                before = cpu_seconds(process.pid)
                time.sleep(3)
                assert cpu_seconds(process.pid) - before <= 0.02, "nothing happens between requests"
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_larger_board_is_drawn_too():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(game, "REFERENCE_UP_TO", 0)
        view = game.person({"seed": "snow ☃", "size": 16, "blocks": 3, "done": ["forward 2"]})
    assert view["score"]["cells"] == 2
    with pytest.raises(BadRequest):
        game.canonical("forward ²")
    assert parse_command(game.canonical("forward 100")) == parse_command("forward 100")
