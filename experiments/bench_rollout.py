"""A rollout of ten turns against a client that sends the whole conversation anew: `python experiments/bench_rollout.py`.

SmolVLM-256M's sizes with random weights, float32, a picture of 512 x 512 and --new tokens a turn, all turns in sight. Ours
reads each turn's picture and answer once and draws the pictures itself; transformers' `generate` is given the same
pictures and words, every turn the whole conversation so far. Needs torch and transformers (the extra `parity`) for that.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from envs_jax import GridWalker
from envs_jax.wrappers import AutoReset, Levels
from jaxvlmrl import rollout
from jaxvlmrl.models import weights
from jaxvlmrl.models.layers import Params
from jaxvlmrl.models.smolvlm import smolvlm_256m
from jaxvlmrl.policy import Policy
from jaxvlmrl.rollout import Trajectory
from jaxvlmrl.text.chat import Chat
from jaxvlmrl.text.tokenizer import Tokenizer

BATCHES = flags.DEFINE_list("batches", ["1"], "environments at a time")
TURNS = flags.DEFINE_integer("turns", 10, "of every environment", lower_bound=1)
NEW = flags.DEFINE_integer("new", 16, "tokens an answer", lower_bound=2)
REPEATS = flags.DEFINE_integer("repeats", 2, "rounds", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "where to write the figures")


def make_policy() -> Policy:
    env, model = GridWalker(height=512, width=512), smolvlm_256m()
    chat = Chat(Tokenizer("tiny"), "tiny", env.prompt, model.num_image_tokens, TURNS.value, NEW.value)
    return Policy(model, chat, env, window=TURNS.value, constrained=False, temperature=1.0)


def rollouts(policy: Policy, params: Params, batch: int):
    """A function that plays `batch` environments and returns what was said and seen."""
    env = AutoReset(policy.env, jnp.zeros((0, 2), jnp.uint32))
    levels = Levels.only(policy.env.default_params())
    session = rollout.begin(policy, env, levels, jax.random.key(0), batch)
    play = lambda params: rollout.play(policy, params, env, levels, session, jax.random.key(1), TURNS.value)[0]
    run = jax.jit(play).lower(params).compile()
    return lambda: jax.block_until_ready(run(params))


def conversation(policy: Policy, played: Trajectory, index: int, turn: int) -> list[int]:
    """Ids of everything before the answer of turn `turn` (counted from 0) of one environment."""
    ids = list(policy.chat.prefix_ids)
    for t in range(turn + 1):
        seen = jax.tree.map(lambda x, t=t: np.asarray(x[t, index]), played.turns)
        ids += seen.observation.ids[seen.observation.valid].tolist()
        ids += seen.answer_ids[seen.answer_valid].tolist() if t < turn else []
    return ids


class Client:
    """transformers, asked as a harness asks: with the whole conversation, every turn."""

    def __init__(self, policy: Policy, params: Params, folder: Path):
        import torch  # pyright: ignore[reportMissingImports]
        from transformers import AutoModelForImageTextToText  # pyright: ignore[reportMissingImports]

        chat = policy.chat
        if not (folder / "config.json").exists():
            ids = {"image_token_id": chat.image_id, "eos_token_id": chat.end_id, "pad_token_id": 0, "bos_token_id": 0}
            weights.export(policy.model, params, folder, ids)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.torch, self.policy = torch, policy
        self.network: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.network.generation_config.eos_token_id = None

    def play(self, played: Trajectory, images: np.ndarray) -> None:
        """The turns of a rollout [T, B, ...] whose pictures were images [T, B, h, w, 3]."""
        batch = images.shape[1]
        pixels = (images.astype(np.float32) / 255 - 0.5) / 0.5
        pixels = self.torch.tensor(pixels.transpose(1, 0, 4, 2, 3))
        for turn in range(len(images)):
            ids = self.torch.tensor([conversation(self.policy, played, index, turn) for index in range(batch)])
            with self.torch.no_grad():
                self.network.generate(
                    input_ids=ids, attention_mask=self.torch.ones_like(ids), pixel_values=pixels[:, : turn + 1],
                    max_new_tokens=NEW.value, do_sample=False,
                )  # fmt: skip


def seconds(run: Any) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(policy: Policy, params: Params, batch: int, client: Client | None) -> dict[str, float]:
    """Seconds and tokens per second of both, in turn, each the best of its rounds."""
    run = rollouts(policy, params, batch)
    played = run()
    images = np.asarray(jax.jit(lambda states: rollout.images(policy.env, states, lead=2))(played.state))
    runs = {"ours": run} | ({"client": lambda: client.play(played, images)} if client else {})
    rounds = [{name: seconds(once) for name, once in runs.items()} for _ in range(REPEATS.value)]
    best = {name: min(found[name] for found in rounds) for name in runs}
    tokens = int(played.turns.answer_valid.sum())
    row = {"environments": batch, "turns": TURNS.value, "tokens": tokens}
    row |= {f"{name}_s": round(found, 2) for name, found in best.items()}
    row |= {f"{name}_tokens_per_s": round(tokens / found, 2) for name, found in best.items()}
    return row | ({"ratio": round(best["client"] / best["ours"], 2)} if client else {})


def main(_: list[str]) -> None:
    policy = make_policy()
    params = jax.jit(policy.model.init)(jax.random.key(0))
    try:
        client = Client(policy, params, Path(".cache") / "smolvlm_256m_random")
    except ImportError:
        client = None
    rows = []
    for batch in [int(text) for text in BATCHES.value or []]:
        row = measure(policy, params, batch, client)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        rows.append(row)
    if JSON.value:
        Path(JSON.value).write_text(json.dumps({"device": str(jax.devices()[0]), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
