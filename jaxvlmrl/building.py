"""From a config to the parts of a run: the policy, its environments, and the phases of training as compiled functions."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs_jax.wrappers import AutoReset, held_out_table
from jaxvlmrl import adapters, runs
from jaxvlmrl.config import Config, ConfigError
from jaxvlmrl.corrector import Corrector
from jaxvlmrl.imitation import Imitation
from jaxvlmrl.models import pretrained
from jaxvlmrl.models.critics import CNNCritic
from jaxvlmrl.models.layers import Params
from jaxvlmrl.models.paths import by_path
from jaxvlmrl.perception import Perception
from jaxvlmrl.policy import Policy
from jaxvlmrl.text.chat import Chat
from jaxvlmrl.text.tokenizer import Tokenizer
from jaxvlmrl.update import ActorCritic, Metrics

PROBES = 1000  # episodes drawn to see whether any may be trained on
GAMES, ORDER, ADAPTERS = 0x6A3E5, 0x0D3E, 0x10FA  # folded into the run's key: demonstrated games, and so on


class Phase(NamedTuple):
    """A part of training. `State` is any pytree with a policy's parameters in `policy`, and a critic's in `critic` too."""

    name: str
    num_updates: int
    turns_per_update: int  # of all environments together
    validate_every: int
    init: Callable[[Params, jax.Array], Any]  # (policy, key) -> State
    step: Callable[[Any, Params, jax.Array, jax.Array], tuple[Any, Metrics]]  # (State, frozen, key, index)
    keeps_newest: bool = False  # validation chooses the newest policy that is not clearly worse, and not the best
    stop_after_turns: int = 0  # 0 for num_updates
    probe: Callable[[Params], Metrics] | None = None  # whole parameters; in place of games on the validation seeds

    def is_over(self, update: int, turns: int) -> bool:
        """After so many updates and turns of its own."""
        return update == self.num_updates or 0 < self.stop_after_turns <= turns

    def compile(self, state: Any, frozen: Params) -> Callable[[Any, Params, jax.Array, jax.Array], tuple[Any, Metrics]]:
        """The whole update as one program that takes over the state's memory; traced and compiled once, here."""
        step = jax.jit(self.step, donate_argnums=0)
        return step.lower(state, frozen, jax.random.key(0), jnp.int32(0)).compile()


