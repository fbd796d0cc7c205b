"""The compiled programs of the server: a fixed number of rows, each a conversation with its cached keys and values.

A row's cache has C slots. The conversation's start lies in the first P of them and stays; the turns behind it go round:

    slot     0 ..... P-1 | P ................. C-1
    token    0 ..... P-1 | P P+1 ... and again from P on, over what is out of the window by then

Each slot knows the token's number and turn, so a query sees what came before it, the start, and the turns in its window:
what training's ring of turns shows it (jaxvlmrl/sampler.py), without that ring's padding. Every shape is fixed, the tokens
that a call reads included: nothing compiles again after `warm_up`. Which row holds which request is not known here.
"""

from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvlmrl.models.attention import KeyValue, attend_parts
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import FORBIDDEN, Policy, likeliest
from jaxvlmrl.sampler import first_maximum

NOTHING = -1  # the number of no token
START = 0  # the turn of the conversation's start, which is always in sight


class Sizes(NamedTuple):
    """Every static size."""

    rows: int  # B
    slots: int  # C
    chunk: int  # L, tokens read at once
    piece: int  # N, tokens drawn before the host looks
    pictures: int  # at most so many seen at once
    likeliest: int  # alternatives reported of each token, at most
    answer: int  # tokens of an answer, at most


class State(NamedTuple):
    """What stays on the device between calls."""

    kv: list[KeyValue]  # [B, K, C, H] by layer
    number: jax.Array  # [B, C] int32, of the token in each slot; NOTHING where there is none
    turn: jax.Array  # [B, C] int32, the token's
    hidden: jax.Array  # [B, D], predicts the next token
    grammar_state: jax.Array  # [B] int32


class Chunk(NamedTuple):
    """Tokens to read, padded on the left; host arrays."""

    ids: Any  # [B, L] int32
    is_image: Any  # [B, L] bool: `image_x` stands here and not the token's own embedding
    image_x: Any  # [B, L, E]
    positions: Any  # [B, L] or [B, L, 3] int32
    number: Any  # [B, L] int32; NOTHING for padding
    slot: Any  # [B, L] int32; C for padding, which is written nowhere
    turn: Any  # [B] int32
    begins_answer: Any  # [B] bool: the last token is the prompt's last


class Drawing(NamedTuple):
    """How the rows' next tokens are drawn; host arrays [B]."""

    budget: Any  # int32, tokens this row may still draw; 0 for a row that draws none
    number: Any  # int32, the next token's
    position: Any  # int32, the next token's
    turn: Any  # int32
    pinned: Any  # int32, P
    drawn: Any  # int32, tokens of the answer so far
    temperature: Any  # float32, 0 for the likeliest token
    top_p: Any  # float32
    seed: Any  # uint32
    wants_likeliest: Any  # bool


class Piece(NamedTuple):
    """Tokens drawn, [B, N, ...]."""

    ids: jax.Array  # int32
    valid: jax.Array  # bool
    log_prob: jax.Array  # float32, at temperature 1 and top-p 1
    top_ids: jax.Array  # [B, N, likeliest] int32
    top_log_probs: jax.Array  # the same; zeros unless a row wants them


