"""Playing named episodes to their end, by the policy or a scripted player, and what came of them.

An episode's name is a number, its environment's seed. One compiled program serves greedy and sampled answers, and eyes
that see another picture than their own: blank ones, or a neighbour's. A player that wins with those does not look.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.environment import Info, State, TextEnvironment
from envs_jax.environment import Params as EnvParams
from envs_jax.players import Player
from envs_jax.wrappers import AutoReset, Levels, Step
from jaxvlmrl import rollout, thinking
from jaxvlmrl.adapters import joined
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy
from jaxvlmrl.thinking import Verdict

EYES = ("own", "blank", "shuffled")
ENDED = -2  # in place of an action, after the episode's end
HOPELESS_TURNS = 5  # "wins within 5"


class Episodes(NamedTuple):
    """N episodes of at most T turns, host arrays."""

    seeds: np.ndarray  # [N]
    won: np.ndarray  # [N] bool
    turns: np.ndarray  # [N], played
    efficiency: np.ndarray  # [N], the game's own score in percent; counts where won
    actions: np.ndarray  # [N, T], -1 unparsable, ENDED afterwards
    answer_ids: np.ndarray  # [N, T, G], the tokens of the answers; none for a scripted player
    answer_valid: np.ndarray  # [N, T, G] bool
    thoughts: Verdict | None = None  # fields [N, T]


class Game(NamedTuple):
    """One episode in words; `answers` of a scripted player are the canonical ones."""

    seed: int
    won: bool
    turns: int
    actions: list[int]
    answers: list[str]


@dataclass(frozen=True, eq=False)
class OneEpisode(AutoReset):
    """An environment that is not reset when its episode has ended."""

    def step(self, key: jax.Array, state: State, action: jax.Array, params: EnvParams, next_params: EnvParams) -> Step:
        after, reward, terminated, truncated, info = self.env.transition(key, state, action, params)
        return Step(after, after, reward, terminated, truncated, info)


class Evaluator:
    """Plays the policy on any seeds, `batch` at a time. `frozen` are parameters that every player shares."""

    def __init__(self, policy: Policy, env_params: EnvParams, batch: int, frozen: Params | None = None):
        self.policy, self.env_params, self.batch, self.frozen = policy, env_params, batch, frozen or {}
        self.max_turns = int(env_params.max_turns)
        self._play = jax.jit(self._play_batch)

    def play(self, params: Params, seeds: Sequence[int], key: jax.Array, greedy: bool, eyes: str = "own") -> Episodes:
        """One episode of each seed; a ragged last batch is filled up with others and cut."""
        numbers = np.asarray(seeds, np.uint32)
        parts = []
        for start in range(0, len(numbers), self.batch):
            part = np.resize(np.concatenate([numbers[start : start + self.batch], numbers]), self.batch)
            found = self._play(params, self.frozen, part, jax.random.fold_in(key, start), greedy, EYES.index(eyes))
            parts.append(jax.tree.map(np.asarray, found))
        whole = jax.tree.map(lambda *xs: np.concatenate(xs)[: len(numbers)], *parts)
        return Episodes(numbers, *whole)

    def _play_batch(
        self, params: Params, frozen: Params, seeds: jax.Array, key: jax.Array, greedy: jax.Array, eyes: jax.Array
    ):
        params = joined(params, frozen)
        policy, batch = self.policy, len(seeds)
        env = OneEpisode(policy.env, jnp.zeros((0, 2), jnp.uint32))
        levels = Levels.only(self.env_params)
        session = rollout.begin(policy, env, levels, key, batch)
        begin = lambda seed: policy.env.init_from_number(seed, self.env_params)
        session = session._replace(state=jax.vmap(begin)(seeds))

        def see(images: jax.Array) -> jax.Array:
            shuffled = lambda images: jnp.roll(images, 1, axis=0)
            return jax.lax.switch(eyes, [lambda images: images, jnp.zeros_like, shuffled], images)

        played, _ = rollout.play(policy, params, env, levels, session, key, self.max_turns, greedy, see=see)
        is_over, won, turns, efficiency = outcomes(played.terminated | played.truncated, played.info)
        swap = lambda x: jnp.swapaxes(x, 0, 1)
        actions = swap(jnp.where(is_over, ENDED, played.action))
        valid = swap(played.turns.answer_valid & ~is_over[..., None])
        verdict = self.judge_thoughts(played) if policy.thought_tokens else None
        return won, turns, efficiency, actions, swap(played.turns.answer_ids), valid, verdict

    def judge_thoughts(self, played: rollout.Trajectory) -> Verdict:
        flat = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
        said = flat((played.state, played.turns.answer_ids, played.turns.answer_valid))
        turns, batch = played.action.shape
        return jax.tree.map(lambda x: x.reshape(turns, batch).T, thinking.judge(self.policy, *said))


def outcomes(is_done: jax.Array, info: Info) -> tuple[jax.Array, ...]:
    """(whether the episode was over before the turn [T, N], won, turns, efficiency [N]) of turns [T, N]."""
    was_done = jnp.cumsum(is_done, axis=0) - is_done > 0
    last = is_done & ~was_done
    won = jnp.any(last & info["success"], axis=0)
    return was_done, won, jnp.sum(~was_done, axis=0), jnp.sum(jnp.where(last, info["efficiency"], 0.0), axis=0)


def play_scripted(
    player: Player, env: TextEnvironment, env_params: EnvParams, seeds: Sequence[int], key: jax.Array
) -> Episodes:
    """The same of a scripted player."""
    numbers = np.asarray(seeds, np.uint32)
    turns = int(env_params.max_turns)

    def one(number: jax.Array, key: jax.Array):
        return scripted_episode(player, env, env_params, turns, env.init_from_number(number, env_params), key)

    keys = jax.random.split(key, len(numbers))
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(numbers, keys))
    nothing = np.zeros((len(numbers), turns, 0))
    won, turns_played, efficiency, actions = found
    return Episodes(numbers, won, turns_played, efficiency, actions, nothing.astype(np.int32), nothing.astype(bool))


def scripted_episode(
    player: Player, env: TextEnvironment, env_params: EnvParams, turns: int, state: State, key: jax.Array
) -> tuple[jax.Array, ...]:
    """(won, turns, efficiency, actions [turns]) of a scripted player from a first state on."""

    def turn(carry, key: jax.Array):
        state, memory = carry
        action, memory = player.act(env, key, state, memory)
        state, _, terminated, truncated, info = env.transition(key, state, action, env_params)
        return (state, memory), (action, terminated | truncated, info)

    _, (actions, is_done, info) = jax.lax.scan(turn, (state, player.start(env, state)), jax.random.split(key, turns))
    was_done, won, turns_played, efficiency = outcomes(is_done, info)
    return won, turns_played, efficiency, jnp.where(was_done, ENDED, actions)


# What is said of episodes


def games(episodes: Episodes, policy: Policy) -> list[Game]:
    """The episodes, turn by turn until each ended."""

    def answer(index: int, turn: int) -> str:
        kept = episodes.answer_ids[index, turn][episodes.answer_valid[index, turn]]
        return policy.chat.tokenizer.decode(kept.tolist())

    return told(episodes, answer) if episodes.answer_ids.size else scripted_games(episodes, policy.env)


def scripted_games(episodes: Episodes, env: TextEnvironment) -> list[Game]:
    """The same of a scripted player."""
    return told(episodes, lambda index, turn: env.answer_text(int(episodes.actions[index, turn])))


def told(episodes: Episodes, answer: Callable[[int, int], str]) -> list[Game]:
    """Games whose answers are `answer(index, turn)`."""

    def game(index: int) -> Game:
        turns = int(episodes.turns[index])
        answers = [answer(index, turn) for turn in range(turns)]
        actions = episodes.actions[index, :turns].tolist()
        return Game(int(episodes.seeds[index]), bool(episodes.won[index]), turns, actions, answers)

    return [game(index) for index in range(len(episodes.seeds))]


def summarise(episodes: Episodes) -> dict[str, float]:
    """The figures of a table row; shares are of 1."""
    won, turns, actions = episodes.won, episodes.turns, episodes.actions
    wins, count = int(won.sum()), len(won)
    low, high = wilson_interval(wins, count)
    of_wins = lambda x: float(x[won].mean()) if wins else float("nan")
    return {
        "episodes": count,
        "wins": wins,
        "win_rate": wins / count,
        "ci95_low": low,
        "ci95_high": high,
        "wins_within_5": int((won & (turns <= HOPELESS_TURNS)).sum()),
        "mean_turns": of_wins(turns),
        "efficiency": of_wins(episodes.efficiency),
        "unparsable_share": float((actions == -1).sum() / (actions != ENDED).sum()),
        "tokens_per_turn": float(episodes.answer_valid.sum() / (actions != ENDED).sum()),
    } | (thought_figures(episodes.thoughts, actions != ENDED) if episodes.thoughts else {})


def thought_figures(thoughts: Verdict, is_turn: np.ndarray) -> dict[str, float]:
    """What `thinking.figures` says of episodes, which lie on the host."""
    figures = thinking.figures(*jax.tree.map(jnp.asarray, (thoughts, is_turn)))
    return {f"thoughts_{name}": float(x) for name, x in figures.items()}


def wilson_interval(wins: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of a share. Wilson (1927)."""
    share, spread = wins / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def pass_at_k(wins: np.ndarray, samples: int, k: int) -> float:
    """Mean over seeds of the chance that k of `samples` episodes, of which `wins` [seeds] were won, hold a win.

    1 - C(n - c, k) / C(n, k), as a product. Chen et al. (2021).
    """
    lost = samples - wins[:, None] - np.arange(k)[None]
    return float(np.mean(1 - np.prod(np.maximum(lost, 0) / (samples - np.arange(k))[None], axis=1)))