def make_policy(config: Config) -> Policy:
    """The policy a config describes. Raises `ConfigError` where its parts do not fit each other."""
    env, talk, model = config.env, config.conversation, config.model
    if image_shape(config) != model.image_shape and not model.resize:
        sizes = [f"{width} x {height}" for height, width in (model.image_shape, image_shape(config))]
        raise ConfigError(f"the model looks at {sizes[0]} pixels, not {sizes[1]}; config.model.resize would resize")
    try:
        model.check()
        check_critic(config)
        if talk.tokenizer == "weights" and not model.weights:
            raise ConfigError("the config needs a model's folder: --config.model.weights=FOLDER")
        tokenizer = Tokenizer(model.weights if talk.tokenizer == "weights" else talk.tokenizer)
        if tokenizer.vocab_size > config.model.text.vocab_size:
            count = f"{tokenizer.vocab_size} tokens, the model has {config.model.text.vocab_size}"
            raise ConfigError(f"the tokenizer knows {count}")
        prompt = env.short_prompt if talk.short_prompt else env.prompt
        turns = int(config.env_params.max_turns)
        chat = Chat(tokenizer, talk.template, prompt, config.model.num_image_tokens, turns, talk.max_answer_tokens)
        commands = [len(chat.answer_ids(env.answer_text(action))) for action in env.actions()]
        check_thoughts(config, chat, max(commands))
        longest = len(chat.prefix_ids) + turns * chat.tokens_per_turn + 0 * chat.image_slot
    except (FileNotFoundError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if longest > config.model.text.max_positions:
        limit = config.model.text.max_positions
        raise ConfigError(f"a conversation of {turns} turns takes {longest} tokens, the model has room for {limit}")
    return Policy(
        model, chat, env, talk.window, talk.constrained, talk.temperature, talk.top_k, talk.top_p,
        talk.tokens_at_once, talk.thought_tokens,
    )  # fmt: skip


def check_thoughts(config: Config, chat: Chat, longest_command: int) -> None:
    """Raises ValueError where thoughts are wanted, and the tokenizer, the environment or the budget has none."""
    talk = config.conversation
    if not talk.thought_tokens:
        return
    thoughts, marks = config.env.thoughts(), chat.thought_ids
    needed = talk.thought_tokens + len(marks) + longest_command
    if talk.max_answer_tokens < needed:
        raise ValueError(
            f"a thought and a command take {needed} tokens, config.conversation.max_answer_tokens is below"
        )
    if thoughts is None:
        raise ValueError(f"{config.env.name} has no thoughts: config.conversation.thought_tokens must be 0")
    longest = max(len(chat.tokenizer.encode(text)) for text in thoughts.texts)
    is_taught = config.imitation.num_updates or config.algorithm.sft_coef
    if is_taught and longest > talk.thought_tokens:
        raise ValueError(f"a thought takes {longest} tokens, config.conversation.thought_tokens is below")


def image_shape(config: Config) -> tuple[int, int]:
    """(height, width) of the environment's frames."""
    env = config.env
    image = jax.eval_shape(lambda: env.observe(env.init(jax.random.key(0), config.env_params)))["image"]
    return image.shape[0], image.shape[1]


def first_params(config: Config) -> Params:
    """What training starts from: random, published or another run's parameters, with fresh adapters where there are some."""
    key = jax.random.key(config.seed)
    try:
        if config.start_from:
            params = adapters.merged(whole_params(Path(config.start_from)))
            if shapes(params) != shapes(jax.eval_shape(config.model.init, key)):
                raise ConfigError(f"the policy in {config.start_from} is of another model than config.model")
        else:
            params = pretrained.initial(config.model, key)
        adapter_key = jax.random.fold_in(key, ADAPTERS)
        return adapters.prepared(params, config.tuning, config.model.param_dtype, adapter_key)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def abstract_params(config: Config) -> Params:
    """The shapes and types of `first_params`, without allocating."""

    def make(key: jax.Array) -> Params:
        return adapters.prepared(config.model.init(key), config.tuning, config.model.param_dtype, key)

    try:
        return jax.eval_shape(make, jax.random.key(0))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def start_params(config: Config, folder: Path) -> tuple[Params, Params]:
    """(what is trained, what is not) at the start of a run; one that has begun asks no other run for anything."""
    has_begun = any(path.name.isdigit() for path in (folder / "checkpoints").glob("*"))
    kept = runs.read_frozen(folder, adapters.split(abstract_params(config), config.tuning)[1])
    if has_begun and (config.tuning.trains_all or kept is not None):
        config = dataclasses.replace(config, start_from="")  # what is trained comes from its own checkpoint
    trained, frozen = adapters.split(first_params(config), config.tuning)
    return trained, frozen if kept is None else kept


def whole_params(folder: Path) -> Params:
    """A run's best policy, with what was never trained in it. Raises `ConfigError` where there is none."""
    config = runs.read_config(folder)
    trained_like, frozen_like = adapters.split(abstract_params(config), config.tuning)
    trained = runs.read_policy(folder, trained_like)
    if config.tuning.trains_all:
        return trained
    frozen = runs.read_frozen(folder, frozen_like)
    return adapters.joined(
        trained, adapters.split(first_params(config), config.tuning)[1] if frozen is None else frozen
    )


def shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in by_path(params).items()}


def check_critic(config: Config) -> None:
    """Raises `ConfigError` for sizes no critic can be made of."""
    critic, sides = config.critic, image_shape(config)
    if isinstance(critic, CNNCritic) and any(side % math.prod(critic.strides) for side in sides):
        raise ConfigError(f"config.critic.strides {critic.strides} do not divide {sides[1]} x {sides[0]} pixels")


def make_env(config: Config) -> AutoReset:
    """The training environment, which never shows an evaluation or validation episode."""
    seeds, env, params = config.evaluation, config.env, config.env_params
    ranges = [seeds.published, seeds.test, seeds.validation]
    first, keys = config.curriculum.first(params), jax.random.split(jax.random.key(0), PROBES)
    boards = [params] if first is params else [params, first]  # games, and lessons before them
    held_out = jnp.concatenate([held_out_table(env, board, ranges) for board in boards])
    for board in (params, *config.curriculum.levels):
        drawn = jax.vmap(lambda key, board=board: env.fingerprint(env.init(key, board)))(keys)
        if bool(jnp.all(jnp.any(jnp.all(drawn[:, None] == held_out[None], axis=-1), axis=-1))):
            raise ConfigError(
                f"config.evaluation's seeds hold out every layout of {board}: take fewer, or another board"
            )
    return AutoReset(env, held_out)


