"""Any text environment of this package as a Gymnasium environment, one episode at a time on the host."""

from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.environment import UNPARSABLE, Params, TextEnvironment


class GymnasiumEnv(gymnasium.Env[np.ndarray, np.int64]):
    """`reset(seed=n)` is the episode of seed n; actions count through `env.actions()`, or are answers in `answer`.

    env = GymnasiumEnv(GridWalker(height=128, width=128, quality="reference"))
    image, info = env.reset(seed=7)
    image, reward, terminated, truncated, info = env.answer("`forward 3`")
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 2}

    def __init__(self, env: TextEnvironment, params: Params | None = None, render_mode: str | None = "rgb_array"):
        self.env = env
        self.params = env.default_params() if params is None else params
        env.check(self.params)
        self.render_mode = render_mode
        self._init = jax.jit(env.init_from_number)
        self._transition = jax.jit(env.transition)
        self._observe = jax.jit(env.observe)
        image = jax.eval_shape(lambda: env.observe(env.init_from_number(jnp.uint32(0), self.params)))["image"]
        self.action_space = gymnasium.spaces.Discrete(len(env.actions()))
        self.observation_space = gymnasium.spaces.Box(0, 255, image.shape, np.uint8)
        self._state = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**32)) if seed is None else seed
        self._state = self._init(np.uint32(number), self.params)
        self._key = jax.random.key(number)
        return self.render(), {"seed": number}

    def step(self, action):
        """One action by its place in `env.actions()`."""
        return self._act(self.env.actions()[int(action)])

    def answer(self, text: str):
        """One step by a written answer; one that cannot be read costs its turn."""
        return self._act(self.env.parse_answer(text))

    def _act(self, action: int):
        if self._state is None:
            raise RuntimeError("call reset() before the first step")
        self._key, key = jax.random.split(self._key)
        self._state, reward, terminated, truncated, info = self._transition(
            key, self._state, np.int32(action), self.params
        )
        told = {name: np.asarray(value).item() for name, value in info.items()}
        told["command"] = None if action == UNPARSABLE else self.env.answer_text(action)
        return self.render(), float(reward), bool(terminated), bool(truncated), told

    def render(self) -> np.ndarray:
        return np.asarray(self._observe(self._state)["image"])
