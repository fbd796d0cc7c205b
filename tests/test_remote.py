"""A remote model plays as the harness plays, whatever the endpoint does, and nothing of it is lost."""

import json
from pathlib import Path

import pytest

from jaxvlmrl import evaluate, remote
from jaxvlmrl.remote_transcripts import Setup
from tests.endpoint import KEY, Expert, serving

TURNS = 6


@pytest.fixture(scope="module")
def board() -> remote.Board:
    return remote.Board(Setup("http://127.0.0.1/v1", "expert", turns=TURNS))


@pytest.fixture(scope="module")
def expert(board: remote.Board) -> Expert:
    return Expert(board, range(4))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_evaluate_plays_with_an_endpoint(expert: Expert, tmp_path: Path, capsys: pytest.CaptureFixture):
    """The expert, who is sent the pictures alone, wins all games; the row says so, and what it cost."""
    found = tmp_path / "found.json"
    with serving(expert) as server:
        command = ["evaluate", "--policy=openai", f"--base_url={server.url}", "--model=expert", "--seeds=0:4"]
        command += [f"--turns={TURNS}", f"--transcripts={tmp_path / 'games'}", f"--json={found}"]
        assert evaluate.main([*command, "--price_in=1000", "--price_out=10000"]) == 0
    out = capsys.readouterr().out
    rows = {row["player"]: row for row in json.loads(found.read_text())}
    row, known = rows["expert"], rows["expert, fewest commands"]
    assert row["wins"] == 4
    assert [game["actions"] for game in row["games"]] == [game["actions"] for game in known["games"]]
    print(out)