def make_phases(config: Config, policy: Policy) -> list[Phase]:
    """The config's phases in their order; those of 0 updates are left out."""
    env = make_env(config)
    phases = [
        perception_phase(config, policy, env),
        imitation_phase(config, policy, env),
        rl_phase(config, policy, env),
    ]
    return [phase for phase in phases if phase.num_updates]


def perception_phase(config: Config, policy: Policy, env: AutoReset) -> Phase:
    phase, env_params = config.perception, config.curriculum.first(config.env_params)
    optimizer = phase.optimizer.make(phase.num_updates, phase.minibatches)
    perception = Perception(policy, env, optimizer, phase.num_frames, phase.minibatches, config.tuning.dropout)
    seeds = jnp.arange(*config.evaluation.validation, dtype=jnp.uint32)
    return Phase(
        "perception", phase.num_updates, phase.num_frames, phase.validate_every,
        lambda params, key: perception.init(params),
        lambda state, frozen, key, index: perception.step(state, frozen, env_params, key),
        probe=jax.jit(lambda params: perception.probe(params, env_params, seeds)),
    )  # fmt: skip


def imitation_phase(config: Config, policy: Policy, env: AutoReset) -> Phase:
    phase = config.imitation
    imitation = Imitation(
        policy, env, phase.demonstrations, phase.optimizer.make(phase.num_updates, phase.minibatches),
        jax.random.fold_in(jax.random.key(config.seed), GAMES), phase.num_envs, phase.num_turns, phase.minibatches,
        config.tuning.dropout,
    )  # fmt: skip
    env_params = config.curriculum.first(config.env_params)
    return Phase(
        "imitation", phase.num_updates, phase.num_envs * phase.num_turns, phase.validate_every,
        lambda params, key: imitation.init(params, env_params, key),
        lambda state, frozen, key, index: imitation.step(state, frozen, env_params, key),
    )  # fmt: skip


def make_actor_critic(config: Config, policy: Policy, env: AutoReset) -> ActorCritic:
    """The update of reinforcement learning, with optimisers whose schedules span the phase."""
    phase = config.rl
    steps = phase.epochs * phase.minibatches
    is_exact = config.model.dtype == "float32" and jax.default_backend() == "cpu"  # others round products of float32
    automatic = "sampler" if is_exact else "recomputed"
    old_log_prob = automatic if phase.old_log_prob == "auto" else phase.old_log_prob
    moving = phase.num_updates - config.algorithm.critic_warmup  # the policy's schedule stands still before
    return ActorCritic(
        policy, config.critic, env, config.algorithm, phase.optimizer.make(moving, steps),
        phase.critic_optimizer.make(phase.num_updates, steps), phase.num_updates, phase.num_envs, phase.num_turns,
        phase.epochs, phase.minibatches, phase.microbatches, phase.envs_at_once, old_log_prob, config.curriculum,
        corrector=Corrector(policy, config.imitation.demonstrations.player) if config.algorithm.sft_coef else None,
        thought_reward=phase.thought_reward, thought_paid_for=phase.thought_paid_for,
        stop_after_turns=phase.stop_after_turns,
        updates_shown=1 if config.algorithm.whole_episodes else -(-2 * int(config.env_params.max_turns) // phase.num_turns),
    )  # fmt: skip


def rl_phase(config: Config, policy: Policy, env: AutoReset) -> Phase:
    phase = config.rl
    actor_critic, env_params = make_actor_critic(config, policy, env), config.env_params
    return Phase(
        "rl", phase.num_updates, phase.num_envs * phase.num_turns, phase.validate_every,
        lambda params, key: actor_critic.init(params, env_params, key),
        lambda state, frozen, key, index: actor_critic.step(state, frozen, env_params, key, index),
        keeps_newest=True, stop_after_turns=phase.stop_after_turns,
    )  # fmt: skip
