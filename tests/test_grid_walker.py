"""GridWalker beyond the recorded data: levels in one compilation, refusals, planners against plain search, Gymnasium."""

import time
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax import UNPARSABLE, GridWalker
from envs_jax.grid_walker import Params, commands, planner

ENV = GridWalker()


def test_a_batch_may_hold_every_level_in_one_compilation():
    env = GridWalker(max_size=12, max_blocks=20)
    sizes, blocks = np.array([2, 5, 8, 12]), np.array([0, 2, 3, 20])
    params = Params(size=sizes, num_blocks=blocks, max_turns=np.full(4, 10))
    axes = Params(0, 0, 0, None, None, None, None, None)
    states = jax.jit(jax.vmap(env.init_from_number, in_axes=(0, axes)))(np.arange(4, dtype=np.uint32), params)
    for i, (size, count) in enumerate(zip(sizes, blocks)):
        alone_env, alone = GridWalker(max_size=size, max_blocks=count), Params(size=int(size), num_blocks=int(count))
        state = alone_env.init_from_number(jnp.uint32(i), alone)
        assert np.array_equal(states.goal[i], state.goal)
        assert np.array_equal(states.blocks[i][:count], state.blocks)
        assert (states.blocks[i][count:] == -1).all()
        image = env.observe(jax.tree.map(lambda x, i=i: x[i], states))["image"]
        assert np.array_equal(image, alone_env.observe(state)["image"])


def test_win_costs_and_limits_are_kept_apart():
    params = Params(step_cost=0.25, invalid_cost=0.5, max_turns=2)
    state = ENV.init_from_number(jnp.uint32(17), params)  # the gold is one step ahead: reference sheet
    act = lambda state, action: ENV.transition(jax.random.key(0), state, jnp.int32(action), params)
    _, reward, terminated, truncated, info = act(state, commands.FORWARD + 1)
    assert (float(reward), bool(terminated), bool(truncated)) == (0.75, True, False)
    assert bool(info["success"])
    assert float(info["efficiency"]) == 100
    state, reward, terminated, truncated, _ = act(state, UNPARSABLE)
    assert (float(reward), bool(terminated), bool(truncated)) == (-0.75, False, False)
    _, reward, terminated, truncated, info = act(state, commands.LEFT)
    assert (float(reward), bool(terminated), bool(truncated)) == (-0.25, False, True)
    assert not bool(info["success"])


def plain_search(state, start: tuple[int, int, int]) -> int:
    """Fewest commands from a pose to a stop on the gold, by breadth-first search over poses."""
    blocks = {tuple(cell) for cell in np.asarray(state.blocks)}
    goal, size = tuple(np.asarray(state.goal)), int(state.size)
    steps = [(0, -1), (1, 0), (0, 1), (-1, 0)]
    queue, seen = deque([(start, 0)]), {start}
    while queue:
        (x, z, facing), count = queue.popleft()
        if (x, z) == goal:
            return count
        following = [(x, z, (facing + 1) % 4), (x, z, (facing - 1) % 4)]
        at = (x, z)
        for _ in range(size):
            ahead = (at[0] + steps[facing][0], at[1] + steps[facing][1])
            if not (0 <= ahead[0] < size and 0 <= ahead[1] < size) or ahead in blocks:
                break
            at = ahead
            following.append((*at, facing))
        for pose in following:
            if pose not in seen:
                seen.add(pose)
                queue.append((pose, count + 1))
    return 1 << 20


@pytest.mark.parametrize("seed", [0, 7, 15, 19])
def test_planner_finds_the_fewest_commands(seed: int):
    state = ENV.init_from_number(jnp.uint32(seed), Params())
    costs = np.asarray(planner.commands_to_goal(state, planner.free_cells(state, ENV.max_size)))
    x, z = np.asarray(state.cell)
    for facing in range(4):
        assert costs[facing, x, z] == plain_search(state, (int(x), int(z), facing))


@pytest.mark.parametrize("params", [Params(size=9), Params(size=1), Params(num_blocks=4), Params(max_turns=0)])
def test_impossible_boards_are_refused_in_a_sentence(params: Params):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        ENV.check(params)


@pytest.mark.slow
@pytest.mark.parametrize("quality", ["training", "reference"])
def test_256_blocks_compile_in_time(quality: str):
    """Blocks are looped over, not unrolled."""
    env = GridWalker(max_size=32, max_blocks=256, height=64, width=64, quality=quality)
    state = env.init_from_number(jnp.uint32(1), env.default_params())
    started = time.perf_counter()
    jax.block_until_ready(jax.jit(lambda state: env.observe(state)["image"])(state))
    assert time.perf_counter() - started < 20


def test_gymnasium_users_can_play():
    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    from envs_jax.gymnasium_adapter import GymnasiumEnv

    env = GymnasiumEnv(ENV)
    check_env(env, skip_render_check=True)
    image, info = env.reset(seed=17)
    assert image.shape == (32, 32, 3)
    assert info == {"seed": 17}
    _, reward, terminated, truncated, info = env.answer("I go `forward 1`.")
    assert (reward, terminated, truncated, info["command"]) == (1.0, True, False, "`forward 1`")
    assert isinstance(env.action_space, gymnasium.spaces.Discrete)
    assert env.action_space.n == len(ENV.actions())
