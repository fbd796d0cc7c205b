"""A corrector: in every state that was visited, the thought that a player who knows the board would have had.

Each picture is thought about alone, as the first turn of a conversation, where the original clones in mid-conversation: past
turns would have to be read again for every correction. Source: reference sheet "rl4vlm_archer_others", section 5.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs_jax.environment import State
from envs_jax.players import Player
from jaxvlmrl import packed, thinking
from jaxvlmrl.conversation import Place, Turns
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy


class Corrected(NamedTuple):
    """Thoughts as token slots, arrays [..., G]."""

    ids: jax.Array
    is_thought: jax.Array  # bool
    grammar_states: jax.Array


@dataclass(frozen=True, eq=False)
class Corrector:
    """`player` chooses what the thought is about; what it remembers starts anew in every state."""

    policy: Policy
    player: Player

    def correct(self, states: State, key: jax.Array) -> Corrected:
        """Of B states."""
        env = self.policy.env
        thoughts, table = thinking.known_thoughts(self.policy)

        def choose(state: State, key: jax.Array) -> jax.Array:
            act_key, word_key = jax.random.split(key)
            action, _ = self.player.act(env, act_key, state, self.player.start(env, state))
            return thoughts.apt(word_key, state, action)

        batch = jax.tree.leaves(states)[0].shape[0]
        ids = jnp.asarray(table)[jax.vmap(choose)(states, jax.random.split(key, batch))]
        is_thought = ids >= 0
        ids = jnp.maximum(ids, 0)
        walk = lambda state, token: (self.policy.grammar_step(state, token), state)
        grammar_states = jax.lax.scan(walk, jnp.zeros(batch, jnp.int32), ids.T)[1].T
        return Corrected(ids, is_thought, grammar_states)

    def log_probs(self, params: Params, corrected: Corrected, image_tokens: jax.Array) -> jax.Array:
        """[b, T, G] of corrections [b, T, G] to pictures with tokens [b, T, I, D]."""
        policy = self.policy
        flat = lambda x: x.reshape(-1, 1, *x.shape[2:])
        ids, is_thought, grammar_states = (flat(part) for part in corrected)
        place = Place.start(policy, len(ids))
        observation = jax.tree.map(lambda x: x[:, None], place.observation(policy))
        turns = Turns(observation, ids, is_thought, place.position[:, None], place.episode[:, None])
        passed = packed.forward(policy, params, turns, flat(image_tokens), policy.prefix(params))
        judged = policy.judge_tokens(params, passed.answer_hidden, ids, grammar_states)
        return judged.log_prob.reshape(corrected.ids.shape)
