"""What a whole train_step of VL-DAC costs per environment step: `python experiments/bench_train_step.py [--json=FILE]`.

Minibatches have a fixed size (32 environments, in two parts), so the number of environments and of turns should not
matter; the window should. Then one update's time is split into its parts, each compiled alone. With --config=configs/NAME.py
only that, of that config with random weights, and the share of the machine's measured matrix rate that learning reaches.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags

from envs_jax.grid_walker import Params
from envs_jax.wrappers import Levels
from jaxvlmrl import rollout
from jaxvlmrl.adapters import joined, split
from jaxvlmrl.building import first_params, make_actor_critic, make_env, make_policy, rl_phase
from jaxvlmrl.config import Config, Conversation, RLPhase
from jaxvlmrl.models.paths import by_path
from jaxvlmrl.models.smolvlm import SmolVLM
from jaxvlmrl.runs import this_machine
from jaxvlmrl.update import When

PER_MINIBATCH, WINDOW = 32, 3
TURN = 4.0  # seconds
REPEATS = flags.DEFINE_integer("repeats", 3, "rounds of timings; the best of each counts")
QUICK = flags.DEFINE_bool("quick", False, "only the smallest setting, to see that it runs")
CONFIG = config_flags.DEFINE_config_file("config", None, "split the update of this config, and nothing else")
JSON = flags.DEFINE_string("json", None, "where to write the figures")


def config_of(num_envs: int, num_turns: int, window: int) -> Config:
    return Config(
        env_params=Params(max_turns=max(10, window)),
        conversation=Conversation(window=window),
        rl=RLPhase(num_updates=100, num_envs=num_envs, num_turns=num_turns, minibatches=num_envs // PER_MINIBATCH),
    )


def seconds_of(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


def best_times(runs: list[Callable[[], Any]]) -> list[float]:
    """Seconds of one call of each, the best of rounds in which all take their turn: a noisy minute hits all alike.

    A turn is one call that is not timed (after other programs have run, a first one finds its memory gone, and that costs
    short updates half as much again) and then calls for some seconds, so short updates are not measured by fewer of them.
    """
    rounds = [[best_of_turn(run) for run in runs] for _ in range(REPEATS.value)]
    return [min(times) for times in zip(*rounds)]


def best_of_turn(run: Callable[[], Any]) -> float:
    seconds_of(run)
    times = [seconds_of(run)]
    while sum(times) < TURN:
        times.append(seconds_of(run))
    return min(times)


def train_step(num_envs: int, num_turns: int, window: int) -> Callable[[], Any]:
    """A compiled update that goes on where its last call ended."""
    config = config_of(num_envs, num_turns, window)
    phase = rl_phase(config, make_policy(config), make_env(config))
    params = jax.jit(config.model.init)(jax.random.key(0))
    holder = [jax.jit(phase.init)(params, jax.random.key(1))]
    step = phase.compile(holder[0], {})

    def run() -> Any:
        holder[0], metrics = step(holder[0], {}, jax.random.key(2), jnp.int32(50))
        return metrics

    return run


def cost_per_step(settings: list[tuple[int, int, int]]) -> list[dict[str, float]]:
    times = best_times([train_step(*setting) for setting in settings])
    rows = []
    for (envs, turns, window), seconds in zip(settings, times):
        microseconds = 1e6 * seconds / (envs * turns)
        rows.append({"envs": envs, "turns": turns, "window": window, "us_per_step": microseconds})
        print(
            f"{envs:5d} envs  T {turns:3d}  W {window:3d}  {1e6 / microseconds:8,.0f} steps/s {microseconds:8.1f} us/step"
        )
    return rows


def parts_of_an_update(config: Config) -> dict[str, float]:
    """Seconds of rendering, dynamics, rollout (both included), judging, reference log-probs and learning, each alone."""
    rl, levels = config.rl, Levels.only(config.env_params)
    actor_critic = make_actor_critic(config, make_policy(config), make_env(config))
    policy, env = actor_critic.policy, actor_critic.env
    trained, frozen = split(first_params(config), config.tuning)
    learner = jax.jit(lambda w: actor_critic.init(w, config.env_params, jax.random.key(1)))(trained)
    play = jax.jit(
        lambda learner, frozen: rollout.play_in_parts(
            policy, joined(learner.policy, frozen), env, levels, learner.session, jax.random.key(2), rl.num_turns,
            rl.envs_at_once,
        )
    )  # fmt: skip
    trajectory, session = play(learner, frozen)
    render = jax.jit(lambda states: jax.lax.map(lambda s: rollout.images(env.env, s, lead=1), states))
    params = levels.of(jnp.zeros(rl.num_envs, jnp.int32))
    step = lambda state, action: jax.vmap(env.step)(
        jax.random.split(jax.random.key(4), rl.num_envs), state, action, params, params
    )
    move = jax.jit(lambda states, actions: jax.lax.map(lambda xs: step(*xs), (states, actions)))
    judge = jax.jit(lambda learner, *xs: actor_critic.judge(learner.critic, *xs))
    value, final_value = judge(learner, trajectory, session)
    rows_of = jax.jit(
        lambda learner, frozen, trajectory, *values: actor_critic.rows(
            learner, frozen, trajectory, *values, is_played=actor_critic.is_played(trajectory)
        )[0]
    )
    rows = rows_of(learner, frozen, trajectory, value, final_value)
    when = When(jnp.bool_(False), jnp.float32(0.5))
    learn = jax.jit(lambda learner, frozen, rows: actor_critic.learn(learner, frozen, rows, jax.random.key(3), when))
    parts = {
        "rendering": lambda: render(trajectory.state),
        "dynamics": lambda: move(trajectory.state, trajectory.action),
        "rollout": lambda: play(learner, frozen),
        "judging": lambda: judge(learner, trajectory, session),
        "reference": lambda: rows_of(learner, frozen, trajectory, value, final_value),
        "learning": lambda: learn(learner, frozen, rows),
    }
    found = dict(zip(parts, best_times(list(parts.values()))))
    total = sum(seconds for name, seconds in found.items() if name not in ("rendering", "dynamics"))
    print(f"one update of {rl.num_envs} environments, {rl.num_turns} turns: {total:.2f} s, of which")
    for name, seconds in found.items():
        print(f"  {name:10s} {seconds:6.3f} s  {seconds / total:6.1%}", flush=True)
    return found


def flops_of_learning(config: Config) -> float:
    """Of one update's learning: 2 a parameter and token forwards, as much again backwards for activations, and for weights.

    Weights beside adapters have no gradient of their own. Attention's products and recomputation are not counted.
    """
    policy, rl = make_policy(config), config.rl
    sizes = {path: leaf.size for path, leaf in by_path(jax.eval_shape(config.model.init, jax.random.key(0))).items()}
    part = lambda *names: sum(size for path, size in sizes.items() if path.startswith(names))
    head = config.model.text.vocab_size * config.model.text.width
    turns = rl.num_envs * (policy.window - 1 + rl.num_turns)
    side = config.model.shuffle if isinstance(config.model, SmolVLM) else config.model.vision.merge
    patches = config.model.num_image_tokens * side**2
    tokens = turns * policy.chat.tokens_per_turn
    decoder = part("text_model/layers")
    answers = rl.num_envs * rl.num_turns * policy.chat.max_answer_tokens
    forward = 2 * (decoder * tokens + part("vision_model") * turns * patches + head * answers)
    return rl.epochs * forward * (2 if config.tuning.lora else 3)


def matrix_rate(dtype: str) -> float:
    """Multiplications and additions a second of one large matrix product."""
    side = 8192 if jax.default_backend() != "cpu" else 2048
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * side**3 / best_times([lambda: product(a)])[0]


def of_config(config: Config) -> None:
    """The parts of a config's update, and how near learning comes to the machine's matrix rate."""
    parts = parts_of_an_update(config)
    flops, rate = flops_of_learning(config), matrix_rate(config.model.dtype)
    share = flops / parts["learning"] / rate
    print(f"learning: {flops / 1e12:.1f} TFLOP, {share:.1%} of the {rate / 1e12:.2f} TFLOP/s of a matrix product")
    if JSON.value:
        found = {"machine": this_machine(), "parts_s": parts, "learning_flop": flops, "matrix_flop_per_s": rate}
        Path(JSON.value).write_text(json.dumps(found | {"mfu": share}, indent=1) + "\n")


def main(_: list[str]) -> None:
    print(this_machine())
    if CONFIG.value is not None:
        of_config(CONFIG.value)
        return
    if QUICK.value:
        settings = [(32, 3, 2)]
    else:
        settings = [(envs, 16, WINDOW) for envs in (64, 256, 1024)] + [(256, turns, WINDOW) for turns in (32, 64)]
        settings += [(128, 16, 16), (64, 32, 32), (32, 64, 64)]  # full history
    rows = cost_per_step(settings)
    parts = parts_of_an_update(config_of(32, 3, WINDOW) if QUICK.value else config_of(256, 16, WINDOW))
    if JSON.value:
        found = {"machine": this_machine(), "train_step": rows, "parts_s": parts}
        Path(JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
