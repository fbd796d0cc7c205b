"""A remote model plays as the harness plays, whatever the endpoint does, and nothing of it is lost."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs_jax.grid_walker.grid_walker import settled_view
from jaxvlmrl import command_line, evaluate, remote
from jaxvlmrl.config import ConfigError
from jaxvlmrl.remote import Running, Unfinished
from jaxvlmrl.remote_endpoint import retry_after
from jaxvlmrl.remote_transcripts import Line, Setup, Transcripts, as_episodes, covered, turns_of, usage
from tests.endpoint import CUT, HANG, KEY, NO_JSON, Endpoint, Expert, decoded, picture_of, serving

SETUP = Setup("http://127.0.0.1/v1", "expert", turns=6)
SEEDS = range(4)


@pytest.fixture(scope="module")
def board() -> remote.Board:
    return remote.Board(SETUP)


@pytest.fixture(scope="module")
def expert(board: remote.Board) -> Expert:
    return Expert(board, SEEDS)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def play(
    board: remote.Board, server: Endpoint, folder: Path, seeds: Any = SEEDS, running: Running | None = None, **settings: Any
) -> dict[int, list[Line]]:  # fmt: skip
    setup = dataclasses.replace(SETUP, base_url=server.url, **settings)
    return remote.play(board, setup, running or Running(4, 3, 30.0, 0.01), folder, seeds)


def answers(transcripts: dict[int, list[Line]]) -> dict[int, list[str]]:
    return {seed: [line["answer"] for line in turns_of(lines)] for seed, lines in transcripts.items()}


@pytest.fixture(scope="module")
def unbroken(board: remote.Board, expert: Expert, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Line]]:
    """All games, of an endpoint without faults."""
    with serving(expert) as server:
        return play(board, server, tmp_path_factory.mktemp("unbroken"))


# What is sent, and what is made of the answers


def test_the_conversation_is_the_harness(board: remote.Board, expert: Expert, tmp_path: Path):
    """The expert holds every message to the board; here is what it does not see."""
    with serving(expert) as server:
        play(board, server, tmp_path, temperature=0.7, extra={"top_p": 0.9})
    assert all(body["key"] == f"Bearer {KEY}" for body in server.requests)
    fields = {"model": "expert", "max_tokens": 2000, "temperature": 0.7, "top_p": 0.9}
    assert all(fields.items() <= body.items() for body in server.requests)
    image = decoded(picture_of(server.requests[0]["messages"][1]))
    assert (image.shape, image.dtype) == ((151, 256, 3), np.uint8)
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_nothing_is_sent_that_was_not_asked_for(board: remote.Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(lambda messages: "`left`") as server:
        play(board, server, tmp_path, seeds=[0], turns=1, max_tokens=0)
    assert server.requests[0].keys() == {"model", "messages", "at", "key"}
    assert server.requests[0]["key"] is None


def test_games_are_won_as_the_expert_wins_them(unbroken: dict[int, list[Line]]):
    """Seed 1: three cells away, two commands; the reference sheet's expert needs two."""
    episodes = as_episodes(unbroken, SETUP.turns)
    assert episodes.won.all()
    assert episodes.turns[1] == 2
    assert [len(turns) for turns in answers(unbroken).values()] == episodes.turns.tolist()
    assert (episodes.actions >= 0).sum() == episodes.turns.sum()


def test_an_answer_that_cannot_be_read_or_is_refused_costs_its_turn(board: remote.Board, tmp_path: Path):
    replies = iter(
        [None, "I see gold.", "`forward 0`", [{"type": "text", "text": "go `LEFT` now"}], "`forward -1`", "right"]
    )
    with serving(lambda messages: next(replies)) as server:
        (lines,) = play(board, server, tmp_path, seeds=[0]).values()
    assert [line["action"] for line in lines] == [-1, -1, 2, 0, -1, 1]
    assert {line["finish_reason"] for line in lines} == {"stop"}
    assert [line["accepted"] for line in lines] == [False, False, False, True, False, True]
    assert not lines[-1]["won"]
    sent = server.requests[-1]["messages"]
    assert [message["content"] for message in sent[2:6:2]] == ["", "I see gold."]
    pictures = [picture_of(message) for message in sent[1::2]]
    assert pictures[0] == pictures[1] == pictures[2] == pictures[3] != pictures[4] == pictures[5]


def test_keep_turns_sends_the_last_ones(board: remote.Board, tmp_path: Path):
    with serving(lambda messages: "`right`") as server:
        play(board, server, tmp_path, seeds=[0], keep_turns=2)
    asked = [[m["content"][0]["text"][:6] for m in body["messages"][1::2]] for body in server.requests]
    assert asked[:3] == [["Turn 1"], ["Turn 1", "Turn 2"], ["Turn 2", "Turn 3"]]
    assert [len(body["messages"]) for body in server.requests] == [2, 4, 4, 4, 4, 4]


