"""GAE, KL estimators and VL-DAC on numbers worked by hand; the golden files cover the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlmrl.algorithms import groups
from jaxvlmrl.algorithms.algorithm import Steps
from jaxvlmrl.algorithms.gae import gae, normalise
from jaxvlmrl.algorithms.kl import k1, k2, k3
from jaxvlmrl.algorithms.vagen import VAGEN
from jaxvlmrl.algorithms.vl_dac import VLDAC
from jaxvlmrl.optimizer import Optimizer

TREATMENTS = {
    "bootstrap_final_obs": (0.8257, 1.34),
    "zero_at_truncation": (-0.32, 0.0),
    "ends_are_terminal": (0.364, 0.8),
}


@pytest.mark.parametrize("time_limits", TREATMENTS)
def test_three_treatments_of_a_time_limit(time_limits: str):
    """The sheet's example: delta_1 = 1 + 0.9 * 0.6 - 0.2 = 1.34, delta_0 = 0.9 * 0.2 - 0.5 = -0.32, lambda 0.95."""
    advantage = gae(
        jnp.array([0.0, 1.0]), jnp.array([0.5, 0.2, 0.4]), jnp.array([0.0, 0.6]), jnp.array([False, False]),
        jnp.array([False, True]), 0.9, 0.95, time_limits,
    )  # fmt: skip
    np.testing.assert_allclose(advantage, TREATMENTS[time_limits], atol=1e-4)


def test_equal_advantages_normalise_to_nothing():
    """Not to rounding noise divided by an epsilon."""
    assert not np.asarray(normalise(jnp.full((4, 3), 0.1))).any()
    np.testing.assert_allclose(normalise(jnp.array([1.0, 3.0])), [-(0.5**0.5), 0.5**0.5], rtol=1e-6)


def test_the_same_rewards_in_another_order_are_no_difference():
    """Lost games of ten turns, one of them costly: its place changes the sum in float32."""
    outcome = np.array([-0.30000001, -0.29999998] * 4, np.float32)
    assert np.ptp(outcome) > 0
    same = groups.alike(jnp.zeros(8, jnp.int32))
    assert not groups.varies(jnp.asarray(outcome), same).any()
    assert (groups.z_scores(jnp.asarray(outcome), same, eps=1e-6) == 0).all()


def test_kl_estimators_by_hand():
    """d = log ref - log new = 0.5: k1 = -0.5, k2 = 0.125, k3 = e^0.5 - 1.5 = 0.14872."""
    new, ref = jnp.array([-1.0]), jnp.array([-0.5])
    np.testing.assert_allclose([k1(new, ref)[0], k2(new, ref)[0], k3(new, ref)[0]], [-0.5, 0.125, 0.148721], rtol=1e-5)


def steps_of(advantage: list[float], valid: list[list[bool]]) -> Steps:
    mask = jnp.asarray(valid)
    nothing = jnp.zeros(mask.shape)
    count = jnp.zeros(len(advantage))
    return Steps(mask, nothing, nothing, jnp.asarray(advantage), count, count, jnp.ones(len(advantage), bool))


def test_worked_example_of_the_sheet():
    """Step 1: A = 1, ratios e^.2, e^.02, e^-.3, clip .1: -(1.1 + 1.0202 + 0.7408) / 3 = -0.95367; step 2: 0.52191."""
    log_prob = jnp.array([[0.2, 0.02, -0.3], [-0.3, 0.2, 0.01]])
    steps = steps_of([1.0, -0.5], [[True] * 3] * 2)
    loss = VLDAC(clip_eps=0.1).loss(log_prob, jnp.zeros((2, 3)), jnp.zeros(2), steps)
    assert float(loss.policy) == pytest.approx((-0.95367 + 0.52191) / 2, abs=1e-5)


def test_every_step_counts_alike_however_long_its_answer():
    """Steps of one and of three tokens, ratio e^0.1 everywhere: -(e^0.1 * 1 + e^0.1 * 2) / 2."""
    steps = steps_of([1.0, 2.0], [[True, False, False], [True, True, True]])
    loss = VLDAC(clip_eps=0.5).loss(jnp.full((2, 3), 0.1), jnp.zeros((2, 3)), jnp.zeros(2), steps)
    assert float(loss.policy) == pytest.approx(-1.5 * np.exp(0.1), rel=1e-6)


def test_padding_cannot_make_a_gradient_infinite():
    """exp of a padded token's log-ratio overflows: a mask after the fact would leave 0 * inf."""
    steps = steps_of([1.0], [[True, False]])._replace(old_log_prob=jnp.array([[-1.0, -1e30]]))
    total = lambda log_prob: VLDAC().loss(log_prob, jnp.zeros((1, 2)), jnp.zeros(1), steps).total
    gradient = jax.grad(total)(jnp.array([[-1.0, 5.0]]))
    assert np.isfinite(gradient).all()
    assert gradient[0, 1] == 0


@pytest.mark.parametrize(("advantages", "counted"), [("turn_wise", [0.0, 1.0, 0.0]), ("bi_level", [0.5, 0.5, 0.0])])
def test_a_token_without_a_target_of_its_own_teaches_vagens_critic_nothing(advantages: str, counted: list[float]):
    """A turn of two tokens, values 1 above their targets: the gradient of half a squared error's mean is 1 / count."""
    steps = steps_of([0.0], [[True, True, False]])._replace(old_value=jnp.ones((1, 3)), returns=jnp.zeros((1, 3)))
    gradient = jax.grad(VAGEN(advantages=advantages).value_loss)(jnp.ones((1, 3)), steps)
    np.testing.assert_allclose(gradient[0], counted)


def test_entropy_bonus_falls_along_the_run():
    steps = steps_of([0.0], [[True]])
    algorithm = VLDAC(entropy_coef=0.1, final_entropy_coef=0.02, kl_coef=0.0)
    total = lambda progress: float(
        algorithm.loss(jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.zeros(1), steps, progress=progress).total
    )
    assert [total(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([-0.1, -0.06, -0.02])


def test_learning_rate_rises_then_falls_over_updates():
    """4 updates of 2 steps, the first a warm-up: 0, 0.5, then from 1 down by a sixth a step."""
    optimizer = Optimizer(learning_rate=1.0, warmup_updates=1, max_grad_norm=1e9).make(4, 2)
    state, moved = optimizer.init(jnp.zeros(1)), []
    for _ in range(8):
        update, state = optimizer.update(jnp.ones(1), state)
        moved.append(-float(update[0]))
    np.testing.assert_allclose(moved, [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], atol=1e-4)
