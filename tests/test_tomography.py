"""What is drawn as attention is the attention the sampler used, and goals are where pictures differ."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from envs_jax import GridWalker
from jaxvlmrl import acting, tomography
from jaxvlmrl.config import ConfigError
from jaxvlmrl.models.attention import HIDDEN, KeyValue, attend_parts, attention_weights

SHIPPED = Path(__file__).parent.parent / "experiments" / "quickstart"


def test_weights_are_those_of_the_attention():
    """Two parts of keys, grouped heads, a mask: values weighted by them are what attend_parts gives."""
    keys = jax.random.split(jax.random.key(0), 5)
    q = jax.random.normal(keys[0], (2, 3, 4, 8))
    parts = []
    for key, size in zip(keys[1:3], (5, 3), strict=True):
        kv = KeyValue(*jax.random.normal(key, (2, 2, 2, size, 8)))
        parts.append((kv, jax.random.bernoulli(keys[3], 0.7, (2, 3, size)).at[..., 0].set(True)))
    weights = attention_weights(q, parts)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-5)
    values = jnp.concatenate([kv.values for kv, _ in parts], axis=-2)
    out = jnp.einsum("bkgqs,bksh->bqkgh", weights, values).reshape(q.shape)
    np.testing.assert_allclose(out, attend_parts(q, parts), rtol=1e-4, atol=1e-6)
    hidden = jnp.concatenate([mask for _, mask in parts], axis=-1)
    assert float(jnp.max(jnp.where(hidden[:, None, None], 0.0, weights))) == 0.0, HIDDEN


def test_a_goal_is_where_the_picture_differs_without_it():
    env = GridWalker()
    state = env.init_from_number(jnp.uint32(3), env.default_params())
    in_front = state.replace(cell=jnp.array([4, 6]), goal=jnp.array([4, 4]), blocks=-jnp.ones_like(state.blocks))
    shows = lambda state: tomography.differs(env.observe(state)["image"], env.observe(env.without_goal(state))["image"])
    assert 0 < int(shows(in_front).sum()) < 200
    assert int(shows(in_front.replace(goal=jnp.array([0, 7]))).sum()) == 0, "behind"


def test_a_policy_that_looks_is_seen_to_look(tmp_path: Path, capsys: pytest.CaptureFixture):
    target = tmp_path / "look.png"
    command = ["tomography", f"--checkpoint={SHIPPED}", "--seed=0", f"--to={target}", "--sight=32"]
    assert tomography.main(command) == 0
    assert Image.open(target).width > 500
    said = dict(line.rsplit(": ", 1) for line in capsys.readouterr().out.splitlines()[1:])
    share = lambda name: float(said[name].rstrip("%"))
    assert share("attention on its tokens") > share("chance")
    assert share("another answer without it") > 20 > share("another answer where nothing was taken out")


def test_all_attention_of_a_turn_adds_up():
    actor = acting.load_policy(SHIPPED)
    watched = tomography.watch(actor, np.arange(2), queries="all")
    assert (watched.on_image >= 0).all()
    assert (watched.on_image.sum(axis=-1) <= 1 + 1e-5).all()
    with pytest.raises(ConfigError, match="outside 0"):
        tomography.main(["tomography", f"--checkpoint={SHIPPED}", "--layer=9"])