@pytest.mark.slow
def test_an_unsettled_camera_is_that_of_the_live_page(tmp_path: Path):
    """A new game is settled; after a command .93^21 = 22% of the way of the eye is still to go."""
    setup = dataclasses.replace(SETUP, camera="unsettled")
    live, settled = remote.Board(setup), remote.Board(SETUP)
    state, rest = live.start(0), settled.start(0)
    assert live.picture(state) == settled.picture(rest)
    before = np.asarray(state.eye)
    (state, _), (rest, _) = live.step(state, 0), settled.step(rest, 0)
    assert live.picture(state) != settled.picture(rest)
    there = np.asarray(settled_view(state)[0])
    np.testing.assert_allclose(np.asarray(state.eye) - there, 0.93**21 * (before - there), atol=1e-4)
    with serving(lambda messages: "`left`") as server:
        play(live, server, tmp_path, seeds=[0], camera="unsettled", turns=2)
    assert picture_of(server.requests[1]["messages"][3]) == live.picture(state)


# What goes wrong


def test_whatever_may_pass_is_tried_again(board: remote.Board, expert: Expert, unbroken: Any, tmp_path: Path):
    """Requests fail in all ways that are quick; the games are those of an endpoint without faults."""
    faults = [(429, {"Retry-After": "1"}), (500, {}), CUT, NO_JSON, (408, {}), (409, {}), (503, {})]
    failing: dict[int, Any] = dict(zip((0, 2, 3, 5, 7, 9, 10), faults))
    with serving(expert, lambda n, messages: failing.get(n)) as server:
        found = play(board, server, tmp_path, running=Running(1, 3, 30.0, 0.01))
    assert answers(found) == answers(unbroken)
    said = [failure for lines in found.values() for line in lines for failure in line["failures"]]
    assert len(said) == len(faults)
    assert [failure.partition(":")[0] for failure in said[:2]] == ["status 429", "status 500"]
    assert server.requests[1]["at"] - server.requests[0]["at"] >= 1.0, "Retry-After"
    assert KEY not in "".join(said)
    used = usage(found, None, None)
    turns = sum(len(lines) for lines in found.values())
    assert (used["requests"], used["retries"]) == (turns + 7, 7) == (len(server.requests), 7)


def test_a_request_that_hangs_is_tried_again(board: remote.Board, tmp_path: Path):
    """The second time it is answered at once, or on a busy machine one of the next."""
    with serving(lambda messages: "`left`", lambda n, messages: HANG if n == 0 else None) as server:
        found = play(board, server, tmp_path, seeds=[0], running=Running(1, 9, 1.0, 0.01), turns=1)
    assert answers(found) == {0: ["`left`"]}
    assert set(found[0][0]["failures"]) == {"nothing within 1 s"}


TOO_LONG = [
    (413, "<html>Request Entity Too Large</html>"),
    (400, '{"error": {"message": "no", "type": "invalid_request_error", "code": "context_length_exceeded"}}'),
    (400, '{"object": "error", "message": "This model\'s maximum context length is 4096 tokens.", "code": 400}'),
    (400, '{"error": {"code": 400, "message": "no", "type": "exceed_context_size_error"}}'),
]


@pytest.mark.parametrize("refusal", TOO_LONG)
def test_a_conversation_that_becomes_too_long_is_a_lost_game(board: remote.Board, tmp_path: Path, refusal: Any):
    """The third turn does not fit: the other episode goes on, and it is neither repeated nor hidden."""
    fault = lambda n, messages: refusal if len(messages) > 5 else (500, {}) if n == 0 else None
    with serving(lambda messages: "`left`", fault) as server:
        found = play(board, server, tmp_path, seeds=range(2), running=Running(1, 1, 30.0, 0.01))
        sent = len(server.requests)
        assert play(board, server, tmp_path, seeds=range(2)) == found
    assert sent == len(server.requests) == 1 + 2 * 3
    episodes, used = as_episodes(found, SETUP.turns), usage(found, None, None)
    assert (episodes.won.tolist(), episodes.turns.tolist()) == ([False] * 2, [2] * 2)
    assert (used["requests"], used["retries"], used["episodes_outgrown"]) == (sent, 1, 2)
    assert f"status {refusal[0]}" in found[1][-1]["failures"][-1]
    assert "too long for the endpoint: 2" in remote.in_words(used)


@pytest.mark.parametrize("refusal", TOO_LONG[:2])
def test_a_first_turn_that_is_too_long_is_a_refusal(board: remote.Board, tmp_path: Path, refusal: Any):
    with (
        serving(lambda messages: "`left`", lambda n, messages: refusal) as server,
        pytest.raises(ConfigError, match=f"status {refusal[0]}.*0 of 4 episodes are over"),
    ):
        play(board, server, tmp_path, running=Running(1, 3, 30.0, 0.01))
    assert len(server.requests) == 1


