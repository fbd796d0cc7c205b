"""One tree of dataclasses says everything about a run; it is checked, written to config.json and read back from there.

Whatever a component needs to know is a field of its own dataclass, with its default there. Fields that name one of a few
choices carry them as metadata. Source: DESIGN 7.
"""

import dataclasses
import importlib
from dataclasses import dataclass, field
from typing import Any

from envs_jax import GridWalker
from envs_jax.environment import TextEnvironment
from envs_jax.grid_walker import Params
from envs_jax.grid_walker.players import FewestCommands
from jaxvlmrl import thinking
from jaxvlmrl.adapters import Tuning
from jaxvlmrl.algorithms import ALGORITHMS, VLDAC, Algorithm
from jaxvlmrl.curriculum import Curriculum
from jaxvlmrl.imitation import Demonstrations
from jaxvlmrl.models.critics import CRITICS, CNNCritic, Critic, ValueHead
from jaxvlmrl.models.qwen3_vl import Qwen3VL
from jaxvlmrl.models.smolvlm import SmolVLM
from jaxvlmrl.optimizer import Optimizer
from jaxvlmrl.text.tokenizer import OWN

Model = SmolVLM | Qwen3VL
CARRIED = {"gamma", "gae_lambda", "entropy_coef", "final_entropy_coef"}  # of the task and the model, not of a method


class ConfigError(ValueError):
    """Something a user wrote cannot be run; the message is one sentence that says what."""


@dataclass
class Conversation:
    """How the model is spoken to."""

    # the package's own ("tiny", "tiny_thinking"); "smolvlm"; "weights" for the model's folder; or a folder of its own
    tokenizer: str = "tiny"
    template: str = "tiny"  # the wording: tiny, smolvlm, qwen3_vl, or a .json file
    short_prompt: bool = True  # the environment's few words in place of its rules
    window: int = 3  # turns in sight, the current one included
    max_answer_tokens: int = 6
    constrained: bool = False  # only canonical answers can be sampled
    temperature: float = 1.0
    top_k: int = 0  # only the k likeliest tokens can be drawn; 0 for all. Not in training
    top_p: float = 1.0  # only the likeliest that together have this probability. Not in training
    tokens_at_once: int = 0  # of a vocabulary's log-probs in training, for memory; 0 for all of a minibatch's part
    thought_tokens: int = 0  # at most so many of `<think>...</think>` before the command; 0 for commands alone


@dataclass
class PerceptionPhase:
    """Questions about pictures, answered from the environment's state; 0 updates leave it out."""

    num_updates: int = 0
    num_frames: int = 256  # an update, all questions asked of each
    minibatches: int = 4
    validate_every: int = 25  # updates
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(warmup_updates=5, b2=0.98, max_grad_norm=1.0))


@dataclass
class ImitationPhase:
    """The supervised phase; 0 updates leave it out."""

    num_updates: int = 0
    num_envs: int = 64
    num_turns: int = 12  # of every game an update
    minibatches: int = 2
    validate_every: int = 25  # updates
    demonstrations: Demonstrations = field(default_factory=lambda: Demonstrations(FewestCommands()))
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(warmup_updates=5, b2=0.98, max_grad_norm=1.0))


@dataclass
class RLPhase:
    """The phase of reinforcement learning; 0 updates leave it out."""

    num_updates: int = 0
    num_envs: int = 256
    num_turns: int = 16  # of every environment an update; W - 1 + T is best a multiple of W - 1
    epochs: int = 2
    minibatches: int = 8
    microbatches: int = 2  # a minibatch's gradient is gathered in so many parts; 8 to 16 environments each suit a CPU
    envs_at_once: int = 0  # in a rollout, for memory; 0 for all
    validate_every: int = 10  # updates
    # The phase ends with this many of its turns, if not before; 0 for num_updates. The entropy bonus falls with whichever
    # end is nearer, the learning rate with the updates alone.
    stop_after_turns: int = 0
    # "auto" takes the sampler's where float32 is exact, and has the trainer recompute them elsewhere
    old_log_prob: str = field(default="auto", metadata={"choices": ("auto", "sampler", "recomputed")})
    thought_reward: float = 0.0  # for whole thoughts, in every turn or by their share with a win
    thought_paid_for: str = field(default="wins", metadata={"choices": thinking.PAID})
    optimizer: Optimizer = field(default_factory=Optimizer)
    critic_optimizer: Optimizer = field(default_factory=lambda: Optimizer(max_grad_norm=1.0))


@dataclass
class Evaluation:
    """Seeds are half-open ranges of numbers; their layouts never occur in training."""

    test: tuple = (1000, 2000)  # looked at once, at the end
    validation: tuple = (5000, 5256)  # chooses the checkpoint
    published: tuple = (0, 20)
    batch: int = 256  # episodes at a time


