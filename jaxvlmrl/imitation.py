"""Imitation: conversations of a scripted player, made on the device, and the supervised update on them.

Some of the executed commands may be random; the label is always the player's own. The context then carries what was
executed, and label tokens after the first that differs from it are outside the loss: nobody would say them there.
Source: DESIGN 6.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs_jax.environment import Params as EnvParams
from envs_jax.environment import State
from envs_jax.players import Memory, Player
from envs_jax.wrappers import AutoReset, Levels
from jaxvlmrl import packed, rollout, thinking
from jaxvlmrl.adapters import joined, with_dropout
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.conversation import Place, Turns
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy
from jaxvlmrl.rollout import Session, batch_major

THOUGHT, PLAYER = 0x7A1F, 0x91A7  # folded into a turn's key, for the wording of its thought and what the player draws


@dataclass(unsafe_hash=True)
class Demonstrations:
    """Which games are shown."""

    player: Player
    num_games: int = 1000  # a fixed set of so many, executed commands included; 0 for fresh ones without end
    noise: float = 0.33  # share of executed commands that are random


class Pupil(NamedTuple):
    """Everything a supervised update changes."""

    policy: Params  # what of it is trained; the rest is given to every update as `frozen`
    optimizer: Any
    session: Session
    memory: Memory  # the player's, [B]
    game: jax.Array  # [B] uint32, which game is on


class Lesson(NamedTuple):
    """T turns of B games, [T, B, ...]."""

    state: State
    turns: Turns  # with what was executed
    label_ids: jax.Array  # [T, B, G]
    label_valid: jax.Array  # [T, B, G] bool, up to the first token that differs from what was executed
    grammar_states: jax.Array  # [T, B, G]


@dataclass(frozen=True, eq=False)
class Imitation:
    """Supervised learning of a policy from a player."""

    policy: Policy
    env: AutoReset
    demonstrations: Demonstrations
    optimizer: optax.GradientTransformation
    games_key: jax.Array
    num_envs: int
    num_turns: int
    minibatches: int
    dropout: float = 0.0  # of what adapters read

    def init(self, params: Params, env_params: EnvParams, key: jax.Array) -> Pupil:
        session = rollout.begin(self.policy, self.env, Levels.only(env_params), key, self.num_envs)
        game = self.draw_games(key, self.num_envs)
        state = self.start_games(game, env_params)
        memory = jax.vmap(lambda s: self.demonstrations.player.start(self.policy.env, s))(state)
        return Pupil(params, self.optimizer.init(params), session._replace(state=state), memory, game)

    def step(
        self, pupil: Pupil, frozen: Params, env_params: EnvParams, key: jax.Array
    ) -> tuple[Pupil, dict[str, jax.Array]]:
        """One update: the games go on for T turns, and every minibatch of them is learned from once."""
        show_key, shuffle_key = jax.random.split(key)
        drop_keys = jax.random.split(jax.random.fold_in(key, 2), self.minibatches)
        past = pupil.session
        lesson, pupil = self.show(pupil, env_params, show_key)
        join = lambda old, new: jnp.swapaxes(jnp.concatenate([old, new]), 0, 1)
        rows = (
            jax.tree.map(join, past.past_states, lesson.state),
            jax.tree.map(join, past.past, lesson.turns),
            *batch_major((lesson.label_ids, lesson.label_valid, lesson.grammar_states)),
        )
        order = jax.random.permutation(shuffle_key, len(pupil.game)).reshape(self.minibatches, -1)

        def minibatch(pupil: Pupil, some_and_key: tuple[jax.Array, jax.Array]):
            some, drop_key = some_and_key
            part = jax.tree.map(lambda x: x[some], rows)
            grads, metrics = jax.grad(self.loss, has_aux=True)(pupil.policy, frozen, drop_key, *part)
            updates, optimizer = self.optimizer.update(grads, pupil.optimizer, pupil.policy)
            metrics["policy/grad_norm"] = optax.global_norm(grads)
            return pupil._replace(policy=optax.apply_updates(pupil.policy, updates), optimizer=optimizer), metrics

        pupil, metrics = jax.lax.scan(minibatch, pupil, (order, drop_keys))
        return pupil, jax.tree.map(jnp.mean, metrics)

    def loss(
        self, trained: Params, frozen: Params, key: jax.Array, states: State, turns: Turns, label_ids: jax.Array,
        label_valid: jax.Array, grammar_states: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
        """Cross-entropy of the labels' tokens in the distribution the policy would sample from."""
        params = joined(trained, frozen)
        if self.dropout:
            params = with_dropout(params, self.dropout, key)
        image_tokens = rollout.look(self.policy, params, self.env.env, states, lead=2)
        hidden = packed.forward(self.policy, params, turns, image_tokens, self.policy.prefix(params)).answer_hidden
        judged = self.policy.judge_tokens(params, hidden[:, self.policy.window - 1 :], label_ids, grammar_states)
        loss = -masked_mean(judged.log_prob, label_valid)
        accuracy = masked_mean(judged.is_likeliest.astype(jnp.float32), label_valid)
        return loss, {"imitation/loss": loss, "imitation/token_accuracy": accuracy}

    def show(self, pupil: Pupil, env_params: EnvParams, key: jax.Array) -> tuple[Lesson, Pupil]:
        """The games' next T turns."""
        env, player = self.env.env, self.demonstrations.player
        actions, ids, valid, grammar_states = self.wordings()

        def turn(carry: tuple[State, Place, Memory, jax.Array], key: jax.Array):
            state, place, memory, game = carry
            keys = jax.vmap(lambda g, t: jax.random.fold_in(jax.random.fold_in(self.games_key, g), t + 1))(
                game, place.turn
            )
            own = jax.vmap(lambda key: jax.random.fold_in(key, PLAYER))(keys)
            label, memory = jax.vmap(lambda *xs: player.act(self.policy.env, *xs))(own, state, memory)
            executed = jax.vmap(self.disturb)(keys, label)
            place_of = lambda action: jnp.argmax(actions[None] == action[:, None], axis=-1)
            thought = self.think(keys, state, label) * len(actions)
            said, meant = thought + place_of(executed), thought + place_of(label)
            turns = Turns(place.observation(self.policy), ids[said], valid[said], place.position, place.episode)
            agreed = jnp.cumprod(ids[said] == ids[meant], axis=-1).astype(bool)
            agreed = jnp.pad(agreed, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
            record = Lesson(state, turns, ids[meant], valid[meant] & agreed, grammar_states[meant])
            transition = lambda key, state, action: env.transition(key, state, action, env_params)
            after, _, terminated, truncated, _ = jax.vmap(transition)(keys, state, executed)
            is_done = terminated | truncated
            new_game = jnp.where(is_done, self.draw_games(key, len(game)), game)
            fresh = self.start_games(new_game, env_params)
            fresh = (fresh, jax.vmap(lambda s: player.start(self.policy.env, s))(fresh))
            pick = lambda new, old: jnp.where(is_done.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            state, memory = jax.tree.map(pick, fresh, (after, memory))
            return (state, place.after(self.policy, turns, is_done), memory, new_game), record

        old = pupil.session
        carry = (old.state, old.place, pupil.memory, pupil.game)
        (state, place, memory, game), lesson = jax.lax.scan(turn, carry, jax.random.split(key, self.num_turns))
        past = self.policy.window - 1
        last = lambda old, new: jnp.concatenate([old, new])[self.num_turns : self.num_turns + past]
        turns, states = jax.tree.map(last, (old.past, old.past_states), (lesson.turns, lesson.state))
        return lesson, pupil._replace(session=Session(state, old.level, place, turns, states), memory=memory, game=game)

    def think(self, keys: jax.Array, states: State, labels: jax.Array) -> jax.Array:
        """[B] int32: which thought comes before each label; the same before what is executed in its place."""
        thoughts = self.policy.env.thoughts()
        if not self.policy.thought_tokens or thoughts is None:
            return jnp.zeros_like(labels)
        return jax.vmap(thoughts.apt)(jax.vmap(lambda key: jax.random.fold_in(key, THOUGHT))(keys), states, labels)

    def disturb(self, key: jax.Array, label: jax.Array) -> jax.Array:
        """What is executed in place of a label: part of the game, so the same whenever the game is shown."""
        choice_key, action_key = jax.random.split(key)
        random = jax.random.choice(action_key, jnp.asarray(self.policy.env.actions(), jnp.int32))
        return jnp.where(jax.random.uniform(choice_key) < self.demonstrations.noise, random, label)

    def wordings(self) -> tuple[jax.Array, ...]:
        """(actions [A], ids [N, G], valid [N, G], grammar states [N, G]); N are the canonical answers.

        With thoughts they are those of the first thought, then those of the second, and so on.
        """
        env, thoughts = self.policy.env, self.policy.env.thoughts()
        before = [""]
        if self.policy.thought_tokens and thoughts is not None:
            before = [thinking.marked_text(text) for text in thoughts.texts]
        texts = [thought + env.answer_text(action) for thought in before for action in env.actions()]
        ids, valid = self.policy.chat.answer_table(texts)
        states = [jnp.zeros(len(ids), jnp.int32)]
        for column in range(ids.shape[1] - 1):
            states.append(self.policy.grammar_step(states[-1], jnp.asarray(ids[:, column])))
        actions = jnp.asarray(env.actions(), jnp.int32)
        return actions, jnp.asarray(ids), jnp.asarray(valid), jnp.where(valid, jnp.stack(states, axis=1), 0)

    def draw_games(self, key: jax.Array, count: int) -> jax.Array:
        number = jax.random.bits(key, (count,), jnp.uint32)
        return number % jnp.uint32(self.demonstrations.num_games) if self.demonstrations.num_games else number

    def start_games(self, games: jax.Array, env_params: EnvParams) -> State:
        """[B] first states."""
        return jax.vmap(lambda game: self.env.init(jax.random.fold_in(self.games_key, game), env_params))(games)