def test_a_refusal_is_one_sentence_and_is_not_repeated(board: remote.Board, tmp_path: Path):
    with (
        serving(lambda messages: "`left`", lambda n, messages: (401, {})) as server,
        pytest.raises(ConfigError, match=r"status 401: status 401 for key Bearer \*\*\*; 0 of 4 episodes are over"),
    ):
        play(board, server, tmp_path, running=Running(1, 3, 30.0, 0.01))
    assert len(server.requests) == 1


def test_a_broken_evaluation_goes_on(board: remote.Board, expert: Expert, unbroken: Any, tmp_path: Path):
    """Refused at the sixth request with two games at once; a line is half written; then as if nothing had been."""
    with serving(expert, lambda n, messages: (400, {}) if n == 5 else None) as server:
        with pytest.raises(ConfigError, match="status 400"):
            play(board, server, tmp_path, running=Running(2, 0, 30.0, 0.01))
        counted = len(server.requests)
        kept = sum(len(path.read_text().splitlines()) for path in tmp_path.glob("*.jsonl"))
        assert kept == counted - 1, "whoever was under way has finished its turn"
        with (tmp_path / "3.jsonl").open("a") as file:
            file.write('{"turn": 1, "answer": "`fo')
        found = play(board, server, tmp_path, running=Running(4, 0, 30.0, 0.01))
        assert answers(found) == answers(unbroken)
        assert len(server.requests) - 1 == sum(map(len, unbroken.values())), "no turn is asked for twice"
        assert play(board, server, tmp_path) == found
        assert len(server.requests) - 1 == sum(map(len, unbroken.values())), "who is finished is only read"


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(board: remote.Board, expert: Expert, unbroken: Any, tmp_path: Path):
    """kill -9 in the middle of the games, and the same command again."""
    with serving(expert) as server:
        setup = dataclasses.replace(SETUP, base_url=server.url)
        playing = f"play(Board(setup), setup, Running(1, 0, 60.0, 0.1), Path({str(tmp_path)!r}), range(4))"
        program = f"from pathlib import Path; from jaxvlmrl.remote import *; setup = {setup!r}; {playing}"
        child = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parent.parent)
        while len(server.requests) < 4 and child.poll() is None:
            time.sleep(0.01)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        before = sum(len(path.read_text().splitlines()) for path in tmp_path.glob("*.jsonl"))
        found = play(board, server, tmp_path)
    assert before >= 3
    assert answers(found) == answers(unbroken)
    assert len(server.requests) <= sum(map(len, unbroken.values())) + 1, "one was under way"


def test_one_episode_that_is_given_up_does_not_stop_the_others(board: remote.Board, expert: Expert, tmp_path: Path):
    first = picture_of(remote.question(1, board.picture(board.start(2))))
    with serving(expert, lambda n, messages: (500, {}) if picture_of(messages[1]) == first else None) as server:
        with pytest.raises(Unfinished, match=r"seed 2 got no answer in 3 tries.*status 500.*3 of 4 episodes are over"):
            play(board, server, tmp_path, running=Running(1, 2, 30.0, 0.01))
        server.fault = lambda n, messages: None
        used = usage(play(board, server, tmp_path), 1.0, 1.0)
    assert (used["requests"], used["retries"]) == (len(server.requests), 2), "three failed, two of them again"


def test_an_endpoint_that_is_gone_is_left(board: remote.Board, tmp_path: Path):
    with serving(lambda messages: "`left`", lambda n, messages: (502, {})) as server:
        with pytest.raises(Unfinished, match="0 of 9 episodes are over"):
            play(board, server, tmp_path, seeds=range(9), running=Running(1, 1, 30.0, 0.01))
        assert len(server.requests) == 3 * 2
        url = server.url
    setup = dataclasses.replace(SETUP, base_url=url)
    with pytest.raises(Unfinished, match="ConnectError"):
        remote.play(board, setup, Running(1, 1, 30.0, 0.01), tmp_path, range(9))


def test_as_many_episodes_at_once_as_asked_for(board: remote.Board, tmp_path: Path):
    """The first three requests wait for each other; more than three are never under way."""
    together = threading.Barrier(3, timeout=20)

    def meet(n: int, messages: Any) -> None:
        if n < 3:
            together.wait()
            time.sleep(0.5)  # time for a fourth

    with serving(lambda messages: "`left`", meet) as server:
        play(board, server, tmp_path, seeds=range(7), running=Running(3, 0, 30.0, 0.01), turns=2)
    assert server.most_under_way == 3


# Transcripts, figures, flags