@dataclass
class Config:
    """A run."""

    env: TextEnvironment = field(default_factory=GridWalker)
    env_params: Any = field(default_factory=Params)
    model: Model = field(default_factory=SmolVLM)
    tuning: Tuning = field(default_factory=Tuning)
    conversation: Conversation = field(default_factory=Conversation)
    algorithm: Algorithm = field(default_factory=VLDAC)
    critic: Critic = field(default_factory=CNNCritic)
    perception: PerceptionPhase = field(default_factory=PerceptionPhase)
    curriculum: Curriculum = field(default_factory=Curriculum)  # lessons before are on its first level
    imitation: ImitationPhase = field(default_factory=ImitationPhase)
    rl: RLPhase = field(default_factory=RLPhase)
    evaluation: Evaluation = field(default_factory=Evaluation)
    start_from: str = ""  # a run directory whose best policy this run starts from, in place of random weights
    checkpoint_every: int = 25  # updates
    seed: int = 0

    def variant(self, names: str) -> "Config":
        """What stands after the colon of `--config=configs/NAME.py:vl_dac,value_head,tiny`.

        The name of an algorithm, of a critic, `tiny`: any of them.
        """
        wanted = [name for name in names.split(",") if name]
        known = ("tiny", *ALGORITHMS, *CRITICS)
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise ConfigError(f"the config has no variant {unknown[0]}; there are {', '.join(known)}")
        for kinds, what in ((ALGORITHMS, "algorithm"), (CRITICS, "critic")):
            if len(both := [name for name in wanted if name in kinds]) > 1:
                raise ConfigError(f"the config's variants {' and '.join(both)} exclude each other: name one {what}")
        for name in wanted:
            self = self.with_algorithm(name) if name in ALGORITHMS else self
        for name in wanted:
            self = self.with_critic(name) if name in CRITICS else self
        return self.tiny() if "tiny" in wanted else self

    def with_critic(self, name: str) -> "Config":
        """The same run, its critic of another kind."""
        if not self.algorithm.uses_critic:
            raise ConfigError(f"{type(self.algorithm).__name__} has no critic: leave {name} out")
        return dataclasses.replace(self, critic=CRITICS[name]())

    def with_algorithm(self, name: str) -> "Config":
        """The same run by another algorithm, with its own defaults for all that is of the method."""
        kind = ALGORITHMS[name]
        known = {item.name for item in dataclasses.fields(kind)}
        carried = {name: getattr(self.algorithm, name) for name in CARRIED & known if hasattr(self.algorithm, name)}
        rl, algorithm = self.rl, kind(**carried)
        if kind.whole_episodes:
            rl = dataclasses.replace(rl, num_turns=int(self.env_params.max_turns))
        if not kind.has_ratio:  # one step a rollout: a second one would not know that the policy has moved
            rl = dataclasses.replace(rl, epochs=1, minibatches=1, microbatches=rl.minibatches * rl.microbatches)
        if not algorithm.can_be_cut:
            rl = dataclasses.replace(rl, microbatches=1)
        needs_head = kind.values_tokens and not self.critic.reads_hidden
        critic = ValueHead() if needs_head else self.critic
        return dataclasses.replace(self, algorithm=algorithm, critic=critic, rl=rl)

    def tiny(self) -> "Config":
        """The same run in a CPU minute: two updates of a few short games a phase, evaluated on eight. What `:tiny` means.

        A model that speaks with another tokenizer than the package's own becomes the smallest of its family.
        """
        small = dataclasses.replace
        perception = small(self.perception, num_updates=min(self.perception.num_updates, 2), num_frames=8)
        imitation = small(self.imitation, num_updates=min(self.imitation.num_updates, 2), num_envs=4, num_turns=6)
        rl = small(self.rl, num_updates=min(self.rl.num_updates, 2), num_envs=8, num_turns=6)
        parts = 2 if self.algorithm.can_be_cut else 1
        minibatches = 2 if self.algorithm.has_ratio else 1
        rl = small(rl, epochs=1, minibatches=minibatches, microbatches=parts, envs_at_once=min(rl.envs_at_once, 4))
        short = lambda params: _shortened(self.env, params)
        env_params = short(self.env_params)
        curriculum = small(self.curriculum, levels=tuple(short(level) for level in self.curriculum.levels))
        seeds = Evaluation(test=(1000, 1008), validation=(5000, 5008), batch=8)
        algorithm = small(self.algorithm, warmup_updates=min(self.algorithm.warmup_updates, 1))
        imitation = small(imitation, minibatches=2)
        if self.conversation.tokenizer not in OWN:
            kept = {name: getattr(self.model, name) for name in ("dtype", "param_dtype", "remat")}
            model = type(self.model)(**kept)
            words = {"tokenizer": "tiny", "template": "tiny", "short_prompt": True, "max_answer_tokens": 6}
            words["thought_tokens"] = 0  # the tiny tokenizer has no marks for them
            height, width = model.image_shape
            self = small(
                self, model=model, env=small(self.env, height=height, width=width),
                critic=self.critic if self.critic.reads_hidden else CNNCritic(),
                conversation=small(self.conversation, **words, tokens_at_once=min(self.conversation.tokens_at_once, 32)),
            )  # fmt: skip
        perception = small(perception, minibatches=2)
        if algorithm.whole_episodes:
            rl = small(rl, num_turns=int(env_params.max_turns))
        return small(
            self, env_params=env_params, curriculum=curriculum, perception=perception, imitation=imitation, rl=rl,
            algorithm=algorithm, evaluation=seeds,
        )  # fmt: skip

    def check(self) -> None:
        """Raises `ConfigError` for what cannot be run."""
        _check_choices(self, "config")
        phases = {"perception": self.perception, "imitation": self.imitation, "rl": self.rl}
        for name, phase in phases.items():
            _check_sizes(f"config.{name}", phase)
        if not any(phase.num_updates for phase in phases.values()):
            raise ConfigError("config.imitation.num_updates and config.rl.num_updates are both 0: nothing to do")
        if self.perception.num_updates and not self.env.questions():
            raise ConfigError(f"{self.env.name} has no questions to ask: config.perception.num_updates must be 0")
        if self.perception.num_frames % self.perception.minibatches:
            count = f"{self.perception.num_frames} cannot be cut into {self.perception.minibatches} minibatches"
            raise ConfigError(f"config.perception.num_frames = {count}")
        if self.rl.num_envs % (self.rl.minibatches * self.rl.microbatches):
            parts = f"{self.rl.minibatches} minibatches of {self.rl.microbatches} parts"
            raise ConfigError(f"config.rl.num_envs = {self.rl.num_envs} cannot be cut into {parts}")
        if self.rl.envs_at_once and self.rl.num_envs % self.rl.envs_at_once:
            raise ConfigError(
                f"config.rl.num_envs = {self.rl.num_envs} cannot be cut into {self.rl.envs_at_once} at a time"
            )
        self._check_algorithm()
        if self.imitation.num_envs % self.imitation.minibatches:
            count = f"{self.imitation.num_envs} cannot be cut into {self.imitation.minibatches} minibatches"
            raise ConfigError(f"config.imitation.num_envs = {count}")
        if self.conversation.window < 1 or self.conversation.max_answer_tokens < 2:
            raise ConfigError("config.conversation needs a window of at least 1 turn and at least 2 answer tokens")
        if self.conversation.temperature <= 0 or self.checkpoint_every < 1:
            raise ConfigError("config.conversation.temperature and config.checkpoint_every must be above 0")
        for name in ("test", "validation", "published"):
            seeds = getattr(self.evaluation, name)
            if len(seeds) != 2 or not 0 <= seeds[0] < seeds[1] <= 1 << 32:
                raise ConfigError(f"config.evaluation.{name} = {seeds} is no range of seeds (first, end)")
        talk = self.conversation
        if talk.top_k < 0 or talk.tokens_at_once < 0 or not 0 < talk.top_p <= 1:
            raise ConfigError("config.conversation.top_k and tokens_at_once must be at least 0, and 0 < top_p <= 1")
        if talk.thought_tokens < 0:
            raise ConfigError("config.conversation.thought_tokens must be at least 0")
        if self.rl.thought_reward and not talk.thought_tokens:
            raise ConfigError("config.rl.thought_reward pays for thoughts, but config.conversation.thought_tokens is 0")
        if talk.top_k or talk.top_p < 1:
            raise ConfigError("config.conversation.top_k and top_p cannot be used in training: a token that the policy does "
                              "not draw would have no probability to learn from")  # fmt: skip
        if not 0 <= self.tuning.dropout < 1 or self.tuning.rank < 1:
            raise ConfigError("config.tuning.dropout must be at least 0 and below 1, and rank at least 1")
        if self.tuning.dropout and self.rl.num_updates:
            raise ConfigError(
                "config.tuning.dropout must be 0 in a run with reinforcement learning: ratios need one policy"
            )
        if self.evaluation.batch < 2:
            raise ConfigError("config.evaluation.batch must be at least 2")
        try:
            for params in (self.env_params, *self.curriculum.levels):
                self.env.check(params)
                self._check_turns(params)
        except ValueError as error:
            raise ConfigError(f"the environment cannot be made: {error}") from error

    def _check_turns(self, params: Any) -> None:
        most, given = int(self.env_params.max_turns), int(params.max_turns)
        if given > most:
            raise ConfigError(f"a level of config.curriculum has {given} turns, config.env_params.max_turns is {most}")

    def _check_algorithm(self) -> None:
        alike, name = self.algorithm.environments_alike, type(self.algorithm).__name__
        if alike < 1 or self.rl.num_envs % max(alike, 1):
            count = f"groups of {alike}"
            raise ConfigError(f"config.rl.num_envs = {self.rl.num_envs} cannot be cut into {count} that begin alike")
        if alike < self.algorithm.fewest_alike:
            raise ConfigError(
                f"{name} compares episodes that begin alike: config.algorithm.group_size must be at least 2"
            )
        if self.algorithm.whole_episodes and self.rl.num_turns < int(self.env_params.max_turns):
            turns = f"config.rl.num_turns = {self.rl.num_turns} is below config.env_params.max_turns"
            raise ConfigError(f"{name} learns from whole episodes, but {turns}")
        if not self.algorithm.has_ratio and self.rl.epochs * self.rl.minibatches > 1:
            raise ConfigError(f"{name} has no ratio: config.rl.epochs and config.rl.minibatches must be 1")
        if self.algorithm.values_tokens and not self.critic.reads_hidden:
            raise ConfigError(f"{name} values tokens, which only a value_head can: config.critic looks at pictures")
        if self.algorithm.sft_coef and not self.conversation.thought_tokens:
            raise ConfigError(f"{name} clones thoughts, but config.conversation.thought_tokens is 0")
        if not self.algorithm.can_be_cut and self.rl.microbatches > 1:
            reason = "divides by what a minibatch keeps" if not self.algorithm.is_mean_over_rows else "clones thoughts"
            raise ConfigError(f"{name} {reason}: config.rl.microbatches must be 1")
        if 0 < self.rl.num_updates <= self.algorithm.critic_warmup:
            raise ConfigError("config.algorithm.warmup_updates leaves no update to the policy")


