"""The server over HTTP on loopback: the openai client unchanged, whole games, 16 clients, 200 requests that are wrong."""

import ast
import base64
import dataclasses
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import openai
import pytest
from PIL import Image

from jaxvlmrl import acting, export, serve
from jaxvlmrl.config import ConfigError
from jaxvlmrl.episodes import Evaluator, games
from jaxvlmrl.models.processing import SmolVLMImages
from jaxvlmrl.serving.app import Access, Server
from jaxvlmrl.serving.conversations import Kept
from jaxvlmrl.serving.errors import RequestError
from jaxvlmrl.serving.pictures import Eyes
from jaxvlmrl.serving.protocol import Limits
from jaxvlmrl.serving.scheduler import Scheduler
from jaxvlmrl.text.chat import TEMPLATES
from tests.serving import SHIPPED, Game, assistant, data_uri, noise, running, server_of, user
from tests.wrong_requests import CHAT, claimed, wrong_requests

ROOT = Path(__file__).parent.parent


class Serving(NamedTuple):
    server: Server
    port: int
    client: openai.OpenAI
    actor: acting.Actor

    def create(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        settings = {"model": self.server.name, "temperature": 0.0} | options
        return self.client.chat.completions.create(messages=messages, **settings)  # type: ignore[call-overload]

    def text(self, messages: list[dict[str, Any]], stream: bool = False) -> str:
        if not stream:
            return self.create(messages).choices[0].message.content
        return "".join(piece.choices[0].delta.content or "" for piece in self.create(messages, stream=True))

    def post(self, body: bytes | dict[str, Any], path: str = CHAT, **headers: str) -> tuple[int, Any]:
        """(status, JSON of the answer)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request("POST", path, data, {"Content-Type": "application/json"} | headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def health(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/health")
        return connection.getresponse().status


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    server = server_of(SHIPPED)
    with running(server) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        yield Serving(server, port, client, acting.load_policy(SHIPPED))


def played(serving: Serving, game: Game, stream: bool = False) -> list[str]:
    """The answers of a game until it is won, the conversation sent in full every turn, in words that do not matter here."""
    answers: list[str] = []
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are in a maze."}]
    for turn in range(10):
        messages.append(user(f"Turn {turn + 1}. What is your next move?", data_uri(game.picture())))
        answers.append(serving.text(messages, stream))
        messages.append(assistant(answers[-1]))
        game.answer(answers[-1])
        if bool(game.state.won):
            break
    return answers


@pytest.fixture(scope="module")
def evaluated(serving: Serving) -> list[list[str]]:
    """The answers of `jaxvlmrl.evaluate` on the published seeds, greedy."""
    actor = serving.actor
    evaluator = Evaluator(actor.policy, actor.config.env_params, 20)
    found = evaluator.play(actor.params, range(20), jax.random.key(0), greedy=True)
    return [game.answers for game in games(found, actor.policy)]


# The client


def test_whole_games_are_those_of_evaluate(serving: Serving, evaluated: list[list[str]]):
    for seed in range(4):
        assert played(serving, Game(serving.actor.config, seed)) == evaluated[seed]


def test_sixteen_clients_at_once_get_the_same_answers(serving: Serving, evaluated: list[list[str]]):
    """Half of them streaming; nothing compiles meanwhile."""
    with ThreadPoolExecutor(16) as pool:
        play = lambda seed: played(serving, Game(serving.actor.config, seed), stream=seed % 2 == 1)
        found = list(pool.map(play, range(16)))
    assert found == evaluated[:16]
    assert set(serving.server.scheduler.programs.compiled().values()) == {1}
    wait_for(lambda: serving.server.inside == 0)


def test_answers_are_those_of_load_policy(serving: Serving):
    game, conversation, messages = Game(serving.actor.config, 33), serving.actor.start(), []
    for _ in range(5):
        answer, conversation = serving.actor.act(game.picture(), conversation)
        messages.append(user(data_uri(game.picture())))
        said = serving.create(messages, logprobs=True, top_logprobs=3)
        assert said.choices[0].message.content == answer.text
        log_prob = sum(token.logprob for token in said.choices[0].logprobs.content)
        assert log_prob == pytest.approx(answer.log_prob, abs=2e-2), "the end token's is not told"
        messages.append(assistant(answer.text))
        game.answer(answer.text)


def test_usage_says_what_was_kept(serving: Serving):
    pictures = [data_uri(picture) for picture in noise(3, (32, 32), 77)]
    first = serving.create([user(pictures[0])])
    said = first.choices[0].message.content
    second = serving.create([user(pictures[0]), assistant(f" {said}\n"), user(pictures[1])])
    other = serving.create([user(pictures[0]), assistant("`forward 7`"), user(pictures[1])])
    start = len(serving.actor.policy.chat.prefix_ids)
    assert first.usage.prompt_tokens_details.cached_tokens in (0, start)
    read = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.prompt_tokens_details.cached_tokens == read, "blanks around an answer do not matter"
    assert other.usage.prompt_tokens_details.cached_tokens == start, "it never said this"
    assert first.usage.total_tokens == read


def test_streams_choices_and_limits(serving: Serving):
    messages = [user(data_uri(noise(1, (32, 32), 5)[0]))]
    whole = serving.create(messages)
    pieces = list(serving.create(messages, stream=True, stream_options={"include_usage": True}, logprobs=True))
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == whole.choices[0].message.content
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == whole.choices[0].finish_reason
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    two = serving.create(messages, n=2, temperature=1.5, seed=4)
    again = serving.create(messages, n=2, temperature=1.5, seed=4)
    assert [c.index for c in two.choices] == [0, 1]
    assert [c.message.content for c in two.choices] == [c.message.content for c in again.choices]
    cut = serving.create(messages, max_completion_tokens=1)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 1)
    stopped = serving.create(messages, stop=[whole.choices[0].message.content[2]])
    assert stopped.choices[0].message.content == whole.choices[0].message.content[:2]


def test_harmless_fields_are_accepted(serving: Serving):
    extra = {"user": "me", "metadata": {"a": "b"}, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}
    more = {"response_format": {"type": "text"}, "seed": -3, "tool_choice": "none", "extra_body": {"tools": []}}
    assert serving.create([user(data_uri(noise(1, (32, 32))[0]))], **extra, **more).choices


def test_models_say_what_is_served(serving: Serving):
    [card] = serving.client.models.list().data
    said = card.model_dump()
    assert (said["id"], said["window_turns"], said["max_answer_tokens"], said["prompt"]) == ("quickstart", 3, 6, "own")
    assert said["image"] == {"width": 32, "height": 32, "resized": "middle"}
    assert "replaced" in said["prompt_note"]
    assert serving.client.models.retrieve("quickstart").id == "quickstart"
    with pytest.raises(openai.NotFoundError):
        serving.client.models.retrieve("gpt-4o")
    with pytest.raises(openai.NotFoundError, match="no model"):
        serving.create([user("x")], model="gpt-4o")


# What is wrong


def test_two_hundred_wrong_requests_are_refused_in_words(serving: Serving):
    picture = user(data_uri(noise(1, (32, 32), 1)[0]))
    expected = serving.text([picture])
    cases = list(wrong_requests())
    assert len(cases) >= 200
    for number, (path, body, headers) in enumerate(cases):
        status, answer = serving.post(body, path, **headers)
        assert 400 <= status < 500, (path, body[:200], headers, answer)
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert answer["error"]["message"]
        if number % 50 == 0:
            assert serving.text([picture]) == expected
    assert serving.text([picture]) == expected
    wait_for(lambda: serving.server.inside == 0)
    assert serving.server._bytes == 0


def test_bodies_without_end_and_no_http_at_all(serving: Serving):
    with socket.create_connection(("127.0.0.1", serving.port)) as raw:
        raw.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"400" in raw.recv(1000)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", serving.port)) as raw:
        raw.sendall(head + b"Content-Length: 99999999999\r\n\r\n" + b" " * 1000)
        assert b"413" in raw.recv(1000)
    with socket.create_connection(("127.0.0.1", serving.port)) as raw:
        raw.sendall(head + b"Content-Length: 1000\r\n\r\n{")
    assert serving.text([user(data_uri(noise(1, (32, 32))[0]))])
    wait_for(lambda: serving.server.inside == 0)
    assert serving.server._bytes == 0


def test_bodies_have_a_room_together(serving: Serving, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving.server, "open_bytes", 100)
    status, answer = serving.post({"model": "quickstart", "messages": [user("x" * 200)]})
    assert (status, answer["error"]["code"]) == (503, "overloaded")
    wait_for(lambda: serving.server._bytes == 0)


def test_pictures_have_a_room_together(serving: Serving, monkeypatch: pytest.MonkeyPatch):
    messages = [user(data_uri(picture)) for picture in noise(2, (64, 64))]
    body = {"model": "quickstart", "messages": [messages[0], assistant("`left`"), messages[1]]}
    assert serving.post(body)[0] == 200
    monkeypatch.setattr(serving.server, "limits", Limits(pixels=2 * 64 * 64 - 1))
    status, answer = serving.post(body)
    assert status == 400
    assert "more pixels" in answer["error"]["message"]


def test_a_stopped_engine_is_not_healthy(serving: Serving):
    old = serving.server.scheduler
    scheduler = Scheduler(old.programs, old.wording, Kept(1 << 20))
    server = dataclasses.replace(serving.server, scheduler=scheduler)
    with running(server) as port:
        other = serving._replace(server=server, port=port)
        assert other.health() == 200
        scheduler.stop()
        assert other.health() == 503
        picture = user(data_uri(noise(1, (32, 32))[0]))
        assert other.post({"model": "quickstart", "messages": [picture]})[0] == 503


def test_a_full_queue_says_so(serving: Serving, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving.server, "queue", 0)
    with pytest.raises(openai.RateLimitError, match="waiting already"):
        serving.text([user("x")])


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_a_place(stream: bool, serving: Serving, monkeypatch: pytest.MonkeyPatch):
    """A client goes away while the engine stands still; its jobs are never answered."""
    scheduler, picture = serving.server.scheduler, user(data_uri(noise(1, (32, 32))[0]))
    monkeypatch.setattr(scheduler, "step", lambda: time.sleep(0.01))
    body = json.dumps({"model": "quickstart", "messages": [picture], "n": 16, "stream": stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", serving.port)) as raw:
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: len(scheduler._waiting) == 16)
        assert serving.server.inside == 1
    wait_for(lambda: serving.server.inside == 0)
    assert all(job.is_cancelled for job in scheduler._waiting)
    monkeypatch.undo()
    assert serving.text([picture])


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Pictures


def test_pictures_are_brought_to_the_policys_size():
    eyes = Eyes(32, 32, "middle")
    wide = noise(1, (151, 256))[0]
    found = eyes.see(data_uri(wide), "").pixels
    expected = Image.fromarray(wide).crop((52, 0, 203, 151)).resize((32, 32), Image.Resampling.NEAREST)
    assert np.mean(found == np.asarray(expected)) > 0.4, "the middle, up to half a pixel"
    exact = noise(1, (32, 32))[0]
    assert (eyes.see(data_uri(exact), "").pixels == exact).all()
    assert (eyes.see(data_uri(exact, "WEBP", lossless=True), "").pixels == exact).all()
    assert (
        np.abs(eyes.see(data_uri(exact, "JPEG", quality=100, subsampling=0), "").pixels - exact.astype(int)).mean() < 3
    )
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert (eyes.see(data_uri(clear), "").pixels == 255).all(), "transparent is white"
    large = Eyes(64, 64, "smolvlm").see(data_uri(wide), "").pixels
    theirs = SmolVLMImages(tile=64, longest=256, is_split=False)(wide).tiles[0]
    np.testing.assert_allclose((theirs + 1) / 2 * 255, large, atol=1e-3)


def test_a_picture_is_refused_before_it_is_decoded():
    for side in (4097, 30_000):
        bomb = base64.b64encode(claimed(side, side)).decode()
        with pytest.raises(RequestError, match="above 16777216 pixels"):
            Eyes(32, 32, "middle").see(f"data:image/png;base64,{bomb}", "messages[0]")


@pytest.mark.slow
def test_the_original_games_pictures_are_played(serving: Serving):
    """256 x 151 at reference quality, as the browser draws them: 40 games, most of them won."""
    config = serving.actor.config
    browser = dataclasses.replace(
        config, env=dataclasses.replace(config.env, width=256, height=151, quality="reference")
    )
    all_games = [Game(browser, seed) for seed in range(1000, 1040)]
    for game in all_games:
        played(serving, game)
    assert np.mean([bool(game.state.won) for game in all_games]) > 0.8, "a twelfth less than with its own frames"


# The command


def test_others_need_a_key(serving: Serving):
    old = serving.server.scheduler
    scheduler = Scheduler(old.programs, old.wording, Kept(1 << 20))
    server = dataclasses.replace(serving.server, access=Access("sesame"), scheduler=scheduler)
    with running(server) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sesame", max_retries=0)
        serving = Serving(server, port, client, serving.actor)
        body = {"model": "quickstart", "messages": [user(data_uri(noise(1, (32, 32))[0]))]}
        assert serving.text(body["messages"])
        for head in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": "sesame!"},
            {"Authorization": "Basic sesame"},
        ):
            status, answer = serving.post(body, **head)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            serving.client.with_options(api_key="wrong").models.list()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/health")
        assert json.loads(connection.getresponse().read()) == {"status": "ok"}


def test_bad_input_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(serve.KEY, raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (tmp_path / "config.json").write_text("{")
        cases = {
            "say what to serve": [],
            "it is no run directory": ["--checkpoint=/nowhere"],
            "is damaged": [f"--checkpoint={tmp_path}"],
            "set a key in the environment variable JAXVLMRL_API_KEY": [f"--checkpoint={SHIPPED}", "--host=0.0.0.0"],
            "cannot listen on": [f"--checkpoint={SHIPPED}", f"--port={taken.getsockname()[1]}"],
            "is for a Hugging Face folder": [f"--checkpoint={SHIPPED}", "--port=0", "--window=9"],
            "answers have 6 tokens": [f"--checkpoint={SHIPPED}", "--port=0", "--max_tokens=7"],
            "no room for one turn": [f"--checkpoint={SHIPPED}", "--port=0", "--context=5"],
        }
        for sentence, arguments in cases.items():
            with pytest.raises(ConfigError, match=sentence):
                serve.main(["serve", *arguments])


def test_a_template_without_the_clients_words_is_refused(tmp_path: Path):
    """Somebody's own; with nothing to write what users say in, every conversation would be empty."""
    shutil.copytree(SHIPPED, tmp_path / "run")
    template = json.loads((TEMPLATES / "tiny.json").read_text())
    del template["message"]
    (tmp_path / "own.json").write_text(json.dumps(template))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["conversation"]["template"] = str(tmp_path / "own.json")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="has no field message"):
        serve.load(tmp_path / "run", serve.Asked(prompt="client"))
    assert serve.load(tmp_path / "run", serve.Asked()).prompt == "own"


