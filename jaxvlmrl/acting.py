"""A trained policy as somebody else's code wants it: a picture in, a written answer out.

policy = load_policy("runs/quickstart-0")
conversation = policy.start()
answer, conversation = policy.act(image, conversation)      # answer.text == "`forward 3`", answer.action == 5
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvlmrl import runs
from jaxvlmrl.building import image_shape, make_policy, whole_params
from jaxvlmrl.config import Config
from jaxvlmrl.conversation import Place, Ring
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy
from jaxvlmrl.sampler import take_turn


class Conversation(NamedTuple):
    """What was said and seen so far; never changed, each `act` returns a longer one."""

    place: Place
    ring: Ring
    turn: jax.Array  # int32


class Answer(NamedTuple):
    """One reply."""

    text: str
    action: int  # of the environment, UNPARSABLE if the text holds none
    log_prob: float  # of the whole text


class Actor:
    """A policy with its parameters, for one conversation at a time."""

    def __init__(self, config: Config, policy: Policy, params: Params):
        self.config, self.policy, self.params = config, policy, params
        self._take_turn = jax.jit(self._answer)

    def start(self) -> Conversation:
        """A conversation in which nothing has been said."""
        return Conversation(Place.start(self.policy, 1), Ring.empty(self.policy, 1), jnp.int32(0))

    def act(
        self, image: np.ndarray, conversation: Conversation, key: jax.Array | None = None
    ) -> tuple[Answer, Conversation]:
        """The reply to a picture [height, width, 3] uint8, greedy without a key, and the conversation after it.

        Raises ValueError for a picture of another shape or type.
        """
        shape = (*image_shape(self.config), 3)
        if np.shape(image) != shape or np.asarray(image).dtype != np.uint8:
            found = f"{np.shape(image)} {np.asarray(image).dtype}"
            raise ValueError(f"the policy looks at uint8 pictures of shape {shape}, not {found}")
        greedy, key = key is None, jax.random.key(0) if key is None else key
        ids, valid, log_prob, action, conversation = self._take_turn(self.params, image, conversation, key, greedy)
        text = self.policy.chat.tokenizer.decode(np.asarray(ids)[np.asarray(valid)].tolist())
        return Answer(text, int(action), float(log_prob)), conversation

    def _answer(self, params: Params, image: jax.Array, at: Conversation, key: jax.Array, greedy: jax.Array):
        policy = self.policy
        image_tokens = policy.model.image_tokens(params, image[None])
        prefix = policy.prefix(params)
        answer, turns, kv = take_turn(
            policy, policy.model.unstacked(params), at.ring, prefix, at.place, image_tokens, key, greedy
        )
        ring = at.ring.write(at.turn, kv, turns.valid)
        place = at.place.after(policy, turns, jnp.zeros(1, bool))
        action = policy.read(answer.ids, answer.valid)[0]
        after = Conversation(place, ring, at.turn + 1)
        return answer.ids[0], answer.valid[0], jnp.sum(answer.log_probs), action, after


def load_policy(folder: str | Path) -> Actor:
    """The best policy of a run directory. Raises `ConfigError`, in one sentence, where there is none."""
    folder = Path(folder)
    config = runs.read_config(folder)
    return Actor(config, make_policy(config), whole_params(folder))