def _shortened(env: Any, params: Any) -> Any:
    """With at most twenty turns, where the environment lets itself be cut short."""
    short = dataclasses.replace(params, max_turns=min(params.max_turns, 20))
    try:
        env.check(short)
    except ValueError:
        return params
    return short


def _check_sizes(path: str, phase: PerceptionPhase | ImitationPhase | RLPhase) -> None:
    for item in dataclasses.fields(phase):
        value = getattr(phase, item.name)
        if isinstance(value, int) and value < (
            0 if item.name in ("num_updates", "envs_at_once", "stop_after_turns") else 1
        ):
            raise ConfigError(f"{path}.{item.name} = {value} is too small")


def _check_choices(part: Any, path: str) -> None:
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        choices = item.metadata.get("choices")
        if choices and value not in choices:
            raise ConfigError(f"{path}.{item.name} is {value!r}; it is one of {', '.join(map(repr, choices))}")
        if dataclasses.is_dataclass(value):
            _check_choices(value, f"{path}.{item.name}")


# config.json


def to_json(part: Any) -> Any:
    """Plain data that `from_json` reads back; a dataclass becomes its fields and its type."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {item.name: to_json(getattr(part, item.name)) for item in dataclasses.fields(part)}
        return {"type": f"{type(part).__module__}:{type(part).__qualname__}"} | fields
    if isinstance(part, tuple | list):
        return [to_json(item) for item in part]
    return part


def from_json(data: Any) -> Any:
    """What `to_json` was given. Only dataclasses are made; fields that are new since then get their defaults."""
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    fields = {name: from_json(value) for name, value in data.items() if name != "type"}
    try:
        module, name = data["type"].split(":")
        kind = getattr(importlib.import_module(module), name)
    except (KeyError, ValueError, ImportError, AttributeError) as error:
        raise ConfigError(f"config.json names something that does not exist: {error}") from error
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ConfigError(f"config.json names {data['type']}, which is no part of a config")
    unknown = set(fields) - {item.name for item in dataclasses.fields(kind)}
    if unknown:
        raise ConfigError(f"config.json gives {data['type']} a field it does not have: {', '.join(sorted(unknown))}")
    return kind(**fields)


def flatten(part: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted path; a part's type is one of them where it is not the only possible one."""
    if not dataclasses.is_dataclass(part):
        return {path: part}
    found: dict[str, Any] = {}
    for item in dataclasses.fields(part):
        found |= flatten(getattr(part, item.name), f"{path}.{item.name}" if path else item.name)
    return found or {path: type(part).__name__}


def differences(old: Any, new: Any) -> list[str]:
    """`path: old -> new` for every leaf in which two configs differ, their types included."""
    before, after = _leaves(to_json(old), ""), _leaves(to_json(new), "")
    paths = sorted(before.keys() | after.keys())
    absent = "(absent)"
    return [
        f"{path}: {before.get(path, absent)} -> {after.get(path, absent)}"
        for path in paths
        if before.get(path, absent) != after.get(path, absent)
    ]


def _leaves(data: Any, path: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        return {path: data}
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= _leaves(value, f"{path}.{name}" if path else name)
    return found