@pytest.mark.slow
def test_the_command_serves_and_never_tells_its_key():
    command = [sys.executable, "-m", "jaxvlmrl.serve", f"--checkpoint={SHIPPED}", "--port=0", "--batch=2"]
    environment = os.environ | {serve.KEY: "sesame-9f3"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
    )
    assert process.stdout
    said, port = "", None
    while not port:
        said += process.stdout.readline()
        port = re.search(r"http://127.0.0.1:(\d+)/v1", said)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port[1]}/v1", api_key="sesame-9f3")
    message: Any = user(data_uri(noise(1, (32, 32))[0]))
    assert client.chat.completions.create(model="quickstart", messages=[message]).choices
    process.terminate()
    said += process.communicate(timeout=60)[0]
    assert "compiled: empty 1, see 1, place 1, read 1, draw 1, fetch 1" in said
    assert "replaced" in said
    assert "sesame" not in said + " ".join(command)


@pytest.mark.slow
def test_an_exported_folder_is_served_alike(serving: Serving, tmp_path: Path, evaluated: list[list[str]]):
    """The tiny model as transformers would load it, in its own words; then in a client's, several pictures in a turn."""
    export.export(serving.actor, tmp_path / "out")
    server = server_of(tmp_path / "out", template="tiny", prompt="own", window=3, max_tokens=6)
    with running(server) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        assert played(Serving(server, port, client, serving.actor), Game(serving.actor.config, 2)) == evaluated[2]
    server = server_of(tmp_path / "out", rows=2, context=256)
    with running(server) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        other = Serving(server, port, client, serving.actor)
        pictures = [data_uri(picture) for picture in noise(2, (48, 64))]
        said = other.create([user("which is red?", *pictures)], max_tokens=20)
        assert said.usage.completion_tokens <= 20
        assert server.facts["prompt"] == "client"
        with pytest.raises(openai.BadRequestError, match="room for 256"):
            other.create([user("which is red? " * 100, *pictures)])


def test_nothing_imports_the_server_but_its_command():
    for path in (ROOT / "jaxvlmrl").rglob("*.py"):
        if path.name == "serve.py" or path.parent.name == "serving":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith(("jaxvlmrl.serving", "jaxvlmrl.serve")), path
