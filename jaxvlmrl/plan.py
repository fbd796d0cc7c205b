"""Does it fit? `python -m jaxvlmrl.plan --config=configs/NAME.py [--memory=GIB] [--nocompile] [--config.a.b=value]`.

What a run needs of a device's memory, from shapes and from the compiled program's own analysis; nothing is allocated. Says
which field of the config to change where it does not fit (exit code 1).
"""

import os
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxvlmrl import adapters, command_line
from jaxvlmrl.building import Phase, abstract_params, make_phases, make_policy
from jaxvlmrl.config import Config
from jaxvlmrl.conversation import Ring
from jaxvlmrl.models.paths import by_path
from jaxvlmrl.policy import Policy

GIB = 1 << 30
KNOBS = {
    "frozen parameters": "--config.model.param_dtype=bfloat16",
    "trained parameters": "--config.tuning.lora (adapters only) or config.tuning.frozen",
    "best and first policy": "--config.tuning.lora (adapters only) or config.tuning.frozen",
    "the rest of the state": "--config.tuning.lora or config.tuning.frozen: the optimiser keeps twice what is trained",
    "keys and values": "a smaller config.rl.envs_at_once (0 is all of them) or config.conversation.window",
    "logits": "a smaller config.conversation.tokens_at_once (0 is all of them)",
    "temporary": "more config.rl.microbatches, a smaller config.rl.envs_at_once (0 is all), --config.model.remat",
}


class Need(NamedTuple):
    """A line of the plan."""

    what: str
    bytes: int
    how: str
    is_within: bool = False  # part of another line


class Plan(NamedTuple):
    """What one phase needs."""

    phase: str
    needs: list[Need]

    @property
    def total(self) -> int:
        return sum(need.bytes for need in self.needs if not need.is_within)


def size(tree: Any) -> int:
    """Bytes of arrays, or of shapes."""
    return sum(
        int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree) if has_bytes(leaf)
    )


def has_bytes(leaf: Any) -> bool:
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def count(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def plans(config: Config, is_compiled: bool) -> list[Plan]:
    """One plan a phase."""
    policy = make_policy(config)
    return [plan(config, policy, phase, is_compiled) for phase in make_phases(config, policy)]


def plan(config: Config, policy: Policy, phase: Phase, is_compiled: bool) -> Plan:
    trained, frozen = adapters.split(abstract_params(config), config.tuning)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(phase.init, trained, key)
    needs = [
        Need("trained parameters", size(trained), f"{count(trained):,}"),
        Need("frozen parameters", size(frozen), f"{count(frozen):,}"),
        Need("best and first policy", 2 * size(trained), "kept beside the one that learns"),
        Need("the rest of the state", size(state) - size(trained), "optimiser, critic, reference, environments"),
        Need("keys and values", *_ring(config, policy, phase), is_within=True),
        Need("logits", *_logits(config, phase), is_within=True),
    ]
    if is_compiled:
        step = jax.jit(phase.step, donate_argnums=0)
        analysis = step.lower(state, frozen, key, jax.ShapeDtypeStruct((), jnp.int32)).compile().memory_analysis()
        assert analysis is not None
        needs.append(Need("temporary", analysis.temp_size_in_bytes, "as this backend's compiler has it, all at once"))
    else:
        needs = [need._replace(is_within=False) for need in needs]
    return Plan(phase.name, needs)


def _ring(config: Config, policy: Policy, phase: Phase) -> tuple[int, str]:
    """Of one chunk of environments: the ring, and the turn under way."""
    if phase.name != "rl":
        return 0, "nothing is sampled"
    batch = config.rl.envs_at_once or config.rl.num_envs
    ring = size(jax.eval_shape(lambda: Ring.empty(policy, 1).kv))
    ring = ring * policy.window // max(policy.window - 1, 1)
    return ring * batch, f"{batch} environments at a time, {ring / 2**20:.1f} MiB each"


def _logits(config: Config, phase: Phase) -> tuple[int, str]:
    """Of the tokens that are judged at once, forwards and backwards."""
    settings = config.rl if phase.name == "rl" else config.imitation
    parts = settings.minibatches * (config.rl.microbatches if phase.name == "rl" else 1)
    tokens = settings.num_envs // parts * settings.num_turns * config.conversation.max_answer_tokens
    tokens = min(config.conversation.tokens_at_once or tokens, tokens)
    return 2 * 4 * tokens * config.model.text.vocab_size, f"{tokens} tokens x {config.model.text.vocab_size}, twice"


def device_memory() -> int:
    """Bytes of the first device; of the machine where that is a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_words(plan: Plan, memory: int) -> str:
    """A table, and whether it fits."""
    lines = [f"{plan.phase}:"]
    for need in plan.needs:
        name = f"({need.what})" if need.is_within else need.what
        lines.append(f"  {name:24s} {need.bytes / GIB:9.3f} GiB   {need.how}")
    lines.append(f"  {'in all':24s} {plan.total / GIB:9.3f} GiB   of {memory / GIB:.1f}")
    if not any(need.what == "temporary" for need in plan.needs):
        lines.append("  activations are not counted: that takes compiling")
    if plan.total > memory:
        largest = max(plan.needs, key=lambda need: need.bytes)
        lines.append(f"  does not fit; most is taken by {largest.what}: {KNOBS[largest.what]}")
    return "\n".join(lines)


def by_part(config: Config) -> str:
    """Parameters of the model's parts."""
    parts: dict[str, int] = {}
    for path, leaf in by_path(jax.eval_shape(config.model.init, jax.random.key(0))).items():
        name = path.split("/")[0]
        parts[name] = parts.get(name, 0) + int(np.prod(leaf.shape))
    told = ", ".join(f"{name} {number:,}" for name, number in parts.items())
    return f"{type(config.model).__name__}: {sum(parts.values()):,} parameters ({told})"


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_float("memory", None, "of the device, in GiB", lower_bound=0.0, flag_values=values)
    flags.DEFINE_boolean("compile", True, "ask the compiler what is needed beside the state", flag_values=values)


def main(argv: list[str]) -> int:
    if command_line.helped(argv, __doc__, define):
        return 0
    config, values = command_line.read_config(argv, define)
    memory = int(values["memory"].value * GIB) if values["memory"].value else device_memory()
    print(by_part(config))
    found = plans(config, bool(values["compile"].value))
    for plan in found:
        print(in_words(plan, memory))
    return int(any(plan.total > memory for plan in found))


if __name__ == "__main__":
    command_line.guarded("jaxvlmrl.plan", lambda: main(sys.argv))
