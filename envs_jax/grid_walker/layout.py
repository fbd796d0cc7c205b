"""Boards from seeds, bit for bit those of the browser game.

A seed is a text. Its 32-bit FNV-1a hash starts a mulberry32 generator, whose draws place the blocks and then the goal.
`hash_text` runs on the host and takes any text; `hash_number` runs under `jit` and takes the decimal text of a uint32.
Facts: reference sheet "Grid, layout, PRNG".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FNV_OFFSET = 2166136261
FNV_PRIME = 16777619
GOLDEN_GAMMA = 0x6D2B79F5  # mulberry32's increment
JS_SPACE = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))


class Layout(NamedTuple):
    """Where things stand. Cells are (x, z), x growing east and z growing south."""

    goal: jax.Array  # [2] int32
    blocks: jax.Array  # [max_blocks, 2] int32 in placement order; (-1, -1) where there is none
    next_draw: jax.Array  # uint32, the generator's state after placing


def hash_text(seed: str) -> int:
    """The generator's start for a seed text, as typed: trimmed, empty means '0', never 0."""
    text = seed.strip(JS_SPACE) or "0"
    units = text.encode("utf-16-le", "surrogatepass")
    value = FNV_OFFSET
    for low, high in zip(units[::2], units[1::2], strict=True):
        value = ((value ^ (low | high << 8)) * FNV_PRIME) & 0xFFFFFFFF
    return value or 1


def hash_number(number: jax.Array) -> jax.Array:
    """`hash_text(str(number))` for a uint32 scalar, under `jit`."""
    powers = jnp.asarray([10**k for k in range(9, -1, -1)], jnp.uint32)
    digits = (number.astype(jnp.uint32) // powers) % jnp.uint32(10)
    is_written = (number >= powers) | (powers == 1)  # no leading zeros, but '0' itself is one digit
    value = jnp.uint32(FNV_OFFSET)
    for digit, written in zip(digits, is_written, strict=True):
        value = jnp.where(written, (value ^ (digit + jnp.uint32(ord("0")))) * jnp.uint32(FNV_PRIME), value)
    return jnp.maximum(value, jnp.uint32(1))


def mulberry32(state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One draw of the game's generator: (next state, 32 random bits), both uint32."""
    state = state + jnp.uint32(GOLDEN_GAMMA)
    bits = (state ^ (state >> 15)) * (state | jnp.uint32(1))
    bits = bits ^ (bits + (bits ^ (bits >> 7)) * (bits | jnp.uint32(61)))
    return state, bits ^ (bits >> 14)


def draw_below(state: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(next state, floor(u * bound)) with u = bits / 2^32, exact for 0 < bound < 2^16."""
    state, bits = mulberry32(state)
    bound = bound.astype(jnp.uint32)
    low = (bits & 0xFFFF) * bound
    return state, (((bits >> 16) * bound + (low >> 16)) >> 16).astype(jnp.int32)


def max_blocks_on(size: jax.Array | int) -> jax.Array | int:
    """The game clamps the number of blocks to a quarter of the cells."""
    return size * size // 4


def draw_layout(seed_hash: jax.Array, size: jax.Array, num_blocks: jax.Array, max_blocks: int) -> Layout:
    """Places `num_blocks` blocks and the goal; a cell that is the start or taken is drawn again.

    One loop serves every block and the goal, so compile time does not depend on `max_blocks`.
    """
    num_blocks = jnp.clip(num_blocks, 0, jnp.minimum(max_blocks, max_blocks_on(size)))
    start = jnp.full((2,), size // 2, jnp.int32)
    slots = jnp.arange(max_blocks + 1)

    def place_one(carry):
        state, placed, cells = carry
        state, x = draw_below(state, size)
        state, z = draw_below(state, size)
        cell = jnp.stack([x, z])
        is_free = jnp.any(cell != start) & ~jnp.any(jnp.all(cells == cell[None], axis=-1))
        cells = jnp.where((slots == placed)[:, None] & is_free, cell[None], cells)
        return state, placed + is_free, cells

    nowhere = jnp.full((max_blocks + 1, 2), -1, jnp.int32)
    state, _, cells = jax.lax.while_loop(
        lambda carry: carry[1] <= num_blocks, place_one, (seed_hash.astype(jnp.uint32), jnp.int32(0), nowhere)
    )
    is_block = slots[:max_blocks] < num_blocks
    goal = jnp.sum(jnp.where((slots == num_blocks)[:, None], cells, 0), axis=0)
    return Layout(goal, jnp.where(is_block[:, None], cells[:max_blocks], -1), state)


def fingerprint(size: jax.Array, goal: jax.Array, blocks: jax.Array) -> jax.Array:
    """[2] uint32 that name a board whatever the order in which its blocks were placed.

    Two boards share one by chance with probability 2^-64; it serves to keep evaluation boards out of training.
    """
    cell_of = lambda c: (c[..., 0] * 1024 + c[..., 1]).astype(jnp.uint32)
    is_block = blocks[:, 0] >= 0

    def word(salt: int) -> jax.Array:
        mix = lambda v: mulberry32(mulberry32(v ^ jnp.uint32(salt))[1])[1]
        of_blocks = jnp.sum(jnp.where(is_block, mix(cell_of(blocks)), 0), dtype=jnp.uint32)
        return mix(mix(cell_of(goal) + jnp.uint32(1 << 20)) + of_blocks + size.astype(jnp.uint32))

    return jnp.stack([word(0x9E3779B9), word(0x85EBCA6B)])