class Programs:
    """A policy's parameters and what is compiled of it."""

    def __init__(self, policy: Policy, params: Params, sizes: Sizes, picture_shape: tuple[int, int]):
        self.policy, self.sizes, self.picture_shape = policy, sizes, picture_shape
        self._device = jax.devices()[0]  # said of all that goes in, or the second call would compile again
        self.params = jax.device_put(policy.model.unstacked(params), self._device)
        self._programs = {
            "empty": jax.jit(self._empty),
            "see": jax.jit(self._see),
            "place": jax.jit(self._place, donate_argnums=0),
            "read": jax.jit(self._read, donate_argnums=1),
            "draw": jax.jit(self._draw, donate_argnums=1),
            "fetch": jax.jit(self._fetch),
        }

    def compiled(self) -> dict[str, int]:
        """How often each program has been compiled."""
        return {name: program._cache_size() for name, program in self._programs.items()}  # pyright: ignore[reportAttributeAccessIssue]

    def empty(self) -> State:
        """Rows that hold nothing."""
        return jax.device_put(self._programs["empty"](), self._device)

    def _empty(self) -> State:
        text, sizes = self.policy.model.text, self.sizes
        zeros = lambda: jnp.zeros((sizes.rows, text.num_kv_heads, sizes.slots, text.head_dim), self.policy.model.dtype)
        nothing = lambda: jnp.full((sizes.rows, sizes.slots), NOTHING, jnp.int32)
        hidden = jnp.zeros((sizes.rows, text.width), self.policy.model.dtype)
        kv = [KeyValue(zeros(), zeros()) for _ in range(text.num_layers)]
        return State(kv, nothing(), nothing(), hidden, jnp.zeros(sizes.rows, jnp.int32))

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values."""
        text = self.policy.model.text
        return 2 * text.num_layers * text.num_kv_heads * text.head_dim * jnp.dtype(self.policy.model.dtype).itemsize

    @cached_property
    def image_width(self) -> int:
        """E, of an image token."""
        images = jax.ShapeDtypeStruct((1, *self.picture_shape, 3), jnp.uint8)
        return jax.eval_shape(self.policy.model.image_tokens, self.params, images).shape[-1]

    def no_tokens(self) -> np.ndarray:
        """Keys and values [layers, 2, K, 0, H]."""
        text = self.policy.model.text
        return np.zeros((text.num_layers, 2, text.num_kv_heads, 0, text.head_dim), jnp.dtype(self.policy.model.dtype))

    # What the scheduler calls

    def see(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        """Image tokens [I, E] of each picture [height, width, 3] uint8."""
        found: list[np.ndarray] = []
        for start in range(0, len(pictures), self.sizes.pictures):
            part = pictures[start : start + self.sizes.pictures]
            batch = np.zeros((self.sizes.pictures, *part[0].shape), np.uint8)
            batch[: len(part)] = part
            found += list(np.asarray(self._programs["see"](self.params, batch, np.int32(len(part)))))[: len(part)]
        return found

    def place(self, state: State, row: int, kv: np.ndarray, turn: np.ndarray) -> State:
        """The state with a conversation in a row: keys and values [layers, 2, K, n, H] and turns of its tokens."""
        count, slots = len(turn), self.sizes.slots
        whole = np.zeros((*kv.shape[:3], slots, kv.shape[-1]), kv.dtype)
        whole[..., :count, :] = kv
        number, turns = np.full((2, slots), NOTHING, np.int32)
        number[:count], turns[:count] = np.arange(count), turn
        return self._programs["place"](state, np.int32(row), whole, number, turns)

    def read(self, state: State, chunk: Chunk) -> State:
        return self._programs["read"](self.params, state, chunk)

    def draw(self, state: State, drawing: Drawing) -> tuple[State, Piece]:
        state, piece = self._programs["draw"](self.params, state, drawing)
        return state, jax.tree.map(np.asarray, piece)

    def fetch(self, state: State, row: int) -> np.ndarray:
        """Keys and values [layers, 2, K, C, H] of a row."""
        return np.asarray(self._programs["fetch"](state.kv, np.int32(row)))

    # What is compiled

    def _see(self, params: Params, images: jax.Array, count: jax.Array) -> jax.Array:
        """One picture after the other and no more than there are: a tower's work grows with them, padding costs none."""
        model = self.policy.model
        shape = jax.eval_shape(model.image_tokens, params, images)

        def look(index: jax.Array, found: jax.Array) -> jax.Array:
            one = jax.lax.dynamic_slice_in_dim(images, index, 1)
            return jax.lax.dynamic_update_slice_in_dim(found, model.image_tokens(params, one), index, axis=0)

        return jax.lax.fori_loop(0, count, look, jnp.zeros(shape.shape, shape.dtype))

    def _place(self, state: State, row: jax.Array, kv: jax.Array, number: jax.Array, turn: jax.Array) -> State:
        put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new[None].astype(old.dtype), row, axis=0)
        layers = [KeyValue(put(old.keys, new[0]), put(old.values, new[1])) for old, new in zip(state.kv, kv)]
        return state._replace(kv=layers, number=put(state.number, number), turn=put(state.turn, turn))

    def _fetch(self, kv: list[KeyValue], row: jax.Array) -> jax.Array:
        take = lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1)[0]
        return jnp.stack([jnp.stack([take(layer.keys), take(layer.values)]) for layer in kv])

    def _read(self, params: Params, state: State, chunk: Chunk) -> State:
        model = self.policy.model
        text = model.embed(params, chunk.ids)
        x = jnp.where(chunk.is_image[..., None], jnp.asarray(chunk.image_x).astype(text.dtype), text)
        hidden, state = self._decode(params, state, x, chunk.positions, chunk.number, chunk.slot, chunk.turn)
        begins = jnp.asarray(chunk.begins_answer)
        return state._replace(
            hidden=jnp.where(begins[:, None], hidden, state.hidden),
            grammar_state=jnp.where(begins, 0, state.grammar_state),
        )

    def _decode(
        self, params: Params, state: State, x: jax.Array, positions: jax.Array, number: jax.Array, slot: jax.Array,
        turn: jax.Array,
    ) -> tuple[jax.Array, State]:  # fmt: skip
        """(hidden [B, D] at the last of the tokens [B, L], the state that holds them)."""
        row = jnp.broadcast_to(jnp.arange(len(slot))[:, None], slot.shape)
        put = lambda old, new: old.at[row, slot].set(new.astype(old.dtype), mode="drop")
        numbers, turns = put(state.number, number), put(state.turn, jnp.broadcast_to(turn[:, None], slot.shape))
        is_near = (turns == START) | (turns > turn[:, None] - self.policy.window)
        seen = (numbers[:, None, :] <= number[:, :, None]) & ((numbers != NOTHING) & is_near)[:, None, :]

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: KeyValue):
            write = lambda old, new: old.at[row, :, slot].set(new.astype(old.dtype), mode="drop")
            cache = KeyValue(write(cache.keys, k), write(cache.values, v))
            return attend_parts(q, [(cache, seen[:, -q.shape[1] :])]), cache

        last = lambda x: x[:, -1:]
        hidden, kv = self.policy.model.decode(params, x, positions, state.kv, attend, last)
        return hidden[:, 0], state._replace(kv=kv, number=numbers, turn=turns)

    def _draw(self, params: Params, state: State, drawing: Drawing) -> tuple[State, Piece]:
        rows, length, top = self.sizes.rows, self.sizes.piece, self.sizes.likeliest
        drawing = jax.tree.map(jnp.asarray, drawing)
        ids = jnp.zeros((rows, length), jnp.int32)
        tops = jnp.zeros((rows, length, top), jnp.int32)
        log_prob, top_log_probs = ids.astype(jnp.float32), tops.astype(jnp.float32)
        piece = Piece(ids, ids.astype(bool), log_prob, tops, top_log_probs)
        wants_any = jnp.any(drawing.wants_likeliest & (drawing.budget > 0))

        def step(carry: tuple[jax.Array, jax.Array, State, Piece]):
            index, is_over, state, piece = carry
            ids, log_prob, best = self._next(params, state, drawing, index, wants_any)
            put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
                old, new[:, None].astype(old.dtype), index, axis=1
            )
            piece = jax.tree.map(put, piece, Piece(ids, ~is_over, log_prob, *best))
            state = self._feed(params, state, drawing, index, ids, is_over)
            return index + 1, is_over | (ids == self.policy.chat.end_id) | (index + 1 >= drawing.budget), state, piece

        going_on = lambda carry: (carry[0] < length) & ~jnp.all(carry[1])
        _, _, state, piece = jax.lax.while_loop(
            going_on, step, (jnp.int32(0), jnp.asarray(drawing.budget) <= 0, state, piece)
        )
        return state, piece

    def _next(
        self, params: Params, state: State, drawing: Drawing, index: jax.Array, wants_any: jax.Array
    ) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
        """(ids [B], their log-probs, the likeliest tokens and theirs) of the next tokens."""
        log_probs = self.policy.next_token(params, state.hidden, state.grammar_state).log_probs
        is_greedy = drawing.temperature <= 0
        tempered = log_probs / jnp.where(is_greedy, 1.0, drawing.temperature)[:, None]
        top_p = drawing.top_p[:, None]
        is_in = lambda: (top_p >= 1) | likeliest(tempered, 0, top_p)  # pyright: ignore[reportArgumentType]
        nucleus = lambda: jnp.where(is_in(), tempered, FORBIDDEN)  # rounding may leave a row at 1 without its tail
        tempered = jax.lax.cond(jnp.any((drawing.top_p < 1) & ~is_greedy), nucleus, lambda: tempered)
        key_of = lambda seed, drawn: jax.random.fold_in(jax.random.key(seed), drawn)
        keys = jax.vmap(key_of)(drawing.seed, drawing.drawn + index)
        noise = lambda: jax.vmap(lambda key: jax.random.gumbel(key, log_probs.shape[1:]))(keys)
        noise = jax.lax.cond(jnp.all(is_greedy), lambda: jnp.zeros_like(log_probs), noise)
        ids = first_maximum(jnp.where(is_greedy[:, None], log_probs, tempered + noise))
        find = lambda: tuple(reversed(jax.lax.top_k(log_probs, self.sizes.likeliest)))
        nothing = lambda: (
            jnp.zeros((len(ids), self.sizes.likeliest), jnp.int32),
            jnp.zeros((len(ids), self.sizes.likeliest)),
        )
        best = jax.lax.cond(wants_any, find, nothing)
        return ids, jnp.take_along_axis(log_probs, ids[:, None], axis=-1)[:, 0], best

    def _feed(
        self, params: Params, state: State, drawing: Drawing, index: jax.Array, ids: jax.Array, is_over: jax.Array
    ) -> State:
        """The state after the rows that are not over have read what they drew."""
        slots, pinned = self.sizes.slots, drawing.pinned
        number = drawing.number + index
        slot = jnp.where(number < pinned, number, pinned + (number - pinned) % jnp.maximum(slots - pinned, 1))
        slot, number = jnp.where(is_over, slots, slot)[:, None], number[:, None]
        position = (drawing.position + index)[:, None]
        x = self.policy.model.embed(params, ids)[:, None]
        hidden, fed = self._decode(params, state, x, position, number, slot, drawing.turn)
        grammar_state = self.policy.grammar_step(state.grammar_state, ids)
        return fed._replace(
            hidden=jnp.where(is_over[:, None], state.hidden, hidden),
            grammar_state=jnp.where(is_over, state.grammar_state, grammar_state),
        )


def slot_of(number: np.ndarray, pinned: int, slots: int) -> np.ndarray:
    """Where tokens of these numbers lie in a row's cache."""
    return np.where(number < pinned, number, pinned + (number - pinned) % max(slots - pinned, 1))
