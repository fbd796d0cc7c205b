"""GridWalker against data recorded from the browser game: layouts, transitions and frames.

The folder is named by GRIDWALKER_REFERENCE (default tests/data/gridwalker): layouts.json, transitions.json and
frames/frames.json with PNG paths relative to it. A file that is absent is skipped; a folder without any fails.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from envs_jax.grid_walker import GridWalker, Params, commands, layout, renderer
from envs_jax.grid_walker import scene as world
from envs_jax.rendering.camera import look_at
from envs_jax.rendering.vector import Vec
from tests.compiling import AS_USERS_HAVE_IT

FOLDER = Path(os.environ.get("GRIDWALKER_REFERENCE", Path(__file__).parent / "data" / "gridwalker"))
FILES = ("layouts.json", "transitions.json", "frames/frames.json")


def recorded(name: str):
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return json.loads(path.read_text())


def test_there_is_something_to_compare_with():
    assert any((FOLDER / name).exists() for name in FILES), f"{FOLDER} holds none of {', '.join(FILES)}"


def test_seed_hashes_and_draws():
    data = recorded("layouts.json")
    assert {seed: layout.hash_text(seed) for seed in data["hash"]} == data["hash"]
    for seed, expected in data["prng_first6_uint32"].items():
        if not seed:  # recorded from the generator alone, without the page's rule that empty means '0'
            continue
        state, draws = jnp.uint32(layout.hash_text(seed)), []
        for _ in range(6):
            state, bits = layout.mulberry32(state)
            draws.append(int(bits))
        assert draws == expected, seed


def test_layouts():
    data = recorded("layouts.json")["layouts"]
    most = max((len(cells) - 2) // 2 for of_size in data.values() for of_blocks in of_size.values()
               for cells in of_blocks.values())  # fmt: skip
    draw = jax.jit(jax.vmap(layout.draw_layout, in_axes=(0, None, None, None)), static_argnums=3)
    for size, of_size in data.items():
        for num_blocks, expected in of_size.items():
            hashes = jnp.asarray([layout.hash_text(seed) for seed in expected], jnp.uint32)
            drawn = draw(hashes, jnp.int32(size), jnp.int32(num_blocks), most)
            for index, (seed, cells) in enumerate(expected.items()):
                blocks = np.asarray(drawn.blocks[index])
                got = [*np.asarray(drawn.goal[index]), *blocks[blocks[:, 0] >= 0].ravel()]
                assert [int(c) for c in got] == cells, (size, num_blocks, seed)


def test_transitions():
    episodes = [e for e in recorded("transitions.json")["episodes"] if e["kind"] != "quirk"]
    env = GridWalker(max_size=max(e["size"] for e in episodes), max_blocks=max(e["blocks"] for e in episodes))
    length = max(len(e["steps"]) for e in episodes)
    actions = np.full((len(episodes), length), -1, np.int32)
    for row, episode in zip(actions, episodes, strict=True):
        row[: len(episode["steps"])] = [commands.parse_command(step[0]) for step in episode["steps"]]

    def play(seed_hash, size, num_blocks, actions):
        params = Params(size=size, num_blocks=num_blocks, max_turns=10**6)
        start = env.init_from_hash(seed_hash, params)

        def step(state, action):
            state, _, _, _, info = env.transition(jax.random.key(0), state, action, params)
            told = (info["accepted"], *state.cell, state.facing, state.total_steps, state.total_tries, state.won)
            return state, jnp.stack([jnp.asarray(value, jnp.int32) for value in told])

        return start.goal, jax.lax.scan(step, start, actions)[1]

    hashes = jnp.asarray([layout.hash_text(e["seed"]) for e in episodes], jnp.uint32)
    sizes, blocks = (jnp.asarray([e[name] for e in episodes]) for name in ("size", "blocks"))
    goals, told = jax.jit(jax.vmap(play))(hashes, sizes, blocks, jnp.asarray(actions))
    for index, episode in enumerate(episodes):
        assert np.asarray(goals[index]).tolist() == episode["goal"]
        expected = [step[1:] for step in episode["steps"]]
        assert np.asarray(told[index])[: len(expected)].tolist() == expected, (episode["seed"], episode["kind"])


def drawn(records: list[dict], quality: renderer.Quality) -> np.ndarray:
    """Our frames of some records of one size, [frames, height, width, 3]."""
    layouts = recorded("layouts.json")["layouts"]
    most = max(1, *(record["blocks"] for record in records))
    height, width = records[0]["height"], records[0]["width"]
    columns = []
    for record in records:
        cells = layouts[str(record["size"])][str(record["blocks"])][record["seed"]]
        blocks = np.full((most, 2), -1, np.int32)
        blocks[: len(cells) // 2 - 1] = np.reshape(cells[2:], (-1, 2))
        settled = [np.zeros(3), np.zeros(3)]
        camera = [record["camera_position"], record["camera_target"]] if record["kind"] == "lag" else settled
        cell = [record["gridX"], record["gridZ"]]
        board = (np.int32(record["size"]), np.asarray(cells[:2], np.int32), blocks)
        eye, target = np.asarray(camera, np.float32)
        facing = np.int32(record["facing"])
        columns.append((*board, np.asarray(cell, np.int32), facing, eye, target))
    is_lag = records[0]["kind"] == "lag"

    def draw(pose):
        size, goal, blocks, cell, facing, eye, target = pose
        scene = world.view_scene(size, goal, blocks, cell, facing)
        x, z = 2.0 * cell - size + 1
        seen = lambda place: world.from_world(scene, Vec(place[0] - x, place[1], place[2] - z))
        camera = look_at(seen(eye), seen(target)) if is_lag else world.settled_camera()
        return renderer.render(scene, camera, height, width, quality)

    poses = tuple(jnp.asarray(np.stack(column)) for column in zip(*columns, strict=True))
    return np.asarray(jax.jit(lambda poses: jax.lax.map(draw, poses), compiler_options=AS_USERS_HAVE_IT)(poses))


def differences(is_wanted, quality: renderer.Quality) -> np.ndarray:
    """Absolute level differences, one [pixels, 3] array per frame."""
    records = [r for r in recorded("frames/frames.json") if is_wanted(r)]
    found = []
    for size in sorted({(r["height"], r["width"]) for r in records}):
        group = [r for r in records if (r["height"], r["width"]) == size]
        for record, frame in zip(group, drawn(group, quality), strict=True):
            original = np.asarray(Image.open(FOLDER / "frames" / record["file"]).convert("RGB"))
            found.append(np.abs(frame.astype(int) - original).reshape(-1, 3))
    return np.asarray(found, dtype=object)


def share_within(frame: np.ndarray, levels: int) -> float:
    return float(np.mean(np.max(frame, axis=-1) <= levels))


IS_SETTLED = lambda record: record["kind"] not in ("ablation", "lag")
IS_SMALL = lambda record: IS_SETTLED(record) and record["width"] == 128  # 160 of 190: each size compiles for itself


@pytest.mark.parametrize("is_wanted", [IS_SMALL, pytest.param(IS_SETTLED, marks=pytest.mark.slow)], ids=["128", "all"])
def test_frames_at_reference_quality(is_wanted):
    found = differences(is_wanted, renderer.REFERENCE)
    shares = [share_within(frame, 4) for frame in found]
    # The bars are 97%, 90% and 1.5; what was reached is 99.4%, 94.2% and 0.29, and must not be lost again.
    assert np.mean(shares) >= 0.99
    assert np.min(shares) >= 0.93
    assert np.mean([frame.mean() for frame in found]) <= 0.4


def test_frames_of_an_unsettled_camera():
    found = differences(lambda record: record["kind"] == "lag", renderer.REFERENCE)
    assert np.mean([share_within(frame, 4) for frame in found]) >= 0.98  # the bar is 95%


def test_frames_at_training_quality():
    found = differences(IS_SETTLED, renderer.TRAINING)
    assert np.mean([frame.mean() for frame in found]) <= 6.5  # the bar is 8
    assert np.mean([share_within(frame, 16) for frame in found]) >= 0.9  # the bar is 80%


def test_camera_lag_follows_the_recorded_frames():
    """The live camera, so many frames after the last command, is where the page's was."""
    records = [r for r in recorded("frames/frames.json") if r["kind"] == "lag"]
    for record in records:
        frames = float(record["lag_frames"])
        env = GridWalker(max_size=record["size"], max_blocks=10, camera="live")
        params = Params(
            size=record["size"], num_blocks=record["blocks"], min_camera_frames=frames, max_camera_frames=frames
        )
        state = env.init_from_text(record["seed"], params)
        eye, target = (jnp.asarray(place, jnp.float32) for place in record["camera_from"])
        cell, facing = jnp.asarray([record["gridX"], record["gridZ"]]), jnp.int32(record["facing"])
        # A turn to the left and one back leave the pose, so the second may stand for the recorded last command.
        state = state.replace(cell=cell, facing=(facing + 1) % 4, eye=eye, target=target)
        after, *_ = env.transition(jax.random.key(0), state, jnp.int32(commands.LEFT), params)
        np.testing.assert_allclose(after.eye, record["camera_position"], atol=2e-5)
        np.testing.assert_allclose(after.target, record["camera_target"], atol=2e-5)