def test_a_folder_belongs_to_one_setting(tmp_path: Path):
    Transcripts(tmp_path, SETUP, {"concurrency": 1}).close()
    Transcripts(tmp_path, SETUP, {"concurrency": 8}).close()
    with pytest.raises(ConfigError, match=r"another setting \(temperature: None -> 0.5; turns: 6 -> 7\)"):
        Transcripts(tmp_path, dataclasses.replace(SETUP, turns=7, temperature=0.5), {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not empty"):
        Transcripts(tmp_path / "other", SETUP, {})
    held = Transcripts(tmp_path, SETUP, {})
    with pytest.raises(ConfigError, match="in use"):
        Transcripts(tmp_path, SETUP, {})
    held.close()


def test_figures_of_requests():
    """Worked by hand: two turns that overlap by a second, a pause of ten, one turn; prices of a million tokens."""
    turn = lambda start, end, asked, failed: {
        "answer": "", "prompt_tokens": asked, "completion_tokens": 10, "latency_s": end - start, "started": start,
        "ended": end, "failures": ["x"] * failed,
    }  # fmt: skip
    transcripts = {0: [turn(0.0, 2.0, 1000, 0), turn(13.0, 14.0, 3000, 2)], 1: [turn(1.0, 3.0, 1000, 0)]}
    used = usage(transcripts, 2.0, 100.0)
    assert covered([(0.0, 2.0), (13.0, 14.0), (1.0, 3.0)]) == 4.0
    assert (used["requests"], used["retries"], used["prompt_tokens"]) == (5, 2, 5000)
    assert used["wall_s"] == 4.0
    assert used["cost"] == pytest.approx((5000 * 2.0 + 30 * 100.0) / 1e6)
    assert used["latency_p50_s"] == 2.0
    transcripts[1][0]["prompt_tokens"] = None
    assert np.isnan(usage(transcripts, 2.0, 100.0)["cost"])
    assert "cost: unknown" in remote.in_words(usage(transcripts, 2.0, 100.0))


def test_retry_after_is_a_number_or_a_date():
    assert retry_after("7") == 7.0
    assert 25 < retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert retry_after("soon") == retry_after("") == retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--policy=openai"], "say who plays"),
        (["--policy=openai", "--base_url=https://me:secret@host/v1", "--model=m"], "without a name, a key"),
        (["--policy=openai", "--base_url=host/v1", "--model=m"], "--base_url is"),
        (["--policy=openai", "--base_url=http://h/v1", "--model=m", "--extra=[1]"], "no JSON object"),
        (["--policy=openai", "--base_url=http://h/v1", "--model=m", "--prompt=/nowhere"], "cannot be read"),
        (["--policy=openai", "--base_url=http://h/v1", "--model=m", "--blocks=17"], "17 blocks"),
        (["--policy=openai", "--checkpoint=runs/x"], "--checkpoint says nothing of --policy=openai"),
        (["--checkpoint=runs/x", "--model=m"], "--model says nothing of --policy=checkpoint"),
        (["--policy=robot"], "robot"),
    ],
)
def test_flags_that_cannot_be_played(flags: list[str], sentence: str):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        evaluate.main(["evaluate", *flags])


@pytest.mark.slow
def test_evaluate_plays_with_an_endpoint(expert: Expert, tmp_path: Path, capsys: pytest.CaptureFixture):
    """The expert, who is sent pictures alone, wins as the row of the one who knows the board."""
    found = tmp_path / "found.json"
    with serving(expert) as server:
        command = ["evaluate", "--policy=openai", f"--base_url={server.url}/", "--model=expert", "--seeds=0:4"]
        command += ["--turns=6", f"--transcripts={tmp_path / 'games'}", f"--json={found}", "--backoff=0.01"]
        server.fault = lambda n, messages: (500, {})
        assert evaluate.main([*command, "--retries=0"]) == evaluate.LEFT_UNFINISHED
        server.fault = lambda n, messages: None
        assert evaluate.main([*command, "--price_in=1000", "--price_out=10000"]) == 0
    table, _, told = capsys.readouterr().out.split("\n\n")
    rows = {row["player"]: row for row in json.loads(found.read_text())}
    row, known = rows["expert"], rows["expert, fewest commands"]
    assert row["wins"] == 4
    assert [game["actions"] for game in row["games"]] == [game["actions"] for game in known["games"]]
    assert row["cost"] == pytest.approx((1000 * row["prompt_tokens"] + 10000 * row["completion_tokens"]) / 1e6)
    assert re.search(r"^expert +4 of 4 +100.0%", table, flags=re.MULTILINE)
    assert f"cost: {row['cost']:.4f}" in told


def test_the_exit_code_of_a_refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as exit:
        command_line.guarded("jaxvlmrl.evaluate", lambda: evaluate.main(["evaluate", "--policy=openai"]))
    assert exit.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
