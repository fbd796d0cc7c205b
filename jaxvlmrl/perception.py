"""Perception: questions about single pictures with answers from the environment's state, as lessons and as a probe.

A question is a conversation of its own: its text stands where the rules stand, one picture follows, and the answer is
one of a closed set. All questions are asked of every picture, which is looked at once. Source: reference sheet
"odysseus", section 5; labels are facts here, where the paper's come from a larger model.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from envs_jax.environment import Params as EnvParams
from envs_jax.environment import Question, State
from envs_jax.wrappers import AutoReset
from jaxvlmrl import packed, rollout
from jaxvlmrl.adapters import joined, with_dropout
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.conversation import Place, Turns
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy

MOST_STEPS = 8  # random commands before a picture is taken


class Viewer(NamedTuple):
    """Everything a perception update changes."""

    policy: Params  # what of it is trained
    optimizer: Any


class Asked(NamedTuple):
    """A question in the policy's words."""

    question: Question
    policy: Policy
    answer_ids: np.ndarray  # [answers, G]
    answer_valid: np.ndarray  # [answers, G]


@dataclass(frozen=True, eq=False)
class Perception:
    """Supervised learning of what can be seen."""

    policy: Policy
    env: AutoReset
    optimizer: optax.GradientTransformation
    num_frames: int  # an update
    minibatches: int
    dropout: float = 0.0  # of what adapters read

    @cached_property
    def asked(self) -> list[Asked]:
        return [ask(self.policy, question) for question in self.policy.env.questions()]

    def init(self, params: Params) -> Viewer:
        return Viewer(params, self.optimizer.init(params))

    def step(
        self, viewer: Viewer, frozen: Params, env_params: EnvParams, key: jax.Array
    ) -> tuple[Viewer, dict[str, jax.Array]]:
        """One update: fresh pictures of boards that are not held out, each minibatch learned from once."""
        frame_key, drop_key = jax.random.split(key)
        states = jax.vmap(lambda key: self.frame(key, env_params))(jax.random.split(frame_key, self.num_frames))
        parts = jax.tree.map(lambda x: x.reshape(self.minibatches, -1, *x.shape[1:]), states)

        def minibatch(viewer: Viewer, part: tuple[State, jax.Array]) -> tuple[Viewer, dict[str, jax.Array]]:
            grads, metrics = jax.grad(self.loss, has_aux=True)(viewer.policy, frozen, *part)
            updates, optimizer = self.optimizer.update(grads, viewer.optimizer, viewer.policy)
            metrics["policy/grad_norm"] = optax.global_norm(grads)
            return Viewer(optax.apply_updates(viewer.policy, updates), optimizer), metrics

        viewer, metrics = jax.lax.scan(minibatch, viewer, (parts, jax.random.split(drop_key, self.minibatches)))
        return viewer, jax.tree.map(jnp.mean, metrics)

    def frame(self, key: jax.Array, env_params: EnvParams) -> State:
        """A state on a random walk from the start of an episode."""
        start_key, walk_key = jax.random.split(key)
        return wander(self.policy, self.env.init(start_key, env_params), walk_key, env_params)

    def loss(
        self, trained: Params, frozen: Params, states: State, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the answers' tokens, all questions alike, and how many answers are right."""
        params = joined(trained, frozen)
        if self.dropout:
            params = with_dropout(params, self.dropout, key)
        losses, rights = self.answer(params, states)
        loss = jnp.mean(jnp.stack(list(losses.values())))
        shares = {f"perception/{name}": jnp.mean(right.astype(jnp.float32)) for name, right in rights.items()}
        return loss, {"perception/loss": loss} | shares

    def answer(self, params: Params, states: State) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """By question: the loss, and whether greedy decoding gives the true answer [B]."""
        image_tokens = rollout.look(self.policy, params, self.env.env, states, lead=1)
        losses, rights = {}, {}
        for question, policy, answer_ids, answer_valid in self.asked:
            label = jax.vmap(question.answer)(states)
            ids, valid = jnp.asarray(answer_ids)[label], jnp.asarray(answer_valid)[label]
            place = Place.start(policy, len(label))
            turns = Turns(place.observation(policy), ids, valid, place.position, place.episode)
            turns, pictures = jax.tree.map(lambda x: x[:, None], (turns, image_tokens))
            hidden = packed.forward(policy, params, turns, pictures, policy.prefix(params)).answer_hidden[:, 0]
            judged = policy.judge_tokens(params, hidden, ids, jnp.zeros_like(ids))
            losses[question.name] = -masked_mean(judged.log_prob, valid)
            rights[question.name] = jnp.all(judged.is_likeliest | ~valid, axis=-1)
        return losses, rights

    def probe(self, params: Params, env_params: EnvParams, seeds: jax.Array) -> dict[str, jax.Array]:
        """Accuracy by question on random walks from the episodes `seeds` [N], and that of the commonest answer."""
        keys = jax.vmap(jax.random.key)(seeds)
        starts = jax.vmap(lambda seed: self.policy.env.init_from_number(seed, env_params))(seeds)
        states = jax.vmap(lambda state, key: wander(self.policy, state, key, env_params))(starts, keys)
        _, rights = self.answer(params, states)
        found = {f"perception/{name}": jnp.mean(right.astype(jnp.float32)) for name, right in rights.items()}
        for question, *_ in self.asked:
            label = jax.nn.one_hot(jax.vmap(question.answer)(states), len(question.answers))
            found[f"commonest_answer/{question.name}"] = jnp.max(jnp.mean(label, axis=0))
        return found


def ask(policy: Policy, question: Question) -> Asked:
    """The question put as the policy's chat puts the rules."""
    chat = policy.chat
    written = [chat.tokenizer.encode(chat.template.answer.format(answer=text)) for text in question.answers]
    budget = max(len(ids) for ids in written) + 1
    chat = dataclasses.replace(chat, prompt=question.text, max_turns=1, max_answer_tokens=budget)
    ids, valid = chat.answer_table(list(question.answers))
    alone = dataclasses.replace(policy, chat=chat, window=1, constrained=False)
    return Asked(question, alone, ids, valid)


def wander(policy: Policy, state: State, key: jax.Array, env_params: EnvParams) -> State:
    """The state after fewer than `MOST_STEPS` random commands; it ends with the episode."""
    actions = jnp.asarray(policy.env.actions(), jnp.int32)
    count_key, walk_key = jax.random.split(key)
    count = jax.random.randint(count_key, (), 0, MOST_STEPS)

    def step(carry: tuple[State, jax.Array], xs: tuple[jax.Array, jax.Array]):
        state, is_over = carry
        index, key = xs
        action_key, env_key = jax.random.split(key)
        action = jax.random.choice(action_key, actions)
        after, _, terminated, truncated, _ = policy.env.transition(env_key, state, action, env_params)
        stays = is_over | (index >= count)
        state = jax.tree.map(lambda new, old: jnp.where(stays, old, new), after, state)
        return (state, is_over | terminated | truncated), None

    steps = (jnp.arange(MOST_STEPS), jax.random.split(walk_key, MOST_STEPS))
    return jax.lax.scan(step, (state, jnp.bool_(False)), steps)[0][0]
